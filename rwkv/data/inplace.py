"""Tokens that are there already: binidx stores and .npy files, read where they lie. Only their index is made."""

import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rwkv.config.schema import Data
from rwkv.data import binidx
from rwkv.data.progress import Shown
from rwkv.data.scan import from_file, scan
from rwkv.data.store import IndexWriter, Place, complete
from rwkv.data.tokenizer import END_OF_DOCUMENT
from rwkv.errors import DataError

BLOCK = 2**24  # tokens looked at together
KINDS = ("binidx", "tokens")

Blocks = Iterator[tuple[np.ndarray, np.ndarray]]  # starts and sizes of documents, int64, in tokens


def files(data: Data) -> list[Path]:
    """What is read. Raises DataError if something of it is missing."""
    path = data.path
    if "://" in path:
        raise DataError(f"data.path={path}: an address; data={data.kind} is read in place, from a disk: copy it to one")
    if data.kind == "tokens":
        found = [Path(path)]
        if not found[0].is_file():
            raise DataError(f"data.path={path}: {'a folder' if found[0].is_dir() else 'no such file'}; data=tokens takes one .npy file of token ids")
        return found
    prefix = binidx.read(path).prefix
    return [f for f in (Path(f"{prefix}{end}") for end in (".bin", ".idx", ".trained")) if f.exists()]


def index(data: Data, folder: Path) -> None:
    """Write into `folder` what a store has of tokens that are elsewhere: index, digest, counts."""
    threads = data.processes or len(os.sched_getaffinity(0))
    place, blocks = open_tokens(data)
    documents = IndexWriter(folder)
    dropped = write_documents(blocks, data, documents)
    if not documents.documents:
        raise DataError(
            f"data.path={data.path}: no document left ({'; '.join(f'{n:,} {why}' for why, n in dropped.items()) or 'data.first is behind the last one'})"
        )
    size, read = place.count * np.dtype(place.dtype).itemsize, 0
    with Shown(f"reading {data.path}", size) as shown, from_file(Path(place.path), place.offset) as tokens:

        def tell(size: int) -> None:
            nonlocal read
            read += size
            shown.update(read, read)

        digest, highest = scan(tokens, place.dtype, size, threads, tell)
        digests = [digest]
        if place.trained:
            with from_file(Path(place.trained)) as mask:
                digests.append(scan(mask, "u1", place.count, threads, tell)[0])
    complete(folder, documents, place, digests, highest, dropped, [], {"data": data.kind, "path": str(data.path)})


def open_tokens(data: Data) -> tuple[Place, Blocks]:
    """Where the tokens lie, and their documents.

    Of a .npy file, each token 0 ends a document. PREFIX.trained, a byte a token, is the mask of a binidx store, if it is there.

    Raises:
        DataError: not such a file; the documents raise it for an index that does not fit its tokens.
    """
    if data.kind == "tokens":
        tokens = _load(data.path)
        return Place(str(Path(data.path).resolve()), tokens.dtype.str, tokens.offset, len(tokens)), _parted(tokens)
    store = binidx.read(data.path)
    prefix = store.prefix.resolve()
    mask = Path(f"{prefix}.trained")
    if mask.exists() and mask.stat().st_size != len(store.tokens):
        raise DataError(f"{mask}: {mask.stat().st_size:,} bytes for {len(store.tokens):,} tokens; it has one byte a token, or is not there")
    place = Place(f"{prefix}.bin", store.tokens.dtype.str, 0, len(store.tokens), str(mask) if mask.exists() else None)
    return place, binidx.documents(store)


def _load(path: str) -> np.memmap:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"data.path={path}: not a readable .npy file: {error}") from error
    if not isinstance(tokens, np.ndarray):
        tokens.close()
        raise DataError(f"data.path={path}: an archive of several arrays; save the token ids alone with np.save, as a .npy file")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not len(tokens):
        raise DataError(f"data.path={path}: {tokens.dtype}{list(tokens.shape)}; wanted token ids [n] as integers")
    return tokens


def _parted(tokens: np.ndarray) -> Blocks:
    begin = 0
    for at in range(0, len(tokens), BLOCK):
        ends = at + np.flatnonzero(tokens[at : at + BLOCK] == END_OF_DOCUMENT) + 1
        if len(ends):
            starts = np.concatenate([[begin], ends[:-1]])
            yield starts, ends - starts
            begin = int(ends[-1])
    if begin < len(tokens):
        yield np.array([begin]), np.array([len(tokens) - begin])


def write_documents(blocks: Blocks, data: Data, index: IndexWriter) -> dict[str, int]:
    """Of the documents from `first` on, at most `limit`, those that are long and short enough. Returns what was dropped and why."""
    dropped, before = Counter(), 0
    for starts, sizes in blocks:
        low = max(0, data.first - before)
        high = len(sizes) if data.limit is None else max(0, data.first + data.limit - before)
        before += len(sizes)
        starts, sizes = starts[low:high], sizes[low:high]
        short, long = sizes < data.min_tokens, sizes > (data.max_tokens or np.inf)
        dropped[f"shorter than min_tokens={data.min_tokens}"] += int(short.sum())
        dropped[f"longer than max_tokens={data.max_tokens}"] += int(long.sum())
        index.add(starts[~(short | long)], sizes[~(short | long)])
    return {reason: n for reason, n in dropped.items() if n}


def check_ids(place: Place, highest: int, vocab_size: int) -> None:
    """Raises DataError that names the first token that the vocabulary does not have."""
    if highest < vocab_size:
        return
    tokens, _ = mapped(place)
    for at in range(0, place.count, BLOCK):
        block = tokens[at : at + BLOCK]
        wrong = (block < 0) | (block >= vocab_size)
        if wrong.any():
            k = int(wrong.argmax())
            raise DataError(
                f"{place.path}: token {at + k:,} has the id {int(block[k])}, outside of the vocabulary of {vocab_size}; "
                "choose the tokenizer= that it was made with, or a larger model.vocab_size"
            )


def mapped(place: Place) -> tuple[np.ndarray, np.ndarray | None]:
    """Tokens and mask, memory-mapped."""
    tokens = np.memmap(place.path, place.dtype, mode="r", offset=place.offset, shape=(place.count,))
    return tokens, np.memmap(place.trained, bool, mode="r") if place.trained else None
