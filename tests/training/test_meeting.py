"""Nodes that do not come: it is said whom the others wait for, and not for ever."""

import socket

import pytest

from rwkv.errors import LOST
from rwkv.training import meeting
from tests.conftest import tiny, write_text
from tests.training import forked
from tests.training.forked import free_port


def trained(overrides: list[str]) -> int:
    meeting.QUIET = 0.2
    return forked.train(overrides)


@pytest.fixture
def started(tmp_path):
    """Starts these nodes' only processes; gives their exit codes and what they say."""

    def go(*nodes: int, port: int | None = None, **env: str) -> tuple[list[int | None], list[str]]:
        text = write_text(tmp_path / "text.txt")
        args = tiny("data=text", f"data.path={text}", f"out={tmp_path / 'out'}", "layout.rows=3", "strategy=ddp", "strategy.nodes=3")
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or free_port()), "LOCAL_RANK": "0"}
        logs = [tmp_path / f"log-{i}" for i in range(len(nodes))]
        each = zip(nodes, logs, strict=True)
        processes = [forked.start(trained, [*args, "strategy.start_timeout=2"], log=log, env={**here, "NODE_RANK": str(node), **env}) for node, log in each]
        return forked.codes(processes), [log.read_text() for log in logs]

    return go


def test_a_node_that_never_comes(started):
    """The first says whom it waits for; each node that is there, who has not come."""
    codes, (first, second) = started(0, 1)
    assert codes == [LOST, LOST] and "Traceback" not in first + second
    assert first.startswith("waiting for rank 2 of node 2 at 127.0.0.1:") and "waiting" not in second
    assert all("error: rank 2 of node 2 did not come to 127.0.0.1:" in said and "within 2 s (strategy.start_timeout)" in said for said in (first, second))


def test_the_first_node_never_comes(started):
    codes, (said,) = started(1)
    assert codes == [LOST] and "Traceback" not in said
    assert said.startswith("waiting for rank 0 of node 0 at 127.0.0.1:") and "error: rank 0 of node 0 did not come to" in said


def test_two_nodes_of_the_same_number(started):
    codes, said = started(0, 1, 1)
    assert sorted(codes) == [2, LOST, LOST]
    assert "error: there are two processes of rank 1: each node has its own NODE_RANK, this one 1" in said[1] + said[2]


def test_a_number_that_no_node_has(started):
    codes, (said,) = started(3)
    assert codes == [2] and "error: NODE_RANK=3: there are strategy.nodes=3, counted from 0" in said


@pytest.mark.parametrize("node", [0, 1])
def test_the_port_is_another_programs(node, started):
    """That listens, and never says anything."""
    with socket.create_server(("", 0)) as other:
        codes, (said,) = started(node, port=(port := other.getsockname()[1]))
    wanted = {0: (2, f"error: MASTER_PORT={port}: no port that"), 1: (LOST, f"error: what listens at 127.0.0.1:{port} is not rank 0 of this run")}
    assert codes == [wanted[node][0]] and wanted[node][1] in said and "Traceback" not in said


def test_several_nodes_need_an_address(started):
    codes, (said,) = started(0, MASTER_ADDR="")
    assert codes == [2] and said.startswith("error: strategy.nodes=3: MASTER_ADDR not set in the environment: start the same command on every node with")


def test_torchruns_number_of_processes(started):
    codes, (said,) = started(0, TORCHELASTIC_RUN_ID="none", WORLD_SIZE="4")
    assert codes == [2] and said.startswith("error: strategy.devices=1 x strategy.nodes=3, and torchrun has started 4 processes: set these to")
