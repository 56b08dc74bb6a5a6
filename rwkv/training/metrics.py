"""metrics.jsonl: one JSON object a line. The same numbers go to wandb, if that is chosen."""

import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rwkv.config.schema import TrainConfig
from rwkv.disk import Lines
from rwkv.errors import ConfigError

LAST = 20  # steps whose mean loss is the final training loss


class MetricsLog:
    """Appends records; lines of steps after the one resumed from are dropped, so that each step stands once."""

    def __init__(self, path: Path, resumed_step: int, wandb: Any = None):
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if (r := _record(line)) and r["step"] <= resumed_step]
            temp = path.with_suffix(".tmp")
            temp.write_text("".join(line + "\n" for line in kept))
            temp.replace(path)
        self._file = Lines(path)
        self.wandb = wandb

    def write(self, record: dict[str, float | int]) -> None:
        rounded = {k: float(f"{v:.8g}") if isinstance(v, float) and math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(rounded))
        self._to_wandb(lambda run: run.log(rounded, step=rounded["step"]))

    def close(self) -> None:
        self._file.close()
        self._to_wandb(lambda run: run.finish())

    def _to_wandb(self, act: Callable[[Any], None]) -> None:
        """A copy alone: where wandb fails, training goes on without it."""
        try:
            if self.wandb is not None:
                act(self.wandb)
        except Exception as error:
            self.wandb = None
            print(f"warning: wandb has failed ({error}): from here on records are in {self._file.path} alone", file=sys.stderr, flush=True)


def _record(line: str) -> dict | None:
    """None for a line torn by a kill."""
    try:
        record = json.loads(line)
        record["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return record


def read(path: Path) -> list[dict]:
    """All whole records of a metrics.jsonl; none if there is no such file."""
    return [r for line in path.read_text().splitlines() if (r := _record(line))] if path.exists() else []


def final_loss(records: list[dict]) -> float | None:
    """The mean training loss of the last steps; None if none was recorded."""
    losses = [r["train/loss"] for r in records if "train/loss" in r][-LAST:]
    return statistics.fmean(losses) if losses else None


def start_wandb(cfg: TrainConfig, folder: Path, run_id: str) -> Any:
    """A wandb run that goes on where the one with this id ended. None if it is not chosen. Without a network it is kept in the run's folder.

    Raises:
        ConfigError: wandb is not installed, or cannot start: no login.
    """
    if cfg.logger.kind != "wandb":
        return None
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("logger=wandb: the package is not installed; pip install wandb") from error
    logger, settings = cfg.logger, dataclasses.asdict(cfg)

    def start(mode: str) -> Any:
        return wandb.init(
            project=logger.project, mode=mode, dir=folder, id=run_id, name=folder.name, group=logger.group, resume="allow", config=settings
        )

    try:
        return start(logger.mode)
    except wandb.errors.CommError as error:
        print(f"warning: wandb cannot be reached ({error}): `wandb sync` sends what is kept in {folder / 'wandb'}", file=sys.stderr, flush=True)
        wandb.teardown()  # its service has the run's id in use
        return start("offline")
    except wandb.Error as error:
        raise ConfigError(
            f"logger=wandb logger.mode={cfg.logger.mode}: wandb does not start: {error} "
            "logger.mode=offline needs neither login nor network; logger=none goes without it"
        ) from error
