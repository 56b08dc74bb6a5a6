"""The one owner of signals: a handler sets a flag, the training loop acts on it where nothing is lost."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PARENT = "RWKV_PARENT"  # environment: the process that this one must not outlive
SAVED = "RWKV_SAVED"  # environment: a file that gets the name of each checkpoint, for whoever started this and asks how far it came


class Stop:
    """`requested` once SIGINT, SIGTERM or SIGUSR2 has come; a second SIGINT ends the process at once. told: what is said then."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def __init__(self, told: str = "saving a checkpoint and stopping (again to stop without)"):
        self.told = told
        self.received: signal.Signals | None = None

    def __enter__(self) -> "Stop":
        self._before = {s: signal.signal(s, self._handle) for s in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            on_its_way_out = self.received and number != signal.SIGINT  # another would end it before all is closed, and change its exit code
            signal.signal(number, signal.SIG_IGN if on_its_way_out else handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        if self.told:
            print(f"\n{self.received.name}: {self.told}", file=sys.stderr, flush=True)

    @property
    def requested(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """As a shell has it of a process that a signal has ended; 0 without one."""
        return 128 + self.received if self.received else 0


def in_batch_job() -> bool:
    """Whether a cluster's batch script, submitted by a sweep, has started this process."""
    return "SUBMITIT_EXECUTOR" in os.environ


@contextmanager
def watching_parent() -> Iterator[bool]:
    """Whether this was started by another process of ours, `RWKV_PARENT`: a job of a sweep, or a rank. SIGTERM comes when that ends.

    Inside, further ranks, which this process will start, watch it in turn; what it starts afterwards does not.
    """
    before = os.environ.get(PARENT)
    parent = int(before or 0)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent:
        threading.Thread(target=watch, daemon=True).start()
    os.environ[PARENT] = str(os.getpid())
    try:
        yield bool(parent)
    finally:
        if before is None:
            os.environ.pop(PARENT, None)
        else:
            os.environ[PARENT] = before
