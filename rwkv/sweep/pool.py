"""Jobs of a sweep from the first to the last: started as there is room, watched, stopped with checkpoints on a signal.

What a job runs on is a `Backend`'s business, which jobs there are a `Source`'s.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rwkv import disk
from rwkv.sweep.ledger import Job, Sweep
from rwkv.sweep.progress import Progress, Tail
from rwkv.sweep.screen import Screen, in_words
from rwkv.training.signals import Stop
from rwkv.words import duration

STOPPED = (-2, -15, -12, 130, 143, 140)  # exit codes of a process that a signal has ended, which the same command goes on with


class Backend(Protocol):
    """Where jobs run."""

    parallel: int  # jobs at once
    detaches: bool  # jobs go on without this process

    def check(self, jobs: list[Job]) -> None:
        """Raises ConfigError for a job that would wait for ever."""

    def room(self, job: Job) -> bool: ...
    def start(self, job: Job) -> None: ...
    def poll(self, jobs: list[Job]) -> dict[int, int]:
        """Job number -> exit code, of those that have ended."""

    def stop(self, job: Job) -> None:
        """Ask it to save a checkpoint and end; asked again, it ends at once."""

    def kill(self, job: Job) -> None: ...


class Source:
    """A fixed list of jobs. A search gives one after the other, and learns from each."""

    def __init__(self, jobs: list[Job]):
        self.queue = list(jobs)

    def next(self, running: int) -> Job | None:
        """The job to start next, without taking it; None: nothing now, and nothing ever if nothing runs."""
        return self.queue[0] if self.queue else None

    def take(self, job: Job) -> None:
        self.queue.remove(job)

    def hopeless(self, job: Job, progress: Progress) -> str | None:
        """Why a running job should be ended; None: it should not."""

    def lost(self, job: Job) -> str | None:
        """Why a job that has failed is a result all the same, and not to be tried again; None: it is not."""

    def ended(self, job: Job, progress: Progress) -> None: ...


class Pool:
    """Runs what a source has on a backend, until nothing is left or a signal comes."""

    NAP = 0.1  # seconds

    def __init__(self, sweep: Sweep, source: Source, backend: Backend, screen: Screen, stop: Stop):
        self.sweep, self.source, self.backend, self.screen, self.stop = sweep, source, backend, screen, stop
        self.running: list[Job] = []
        self.elsewhere: list[Job] = []
        self.pruning: dict[int, str] = {}
        self.tails: dict[int, Tail] = {}
        self.progress: dict[int, Progress] = {}
        self.started: dict[int, float] = {}

    def run(self, jobs: Callable[[], list[Job]]) -> None:
        """jobs: all that the screen shows."""
        asked = False
        try:
            while True:
                if self.stop.requested and not asked:
                    asked = True
                    if self.backend.detaches:
                        break
                    self.screen.say(f"{self.stop.received.name}: {len(self.running)} running jobs save and stop (again to stop without)")
                    for job in self.running:
                        self.backend.stop(job)
                if not asked:
                    self.fill()
                self.watch()
                self.screen.show(jobs(), self.progress, self.backend.parallel)
                if not self.running and (asked or not (self.elsewhere or self.source.next(0))):
                    break
                time.sleep(self.NAP)
        except BaseException:
            for job in self.running:
                self.backend.kill(job)
                job.state = "stopped"
            raise
        finally:
            self.sweep.save()
            for job in jobs():
                self.read(job)
            self.screen.show(jobs(), self.progress, self.backend.parallel, force=True)

    def fill(self) -> None:
        """Start what there is room for. A run that another process trains is waited for, and then taken up."""
        for job in list(self.elsewhere):
            if disk.holder(Path(job.run) / ".lock") is None:
                job.settle()
                self.elsewhere.remove(job)
                if job.state == "done":
                    self.ended(job)
                elif self.backend.room(job):
                    self.start(job)
                else:
                    self.elsewhere.append(job)
        while (job := self.source.next(len(self.running))) and self.backend.room(job):
            self.source.take(job)
            job.settle()
            if job.state == "done":
                self.ended(job)
            elif holder := disk.holder(Path(job.run) / ".lock"):
                job.state = "elsewhere"
                self.elsewhere.append(job)
                self.screen.event(job, f"is being trained by {holder}; waiting for it")
            else:
                self.start(job)

    def start(self, job: Job) -> None:
        job.folder.pruned.unlink(missing_ok=True)
        self.backend.start(job)
        job.state, job.attempts, job.code = "running", job.attempts + 1, None
        self.running.append(job)
        self.started[job.number] = time.monotonic()
        self.sweep.save()
        self.screen.event(job, "started" if job.attempts == 1 else f"goes on (attempt {job.attempts})")

    def adopt(self, job: Job) -> None:
        """Watch a job that has been started by another call."""
        self.running.append(job)
        self.started[job.number] = time.monotonic()

    def watch(self) -> None:
        """See to the running jobs: which have ended, and which are not worth their time."""
        over = self.backend.poll(self.running)
        for job in list(self.running):
            progress = self.read(job)
            if job.number in over:
                self.finish(job, over[job.number])
            elif job.number not in self.pruning and (reason := self.source.hopeless(job, progress)):
                self.pruning[job.number] = reason
                self.backend.stop(job)

    def finish(self, job: Job, code: int) -> None:
        """A job's process has ended."""
        self.running.remove(job)
        job.code = code
        job.seconds += time.monotonic() - self.started[job.number]
        progress = self.read(job)
        if job.folder.finished:
            job.state, told = "done", f"done in {duration(job.seconds)}: {result(progress)}"
        elif reason := self.pruning.pop(job.number, None) or (code not in STOPPED and self.source.lost(job)):
            mark = {"reason": reason, "step": progress.step, "tokens": progress.tokens, "val_loss": progress.val}
            job.folder.pruned.write_text(json.dumps(mark, indent=1))
            job.state, told = "pruned", f"pruned at step {progress.step}: {reason}"
        elif code in STOPPED:
            job.state, told = "stopped", f"stopped: {in_words(job, progress)}"
        else:
            job.state, told = "failed", f"failed with exit code {code}"
        self.screen.event(job, told)
        self.ended(job)

    def ended(self, job: Job) -> None:
        self.source.ended(job, self.read(job))
        self.sweep.save()

    def read(self, job: Job) -> Progress:
        tail = self.tails.setdefault(job.number, Tail(job.folder.metrics))
        self.progress[job.number] = tail.read()
        return self.progress[job.number]


def result(p: Progress) -> str:
    losses = {"loss": p.loss, "validation": p.val}
    return ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items() if loss is not None)
