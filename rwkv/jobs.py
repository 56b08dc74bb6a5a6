"""python -m rwkv.jobs [SWEEP] [--follow JOB] [--cancel JOB|all]: list, follow and cancel the jobs of sweeps."""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rwkv import disk
from rwkv.config import cli
from rwkv.config.arguments import Parser
from rwkv.errors import CheckpointError, ConfigError
from rwkv.sweep import queue
from rwkv.sweep.ledger import LOCK, Job, Sweep, named, refresh, sweeps
from rwkv.sweep.progress import Progress

NAP = 0.5  # seconds between looks at a log


def main(argv: list[str]) -> int:
    """Returns the exit code."""
    parser = Parser(prog="python -m rwkv.jobs", description="List, follow and cancel the jobs of sweeps.")
    parser.add_argument("sweep", nargs="?", help="a sweep's name or folder; default: all that are not finished, and the newest")
    parser.add_argument("--out", default="outputs", help="folder of the runs (%(default)s)")
    parser.add_argument("--follow", metavar="JOB", help="print what a job writes, until it ends: its number in the sweep, or its id of the cluster")
    parser.add_argument("--cancel", metavar="JOB", help="end a job, or all of the sweep: they save checkpoints, and the sweep's command goes on with them")
    args = parser.parse_args(argv)
    found = [named(args.sweep, Path(args.out))] if args.sweep else sweeps(Path(args.out))
    if not found:
        raise CheckpointError(f"{args.out}: no sweep there; python -m rwkv.train -m makes one, --out names another folder")
    for one in found:
        refresh(one)
    if args.follow:
        return follow(*pick(found, args.follow))
    if args.cancel:
        return cancel(found, args.cancel)
    for one in found:
        if one is found[-1] or args.sweep or any(j.state in ("running", "pending") for j in one.jobs):
            show(one)
        else:
            print(heading(one))
    return 0


def heading(sweep: Sweep) -> str:
    states = [j.state for j in sweep.jobs]
    return f"{sweep.path.name}: " + ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))


def show(sweep: Sweep) -> None:
    """A sweep's jobs, as a table."""
    from rich.console import Console

    from rwkv.sweep.screen import table

    progress: dict[int, Progress] = {job.number: Progress.of(job.folder.metrics) for job in sweep.jobs}
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 160)
    ids = [f"#{j.number} {j.slurm}" for j in sweep.jobs if j.slurm and j.state in ("pending", "running", "failed")]
    console.print(table(heading(sweep), sweep.jobs, progress, 10_000, f"cluster: {', '.join(ids)}" if ids else ""))


def pick(found: list[Sweep], name: str) -> tuple[Sweep, Job]:
    """The job of that id, or of that number in the newest sweep."""
    for sweep in reversed(found):
        for job in sweep.jobs:
            if name == job.slurm or (sweep is found[-1] and name.lstrip("#") == str(job.number)):
                return sweep, job
    raise ConfigError(f"{name}: no such job in {', '.join(s.path.name for s in found)}; a number of its table, or an id of the cluster")


def follow(sweep: Sweep, job: Job) -> int:
    """Print a job's log, from its last lines on, until the job ends."""
    for text in tail(sweep.log(job), lambda: running(sweep, job)):
        print(text, end="", flush=True)
    return 0


def running(sweep: Sweep, job: Job) -> bool:
    if job.slurm:
        return queue.active(queue.states(), job.slurm)
    return disk.holder(sweep.path / LOCK) is not None and Sweep.read(sweep.path).jobs[job.number - 1].state == "running"


def tail(path: Path, going_on, last: int = 8192) -> Iterator[str]:
    """The end of a file, then what is added to it, as long as `going_on`, which is asked from time to time."""
    at, asked, alive = None, 0.0, True
    while True:
        if path.exists():
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - last) if at is None else at)
                new = file.read()
                at = file.tell()
            if new:
                yield new.decode("utf-8", "replace")
        if not alive:
            return
        time.sleep(NAP)
        if time.monotonic() - asked > 4 * NAP:
            asked, alive = time.monotonic(), going_on()


def cancel(found: list[Sweep], name: str) -> int:
    """End one job, or all of the sweeps given: those in the cluster's queue, or the process that runs a sweep here."""
    chosen = [(s, j) for s in found for j in s.jobs if j.state in ("pending", "running")] if name == "all" else [pick(found, name)]
    ids = [job.slurm for _, job in chosen if job.slurm and job.state in ("pending", "running")]
    if ids:
        queue.cancel(ids)
        print(f"cancelled {', '.join(ids)}: those that run save a checkpoint first")
    here = {s.path: s for s, job in chosen if not job.slurm}
    for path in here:
        holder = disk.holder(path / LOCK)
        if match := re.match(r"process (\d+) on ", holder or ""):
            if name != "all":
                raise ConfigError(f"{name}: is a process of this machine; --cancel all ends its sweep {path.name}, which saves checkpoints")
            os.kill(int(match[1]), signal.SIGTERM)
            print(f"{path.name}: its jobs save checkpoints and stop")
    if not ids and not here:
        print("nothing is running")
    return 0


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
