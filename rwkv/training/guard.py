"""Steps that must not enter the weights: a loss, gradient or state that is not finite, or a gradient that spikes."""

import json
import math
import statistics
from typing import NoReturn

from rwkv.checkpoint import store
from rwkv.checkpoint.run import RunFolder
from rwkv.config.schema import Trainer
from rwkv.errors import TrainingError

WINDOW = 64  # accepted steps whose median gradient norm is what a spike is measured against
LEAST = 16  # of them, before any is called a spike


class Guard:
    """Judges each step before its update, and counts the bad ones in a row.

    Attributes:
        norms: gradient norms of the last accepted steps. A bad step is never among them.
        row: bad steps since the last accepted one.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.norms: list[float] = []
        self.row = 0

    def judge(self, loss: float, norm: float, state_finite: bool) -> str | None:
        """What is wrong with a step; None if nothing is."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"loss {loss}, gradient norm {norm}"
        if not state_finite:
            return "the state after it is not finite"
        if self.trainer.spike and len(self.norms) >= LEAST and norm > (bound := self.trainer.spike * statistics.median(self.norms)):
            return f"gradient norm {norm:.4g} is above {bound:.4g}, trainer.spike={self.trainer.spike:g} times the median of the last {len(self.norms)}"
        return None

    def accept(self, norm: float) -> None:
        self.norms = [*self.norms, norm][-WINDOW:]
        self.row = 0

    def refuse(self) -> bool:
        """Count a bad step. Returns whether training ends with it."""
        self.row += 1
        return self.trainer.on_nan == "stop" or self.row >= self.trainer.max_bad

    def state_dict(self) -> dict:
        return {"norms": self.norms, "row": self.row}

    def load_state_dict(self, saved: dict) -> None:
        self.norms, self.row = list(saved["norms"]), saved["row"]


def end(folder: RunFolder, guard: Guard, record: dict) -> NoReturn:
    """Write what is known of the bad step to a file, and raise TrainingError."""
    dump = folder.path / f"bad-step-{record['step']:08d}.json"
    points = store.points(folder.checkpoints)
    dump.write_text(json.dumps(record | {"checkpoints": [p.name for p in points], "norms": guard.norms}, indent=1))
    kept = f"; the newest checkpoint is {points[0].name}, perhaps one that leads here" if points else "; there is no checkpoint"
    row = f", {guard.row} bad steps in a row (trainer.max_bad)" if guard.row > 1 else ""
    raise TrainingError(
        f"step {record['step']}: {record['bad']}{row}: stopped before the weights changed{kept}. The step is described in {dump}. "
        "A lower optim.lr, a longer schedule.warmup_steps or precision=fp32 may help; trainer.on_nan=skip or rewind goes on without such steps"
    )
