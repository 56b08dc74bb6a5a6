"""Units for the tests of preparation: light, for the processes that read them import this module."""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rwkv.data.sources import Found
from rwkv.errors import DataError


@dataclass(frozen=True)
class Texts:
    """records: bytes, or a reason why there are none as str."""

    number: int
    records: tuple
    size: int | None = 1000

    @property
    def identity(self) -> str:
        return f"unit {self.number}"

    def read(self) -> Iterator[Found]:
        for i, record in enumerate(self.records):
            where = f"unit {self.number}, line {i + 1}"
            yield Found(where, None, record) if isinstance(record, str) else Found(where, record)


@dataclass(frozen=True)
class Modules(Texts):
    """Its one record says which heavy modules its process has."""

    def read(self) -> Iterator[Found]:
        heavy = [name for name in ("torch", "lightning", "datasets", "hydra") if name in sys.modules]
        yield Found("", f"process {os.getpid()} has {heavy}".encode())


@dataclass(frozen=True)
class Deadly(Texts):
    """Its process dies as at the hands of the kernel, when memory is out."""

    def read(self) -> Iterator[Found]:
        yield from super().read()
        os.kill(os.getpid(), 9)


@dataclass(frozen=True)
class Faulty(Texts):
    error: type = DataError

    def read(self) -> Iterator[Found]:
        yield from super().read()
        time.sleep(0.3 if self.number < 2 else 0)  # later ones fail before earlier ones do
        raise self.error(f"unit {self.number} is broken")


@dataclass(frozen=True)
class Changing(Texts):
    """Its identity follows a file that its reading changes."""

    file: Path = Path()

    @property
    def identity(self) -> str:
        return self.file.read_text()

    def read(self) -> Iterator[Found]:
        self.file.write_text(self.file.read_text() + "x")
        yield from super().read()
