"""How far a run is, from the lines that it appends to metrics.jsonl."""

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Progress:
    """Of one run: its last step, and every validation."""

    step: int = 0
    tokens: int = 0
    loss: float | None = None
    rate: float = 0.0  # tokens a second
    validations: list[tuple[int, float]] = field(default_factory=list)  # (tokens, loss)

    @staticmethod
    def of(path: Path) -> "Progress":
        """From a whole metrics.jsonl."""
        return Tail(path).read()

    def eta(self, budget: int) -> float | None:
        """Seconds until the budget is reached, at the present rate."""
        return (budget - self.tokens) / self.rate if self.rate > 0 and self.tokens < budget else None

    @property
    def val(self) -> float | None:
        return self.validations[-1][1] if self.validations else None


class Tail:
    """Reads only what is new; from the start again where the file is another one, as after a resume."""

    def __init__(self, path: Path):
        self.path, self.progress = path, Progress()
        self._file, self._offset, self._rest = None, 0, b""

    def read(self) -> Progress:
        """The run's progress now."""
        try:
            about = self.path.stat()
        except FileNotFoundError:
            return self.progress
        if about.st_ino != self._file or about.st_size < self._offset:
            self._file, self._offset, self._rest, self.progress = about.st_ino, 0, b"", Progress()
        with self.path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            self._take(line)
        return self.progress

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            p, p.step, p.tokens = self.progress, record["step"], record["tokens"]
        except (ValueError, KeyError, TypeError):  # torn by a kill; the next process drops it too
            return
        p.loss, p.rate = record.get("train/loss", p.loss), record.get("tokens_per_sec") or p.rate
        if "val/loss" in record:
            p.validations.append((p.tokens, record["val/loss"]))
