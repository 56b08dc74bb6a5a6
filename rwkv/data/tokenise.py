"""Records to tokens: what one process does with its share of a source, and the files it leaves."""

import functools
import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from rwkv.config.schema import Data, Record
from rwkv.data.binidx import LONGEST
from rwkv.data.records import BadRecord, Part, parts
from rwkv.data.sources import Batched, Found, Unit
from rwkv.data.tokenizer import END_OF_DOCUMENT, Tokenizer
from rwkv.errors import DataError

TOGETHER = 2**20  # bytes of text that are tokenised and written together
SHOWN = 20  # bad records that are kept with their places
DIGITS = re.compile(r"\d+")

Tick = Callable[[int, int], None]  # bytes of text and documents done since the last call


@dataclass(frozen=True)
class Task:
    """Some units that one process reads, one after the other; of their records those from `first` to `stop` - 1."""

    number: int
    units: tuple[Unit, ...]
    first: int = 0
    stop: int | None = None

    @functools.cached_property
    def size(self) -> int:
        """Bytes to read, of the units that know theirs."""
        return sum(unit.size or 0 for unit in self.units)

    @property
    def known(self) -> bool:
        return all(unit.size is not None for unit in self.units)

    def records(self) -> Iterator[Found]:
        return islice((found for unit in self.units for found in unit.read()), self.first, self.stop)

    def batches(self, record: Record) -> Iterator[Found | list[bytes]]:
        """The same; of the records that are nothing but text many at a time, where a unit can tell which are."""
        if self.first or self.stop is not None:
            return self.records()
        return (found for unit in self.units for found in (unit.batches(record) if isinstance(unit, Batched) else unit.read()))

    @property
    def identity(self) -> str:
        return hashlib.sha256(repr([[unit.identity for unit in self.units], self.first, self.stop]).encode()).hexdigest()

    @property
    def name(self) -> str:
        names = [unit.identity for unit in self.units]
        return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


@dataclass(frozen=True)
class Documents:
    """ids: [n], one document behind the other, each with its end token; sizes: [documents] int64, tokens of each.

    mask: [n] bool, whether a token is trained; None: all are. An end token is as the last part of its document.
    """

    ids: np.ndarray
    sizes: np.ndarray
    mask: np.ndarray | None

    @property
    def learnable(self) -> np.ndarray:
        """[documents] bool: whether a token but the first is trained."""
        if self.mask is None:
            return self.sizes > 1
        first = np.cumsum(self.sizes) - self.sizes
        return np.add.reduceat(self.mask, first, dtype=np.int64) > self.mask[first]

    def those(self, wanted: np.ndarray) -> "Documents":
        """wanted: [documents] bool."""
        if wanted.all():
            return self
        tokens = np.repeat(wanted, self.sizes)
        mask = None if self.mask is None else self.mask[tokens]
        return Documents(self.ids[tokens], self.sizes[wanted], None if mask is None or mask.all() else mask)


def encoded(records: list[bytes | list[Part]], tokenizer: Tokenizer, untrained: int = 0) -> Documents:
    """At least one record, each a text that is trained, or at least one part.

    Each part is tokenised by itself, so that no token lies on both sides of a change from untrained to trained.

    untrained: so many tokens at the start of each document are not trained.
    """
    if not untrained and all(isinstance(record, bytes) for record in records):
        return Documents(*tokenizer.encode_batch(records, end=True), None)
    records = [[Part(record, True)] if isinstance(record, bytes) else record for record in records]
    ids, counts = tokenizer.encode_batch([part.text for record in records for part in record])
    behind = np.cumsum(np.fromiter(map(len, records), np.int64, len(records)))
    counts = np.insert(counts, behind, 1)  # the end token is a part more
    behind += np.arange(1, len(records) + 1)
    sizes = np.add.reduceat(counts, np.append(0, behind[:-1]))
    ids = np.insert(ids, np.cumsum(sizes - 1), END_OF_DOCUMENT)
    if not untrained and all(part.trained for record in records for part in record):
        return Documents(ids, sizes, None)
    mask = np.repeat([trained for record in records for trained in (*(part.trained for part in record), record[-1].trained)], counts)
    if untrained:
        mask &= np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes) >= untrained
    return Documents(ids, sizes, mask)


def why_dropped(docs: Documents, data: Data) -> dict[str, np.ndarray]:
    """Of each reason to drop documents those, [documents] bool, that are dropped for it: one reason for each."""
    reasons = {
        f"shorter than min_tokens={data.min_tokens}": docs.sizes < data.min_tokens,
        f"longer than max_tokens={data.max_tokens}": docs.sizes > (data.max_tokens or np.inf),
        f"longer than {LONGEST} tokens, the most that the format can hold": docs.sizes > LONGEST,
        "nothing trained": ~docs.learnable,
    }
    told = np.zeros(len(docs.sizes), dtype=bool)
    for which in reasons.values():
        which &= ~told
        told |= which
    return {reason: which for reason, which in reasons.items() if which.any()}


def dtype_of(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<i4")


def write_part(task: Task, folder: Path, data: Data, tokenizer: Tokenizer, tick: Tick) -> dict:
    """Tokenise a task's records into NUMBER.bin, .sizes, and .trained if some are not; NUMBER.json, written last, makes them count.

    Raises:
        DataError: a unit cannot be read, or a bad record, and data.on_error=stop.
    """
    with ExitStack() as stack:
        part = _Part(folder / f"{task.number:06d}", dtype_of(tokenizer), stack)
        texts, waiting = 0, []
        for found in task.batches(data.record):
            if isinstance(found, Found):
                pieces = _pieces(found, data, part)
                if pieces is None:
                    continue
                waiting.append(pieces)
                texts += len(pieces) if isinstance(pieces, bytes) else sum(len(piece.text) for piece in pieces)
            else:
                waiting += found
                texts += sum(map(len, found))
            if texts >= TOGETHER:
                _write(part, waiting, data, tokenizer)
                tick(texts, len(waiting))
                texts, waiting = 0, []
        _write(part, waiting, data, tokenizer)
        tick(texts, len(waiting))
        return part.commit(task.identity)


def _pieces(found: Found, data: Data, part: "_Part") -> bytes | list[Part] | None:
    reason = found.bad
    if reason is None:
        try:
            return found.record if isinstance(found.record, bytes) else parts(found.record, data.record)
        except BadRecord as error:
            reason = str(error)
    if data.on_error == "stop":
        raise DataError(f"{found.where}: {reason} (with data.on_error=drop it is counted and left out)")
    part.dropped[DIGITS.sub("N", reason)] += 1
    if len(part.bad) < SHOWN:
        part.bad.append([found.where, reason])
    return None


def _write(part: "_Part", waiting: list[bytes | list[Part]], data: Data, tokenizer: Tokenizer) -> None:
    if not waiting:
        return
    docs = encoded(waiting, tokenizer, data.record.untrained_tokens)
    kept = np.ones(len(waiting), dtype=bool)
    for reason, which in why_dropped(docs, data).items():
        part.dropped[reason] += int(which.sum())
        kept &= ~which
    part.add(docs.those(kept))


class _Part:
    """The files of a part under names of their own; `commit` gives them their last ones."""

    def __init__(self, path: Path, dtype: np.dtype, stack: ExitStack):
        self.path, self.dtype, self.stack = path, dtype, stack
        self.dropped, self.bad, self.written = Counter(), [], 0
        self.files, self.checks = {}, {}
        self._open("bin")
        self._open("sizes")

    def _open(self, kind: str) -> None:
        temp = self.path.with_name(f"{self.path.name}.{kind}.{os.getpid()}")
        self.stack.callback(temp.unlink, missing_ok=True)
        self.files[kind] = self.stack.enter_context(temp.open("wb"))
        self.checks[kind] = 0

    def _put(self, kind: str, content: np.ndarray) -> None:
        self.files[kind].write(content)
        self.checks[kind] = zlib.crc32(content, self.checks[kind])

    def add(self, docs: Documents) -> None:
        if docs.mask is not None and "trained" not in self.files:
            self._open("trained")
            for at in range(0, self.written, TOGETHER):
                self._put("trained", np.ones(min(TOGETHER, self.written - at), dtype=bool))
        if "trained" in self.files:
            self._put("trained", np.ones(len(docs.ids), dtype=bool) if docs.mask is None else docs.mask)
        self._put("bin", docs.ids.astype(self.dtype, copy=False))
        self._put("sizes", docs.sizes.astype("<i4"))
        self.written += len(docs.ids)

    def commit(self, identity: str) -> dict:
        about = {"task": identity, "bytes": {}, "crc32": self.checks, "dropped": dict(self.dropped), "bad": self.bad}
        for kind, file in self.files.items():
            file.close()
            about["bytes"][kind] = os.path.getsize(file.name)
            os.replace(file.name, f"{self.path}.{kind}")
        temp = self.path.with_name(f"{self.path.name}.json.{os.getpid()}")
        temp.write_text(json.dumps(about))
        os.replace(temp, f"{self.path}.json")
        return about


def finished(task: Task, folder: Path) -> dict | None:
    """What `write_part` returned in a process before this one, if its files are as they were."""
    path = folder / f"{task.number:06d}"
    try:
        about = json.loads(Path(f"{path}.json").read_text())
        if about["task"] != task.identity:
            return None
        if any(_crc32(Path(f"{path}.{kind}")) != crc for kind, crc in about["crc32"].items()):
            return None
    except (OSError, ValueError, KeyError):
        return None
    return about


def _crc32(path: Path) -> int:
    """Enough to tell a part that a machine which stopped has left with holes."""
    crc = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(TOGETHER):
            crc = zlib.crc32(block, crc)
    return crc
