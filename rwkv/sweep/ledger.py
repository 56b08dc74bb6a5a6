"""The ledger of a sweep: outputs/sweeps/NAME-SIGNATURE/sweep.json, which jobs there are and how each has come along.

What is true of a run is in its own folder; the ledger adds what that cannot say: attempts, exit codes, ids of the cluster.
"""

import dataclasses
import difflib
import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkv import disk
from rwkv.checkpoint.run import RunFolder, signature
from rwkv.config.compose import load
from rwkv.errors import CheckpointError, ConfigError
from rwkv.sweep import queue
from rwkv.sweep.expand import Point, Request, short

FILE, LOCK, LOGS = "sweep.json", ".lock", "logs"
LAST_LINES = 8  # of a failed job's log


@dataclass
class Job:
    """One run of a sweep. state: waiting, running, done, failed, stopped (a signal; it goes on), pruned, elsewhere (another process
    trains it), pending (in the cluster's queue)."""

    number: int
    overrides: list[str]
    label: str
    run: str  # its folder
    budget: int  # tokens
    nodes: int = 1
    devices: int = 1  # of a node; 0: all
    cpu: bool = False
    state: str = "waiting"
    attempts: int = 0
    code: int | None = None  # exit code of the last attempt
    seconds: float = 0.0  # of all attempts
    slurm: str | None = None  # job id
    values: dict[str, Any] = field(default_factory=dict)  # setting -> value, of those swept

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.run))

    def settle(self) -> None:
        """Take over what the run's folder says, whoever has trained it meanwhile."""
        if self.folder.finished:
            self.state, self.code = "done", 0
        elif self.folder.pruned.is_file():
            self.state = "pruned"
        elif self.state in ("done", "running", "elsewhere"):
            self.state = "waiting"


class Sweep:
    """A sweep's folder, its jobs and its lock."""

    def __init__(self, path: Path):
        self.path, self.file, self.logs = path, path / FILE, path / LOGS
        self.jobs: list[Job] = []
        self.about: dict[str, Any] = {}
        self._lock = None

    @staticmethod
    def of(asked: Request) -> "Sweep":
        """Named by its fixed settings and which others it tries. Values do not count in a grid, to which new ones are added; of a search they
        are the space, and another space is another search."""
        base = load(list(asked.fixed))
        name = base.name if any(o.startswith("name=") for o in asked.fixed) else "-".join(short(k, asked.keys).replace("/", ".") for k in asked.keys)
        space = sorted(asked.keys if asked.sweeper.kind == "grid" else (o.input_line for o in asked.swept))
        text = json.dumps([signature(base), base.name, space, asked.sweeper.kind])
        path = Path(base.out) / "sweeps" / f"{name or base.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        sweep = Sweep(path)
        sweep.about = {"keys": asked.keys, "fixed": list(asked.fixed), "launcher": asked.launcher.kind, "sweeper": asked.sweeper.kind}
        return sweep

    @staticmethod
    def read(path: Path) -> "Sweep":
        """The ledger in a folder, wherever that lies now: runs are found beside it. Raises CheckpointError if it is none."""
        sweep = Sweep(path)
        try:
            tree = json.loads(sweep.file.read_text())
            sweep.jobs = [Job(**job) for job in tree.pop("jobs")]
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: not a sweep: it has no {FILE}") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{sweep.file}: unreadable: {error}") from error
        sweep.about = tree
        written = Path(tree.get("path", path))
        for job in sweep.jobs:
            if written != path and Path(job.run).is_absolute() == written.is_absolute():
                job.run = os.path.normpath(path / os.path.relpath(job.run, written))
        return sweep

    def open(self) -> None:
        """Make the folder, take its lock, and read what an earlier call has left.

        Raises:
            ConfigError: the folder cannot be written.
            CheckpointError: another process runs this sweep, or its ledger is damaged.
        """
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / LOCK).open("a+")
        except OSError as error:
            raise ConfigError(f"out: the sweep's folder {self.path} cannot be written: {error.strerror}; set out=FOLDER") from error

        def taken(holder: str) -> None:
            raise CheckpointError(f"{self.path} is being run by {holder}; python -m rwkv.jobs shows how far it is") from None

        disk.lock(self._lock, taken)
        now = {"path": str(self.path), "command": sys.argv[1:], "cwd": str(Path.cwd()), "python": sys.executable, "called": time.time()}
        if self.file.is_file():
            earlier = Sweep.read(self.path)
            self.jobs, self.about = earlier.jobs, earlier.about | self.about | now
        else:
            self.about |= now | {"created": time.time()}
        for job in self.jobs:
            job.settle()

    def close(self) -> None:
        if self._lock:
            self._lock.close()

    def add(self, point: Point, values: dict[str, Any]) -> Job:
        """The job of a point: the one that an earlier call has made for it, or a new one."""
        run, strategy = str(point.folder.path), point.cfg.strategy
        job = next((j for j in self.jobs if j.run == run), None)
        if job is None:
            job = Job(len(self.jobs) + 1, [], point.label, run, 0)
            self.jobs.append(job)
        job.overrides, job.label, job.values, job.budget = list(point.overrides), point.label, values, point.cfg.trainer.tokens
        if point.cfg.logger.kind == "wandb" and point.cfg.logger.group is None:
            job.overrides.append(f"logger.group='{self.path.name}'")
        job.nodes, job.devices = strategy.nodes, strategy.devices if strategy.devices != "auto" else 0
        job.cpu = strategy.accelerator == "cpu"
        job.settle()
        return job

    def save(self) -> None:
        """Write the ledger, whole or not at all."""
        tree = self.about | {"jobs": [dataclasses.asdict(job) for job in self.jobs]}
        temp = self.file.with_suffix(f".{os.getpid()}.tmp")
        temp.write_text(json.dumps(tree, indent=1))
        temp.replace(self.file)

    def log(self, job: Job) -> Path:
        """What a job (its first rank) writes on its screen, all attempts one after the other; of a cluster's, those of one submission."""
        return self.slurm / f"{job.slurm}_0_log.out" if job.slurm else self.logs / f"{job.number:03d}.log"

    @property
    def slurm(self) -> Path:
        """The folder that submitit writes into."""
        return self.path.resolve() / "slurm"


def named(name: str, out: Path) -> Sweep:
    """The sweep in a folder, or of that name in a folder of runs. Raises CheckpointError if there is none."""
    if (Path(name) / FILE).is_file():
        return Sweep.read(Path(name))
    known = sorted(file.parent.name for file in (out / "sweeps").glob(f"*/{FILE}"))
    if Path(name).name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there {'are' if known else 'is no sweep'} {', '.join(known)}".rstrip()
        raise CheckpointError(f"{name}: no sweep of that name in {out / 'sweeps'}, and no folder of one; {hint}; --out names another folder of runs")
    return Sweep.read(out / "sweeps" / Path(name).name)


def refresh(sweep: Sweep) -> None:
    """Bring the jobs up to date: with their runs' folders, with the cluster, with the process that has the sweep's lock."""
    alive = disk.holder(sweep.path / LOCK) is not None
    known = queue.states() if any(j.slurm and j.state in ("pending", "running") for j in sweep.jobs) else {}
    for job in sweep.jobs:
        before = job.state
        job.settle()
        if job.state in ("done", "pruned"):
            continue
        state = known.get(job.slurm, ("", ""))[0] if job.slurm else ""
        if state in queue.RUNNING + queue.WAITING:
            job.state = "running" if state in queue.RUNNING else "pending"
        elif before in ("running", "pending") and job.slurm:
            job.state = "stopped" if queue.CODES.get(state, 1) in (140, 143) else "failed"
        else:
            job.state = before if alive or before != "running" else "stopped"


def sweeps(out: Path) -> list[Sweep]:
    """All sweeps in a folder of runs, the newest last."""
    found = [Sweep.read(file.parent) for file in (out / "sweeps").glob(f"*/{FILE}")]
    return sorted(found, key=lambda s: s.about.get("called", 0))


def last_lines(log: Path, n: int = LAST_LINES) -> list[str]:
    """The last lines of a file, however long it is."""
    if not log.exists():
        return ["(there is no log)"]
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 16_384))
        return file.read().decode("utf-8", "replace").splitlines()[-n:]
