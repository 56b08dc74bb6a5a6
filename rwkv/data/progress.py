"""What is seen while data is prepared: a live bar on a terminal, a line every ten seconds elsewhere, all on stderr."""

import sys
import time

from rwkv.words import duration

PLAIN_EVERY = 10.0  # seconds


class Shown:
    """total: bytes to read, 0 if unknown. Nothing is shown of what takes less than half a second."""

    def __init__(self, title: str, total: int):
        from rich.console import Console  # here, for every process that prepares imports this module
        from rich.progress import BarColumn, Progress, TextColumn

        self.title, self.total = title, total
        console = Console(stderr=True, highlight=False)
        self.live = console.is_terminal
        self.bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), console=console, transient=True)
        self.began = self.spoke = time.monotonic()
        self.skipped = 0

    def __enter__(self) -> "Shown":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar.tasks:
            self.bar.stop()

    def skip(self, size: int) -> None:
        """Bytes that are done already, of which no time is known."""
        self.skipped += size

    def update(self, done: int, text: int, documents: int | None = None) -> None:
        """done: bytes of `total` since the start, `skip` not among them; text: bytes of text; documents: None where none are made."""
        now = time.monotonic()
        seconds = now - self.began
        if now - self.spoke < (0.5 if self.live else PLAIN_EVERY):
            return
        self.spoke = now
        whole = min(self.total, self.skipped + done)
        parts = [f"{text / seconds / 1e6:,.1f} MB/s"]
        if documents is not None:
            parts = [f"{documents:,} documents", f"{documents / seconds:,.0f}/s", *parts]
        if self.total:
            eta = duration((self.total - whole) * seconds / done) if done else "-"
            parts = [f"{whole / 1e6:,.0f} of {self.total / 1e6:,.0f} MB", *parts, f"ETA {eta}"]
        if not self.live:
            share = f"{whole / self.total:4.0%}  " if self.total else ""
            print(f"{self.title}  {share}{'  '.join(parts)}", file=sys.stderr, flush=True)
            return
        if not self.bar.tasks:
            self.bar.add_task(self.title, total=self.total or None, text="")
            self.bar.start()
        self.bar.update(self.bar.tasks[0].id, completed=whole, text="  ".join(parts))
