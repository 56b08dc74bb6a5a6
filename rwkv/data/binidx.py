"""The official token store: PREFIX.bin, all tokens one after the other, and PREFIX.idx, where each sequence lies in it.

PREFIX.idx, little-endian: the 9 bytes of MAGIC, uint64 version 1, uint8 code of the tokens' dtype, uint64 n and m, then n int32
sizes in tokens, n int64 places in bytes, and m int64 bounds: document i is the sequences bounds[i] .. bounds[i + 1] - 1.
RWKV-LM and the tools of Megatron's heritage read and write this.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rwkv.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<QBQQ")
DTYPES = {1: np.dtype("u1"), 4: np.dtype("<i4"), 5: np.dtype("<i8"), 8: np.dtype("<u2")}
CODES = {dtype: code for code, dtype in DTYPES.items()}
LONGEST = 2**31 - 1  # tokens of a sequence that the format can hold
BLOCK = 2**22  # sequences looked at together


@dataclass(frozen=True)
class Binidx:
    """tokens: [tokens]; sizes: [n] int32; places: [n] int64, bytes; bounds: [m] int64. All memory-mapped."""

    prefix: Path
    tokens: np.ndarray
    sizes: np.ndarray
    places: np.ndarray
    bounds: np.ndarray


def read(path: str | Path) -> Binidx:
    """A store by its prefix, or by either of its files. `documents` checks what is in the arrays.

    Raises:
        DataError: a file is missing or cannot be read, is no binidx, or has not the size that its header asks for.
    """
    prefix = Path(path).with_suffix("") if Path(path).suffix in (".bin", ".idx") else Path(path)
    idx, bin_ = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    try:
        with idx.open("rb") as file:
            head = file.read(len(MAGIC) + HEADER.size)
        size, stored = idx.stat().st_size, bin_.stat().st_size
    except OSError as error:
        raise DataError(
            f"{error.filename}: {error.strerror}; a binidx store is two files, {idx.name} and {bin_.name}; data.path is their common part"
        ) from None
    if head[: len(MAGIC)] != MAGIC:
        raise DataError(f"{idx}: not the index of a binidx store: it begins with {head[: len(MAGIC)]!r}, not {MAGIC!r}")
    if len(head) < len(MAGIC) + HEADER.size:
        raise DataError(f"{idx}: ends inside its header, after {len(head)} bytes; copy it again")
    version, code, n, m = HEADER.unpack_from(head, len(MAGIC))
    if version != 1:
        raise DataError(f"{idx}: version {version} of the format; version 1 is known")
    if code not in DTYPES:
        raise DataError(f"{idx}: dtype code {code}; known are 1 (uint8), 4 (int32), 5 (int64) and 8 (uint16)")
    wanted = len(head) + 12 * n + 8 * m
    if size != wanted:
        raise DataError(f"{idx}: {size:,} bytes, but its header ({n:,} sequences, {m:,} bounds) asks for {wanted:,}; copy it again")
    dtype = DTYPES[code]
    if stored == 0 or stored % dtype.itemsize or n == 0:
        raise DataError(f"{bin_}: {stored:,} bytes for {n:,} sequences of {dtype.name}; copy it again")
    arrays = np.memmap(idx, mode="r")[len(head) :]
    sizes, places, bounds = arrays[: 4 * n].view("<i4"), arrays[4 * n : 12 * n].view("<i8"), arrays[12 * n :].view("<i8")
    return Binidx(prefix, np.memmap(bin_, dtype, mode="r"), sizes, places, bounds)


def documents(store: Binidx) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(starts, sizes) of its documents in tokens, int64, some at a time; the index is checked before the first come.

    Raises:
        DataError: a sequence outside of the .bin, sizes that do not add up to it, bounds that do not part the sequences, or
            documents of several sequences that do not lie one after the other.
    """
    width, n, m = store.tokens.itemsize, len(store.sizes), len(store.bounds)
    contiguous = _check_sequences(store)
    grouped, parting = m != n + 1, m > 1 and store.bounds[0] == 0 and store.bounds[-1] == n
    for i, bounds in _blocks(store.bounds):
        later = store.bounds[i + 1 : i + 1 + len(bounds)]
        grouped = grouped or bool((bounds != np.arange(i, i + len(bounds))).any())
        parting = parting and bool((later >= bounds[: len(later)]).all())
    if not parting:
        raise DataError(f"{store.prefix}.idx: its {m:,} document bounds do not lead from 0 to its {n:,} sequences in order")
    if grouped and not contiguous:
        raise DataError(f"{store.prefix}.idx: documents of several sequences that do not lie one after the other in {store.prefix}.bin")
    for i, first in _blocks(store.bounds[:-1]):
        behind = store.bounds[i + 1 : i + 1 + len(first)]
        first, behind = first[behind > first], behind[behind > first]
        starts = store.places[first] // width
        yield starts, store.places[behind - 1] // width + store.sizes[behind - 1] - starts


def _check_sequences(store: Binidx) -> bool:
    """Whether each lies behind the one before it."""
    width, stored, total, contiguous = store.tokens.itemsize, store.tokens.nbytes, 0, True
    for i, places in _blocks(store.places):
        sizes = store.sizes[i : i + len(places)].astype(np.int64)
        bad = (sizes < 0) | (places < 0) | (places % width != 0) | (places > stored - sizes * width)
        if bad.any():
            k = int(bad.argmax())
            raise DataError(
                f"{store.prefix}.idx: sequence {i + k:,}, {sizes[k]:,} tokens from byte {places[k]:,} on, is not inside of "
                f"{store.prefix}.bin ({stored:,} bytes); one of the files is truncated or of another store"
            )
        contiguous = contiguous and bool((places == (total + np.cumsum(sizes) - sizes) * width).all())
        total += int(sizes.sum())
    if total * width != stored:
        raise DataError(
            f"{store.prefix}.idx: its sequences are {total:,} tokens, {store.prefix}.bin has {stored // width:,} ({store.tokens.dtype.name}); "
            "the files are not of one store"
        )
    return contiguous


def _blocks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for i in range(0, len(array), BLOCK):
        yield i, array[i : i + BLOCK]


def write_index(file: BinaryIO, sizes: np.ndarray, dtype: np.dtype) -> None:
    """The .idx of documents that lie one after the other, each one sequence of at most LONGEST tokens."""
    file.write(MAGIC + HEADER.pack(1, CODES[dtype], len(sizes), len(sizes) + 1))
    for _, block in _blocks(sizes):
        file.write(block.astype("<i4").tobytes())
    place = 0
    for _, block in _blocks(sizes):
        lengths = block.astype(np.int64) * dtype.itemsize
        ends = place + np.cumsum(lengths)
        file.write((ends - lengths).astype("<i8").tobytes())
        place = int(ends[-1])
    for i in range(0, len(sizes) + 1, BLOCK):
        file.write(np.arange(i, min(i + BLOCK, len(sizes) + 1), dtype="<i8").tobytes())
