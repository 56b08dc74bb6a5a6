"""CSV: a record a row, under the keys of the first one."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

from rwkv.data.sources.storage import Damaged
from rwkv.data.sources.text import LONGEST, WholeFile, broken_off
from rwkv.data.sources.unit import Found

LONGEST_FIELD = 2**28  # characters; a quote that is never closed would else read the whole file into memory


@dataclass(frozen=True)
class Csv(WholeFile):
    """A file of rows, read by one process: whether a line end is a row's end is known only from all that comes before it.

    The delimiter is a tab in .tsv files, else whichever of , ; and tab is most frequent in the first line. Quoted fields may hold line ends.
    """

    def read(self) -> Iterator[Found]:
        csv.field_size_limit(LONGEST_FIELD)
        found = None
        try:
            with self.file.trouble(), io.TextIOWrapper(self.file.stream(), "utf-8-sig", "surrogateescape", newline="") as text:
                for found in self._rows(text):
                    yield found
        except (OSError, Damaged) as error:
            yield broken_off(self.file, found and found.place, error)

    def _rows(self, text: io.TextIOWrapper) -> Iterator[Found]:
        first = text.readline(LONGEST)
        delimiter = "\t" if self.file.ending == ".tsv" else max(",;\t", key=first.count)
        rows = csv.reader(chain([first], iter(partial(text.readline, LONGEST), "")), delimiter=delimiter, strict=True)
        try:
            keys = next(rows)
        except csv.Error as error:
            yield Found(self.file.name, None, f"not CSV: {error} in the first line")
            return
        bad = _bad_header(keys, first)
        if bad:
            yield Found(self.file.name, None, bad)
            return
        any_row = False
        while True:
            place = f"{self.file.name}, line {rows.line_num + 1}"
            try:
                row = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                row, bad = None, f"not CSV: {error}"
            else:
                bad = _bad_row(row, keys)
            if row != []:  # of a blank line
                any_row = True
                yield Found(place, None if bad else dict(zip(keys, row, strict=True)), bad)
        if not any_row:
            yield Found(self.file.name, None, "no rows below the first line")


def _bad_header(keys: list[str], line: str) -> str | None:
    if not line.strip():
        return "empty"
    if not all(key.isprintable() for key in keys):
        return "not CSV in UTF-8 (its first line holds bytes that are no text)"
    if not any(key.strip() for key in keys):
        return "no names of columns in the first line"
    twice = sorted({key for key in keys if keys.count(key) > 1})
    return f"two columns named {twice[0]}" if twice else None


def _bad_row(row: list[str], keys: list[str]) -> str | None:
    if row and len(row) != len(keys):
        return f"{len(row)} fields, the first line has {len(keys)}"
    return "not text (it holds zero bytes)" if any("\0" in field for field in row) else None
