"""Where the ranks of a run meet before their group is made: who has not come is said, and not waited for longer than strategy.start_timeout.

PyTorch's own way into a group is half an hour of silence, then a traceback without names.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import groupby

import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy
from typing_extensions import override

from rwkv.errors import LOST, ConfigError, RankLostError

QUIET = 5.0  # seconds of waiting of which nothing is said
POLL = 0.1  # seconds between two looks at who has come
NEEDED = "MASTER_ADDR", "MASTER_PORT", "NODE_RANK"  # where nobody but the user can say it


class Meeting(DDPStrategy):
    """Lightning's strategy, whose ranks meet first. seconds: how long they wait for each other."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def check(self) -> None:
        """Raises ConfigError if other nodes could not know where to come to: before they are launched."""
        unset = [name for name in NEEDED if not os.environ.get(name)]
        if self.num_nodes > 1 and isinstance(self.cluster_environment, LightningEnvironment) and unset:
            raise ConfigError(
                f"strategy.nodes={self.num_nodes}: {', '.join(unset)} not set in the environment: start the same command on every node with "
                f"MASTER_ADDR and MASTER_PORT, an address of the first node and a free port there, and NODE_RANK from 0 to {self.num_nodes - 1}; "
                "or by torchrun or Slurm, which set them"
            )

    @override
    def setup_environment(self) -> None:
        self._store = self._meet()  # held: the group's own store is served by the same
        super().setup_environment()

    def _meet(self) -> dist.Store:
        """The store that all ranks have come to.

        Raises:
            ConfigError: it cannot be one.
            RankLostError: some have not come. Of each node the first rank says so, the others end with the same code.
        """
        self.where = self.cluster_environment.main_address, self.cluster_environment.main_port
        self.rank, self.world = self.node_rank * self.num_processes + self.local_rank, self.num_nodes * self.num_processes
        self.until, self.told = time.monotonic() + self.seconds, time.monotonic() + QUIET
        if self.node_rank >= self.num_nodes:
            raise ConfigError(f"NODE_RANK={self.node_rank}: there are strategy.nodes={self.num_nodes}, counted from 0")
        serving = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # torchrun serves it itself
        if not serving and (late := self._wait(self._answered, lambda: [0])):
            raise self._lost(late)
        stuck = threading.Timer(self.seconds + QUIET, self._stuck)  # it has no patience of its own with a server that says nothing
        stuck.daemon = True
        stuck.start()
        try:
            served = dist.TCPStore(*self.where, self.world, serving, timedelta(seconds=self.seconds), wait_for_workers=False, multi_tenant=True)
            stuck.cancel()
            store = dist.PrefixStore(f"rwkv-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", served)
            late = self._call(store)
        except dist.DistError as error:
            if not serving:
                raise self._lost(f"rank 0, at {self._address}, has ended meanwhile, or what listens there is none of this run") from error
            raise ConfigError(f"MASTER_PORT={self.where[1]}: no port that this process can listen on, perhaps in use; set another, on every node") from error
        if late:
            raise self._lost(late)
        return store

    def _call(self, store: dist.Store) -> str:
        """All ranks' names are called, and the first alone judges, that all go the same way. Returns who has not come, in words."""
        if store.add(f"rank {self.rank}", 1) > 1:
            raise ConfigError(f"there are two processes of rank {self.rank}: each node has its own NODE_RANK, this one {self.node_rank}")
        store.add("come", 1)
        if self.rank == 0:
            late = self._wait(lambda: store.add("come", 0) == self.world, lambda: [r for r in range(self.world) if not store.check([f"rank {r}"])])
            store.set("late", late)
            time.sleep(10 * POLL if late else 0)  # in which the others hear of it, before the store is gone
            return late
        while not store.check(["late"]):
            time.sleep(POLL)
        return store.get("late").decode()

    def _stuck(self) -> None:
        _say(f"error: what listens at {self._address} is not rank 0 of this run, or is stopped: is MASTER_PORT another program's?")
        os._exit(LOST)

    @property
    def _address(self) -> str:
        return f"{self.where[0]}:{self.where[1]}"

    def _answered(self) -> bool:
        try:
            socket.create_connection(self.where, timeout=QUIET).close()
        except OSError:
            return False
        return True

    def _wait(self, met: Callable[[], bool], missing: Callable[[], list[int]]) -> str:
        """Until `met`, but not for ever. Returns who is missing then, in words."""
        while not met():
            if time.monotonic() > self.told:
                self.told = float("inf")
                if self.local_rank == 0:
                    _say(f"waiting for {self._named(missing())} at {self._address}, {self.seconds:g} s at most (strategy.start_timeout)")
            if time.monotonic() > self.until:
                return (
                    f"{self._named(missing())} did not come to {self._address} within {self.seconds:g} s (strategy.start_timeout): is the command running "
                    "there, and is there a message of its own? Does it have this MASTER_ADDR and MASTER_PORT, its own NODE_RANK, and a network between?"
                )
            time.sleep(POLL)
        return ""

    def _lost(self, how: str) -> BaseException:
        return RankLostError(how) if self.local_rank == 0 else SystemExit(LOST)

    def _named(self, ranks: list[int]) -> str:
        """ "ranks 4 to 7 of node 1"."""
        parts = []
        for node, of_node in groupby(ranks, lambda rank: rank // self.num_processes):
            some = list(of_node)
            row = f"{some[0]} to {some[-1]}" if len(some) > 2 and some[-1] - some[0] == len(some) - 1 else ", ".join(map(str, some))
            parts.append(f"rank{'s' * (len(some) > 1)} {row} of node {node}")
        return "; ".join(parts)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
