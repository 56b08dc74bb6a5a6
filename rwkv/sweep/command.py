"""`python -m rwkv.train -m ...`: a sweep from its settings to the last line about it."""

from pathlib import Path
from typing import Any

from rwkv.errors import ConfigError
from rwkv.sweep.expand import Point, Request, grid
from rwkv.sweep.ledger import Job, Sweep
from rwkv.sweep.local import LocalBackend
from rwkv.sweep.pool import Pool, Source
from rwkv.sweep.screen import Screen, closing
from rwkv.training.signals import Stop
from rwkv.words import count


def sweep(asked: Request, many: bool, wait: bool) -> int:
    """Run, or go on with, the sweep that is asked for. Returns the exit code: not 0 if any run failed or is not finished.

    Raises:
        ConfigError: any of the combinations is wrong; none was started.
    """
    if many and not asked.swept:
        raise ConfigError("-m: nothing to sweep; give a setting several values, as in optim.lr=1e-3,3e-3, or leave out -m")
    if asked.launcher.kind == "slurm":
        raise ConfigError("hydra/launcher=slurm: there is no Slurm on this machine")
    if wait:
        raise ConfigError("--wait follows jobs of a cluster: it goes with hydra/launcher=slurm")
    if asked.sweeper.kind == "optuna":
        raise ConfigError("hydra/sweeper=optuna is not built yet; today: grid")
    points = grid(asked)
    found = Sweep.of(asked)
    found.open()
    try:
        jobs = [found.add(point, values_of(asked, point)) for point in points]
        return run_here(asked, found, jobs)
    finally:
        found.close()


def values_of(asked: Request, point: Point) -> dict[str, Any]:
    """Setting -> value as typed, of those swept."""
    return {key: text.split("=", 1)[1] for key, text in zip(asked.keys, point.overrides[len(asked.fixed) :], strict=True)}


def run_here(asked: Request, found: Sweep, jobs: list[Job]) -> int:
    """All jobs as processes of this machine."""
    backend = LocalBackend(found, asked.launcher)
    backend.check(jobs)
    todo = [job for job in jobs if job.state != "done"]
    screen = Screen(found, asked.launcher.every)
    screen.say(f"sweep  {count(len(jobs), 'run')}, {len(jobs) - len(todo)} of them finished; {min(backend.parallel, max(len(todo), 1))} at once; {found.path}")
    with Stop(told="") as stop:
        pool = Pool(found, Source(todo), backend, screen, stop)
        with screen:
            pool.run(lambda: jobs)
    closing(found, jobs, pool.progress, screen, {job.number: found.log(job) for job in jobs})
    return stop.exit_code if stop.requested else int(any(job.state not in ("done", "pruned") for job in jobs))


def folder_of(name: str, out: Path) -> Path:
    """A sweep's folder by its path, or by its name in the folder of the runs."""
    return Path(name) if Path(name).is_dir() else out / "sweeps" / name
