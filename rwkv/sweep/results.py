"""What the runs of a sweep have reached, from what they have recorded: one `Result` a run."""

import json
import math
import statistics
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rwkv import disk
from rwkv.checkpoint.run import RunFolder
from rwkv.config.schema import parse_count
from rwkv.errors import CheckpointError
from rwkv.page import Curve
from rwkv.sweep.ledger import Job, Sweep, last_lines
from rwkv.training import metrics

# settings that say where a run is and not what it is
ASIDE = ("name", "out", "expect", "logger.group", "data.cache")


@dataclass
class Result:
    """A run: its place, its settings that differ from the others', how it ended, and the records it has written."""

    number: int
    label: str
    folder: RunFolder
    values: dict[str, Any]  # setting -> value
    state: str
    reason: str  # why it is not finished
    log: Path
    records: list[dict] = field(default_factory=list)
    env: dict = field(default_factory=dict)
    best: float | None = None  # the lowest loss that it has reached, of the kind by which all are ranked

    def curve(self, name: str) -> Curve:
        """(tokens, value) of a metric, where it is a finite number."""
        return [(r["tokens"], r[name]) for r in self.records if isinstance(r.get(name), int | float) and math.isfinite(r[name])]

    @cached_property
    def validations(self) -> list[float]:
        return [loss for _, loss in self.curve("val/loss")]

    @cached_property
    def val(self) -> float | None:
        return self.validations[-1] if self.validations else None

    @cached_property
    def train(self) -> float | None:
        return metrics.final_loss(self.records)

    @property
    def last(self) -> dict:
        return self.records[-1] if self.records else {"step": 0, "tokens": 0}

    @cached_property
    def rate(self) -> float | None:
        """Tokens a second, the median."""
        rates = [rate for _, rate in self.curve("tokens_per_sec") if rate]
        return statistics.median(rates) if rates else None


def of_sweep(sweep: Sweep) -> list[Result]:
    """A result for each job, in their order. Raises CheckpointError if there are none."""
    if not sweep.jobs:
        raise CheckpointError(f"{sweep.path}: this sweep has no runs yet; the command that made it, typed again, goes on with it")
    found = [_read(Result(j.number, j.label, j.folder, dict(j.values), j.state, "", sweep.log(j))) for j in sweep.jobs]
    for job, result in zip(sweep.jobs, found, strict=True):
        result.reason = reason(job, result)
    return found


def of_runs(paths: list[Path]) -> list[Result]:
    """A result for each run's folder. Raises CheckpointError for one that is none."""
    trees, found = [], []
    for number, path in enumerate(paths, 1):
        folder = RunFolder(path)
        if not folder.config.is_file():
            raise CheckpointError(f"{path}: neither a run's folder (it has no {folder.config.name}) nor a sweep's")
        trees.append(dict(_leaves(yaml.safe_load(folder.config.read_text()))))
        state = "done" if folder.finished else "pruned" if folder.pruned.is_file() else "running" if disk.holder(path / ".lock") else "stopped"
        found.append(_read(Result(number, path.name, folder, {}, state, "", folder.log)))
    keys = [k for k in dict.fromkeys(k for t in trees for k in t) if k not in ASIDE and not k.startswith("expect.")]
    for tree, result in zip(trees, found, strict=True):
        result.values = {k: tree.get(k) for k in keys if any(other.get(k) != trees[0].get(k) for other in trees)}
        job = Job(result.number, [], result.label, str(result.folder.path), tree["trainer.tokens"], state=result.state)
        result.reason = reason(job, result)
    return found


def rank(results: list[Result]) -> str:
    """Set each run's best loss: the lowest of validation, or, where no run has any, the last of training. Returns which of them it is."""
    validated = any(result.validations for result in results)
    for result in results:
        result.best = min(result.validations, default=None) if validated else result.train
    return "validation" if validated else "training"


def _leaves(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{prefix}.{key}" if prefix else key)]
    return [(prefix, tree)]


def _read(result: Result) -> Result:
    result.records = metrics.read(result.folder.metrics)
    if result.folder.env.is_file():
        result.env = json.loads(result.folder.env.read_text())
    return result


def reason(job: Job, result: Result) -> str:
    """Why a run has not come to its end."""
    step = f"at step {result.last['step']:,}"
    if job.state == "failed":
        lines = [line.strip() for line in last_lines(result.log) if line.strip()]
        lines = [line for line in lines if not line.startswith(("srun:", "slurmstepd:"))] or lines  # who only say that it has failed
        told = [line for line in lines if "error:" in line.lower()] or lines
        return f"exit code {job.code}: {told[-1] if told else 'it has written nothing'}"
    if job.state == "pruned":
        return f"{step}: {json.loads(result.folder.pruned.read_text())['reason']}"
    return {
        "stopped": f"{step}; the same command goes on with it",
        "running": f"{step}, {result.last['tokens'] / job.budget:.0%}",
        "waiting": "not begun" if not result.records else f"{step}; it waits to go on",
        "pending": "in the cluster's queue",
        "elsewhere": "another process trains it",
    }.get(job.state, "")


def number_of(value: Any) -> float | None:
    """The number that a value as typed stands for, as 0.003 or 4k; None of a word."""
    value = parse_count(value)
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
