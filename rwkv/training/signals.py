"""The one owner of signals: a handler sets a flag, the training loop acts on it where nothing is lost."""

import signal
import sys
from types import FrameType


class Stop:
    """`requested` once SIGINT, SIGTERM or SIGUSR2 has come; a second SIGINT ends the process at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def __init__(self):
        self.received: signal.Signals | None = None

    def __enter__(self) -> "Stop":
        self._before = {s: signal.signal(s, self._handle) for s in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        print(f"\n{self.received.name}: saving a checkpoint and stopping (again to stop without)", file=sys.stderr, flush=True)

    @property
    def requested(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        return 128 + self.received
