"""Parquet and Arrow: tables of row groups and batches, only the columns that records are made of."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rwkv.config.schema import Record
from rwkv.data.records import columns_of, plain_texts
from rwkv.data.sources.storage import Damaged, File
from rwkv.data.sources.text import RANGE, unreadable
from rwkv.data.sources.unit import Found, Unit, Unreadable
from rwkv.errors import DataError

ROWS = 1000  # turned into Python objects together
ALL = 2**62  # batches, where their number is not known


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError:
        raise DataError("reading parquet and arrow files needs the package pyarrow: pip install pyarrow") from None
    return pa


def rows(table: Any, record: Record, place: Callable[[int], str]) -> Iterator[Found]:
    """A table's or batch's rows; `place` says where the i-th is."""
    for i, row in enumerate(_python(table.select(columns_of(record, table.schema.names)))):
        yield (Found(place(i), row, None) if isinstance(row, dict) else Found(place(i), None, row))


def batches(table: Any, record: Record, place: Callable[[int], str]) -> Iterator[Found | list[bytes]]:
    """The same; a list of texts if that is all that its records are made of."""
    names = columns_of(record, table.schema.names)
    try:
        texts = plain_texts(({names[0]: value} for value in table.column(names[0]).to_pylist()), record) if len(names) == 1 else None
    except ValueError:  # UnicodeDecodeError among them: some row, `rows` says which
        texts = None
    yield from ([texts] if texts else rows(table, record, place))


def _python(table: Any) -> Iterator[dict | str]:
    try:
        yield from table.to_pylist()
    except (UnicodeDecodeError, ValueError):  # of some row: one by one, to know which
        for i in range(table.num_rows):
            try:
                yield from table.slice(i, 1).to_pylist()
            except UnicodeDecodeError:
                yield "not UTF-8"
            except ValueError as error:
                yield f"a value that cannot be read: {error}"


@dataclass(frozen=True)
class Part:
    """Row groups or batches first .. stop - 1 of a file, the first of whose rows is number `row` of it, counted from 1."""

    file: File
    record: Record
    first: int
    stop: int
    row: int
    size: int

    @property
    def identity(self) -> str:
        return f"{self.file.identity} {self.first} {self.stop}"

    def read(self) -> Iterator[Found]:
        return self._records(rows)

    def batches(self, record: Record) -> Iterator[Found | list[bytes]]:
        return self._records(batches)

    def _records(self, read: Callable[..., Iterator[Any]]) -> Iterator[Any]:
        pa, row = _pyarrow(), self.row
        try:
            with self.file.trouble(), opened(self.file) as source:
                for table in self.tables(pa, source):
                    if not columns_of(self.record, table.schema.names):
                        yield Found(self.file.name, None, no_column(self.record, table.schema.names))
                        return
                    yield from read(table, self.record, lambda i, row=row: f"{self.file.name}, row {row + i}")
                    row += table.num_rows
        except (OSError, Damaged, pa.ArrowException) as error:
            yield Found(f"{self.file.name}, after row {row - 1}" if row > 1 else self.file.name, None, _why(error))

    def tables(self, pa: Any, source: Any) -> Iterator[Any]:
        raise NotImplementedError


def no_column(record: Record, names: list[str]) -> str:
    return f"none of the columns that data.record.kind={record.kind} reads; it has {', '.join(map(repr, names)) or 'none'}"


def _why(error: Exception) -> str:
    if isinstance(error, Damaged) or (isinstance(error, OSError) and error.strerror):
        return unreadable(error)
    return f"cannot be read: {str(error).splitlines()[0]}"


@contextmanager
def opened(file: File) -> Iterator[Any]:
    """For pyarrow: memory-mapped where it is on disk, a stream where it is compressed."""
    pa = _pyarrow()
    if file.compression:
        with file.stream() as stream:
            yield stream
    elif file.fs is None:
        with pa.memory_map(file.path) as source:
            yield source
    else:
        with file.open() as source:
            yield source


@dataclass(frozen=True)
class RowGroups(Part):
    """Of a parquet file."""

    def tables(self, pa: Any, source: Any) -> Iterator[Any]:
        parquet = pa.parquet.ParquetFile(source)
        names = columns_of(self.record, parquet.schema_arrow.names)
        if names:
            yield from parquet.iter_batches(ROWS, row_groups=range(self.first, self.stop), columns=names)
        else:
            yield parquet.schema_arrow.empty_table()


@dataclass(frozen=True)
class Batches(Part):
    """Of an Arrow file or stream."""

    def tables(self, pa: Any, source: Any) -> Iterator[Any]:
        for batch in _batches(pa, self.file, source, self.first, self.stop):
            for start in range(0, batch.num_rows, ROWS):
                yield batch.slice(start, ROWS)


def _batches(pa: Any, file: File, source: Any, first: int = 0, stop: int = ALL) -> Iterator[Any]:
    if not file.compression:
        magic = source.read(6)
        source.seek(0)
        if magic == b"ARROW1":
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(i) for i in range(first, min(stop, reader.num_record_batches)))
            return
    for i, batch in enumerate(pa.ipc.open_stream(source)):
        if i >= stop:
            return
        if i >= first:
            yield batch


def parquet_units(file: File, record: Record) -> list[Unit]:
    """Of row groups of about RANGE bytes together."""
    pa = _pyarrow()
    if file.compression:
        return [Unreadable(file.name, "a parquet file compressed as a whole: unpack it first (parquet compresses its columns itself)", file.size)]
    try:
        with file.trouble(), opened(file) as source:
            about = pa.parquet.ParquetFile(source).metadata
            groups = [(about.row_group(i).num_rows, about.row_group(i).total_byte_size) for i in range(about.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        return [Unreadable(file.name, _why(error), file.size)]
    return _together(RowGroups, file, record, groups)


def arrow_units(file: File, record: Record) -> list[Unit]:
    """Of batches of about RANGE bytes together where the file is on disk, else the file."""
    pa = _pyarrow()
    if file.compression or file.fs is not None:
        return [Batches(file, record, 0, ALL, 1, file.size)]
    try:
        with opened(file) as source:
            batches = [(batch.num_rows, batch.nbytes) for batch in _batches(pa, file, source)]
    except (OSError, pa.ArrowException) as error:
        return [Unreadable(file.name, _why(error), file.size)]
    return _together(Batches, file, record, batches)


def _together(kind: type[Part], file: File, record: Record, blocks: list[tuple[int, int]]) -> list[Unit]:
    """blocks: (rows, bytes) of each row group or batch."""
    if not sum(n for n, _ in blocks):
        return [Unreadable(file.name, "empty (it has no rows)", file.size)]
    out: list[Unit] = []
    first = row = size = count = 0
    for i, (n, length) in enumerate(blocks, 1):
        size, count = size + length, count + n
        if size >= RANGE or i == len(blocks):
            out.append(kind(file, record, first, i, row + 1, size))
            first, row, size, count = i, row + count, 0, 0
    return out


def saved_dataset(files: list[File | Unreadable], split: str) -> list[File] | None:
    """The Arrow files of a folder that `datasets.save_to_disk` wrote, in its order, of one split where it has several; None: it is no such folder.

    Raises:
        DataError: it has no such split.
    """
    by_name = {file.name: file for file in files if isinstance(file, File)}
    folder = ""
    if "dataset_dict.json" in by_name:
        splits = _json(by_name["dataset_dict.json"])["splits"]
        if split not in splits:
            raise DataError(f"data.split={split}: the data set on disk has the splits {', '.join(splits)}")
        folder = f"{split}/"
    if f"{folder}state.json" not in by_name:
        return None
    names = [folder + entry["filename"] for entry in _json(by_name[f"{folder}state.json"])["_data_files"]]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise DataError(f"{missing[0]} is missing in the data set on disk; its state.json names it")
    return [by_name[name] for name in names]


def _json(file: File) -> dict:
    with file.trouble(), file.stream() as stream:
        return json.load(stream)
