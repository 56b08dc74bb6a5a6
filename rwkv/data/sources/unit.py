"""A unit: the share of a source that one process reads in one go."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Found:
    """One record, or why there is none.

    where: what a user needs to find it: "books.jsonl, line 12".
    record: the document's bytes, or a mapping of keys to values as in the file; None if `bad`.
    bad: what is wrong with it, in words.
    """

    where: str
    record: bytes | dict[str, Any] | None
    bad: str | None = None


class Unit(Protocol):
    """Can be pickled, and read any number of times with the same result.

    identity: changes when what `read` yields may have changed: path, size, time of change, range.
    size: bytes to read, for the progress shown; 0 if unknown.
    """

    identity: str
    size: int

    def read(self) -> Iterator[Found]:
        """Its records in order. Raises DataError if the unit as a whole cannot be read."""
        ...
