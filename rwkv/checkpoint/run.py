"""A run is its settings: the folder that bears their signature, and the lock on it."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from rwkv import disk
from rwkv.config.schema import TrainConfig
from rwkv.errors import CheckpointError, ConfigError

# settings that do not change what is learnt: where and how it is computed, shown and kept
NOT_SIGNED = {
    "name", "out", "threads", "logger", "checkpoint", "sample", "expect", "strategy",
    "data.cache", "data.processes", "data.storage", "layout.at_once", "model.kernel", "bptt.states", "bptt.recompute", "bptt.graphs",
    "trainer.log_every", "trainer.val_every", "trainer.val_tokens", "trainer.self_check",
    "trainer.on_nan", "trainer.max_bad",
}  # fmt: skip
UNSIGNED_AT = {"trainer.spike": 0.0, "precision.residual": None}  # settings that came later, at the value which leaves everything as it was before them


def signature(cfg: TrainConfig) -> str:
    """Eight hex digits of the settings that change the result."""

    def walk(node: Any, prefix: str) -> Any:
        if not isinstance(node, dict):
            return node
        named = {k: (v, f"{prefix}{k}") for k, v in node.items()}
        kept = {k: (v, name) for k, (v, name) in named.items() if name not in NOT_SIGNED and not (name in UNSIGNED_AT and v == UNSIGNED_AT[name])}
        return {k: walk(v, f"{name}.") for k, (v, name) in kept.items()}

    text = json.dumps(walk(dataclasses.asdict(cfg), ""), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class RunFolder:
    """The files of one run. Its tree is in the README."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics, self.log = path / "metrics.jsonl", path / "train.log"
        self.config, self.overrides, self.env = path / "config.yaml", path / "overrides.yaml", path / "env.json"
        self.samples, self.report, self.summary = path / "samples", path / "report.html", path / "summary.json"
        self.pruned = path / "pruned.json"  # why a search has ended it early
        self._lock = None

    @staticmethod
    def of(cfg: TrainConfig) -> "RunFolder":
        return RunFolder(Path(cfg.out) / f"{cfg.name}-{signature(cfg)}")

    @property
    def finished(self) -> bool:
        return self.summary.is_file()

    def acquire(self, patient: bool = False) -> None:
        """Make the folder, with nothing in it, and take its lock, which the process holds until it ends.

        patient: wait while another process is training this run.

        Raises:
            ConfigError: the folder cannot be written.
            CheckpointError: another process is training this run, and this one is not patient.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise ConfigError(f"out: the run folder {self.path} cannot be written: {error.strerror}; set out=FOLDER") from error

        def taken(holder: str) -> None:
            if patient:
                return print(f"{self.path} is being trained by {holder}; waiting until that ends", flush=True)
            remedy = "wait until that has ended, or change a setting (seed=2) for a run of its own"
            raise CheckpointError(f"{self.path} is being trained by {holder}: {remedy}") from None

        disk.lock(self._lock, taken)

    def make(self) -> None:
        """The folders in it. Under the lock."""
        self.checkpoints.mkdir(exist_ok=True)
        self.samples.mkdir(exist_ok=True)

    def discard(self) -> None:
        """Remove the folder if there is nothing in it but the lock: a run that was refused leaves nothing."""
        if [f.name for f in self.path.iterdir()] == [".lock"]:
            (self.path / ".lock").unlink()
            self.path.rmdir()


def newest_run(out: Path) -> RunFolder:
    """The run whose checkpoints changed last. Raises CheckpointError if there is none."""
    runs = [p.parent for p in out.glob("*/checkpoints") if any(p.iterdir())]
    if not runs:
        raise CheckpointError(f"{out}: no run with a checkpoint there; train one with python -m rwkv.train, or name a model file")
    return RunFolder(max(runs, key=lambda r: (r / "checkpoints").stat().st_mtime))
