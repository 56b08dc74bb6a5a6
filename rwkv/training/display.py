"""What a person sees of a run: a live bar on a terminal, a line every few seconds elsewhere. What stays is in train.log too."""

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from rwkv.disk import Lines
from rwkv.words import duration


class Display:
    """Messages and progress; silent on all ranks but the first."""

    PLAIN_EVERY = 5.0  # seconds between lines where there is no terminal

    def __init__(self, log: Path | None, budget: int, visible: bool = True):
        self.visible, self.budget = visible, budget
        self.log = Lines(log) if log and visible else None
        self.console = Console(highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and visible
        self._spoke = 0.0
        self.bar = Progress(
            TextColumn("step {task.fields[step]}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            transient=False,
            disable=not self.live,
        )

    def __enter__(self) -> "Display":
        self.bar.start()
        self.task = self.bar.add_task("", total=self.budget, step=0, text="")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.log:
            self.log.close()
            self.log = None

    def say(self, text: str = "") -> None:
        """A line that stays."""
        if not self.visible:
            return
        self.console.print(text, markup=False)
        if self.log:
            self.log.write(text)

    def progress(self, step: int, tokens: int, loss: float | None, rate: float, inside: str = "") -> None:
        """step, tokens: done so far; rate: tokens a second; inside: where in a long document."""
        if not self.visible:
            return
        eta = duration((self.budget - tokens) / rate) if rate > 0 and tokens < self.budget else "-"
        parts = [f"loss {loss:.3f}" if loss is not None else "", f"{rate:,.0f} tok/s", f"ETA {eta}", inside]
        text = "  ".join(p for p in parts if p)
        if self.live:
            self.bar.update(self.task, completed=min(tokens, self.budget), step=step, text=text)
        elif time.monotonic() - self._spoke > self.PLAIN_EVERY:
            self._spoke = time.monotonic()
            print(f"step {step}  {tokens / self.budget:4.0%}  {text}", file=sys.stdout, flush=True)
