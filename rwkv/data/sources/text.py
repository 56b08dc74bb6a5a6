"""Text: a file is a document, or each of its lines is one."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from rwkv.data.sources.storage import Damaged, File
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

    def lines(self) -> Iterator[tuple[Line, bytes | None]]:
        """(place, line without its end), None for a line longer than LONGEST. Raises OSError, Damaged."""
        with self.file.trouble(), self.file.stream() as stream:
            at = self.start
            if at:
                stream.seek(at - 1)
                at += len(stream.readline()) - 1
            number = 0
            while self.end is None or at < self.end:
                line = stream.readline(LONGEST)
                if not line:
                    return
                whole = line.endswith(b"\n") or len(line) < LONGEST
                at, number = (at + len(line) + (0 if whole else _skip_line(stream)), number + 1)
                if number == 1 and self.start == 0:
                    line = line.removeprefix(BOM)
                yield (Line(self.file, self.start, number), line.removesuffix(b"\n").removesuffix(b"\r") if whole else None)


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

    def read(self) -> Iterator[Found]:
        place: Line | None = None
        try:
            for place, line in self.lines():
                bad = TOO_LONG if line is None else not_text(line)
                yield Found(place, None if bad else line, bad)
        except (OSError, Damaged) as error:
            yield broken_off(self.file, place, error)
            return
        if place is None and self.start == 0:
            yield Found(self.file.name, None, "empty")


def ranges(file: File) -> list[tuple[int, int | None]]:
    """(start, end) of the parts in which a file of lines is read: of the file alone, so that they are the same for any number of processes."""
    if file.fs is not None or file.compression or file.size <= RANGE:
        return [(0, None)]
    return [(start, min(start + RANGE, file.size)) for start in range(0, file.size, RANGE)]
