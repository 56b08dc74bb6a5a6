"""Training in processes that have what it imports already: each starts in milliseconds, and can be killed, or be one rank of several."""

import atexit
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from rwkv.config import cli

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["rwkv.train", "rwkv.sweep.expand", "rwkv.training.loop", "lightning.fabric", "tests.conftest"])


def start(target: Callable[..., int | None], *args, log: Path, env: dict[str, str] | None = None) -> BaseProcess:
    """A process that calls target(*args), a module's function, and exits with what it returns; what it writes is appended to `log`."""
    process = _CONTEXT.Process(target=_enter, args=(target, args, log, os.environ | (env or {})), daemon=True)
    process.start()
    return process


def ranks(world: int, target: Callable[..., int | None], *args, log: Path) -> list[BaseProcess]:
    """The processes of a run on so many ranks, as a cluster would have started them; what each writes is in `log`-RANK."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world), "NODE_RANK": "0"}
    return [start(target, *args, log=log.with_name(f"{log.name}-{rank}"), env={**group, "LOCAL_RANK": str(rank)}) for rank in range(world)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def codes(processes: list[BaseProcess], timeout: float = 300) -> list[int | None]:
    """Exit codes, those of signals negative; None of a process that has not ended by then, and is killed."""
    for process in processes:
        process.join(timeout)
    found = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return found


def train(overrides: list[str]) -> int:
    """python -m rwkv.train, without -m."""
    from rwkv import train

    return cli.guarded(train.main, overrides)


def _enter(target: Callable[..., int | None], args: tuple, log: Path, env: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for fd in (1, 2):
        os.dup2(out, fd)
    sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
    try:
        sys.exit(target(*args))
    finally:
        atexit._run_exitfuncs()
