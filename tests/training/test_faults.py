"""A lost rank ends the others soon, and leaves no process behind; signals that come twice, or while saving, leave one sound checkpoint."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from rwkv.checkpoint import store
from rwkv.checkpoint.run import RunFolder
from rwkv.config.compose import load
from tests.conftest import tiny, write_text
from tests.training.test_resume import start, wait_for_step


def children(pid: int) -> list[int]:
    """Processes that this one has started, and those that they have."""
    found = [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]
    return [*found, *(c for p in found for c in children(p))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def settings(folder: Path, *changes: str) -> list[str]:
    text = write_text(folder / "text.txt", 60_000)
    return tiny("data=text", f"data.path={text}", f"out={folder / 'out'}", "trainer.tokens=40k", *changes)


def a_killed_rank_ends_the_others(folder: Path, lost: str) -> None:
    """Within 60 s every process that the run has started is gone, and the exit code is not 0; its checkpoints are sound."""
    args = settings(folder, "strategy=ddp", "strategy.devices=2", "checkpoint.every=3")
    run = RunFolder.of(load(args))
    process = start(args, folder)
    wait_for_step(run.path, 8, process)
    family = [process.pid, *children(process.pid)]
    assert len(family) >= 2
    os.kill(process.pid if lost == "first" else family[1], signal.SIGKILL)
    try:
        process.communicate(timeout=60)
        assert process.returncode != 0
        until = time.monotonic() + 60
        while any(map(alive, family)) and time.monotonic() < until:
            time.sleep(0.05)
        assert [p for p in family if alive(p)] == []
    finally:
        for pid in filter(alive, family):
            os.kill(pid, signal.SIGKILL)
    points = store.points(run.checkpoints)
    assert points and all(not list(store.problems(p)) for p in points)


def signals_leave_a_sound_checkpoint(folder: Path, signals: list[signal.Signals], pick: random.Random) -> None:
    """A run that saves after every step gets these, one shortly after the other: it ends within 60 s, with the last one's code;
    what is there afterwards is sound, and the same command goes on."""
    args = settings(folder, "checkpoint.every=1")
    run = RunFolder.of(load(args))
    process = start(args, folder)
    wait_for_step(run.path, pick.randint(1, 12), process)
    for number in signals:
        process.send_signal(number)
        time.sleep(pick.random() * 0.05)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signals[-1]
    points = store.points(run.checkpoints)
    assert points and all(not list(store.problems(p)) for p in points)
    assert not list(run.checkpoints.glob(".*"))
    again = start(args, folder)
    assert any(line.startswith("resumed from step-") for line in again.stdout)
    again.kill()
    again.communicate()


@pytest.mark.parametrize("lost", ["first", "other"])
def test_a_killed_rank_ends_the_others(lost, tmp_path):
    a_killed_rank_ends_the_others(tmp_path, lost)


@pytest.mark.parametrize("signals", [[signal.SIGTERM] * 2, [signal.SIGINT]], ids=["SIGTERM twice", "SIGINT"])
def test_signals_twice_and_during_a_save(signals, tmp_path):
    signals_leave_a_sound_checkpoint(tmp_path, signals, random.Random(len(signals)))
