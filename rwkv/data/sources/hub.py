"""Data sets of the Hugging Face hub, through the library `datasets`."""

import functools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rwkv.config.schema import Data, Record
from rwkv.data.records import columns_of
from rwkv.data.sources.columnar import ROWS, batches, no_column, rows
from rwkv.data.sources.text import RANGE
from rwkv.data.sources.unit import Found, Unit
from rwkv.errors import DataError

SECONDS = 5  # until the hub counts as out of reach


class Unreachable(DataError):
    """There is no way to the hub, and no copy of what is asked for."""


@dataclass(frozen=True)
class Name:
    """A data set, at one revision of it."""

    name: str
    config: str | None
    split: str
    revision: str | None

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name, self.config, self.split)))


@dataclass(frozen=True)
class RowRange:
    """Rows first .. stop - 1 of a data set that was downloaded."""

    name: Name
    version: str
    record: Record
    first: int
    stop: int
    size: int

    @property
    def identity(self) -> str:
        return f"{self.name} {self.version} {self.first} {self.stop}"

    def read(self) -> Iterator[Found]:
        return self._records(rows)

    def batches(self, record: Record) -> Iterator[Found | list[bytes]]:
        return self._records(batches)

    def _records(self, read: Callable[..., Iterator[Any]]) -> Iterator[Any]:
        data = _downloaded(self.name)
        columns = columns_of(self.record, data.column_names)
        if not columns:
            yield Found(str(self.name), None, no_column(self.record, data.column_names))
            return
        row = self.first + 1
        for table in data.select_columns(columns).select(range(self.first, self.stop)).with_format("arrow").iter(ROWS):
            yield from read(table, self.record, lambda i, row=row: f"{self.name}, row {row + i}")
            row += table.num_rows


@dataclass(frozen=True)
class Shard:
    """One of the files of a data set that is read while it is downloaded."""

    name: Name
    version: str
    record: Record
    number: int
    of: int
    size: int | None = None

    @property
    def identity(self) -> str:
        return f"{self.name} {self.version} shard {self.number} of {self.of}"

    def read(self) -> Iterator[Found]:
        place = f"{self.name}, shard {self.number}"
        row = 0
        try:
            for row, record in enumerate(_streamed(self.name).shard(self.of, self.number), 1):
                columns = columns_of(self.record, list(record))
                yield Found(f"{place}, row {row}", {key: record[key] for key in columns} or record, None)
        except (UnicodeDecodeError, ValueError) as error:
            yield Found(f"{place}, after row {row}", None, f"cannot be read: {str(error).splitlines()[0]}")
        except Exception as error:  # what the network does has a class of its own in each library
            what = f"{type(error).__name__}: {error}".strip(": ")
            raise DataError(f"{place}: the download broke off after row {row}: {what}. What is prepared is kept: the same command goes on from it") from error


def hub_units(data: Data, split: str) -> list[Unit]:
    """Row ranges of about RANGE bytes, or with `streaming` the data set's own files.

    Raises:
        DataError: there is no such data set or split (that of the validation too, before anything is read), or neither the hub nor a
            copy can be reached.
    """
    name = Name(data.name, data.config, split, data.revision)
    version = str(_builder(name).hash or _builder(name).config.version)
    if data.val_split not in (None, split):
        (_streamed if data.streaming else _downloaded)(replace(name, split=data.val_split))
    if data.streaming:
        n = _streamed(name).num_shards
        return [Shard(name, version, data.record, i, n) for i in range(n)]
    table = _downloaded(name)
    if not len(table):
        raise DataError(f"data.name={data.name}: its split {split} has no rows")
    step = max(1, len(table) * RANGE // max(1, table.data.nbytes))
    return [
        RowRange(name, version, data.record, i, min(i + step, len(table)), max(1, table.data.nbytes * min(step, len(table) - i) // len(table)))
        for i in range(0, len(table), step)
    ]


@functools.lru_cache(maxsize=4)
def _builder(name: Name) -> Any:
    _offline_if_unreachable(name)
    try:
        import datasets
    except ImportError:
        raise DataError("data sets of the Hugging Face hub need the package datasets: pip install datasets") from None
    import tqdm

    datasets.disable_progress_bars()
    tqdm.tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a process that is killed leaves behind
    with _words(name):
        return datasets.load_dataset_builder(name.name, name.config, revision=name.revision)


@functools.lru_cache(maxsize=4)
def _downloaded(name: Name) -> Any:
    builder = _builder(name)
    with _words(name):
        builder.download_and_prepare()
        return builder.as_dataset(name.split)


@functools.lru_cache(maxsize=4)
def _streamed(name: Name) -> Any:
    builder = _builder(name)
    with _words(name):
        return builder.as_streaming_dataset(name.split)


def _offline_if_unreachable(name: Name) -> None:
    """The library tries an unreachable hub for half a minute; it is asked once here, and told to use what it has downloaded before."""
    hub = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if Path(name.name).exists() or any(key.lower() in ("https_proxy", "all_proxy") for key in os.environ):
        return
    try:
        socket.create_connection((hub.hostname, hub.port or (80 if hub.scheme == "http" else 443)), SECONDS).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes that read, and for this one, wherever it imports the library later
        import datasets
        import huggingface_hub

        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True


@contextmanager
def _words(name: Name) -> Iterator[None]:
    """A context that says in words what the library raises."""
    import datasets

    what = f"data.name={name.name}" + "".join(f" data.{key}={value}" for key in ("config", "revision") if (value := getattr(name, key)))
    try:
        yield
    except datasets.exceptions.DatasetNotFoundError as error:
        wanted = "data set, or revision of it" if name.revision else "data set"
        raise DataError(f"{what}: the hub has no such {wanted}, or it is not public (log in with: hf auth login)") from error
    except ConnectionError as error:
        folder = name.name.rpartition("/")[2]
        raise Unreachable(
            f"{what}: the Hugging Face hub cannot be reached, and this data set was not downloaded before. Where there is a network:\n"
            f"  hf download --repo-type dataset {name.name} --local-dir {folder}\n"
            f"(--include takes only the files of a pattern), then copy the folder here and add data.name={folder} to the command: "
            "its splits and configurations are found as on the hub"
        ) from error
    except ValueError as error:
        said = str(error).partition("\nExample of usage")[0].replace("\n", " ")  # of the library's functions
        missing = " (data.config=NAME)" if "Config name is missing" in said else ""
        raise DataError(f"{what} data.split={name.split}: {said}{missing}") from error
    except Exception as error:
        raise DataError(f"{what}: cannot be read: {type(error).__name__}: {error}") from error
