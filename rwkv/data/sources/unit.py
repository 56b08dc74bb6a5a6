"""A unit: the share of a source that one process reads in one go."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from rwkv.config.schema import Record


class Place(Protocol):
    """What a user needs to find a record, found out when `str()` asks: the line number of a line far into a file is costly."""

    def __str__(self) -> str: ...


class Found(NamedTuple):
    """One record, or why there is none.

    place: where it is; `where` is that in words: "books.jsonl, line 12".
    record: the document's bytes, or a mapping of keys to values as in the file (a list, if that is what a line of JSON is); None if `bad`.
    bad: what is wrong with it, in words.
    """

    place: str | Place
    record: bytes | dict[str, Any] | list[Any] | None
    bad: str | None = None

    @property
    def where(self) -> str:
        return str(self.place)


class Unit(Protocol):
    """Can be pickled, and read any number of times with the same result.

    identity: changes when what `read` yields may have changed: path, size, time of change, range.
    size: bytes to read, for the progress shown; None if unknown.
    """

    @property
    def identity(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    def read(self) -> Iterator[Found]:
        """Its records in order. Raises DataError if the unit as a whole cannot be read."""
        ...


@runtime_checkable
class Batched(Protocol):
    """A unit that can tell many records at once to be nothing but text."""

    def batches(self, record: Record) -> Iterator[Found | list[bytes]]:
        """What `read` yields, but for lists of texts in the place of records of which `record` makes a whole document, all of it trained."""
        ...


@dataclass(frozen=True)
class Unreadable:
    """A file that holds no records that could be read: one bad record that says why."""

    name: str
    why: str
    size: int = 0

    @property
    def identity(self) -> str:
        return f"{self.name}: {self.why}"

    def read(self) -> Iterator[Found]:
        yield Found(self.name, None, self.why)
