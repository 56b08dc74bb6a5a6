"""What a person sees of a sweep: a live table on a terminal, a line for what happens elsewhere; at the end, what came of it."""

import time

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rwkv.sweep.ledger import Job, Sweep, last_lines
from rwkv.sweep.progress import Progress
from rwkv.words import count, duration

COLOURS = {
    "running": "cyan", "done": "green", "failed": "red", "stopped": "yellow", "pruned": "magenta", "elsewhere": "blue", "pending": "blue", "waiting": "dim",
}  # fmt: skip
ORDER = ("running", "failed", "elsewhere", "stopped", "pending", "done", "pruned", "waiting")  # of importance, where not all rows fit


class Screen:
    """Shows jobs as they come along. every: seconds between lines about what runs, where there is no terminal."""

    REFRESH = 0.25  # seconds

    def __init__(self, sweep: Sweep, every: float, console: Console | None = None):
        self.sweep, self.every = sweep, every
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.began = self._spoke = time.monotonic()
        self._shown = 0.0

    def __enter__(self) -> "Screen":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def event(self, job: Job, text: str) -> None:
        """Something has happened to a job; the live table shows it by itself."""
        if not self.live:
            self.say(f"#{job.number} {job.label}: {text}")

    def show(self, jobs: list[Job], progress: dict[int, Progress], parallel: int, force: bool = False) -> None:
        """How all jobs are. parallel: how many run at once, for the time that is left."""
        now = time.monotonic()
        if self.live and (force or now - self._shown > self.REFRESH):
            self._shown = now
            self.live.update(table(self.sweep.path.name, jobs, progress, self.console.height - 6, self._line(jobs, progress, parallel)), refresh=True)
        elif not self.live and now - self._spoke > self.every:
            self._spoke = now
            self.say(self._line(jobs, progress, parallel))
            for job in jobs:
                if job.state == "running":
                    self.say(f"  #{job.number} {job.label}: {in_words(job, progress.get(job.number, Progress()))}")

    def _line(self, jobs: list[Job], progress: dict[int, Progress], parallel: int) -> str:
        states = [j.state for j in jobs]
        parts = [f"{states.count('done')} of {len(jobs)} done", *(f"{n} {s}" for s in ORDER if s != "done" and (n := states.count(s)))]
        left = seconds_left(jobs, progress, parallel)
        return ", ".join(parts) + f"; {duration(time.monotonic() - self.began)}" + (f", about {duration(left)} left" if left else "")


def table(title: str, jobs: list[Job], progress: dict[int, Progress], rows: int, caption: str) -> Table:
    """A row a job; where they do not all fit, those that matter most."""
    out = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=None, padding=(0, 1))
    for name, justify in (("#", "right"), ("run", "left"), ("state", "left"), ("", "left"), ("step", "right"), ("loss", "right"), ("val", "right"),
                          ("tok/s", "right"), ("left", "right")):  # fmt: skip
        out.add_column(name, justify=justify, no_wrap=name != "run")  # where room is short, labels are cut and numbers are not
    shown = sorted(sorted(jobs, key=lambda j: ORDER.index(j.state))[: max(rows, 1)], key=lambda j: j.number)
    for job in shown:
        p = progress.get(job.number, Progress())
        eta = p.eta(job.budget) if job.state == "running" else None
        out.add_row(
            str(job.number), Text(job.label, no_wrap=True, overflow="ellipsis"), Text(job.state, COLOURS[job.state]), ProgressBar(job.budget, min(p.tokens, job.budget), width=14),
            f"{p.step:,}" if p.step else "", figure(p.loss), figure(p.val), f"{p.rate:,.0f}" if p.rate else "",
            duration(eta) if eta is not None else "",
        )  # fmt: skip
    if len(shown) < len(jobs):
        out.add_row("", f"... and {len(jobs) - len(shown)} more")
    return out


def in_words(job: Job, p: Progress) -> str:
    """step 12, 40 %, loss 3.214, 1,024 tok/s, 20 s left"""
    if not p.step:
        return "preparing"
    eta = p.eta(job.budget)
    parts = [f"step {p.step}", f"{p.tokens / job.budget:.0%}", p.loss is not None and f"loss {p.loss:.3f}", p.rate and f"{p.rate:,.0f} tok/s"]
    return ", ".join(filter(None, [*parts, eta is not None and f"{duration(eta)} left"]))


def seconds_left(jobs: list[Job], progress: dict[int, Progress], parallel: int) -> float | None:
    """Of the whole sweep, if what is to come takes as long as what was; None before anything is known."""
    etas = {j.number: progress[j.number].eta(j.budget) for j in jobs if j.state == "running" and j.number in progress}
    known = [j.seconds for j in jobs if j.state == "done" and j.seconds] + [
        progress[n].eta(0) is None and e + progress[n].tokens / progress[n].rate for n, e in etas.items() if e is not None
    ]
    waiting = sum(j.state in ("waiting", "pending") for j in jobs)
    if not known or not (waiting or etas):
        return None
    work = waiting * sum(known) / len(known) + sum(e for e in etas.values() if e is not None)
    return max([work / max(parallel, 1), *(e for e in etas.values() if e is not None)])


def figure(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.3f}"


def closing(sweep: Sweep, jobs: list[Job], progress: dict[int, Progress], screen: Screen) -> None:
    """The end of a sweep: the best runs, then every failure with the last lines of its log."""
    ranked = sorted((j for j in jobs if j.state == "done"), key=lambda j: best(progress, j))
    if ranked:
        screen.say(f"\nbest of {count(len(ranked), 'run')}:")
    for job in ranked[:5]:
        p = progress.get(job.number, Progress())
        screen.say(f"  #{job.number} {job.label}: validation {figure(p.val) or '-'}, training {figure(p.loss) or '-'}   {job.run}")
    for job in (j for j in jobs if j.state == "failed"):
        screen.say(f"\n#{job.number} {job.label} failed{f' (exit code {job.code})' if job.code is not None else ''}; the end of {sweep.log(job)}:")
        for line in last_lines(sweep.log(job)):
            screen.say(f"  | {line}")
    if stopped := [j for j in jobs if j.state in ("stopped", "waiting", "elsewhere")]:
        screen.say(f"\n{count(len(stopped), 'run')} not finished: the same command goes on with them")


def best(progress: dict[int, Progress], job: Job) -> float:
    """What runs are ranked by: the last validation loss, or without one the training loss."""
    p = progress.get(job.number, Progress())
    loss = p.val if p.val is not None else p.loss
    return loss if loss is not None else float("inf")
