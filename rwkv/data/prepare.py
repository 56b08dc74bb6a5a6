"""A source becomes a store of tokens, once: whoever asks for it next opens it at once, also another process or another run."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rwkv import disk
from rwkv.config import schema
from rwkv.config.schema import Data
from rwkv.data import inplace, store
from rwkv.data.corpus import Corpus, split
from rwkv.data.join import full, tokenise_and_join
from rwkv.data.sources import units
from rwkv.data.sources.hub import Unreachable
from rwkv.data.tokenizer import Tokenizer
from rwkv.errors import DataError

# keys of data that do not change what a source becomes
NOT_KEYED = ("cache", "processes", "storage", "mix", "streaming", "val_share", "val_split", "val_path")


class Prepared(NamedTuple):
    """train, val: val is None where nothing is held out. fingerprint: of both and of the tokenizer. line: for the screen."""

    train: Corpus
    val: Corpus | None
    fingerprint: str
    line: str


def prepared(data: Data, spec: schema.Tokenizer, tokenizer: Tokenizer, vocab_size: int, out: Path) -> Prepared:
    """The documents of a source for training and validation, prepared if they are not yet. Any number of processes may call it at once.

    Args:
        spec: the settings that `tokenizer` was built from, for other processes.
        vocab_size: of the model: ids of tokens that are read in place must be below it.
        out: folder of the runs; prepared data goes to out/data where data.cache names no other folder.

    Raises:
        DataError: the data is missing, of another form, holds a bad record that on_error=stop forbids, or leaves no document.
    """
    folder = store_of(data, spec, tokenizer, out)
    corpus, about = store.open_store(folder)
    inplace.check_ids(about.place, about.highest, vocab_size)
    line = f"{about.documents:,} documents, {about.tokens:,} tokens"
    line += f", {about.trained:,} of them trained" if about.place.trained else ""
    line += f", {sum(about.dropped.values()):,} dropped" if about.dropped else ""
    if not (data.val_path or data.val_split):
        return Prepared(*split(corpus, data.val_share), f"{about.fingerprint}-{tokenizer.fingerprint}", f"{line} ({folder})")
    val, about_val = store.open_store(store_of(data, spec, tokenizer, out, validation=True))
    inplace.check_ids(about_val.place, about_val.highest, vocab_size)
    both = hashlib.sha256(f"{about.fingerprint} {about_val.fingerprint}".encode()).hexdigest()[:16]
    return Prepared(corpus, val, f"{both}-{tokenizer.fingerprint}", f"{line}; validation: {about_val.tokens:,} tokens ({folder})")


def store_of(data: Data, spec: schema.Tokenizer, tokenizer: Tokenizer, out: Path, validation: bool = False) -> Path:
    """The folder of a source's store, made if it is not there. `first` and `limit` are the training source's alone."""
    if validation:
        data = _validation(data)
    cache = Path(data.cache) if data.cache else Path(out) / "data"
    in_place = data.kind in inplace.KINDS
    files = inplace.files(data) if in_place else []
    last = cache / f".{_label(data)}-{_key(data, tokenizer, [])}.last"  # the name of the store, for where the hub cannot be reached
    try:
        found = [] if in_place else units(data, validation)
    except Unreachable:
        if not last.exists() or not (final := cache / last.read_text()).joinpath(store.ABOUT).exists():
            raise
        print(f"data.name={data.name}: the hub cannot be reached; what was prepared of it is used", file=sys.stderr)
        return final

    def key() -> str:
        return _key(data, tokenizer, [f"{f.stat().st_size} {f.stat().st_mtime_ns}" for f in files] + [unit.identity for unit in found])

    name = key()
    final = cache / f"{_label(data)}-{name}"
    parts = final.with_name(f"{final.name}.parts")
    if (final / store.ABOUT).exists():
        shutil.rmtree(parts, ignore_errors=True)  # of a preparation that was killed at its very end
        return final
    with _reporting(data, final), _alone(final):
        if not (final / store.ABOUT).exists():
            writing = final.with_name(f"{final.name}.writing")
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir()
            try:
                if in_place:
                    inplace.index(data, writing)
                else:
                    tokenise_and_join(found, data, spec, tokenizer, parts, writing)
                if key() != name:
                    raise DataError(f"{_label(data)}: the data changed while it was prepared; give the same command again")
                os.rename(writing, final)
                if data.kind == "hub":
                    last.write_text(final.name)
            finally:
                shutil.rmtree(writing, ignore_errors=True)
            disk.sync(cache)
        shutil.rmtree(parts, ignore_errors=True)
    return final


def _validation(data: Data) -> Data:
    """The source of a `val_path` or `val_split`."""
    data = dataclasses.replace(data, path=data.val_path or data.path, split=data.val_split or data.split, first=0, limit=None)
    if data.kind in ("hub", "sample") and data.val_path:
        data = dataclasses.replace(data, kind="files", format="auto", name=None, config=None, revision=None, split="train", streaming=False)
    return data


def _key(data: Data, tokenizer: Tokenizer, identities: list[str]) -> str:
    """What tells a store from others of the same label: settings, tokenizer, and what each unit or file is."""
    kept = {k: v for k, v in dataclasses.asdict(data).items() if k not in NOT_KEYED}
    if data.path and "://" not in data.path:
        kept["path"] = os.path.abspath(data.path)
    text = json.dumps([store.FORMAT, identities, kept, None if data.kind in inplace.KINDS else tokenizer.fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _label(data: Data) -> str:
    """Of a store's name: what a person knows the data by."""
    text = Path(data.path).stem if data.path else data.name or data.kind
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or data.kind


@contextmanager
def _alone(final: Path) -> Iterator[None]:
    """Hold the lock on a store to be made. It is freed when its holder ends, however that ends."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with final.with_name(f".{final.name}.lock").open("a+") as file:
        disk.lock(file, lambda holder: print(f"waiting for {holder}, which prepares {final}", file=sys.stderr, flush=True))
        yield


@contextmanager
def _reporting(data: Data, final: Path) -> Iterator[None]:
    """Failures of the disk, and Ctrl-C, in words."""
    try:
        yield
    except OSError as error:
        if error.errno in disk.FULL:
            raise full(final.parent) from error
        raise DataError(f"{error.filename or final.parent}: {error.strerror or error}; data.cache=FOLDER names another place for prepared data") from error
    except KeyboardInterrupt:
        done = len(list(final.with_name(f"{final.name}.parts").glob("*.json")))
        print(f"stopped: {done} parts of {_label(data)} are prepared and kept; the same command goes on from them", file=sys.stderr)
        raise
