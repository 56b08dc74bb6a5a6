"""CSV: a record a row, under the keys of the first one."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass

from rwkv.data.sources.storage import Damaged
from rwkv.data.sources.text import TOO_LONG, Line, LineRange, broken_off
from rwkv.data.sources.unit import Found

LONGEST_FIELD = 2**28  # characters; a quote that is never closed would else read the whole file into memory


@dataclass(frozen=True)
class Csv(LineRange):
    """A file of rows, read by one process: whether a line end is a row's end is known only from all that comes before it.

    The delimiter is a tab in .tsv files, else whichever of , ; and tab is most frequent in the first line. Quoted fields may hold line ends.
    """

    def read(self) -> Iterator[Found]:
        csv.field_size_limit(LONGEST_FIELD)
        source = _Source(self)
        try:
            yield from self._rows(source)
        except (OSError, Damaged) as error:
            yield broken_off(self.file, source.place, error)

    def _rows(self, source: "_Source") -> Iterator[Found]:
        first = next(source, "")
        delimiter = "\t" if self.file.ending == ".tsv" else max(",;\t", key=first.count)
        keys = next(csv.reader([first], delimiter=delimiter), [])
        bad = _bad_header(keys, first)
        if bad:
            yield Found(self.file.name, None, bad)
            return
        rows = csv.reader(source, delimiter=delimiter, strict=True)
        any_row = False
        while True:
            source.start = None
            try:
                row = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                any_row = True
                yield Found(source.start or source.place, None, f"not CSV: {error}")
                continue
            if row or source.too_long:
                any_row = True
                bad = source.why() or (f"{len(row)} fields, the first line has {len(keys)}" if len(row) != len(keys) else None)
                yield Found(source.start, None if bad else dict(zip(keys, row, strict=True)), bad)
        if not any_row:
            yield Found(self.file.name, None, "no rows below the first line")


def _bad_header(keys: list[str], line: str) -> str | None:
    if not any(key.strip() for key in keys):
        return "empty" if not line.strip() else "no names of columns in the first line"
    if not line.isprintable() and not line.replace("\t", "").rstrip("\r\n").isprintable():
        return "not CSV in UTF-8 (its first line holds bytes that are no text)"
    twice = sorted({key for key in keys if keys.count(key) > 1})
    return f"two columns named {twice[0]}" if twice else None


class _Source:
    """Lines for csv.reader, each with its end. start: place of the first one read since it was set to None."""

    def __init__(self, lines: LineRange):
        self.lines = lines.lines()
        self.place: Line | None = None
        self.start: Line | None = None
        self.too_long = False
        self.text: list[str] = []

    def __iter__(self) -> "_Source":
        return self

    def __next__(self) -> str:
        self.place, raw = next(self.lines)
        if self.start is None:
            self.start, self.too_long, self.text = self.place, False, []
        self.too_long |= raw is None
        line = (raw or b"").decode(errors="surrogateescape") + "\n"
        self.text.append(line)
        return line

    def why(self) -> str | None:
        """What is wrong with the lines read since `start`."""
        if self.too_long:
            return TOO_LONG
        if any("\0" in line for line in self.text):
            return "not text (it holds zero bytes)"
        return "not UTF-8" if any(not line.isascii() and any("\ud800" <= c <= "\udfff" for c in line) for line in self.text) else None
