"""Processes that work on tasks, in the order of their numbers, and a name for the task of one that dies.

Not a ProcessPoolExecutor, for that one does not tell which task a killed process had.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from rwkv.errors import DataError, UserError

Make = Callable[..., Callable[[Any], Any]]  # makes, in its process, the function that does a task


@dataclass(frozen=True)
class Failed:
    """The error of a task that could not be done."""

    error: Exception


def run(tasks: list, processes: int, make: Make, arguments: tuple, idle: Callable[[], None]) -> Iterator[tuple[int, Any]]:
    """(place in `tasks`, result or Failed) as they come. With one process the tasks are done in this one.

    idle: called a few times a second while processes work.

    Raises:
        DataError: a process died; it is named by its task's `name`.
    """
    if min(processes, len(tasks)) <= 1:
        work = make(*arguments)
        for i, task in enumerate(tasks):
            yield i, _attempt(work, task)
        return
    context = multiprocessing.get_context("spawn")  # fork would copy the threads' locks of whoever calls this, torch's among them
    workers = [_Worker(context, make, arguments) for _ in range(min(processes, len(tasks)))]
    try:
        for i, worker in enumerate(workers):
            worker.give(i, tasks[i])
        following = len(workers)
        while busy := [worker for worker in workers if worker.task is not None]:
            idle()
            ready = wait([worker.connection for worker in busy], timeout=0.2)
            for worker in [worker for worker in busy if worker.connection in ready]:
                done = worker.task
                yield done, worker.take(tasks[done])
                if following < len(tasks):
                    worker.give(following, tasks[following])
                    following += 1
    finally:
        for worker in workers:
            worker.process.kill()  # whatever it writes counts only when it is whole
            worker.process.join()


class _Worker:
    """task: place of the task it works on, or None."""

    def __init__(self, context, make: Make, arguments: tuple):
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.task: int | None = None

    def give(self, place: int, task: Any) -> None:
        self.task = place
        with suppress(BrokenPipeError):  # it is dead: `take` says so
            self.connection.send(task)

    def take(self, task: Any) -> Any:
        try:
            result = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
            hint = "; perhaps memory ran out: set data.processes to less" if code == -signal.SIGKILL else ""
            raise DataError(f"a process that prepared {task.name} {how}{hint}. What is done is kept: the same command goes on from it") from None
        self.task = None
        return result


def _serve(connection, make: Make, arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    try:
        work = make(*arguments)
        while True:
            connection.send(_attempt(work, connection.recv()))
    except (EOFError, ConnectionError):
        return


def _end_with(parent) -> None:
    parent.join()
    os._exit(1)


def _attempt(work: Callable[[Any], Any], task: Any) -> Any:
    try:
        return work(task)
    except (UserError, OSError) as error:
        return Failed(error)
    except Exception as error:
        error.add_note(f"while {task.name} was prepared")
        return Failed(RuntimeError("".join(traceback.format_exception(error))))
