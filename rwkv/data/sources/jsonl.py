"""JSON: a record a line, or a file whose values, or the elements of whose one array, are the records."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from rwkv.config.schema import Record
from rwkv.data.pieces import kind_of
from rwkv.data.records import plain_texts
from rwkv.data.sources.storage import Damaged, File
from rwkv.data.sources.text import BOM, LONGEST, TOO_LONG, Line, LineRange, WholeFile, ranges, unreadable
from rwkv.data.sources.unit import Found, Unit, Unreadable


def parse(raw: bytes) -> tuple[Any, str | None]:
    """(record, None), or (None, what is wrong). Of a key that occurs twice the last value counts."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:  # or what it is stricter about: NaN, numbers out of range, half characters, depth
        value, bad = _parse(raw)
        if bad:
            return None, bad
    if isinstance(value, dict | list):
        return value, None
    return None, f"{kind_of(value)}, not a mapping of keys to values"


def _parse(raw: bytes) -> tuple[Any, str | None]:
    """By Python's library."""
    try:
        return json.loads(raw.decode()), None
    except UnicodeDecodeError as error:
        return (None, f"not UTF-8 (byte {error.start + 1} of it is {raw[error.start]:#04x})")
    except json.JSONDecodeError as error:
        return None, f"not JSON: {error.msg} at character {error.pos + 1}"
    except RecursionError:
        return None, "JSON nested too deeply"
    except ValueError as error:  # a number of more digits than Python reads
        return None, f"not JSON that can be read: {str(error).split(';')[0]}"


@dataclass(frozen=True)
class JsonLines(LineRange):
    """Each line a record; blank lines are none."""

    def found(self, place: Line, line: bytes | None) -> Found | None:
        if line is None:
            return Found(place, None, TOO_LONG)
        return Found(place, *parse(line)) if line and not line.isspace() else None

    def plain(self, lines: list[bytes | None], record: Record) -> list[bytes] | None:
        try:
            return plain_texts(map(orjson.loads, filter(None, lines)), record) if None not in lines else None
        except orjson.JSONDecodeError:
            return None


@dataclass(frozen=True)
class JsonValues(WholeFile):
    """The values of a file one after the other, over any number of lines; if they are one array, its elements."""

    @property
    def identity(self) -> str:
        return f"{self.file.identity} values"

    def read(self) -> Iterator[Found]:
        number = 0
        try:
            with self.file.trouble(), self.file.stream() as stream:
                for number, raw in enumerate(values(stream), 1):
                    yield Found(f"{self.file.name}, record {number}", *parse(raw))
        except (OSError, Damaged) as error:
            yield Found(f"{self.file.name}, after record {number}", None, unreadable(error))
            return
        if not number:
            yield Found(self.file.name, None, "empty")


# what matters for where a value ends: whole strings, the start of one that goes on, brackets, commas
_MARK = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
_BLOCK = 2**20


def values(stream: BinaryIO) -> Iterator[bytes]:
    """The JSON values of a stream, or the elements of the one array it is, each as its bytes; no more than one of them is in memory.

    Raises:
        Damaged: the last value does not end, or one is longer than LONGEST.
    """
    buffer = stream.read(_BLOCK).removeprefix(BOM)
    at = start = depth = 0
    level = 1 if buffer.lstrip().startswith(b"[") else 0  # how deep the records lie
    while True:
        mark = _MARK.search(buffer, at)
        if mark is None or mark[0] == b'"':
            more = stream.read(max(_BLOCK, len(buffer) - start))
            if not more:
                break
            at = (mark.start() if mark else len(buffer)) - start
            buffer, start = buffer[start:] + more, 0
            if len(buffer) > 2 * LONGEST:
                raise Damaged(f"a record {TOO_LONG}, or one that does not end: the rest of the file is not read")
            continue
        at = mark.end()
        depth += (mark[0] in b"[{") - (mark[0] in b"]}")
        if level == 0 and depth <= 0 and mark[0] in b"]}":
            yield buffer[start:at].strip()
            start, depth = at, 0
        elif level == 1 and depth == 1 and mark[0] == b"[" and not buffer[:start].strip():
            start = at
        elif level == 1 and ((depth == 1 and mark[0] == b",") or depth == 0):
            if buffer[start : mark.start()].strip() or depth:
                yield buffer[start : mark.start()].strip()
            start, level = at, depth
    if depth:
        raise Damaged("the file ends in the middle of a record or of its array")
    if buffer[start:].strip():
        yield buffer[start:].strip()


def jsonl_units(file: File) -> list[Unit]:
    """A file that ends in .json holds values; so does one on disk whose first line only opens a bracket; else its lines are the records."""
    try:
        if file.ending == ".json" or (file.fs is None and not _first_line_is_whole(file)):
            return [JsonValues(file)]
    except (OSError, Damaged) as error:
        return [Unreadable(file.name, unreadable(error), file.size)]
    return [JsonLines(file, start, end) for start, end in ranges(file)]


def _first_line_is_whole(file: File) -> bool:
    with file.trouble(), file.stream() as stream:
        first = stream.readline(_BLOCK).removeprefix(BOM)
    return first.strip() not in (b"[", b"{", b"[{")
