"""`python -m rwkv.train -m ...`: a sweep from its settings to the last line about it."""

from typing import Any

from rwkv.errors import ConfigError
from rwkv.sweep import queue, slurm
from rwkv.sweep.expand import Point, Request, grid
from rwkv.sweep.ledger import Job, Sweep
from rwkv.sweep.local import LocalBackend
from rwkv.sweep.page import write_sweep
from rwkv.sweep.pool import Backend, Pool, Source
from rwkv.sweep.screen import Screen, closing
from rwkv.sweep.search import Search, corners
from rwkv.training.signals import Stop
from rwkv.words import count, duration


def sweep(asked: Request, many: bool, wait: bool) -> int:
    """Run, or go on with, the sweep that is asked for. Returns the exit code: not 0 if any run failed or is not finished.

    Raises:
        ConfigError: any of the combinations is wrong; none was started.
    """
    if many and not asked.swept:
        raise ConfigError("-m: nothing to sweep; give a setting several values, as in optim.lr=1e-3,3e-3, or leave out -m")
    if asked.swept and not many:
        raise ConfigError(f"{asked.swept[0].input_line}: several values; add -m to train with each of them")
    on_cluster = asked.launcher.kind == "slurm"
    if wait and not on_cluster:
        raise ConfigError("--wait follows jobs of a cluster: it goes with hydra/launcher=slurm")
    searching = many and asked.sweeper.kind == "optuna"
    points = corners(asked) if searching else grid(asked)
    if on_cluster:
        slurm.check([point.cfg for point in points], asked.launcher)
    found = Sweep.of(asked)
    found.open()
    try:
        if searching:
            return search(asked, found)
        jobs = [found.add(point, values_of(asked, point)) for point in points]
        return submit(asked, found, jobs, wait) if on_cluster else run_here(asked, found, jobs)
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
    told = f"{count(len(jobs), 'run')}, {len(jobs) - len(todo)} of them finished; {min(backend.parallel, max(len(todo), 1))} at once"
    return follow(found, jobs, Source(todo), backend, Screen(found, asked.launcher.every), told)


def search(asked: Request, found: Sweep) -> int:
    """Trials one after the other, here or on the cluster; there too this command stays, for each is chosen by what the others have reached."""
    on_cluster = asked.launcher.kind == "slurm"
    backend = slurm.SlurmBackend(found, asked.launcher) if on_cluster else LocalBackend(found, asked.launcher)
    screen = Screen(found, 30.0 if on_cluster else asked.launcher.every)
    source = Search(asked, found, backend, lambda point: values_of(asked, point), screen.say)
    known = queue.states() if on_cluster else {}
    adopted = [job for job in source.queue if queue.active(known, job.slurm)]
    for job in adopted:
        source.take(job)
    told = f"{count(asked.sweeper.trials, 'trial')}, {source.drawn} of them begun; {backend.parallel} at once"
    return follow(found, found.jobs, source, backend, screen, told, adopted)


def submit(asked: Request, found: Sweep, jobs: list[Job], wait: bool) -> int:
    """All jobs that are neither finished nor in the queue already to the cluster; then back, or, if `wait`, until they have ended."""
    known = queue.states()
    queued = [job for job in jobs if job.state != "done" and queue.active(known, job.slurm)]
    todo = [job for job in jobs if job.state != "done" and job not in queued]
    ids = slurm.submit(found, todo, asked.launcher) if todo else []
    found.save()
    screen = Screen(found, 30.0)
    finished = len(jobs) - len(todo) - len(queued)
    told = f"{count(len(jobs), 'run')}, {finished} of them finished, {len(queued)} in the queue already"
    if ids:
        told += f"; submitted {len(todo)} as {', '.join(ids)}, {duration(60 * asked.launcher.minutes)} at most each turn"
    if wait and (todo or queued):
        return follow(found, jobs, Source([]), slurm.SlurmBackend(found, asked.launcher), screen, told, adopted=[*queued, *todo])
    screen.say(f"sweep  {told}; {found.path}")
    next_steps(found, [*todo, *queued], screen)
    return 0


def next_steps(found: Sweep, jobs: list[Job], screen: Screen) -> None:
    """What to type now."""
    out = "" if found.path.parts[0] == "outputs" else f" --out {found.path.parents[1]}"
    screen.say(f"  python -m rwkv.jobs {found.path.name}{out}   how they are")
    if jobs:
        screen.say(f"  python -m rwkv.jobs --follow {jobs[0].slurm}{out}   what the first of them writes")
        screen.say(f"  python -m rwkv.jobs {found.path.name} --cancel all{out}")
    screen.say(f"  python -m rwkv.report {found.path.name}{out}   curves and results on one page")


def follow(found: Sweep, jobs: list[Job], source: Source, backend: Backend, screen: Screen, told: str, adopted: list[Job] = ()) -> int:
    """Watch jobs until all have ended; then say what came of them."""
    screen.say(f"sweep  {told}; {found.path}")
    with Stop(told="") as stop:
        pool = Pool(found, source, backend, screen, stop)
        for job in adopted:
            pool.adopt(job)
        with screen:
            pool.run(lambda: jobs)
    if stop.requested and backend.detaches:
        screen.say("the jobs go on without this command")
        next_steps(found, [job for job in jobs if job.state in ("pending", "running")], screen)
        return stop.exit_code
    closing(found, jobs, pool.progress, screen)
    screen.say(f"\nreport {write_sweep(found)}")
    return stop.exit_code if stop.requested else int(any(job.state not in ("done", "pruned") for job in jobs))
