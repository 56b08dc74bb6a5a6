"""Records to tokens: what one process does with its share of a source, and the files it leaves."""

import functools
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from rwkv import disk
from rwkv.config.schema import Data
from rwkv.data.binidx import LONGEST
from rwkv.data.records import BadRecord, Part, parts
from rwkv.data.sources import Found, Unit
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

    @property
    def identity(self) -> str:
        return hashlib.sha256(repr([[unit.identity for unit in self.units], self.first, self.stop]).encode()).hexdigest()

    @property
    def name(self) -> str:
        names = [unit.identity for unit in self.units]
        return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


@dataclass(frozen=True)
class Document:
    """parts: ids of each part; trained: whether each part is; size: tokens, the end token included; untrained: of its first tokens."""

    parts: list[np.ndarray]
    trained: list[bool]
    size: int
    untrained: int = 0

    def mask(self) -> np.ndarray | None:
        """[size] bool; None: all are trained. The end token is as the last part."""
        if all(self.trained) and not self.untrained:
            return None
        mask = np.repeat([*self.trained, self.trained[-1]], [*map(len, self.parts), 1])
        mask[: self.untrained] = False
        return mask

    @property
    def learnable(self) -> bool:
        """Whether a token but the first is trained."""
        mask = self.mask()
        return self.size > 1 if mask is None else bool(mask[1:].any())


def document(pieces: list[Part], tokenizer: Tokenizer, untrained: int = 0) -> Document:
    """Each part is tokenised by itself, so that no token lies on both sides of a change from untrained to trained."""
    ids = [tokenizer.encode(piece.text) for piece in pieces]
    return Document(ids, [piece.trained for piece in pieces], sum(map(len, ids)) + 1, untrained)


def why_dropped(doc: Document, data: Data) -> str | None:
    if doc.size < data.min_tokens:
        return f"shorter than min_tokens={data.min_tokens}"
    if data.max_tokens and doc.size > data.max_tokens:
        return f"longer than max_tokens={data.max_tokens}"
    if doc.size > LONGEST:
        return f"longer than {LONGEST} tokens, the most that the format can hold"
    return None if doc.learnable else "nothing trained"


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
        for found in task.records():
            pieces = _pieces(found, data, part)
            if pieces is None:
                continue
            waiting.append(pieces)
            texts += sum(len(piece.text) for piece in pieces)
            if texts >= TOGETHER:
                _write(part, waiting, data, tokenizer)
                tick(texts, len(waiting))
                texts, waiting = 0, []
        _write(part, waiting, data, tokenizer)
        tick(texts, len(waiting))
        return part.commit(task.identity)


def _pieces(found: Found, data: Data, part: "_Part") -> list[Part] | None:
    reason = found.bad
    if reason is None:
        try:
            return parts(found.record, data.record)
        except BadRecord as error:
            reason = str(error)
    if data.on_error == "stop":
        raise DataError(f"{found.where}: {reason} (with data.on_error=drop it is counted and left out)")
    part.dropped[DIGITS.sub("N", reason)] += 1
    if len(part.bad) < SHOWN:
        part.bad.append([found.where, reason])
    return None


def _write(part: "_Part", waiting: list[list[Part]], data: Data, tokenizer: Tokenizer) -> None:
    kept = []
    for pieces in waiting:
        doc = document(pieces, tokenizer, data.record.untrained_tokens)
        reason = why_dropped(doc, data)
        if reason:
            part.dropped[reason] += 1
        else:
            kept.append(doc)
    if kept:
        part.add(kept)


class _Part:
    """The files of a part under names of their own; `commit` gives them their last ones."""

    def __init__(self, path: Path, dtype: np.dtype, stack: ExitStack):
        self.path, self.dtype, self.stack = path, dtype, stack
        self.dropped, self.bad, self.written = Counter(), [], 0
        self.files, self.digests = {}, {}
        self._open("bin")
        self._open("sizes")

    def _open(self, kind: str) -> None:
        temp = self.path.with_name(f"{self.path.name}.{kind}.{os.getpid()}")
        self.stack.callback(temp.unlink, missing_ok=True)
        self.files[kind] = self.stack.enter_context(temp.open("wb"))
        self.digests[kind] = hashlib.sha256()

    def _put(self, kind: str, content: np.ndarray) -> None:
        self.files[kind].write(content)
        self.digests[kind].update(content)

    def add(self, documents: list[Document]) -> None:
        end = np.array([END_OF_DOCUMENT], self.dtype)
        ids = np.concatenate([x for doc in documents for x in (*doc.parts, end)]).astype(self.dtype)
        masks = [doc.mask() for doc in documents]
        if "trained" not in self.files and any(mask is not None for mask in masks):
            self._open("trained")
            for at in range(0, self.written, TOGETHER):
                self._put("trained", np.ones(min(TOGETHER, self.written - at), dtype=bool))
        if "trained" in self.files:
            whole = [np.ones(doc.size, dtype=bool) if mask is None else mask for doc, mask in zip(documents, masks, strict=True)]
            self._put("trained", np.concatenate(whole))
        self._put("bin", ids)
        self._put("sizes", np.array([doc.size for doc in documents], "<i4"))
        self.written += len(ids)

    def commit(self, identity: str) -> dict:
        about = {"task": identity, "bytes": {}, "sha256": {}, "dropped": dict(self.dropped), "bad": self.bad}
        for kind, file in self.files.items():
            file.close()
            about["bytes"][kind] = os.path.getsize(file.name)
            about["sha256"][kind] = self.digests[kind].hexdigest()
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
        if any(disk.digest(Path(f"{path}.{kind}")) != digest for kind, digest in about["sha256"].items()):
            return None
    except (OSError, ValueError, KeyError):
        return None
    return about
