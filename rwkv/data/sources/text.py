"""Text: a file is a document, or each of its lines is one."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from rwkv.config.schema import Record
from rwkv.data.sources.storage import BUFFER, Damaged, File
from rwkv.data.sources.unit import Found, Place

BOM = b"\xef\xbb\xbf"  # at the start of a file it says that the file is UTF-8, and is no text
LONGEST = 2**30  # bytes of a line; a longer one would be held in memory whole
RANGE = 2**26  # bytes of a file of lines that one process reads


@dataclass(frozen=True)
class WholeFile:
    """What one process reads is a file."""

    file: File

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def identity(self) -> str:
        return self.file.identity


@dataclass(frozen=True)
class TextFile(WholeFile):
    """A file that is one document, in any encoding: its bytes are the text."""

    def read(self) -> Iterator[Found]:
        try:
            with self.file.trouble(), self.file.stream() as stream:
                content = stream.read().removeprefix(BOM)
        except (OSError, Damaged) as error:
            yield Found(self.file.name, None, unreadable(error))
            return
        bad = not_text(content)
        yield Found(self.file.name, None if bad else content, bad)


def not_text(content: bytes) -> str | None:
    """Why bytes are no document."""
    if b"\0" in content:
        return "not text (it holds zero bytes)"
    return "empty" if not content or content.isspace() else None


def unreadable(error: OSError | Damaged) -> str:
    return f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error)


class Line(NamedTuple):
    """Place of a line: its number in the file, though only the lines from byte `start` on were counted."""

    file: File
    start: int
    number: int

    def __str__(self) -> str:
        return f"{self.file.name}, line {self.number + (_lines_before(self.file, self.start) if self.start else 0)}"


@functools.lru_cache(maxsize=8)
def _lines_before(file: File, end: int) -> int:
    """The lines that begin before byte `end`: the first one, and one after each line end but one right before it."""
    lines, left = 1, end - 1
    with file.open() as stream:
        while block := stream.read(min(left, 2**24)):
            lines, left = lines + block.count(b"\n"), left - len(block)
    return lines


def broken_off(file: File, last: str | Place | None, error: OSError | Damaged) -> Found:
    """What ends the records of a file that cannot be read on."""
    return Found(f"after {last}" if last else file.name, None, unreadable(error))


@dataclass(frozen=True)
class LineRange:
    """The lines of a file that begin in bytes start .. end - 1; end None: to the end of the file."""

    file: File
    start: int = 0
    end: int | None = None

    @property
    def size(self) -> int:
        return (self.file.size if self.end is None else self.end) - self.start

    @property
    def identity(self) -> str:
        return f"{self.file.identity} {self.start} {self.end}"

    def read(self) -> Iterator[Found]:
        return self._records(lambda lines: None)

    def batches(self, record: Record) -> Iterator[Found | list[bytes]]:
        return self._records(lambda lines: self.plain(lines, record))

    def plain(self, lines: list[bytes | None], record: Record) -> list[bytes] | None:
        """The texts of lines, if each is surely one or is none at all."""
        raise NotImplementedError

    def found(self, place: Line, line: bytes | None) -> Found | None:
        """The record of a line, if it is one; of None, a line longer than LONGEST."""
        raise NotImplementedError

    def _records(self, plain: Callable[[list[bytes | None]], list[bytes] | None]) -> Iterator[Any]:
        place, none = None, self.start == 0 and self.end is None
        try:
            for number, lines in self._lines():
                texts = plain(lines)
                found = [texts] if texts else (self.found(Line(self.file, self.start, number + i), line) for i, line in enumerate(lines))
                for record in filter(None, found):
                    none = False
                    yield record
                place = Line(self.file, self.start, number + len(lines) - 1)
        except (OSError, Damaged) as error:
            yield broken_off(self.file, place, error)
            return
        if none:
            yield Found(self.file.name, None, "empty")

    def _lines(self) -> Iterator[tuple[int, list[bytes | None]]]:
        """(number of the first, lines without their ends) of a block; None for a line longer than LONGEST. Raises OSError, Damaged."""
        number = 1
        for block in self._blocks():
            if number == 1 and self.start == 0:
                block = block.removeprefix(BOM)
            lines: list[bytes | None] = block.removesuffix(b"\n").split(b"\n")
            if b"\r" in block:
                lines = [line.removesuffix(b"\r") for line in lines]
            if len(block) > LONGEST:
                lines = [line if len(line) <= LONGEST else None for line in lines]
            yield number, lines
            number += len(lines)

    def _blocks(self) -> Iterator[bytes]:
        """The bytes of the range, in blocks that end where a line does, or the file, or in a line longer than LONGEST."""
        with self.file.trouble(), self.file.stream() as stream:
            at = self.start
            if at:
                stream.seek(at - 1)
                at += len(stream.readline()) - 1
            while self.end is None or at < self.end:
                block = stream.read1(BUFFER if self.end is None else min(BUFFER, self.end - at))  # not read: it loses what is before a damaged part
                if not block:
                    return
                at += len(block)
                whole = block.rfind(b"\n") + 1
                if whole:
                    yield block[:whole]
                if whole < len(block):
                    rest = stream.readline(LONGEST)
                    yield block[whole:] + rest
                    at += len(rest)
                    if len(rest) == LONGEST and not rest.endswith(b"\n"):
                        at += _skip_line(stream)


def _skip_line(stream: BinaryIO) -> int:
    skipped = 0
    while rest := stream.readline(2**24):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


TOO_LONG = f"longer than {LONGEST} bytes"


@dataclass(frozen=True)
class Lines(LineRange):
    """Each line a document."""

    def found(self, place: Line, line: bytes | None) -> Found:
        bad = TOO_LONG if line is None else not_text(line)
        return Found(place, None if bad else line, bad)

    def plain(self, lines: list[bytes | None], record: Record) -> list[bytes] | None:
        return None if None in lines or any(map(not_text, lines)) else lines


def ranges(file: File) -> list[tuple[int, int | None]]:
    """(start, end) of the parts in which a file of lines is read: of the file alone, so that they are the same for any number of processes."""
    if file.fs is not None or file.compression or file.size <= RANGE:
        return [(0, None)]
    return [(start, min(start + RANGE, file.size)) for start in range(0, file.size, RANGE)]
