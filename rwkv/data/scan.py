"""Long files, looked at by several threads: their digest and highest value, and copied together on the way."""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rwkv.errors import DataError

BLOCK = 2**25  # bytes with a digest of their own
STEP = 2**20  # bytes looked at together, in a processor's cache

Fill = Callable[[int, np.ndarray], None]  # puts the bytes from a place on into an array of uint8


def scan(fill: Fill, dtype: str, size: int, threads: int, told: Callable[[int], None] = lambda _: None) -> tuple[bytes, int]:
    """(digest, highest value) of `size` bytes. A negative value counts as a very high one.

    told: is told of bytes as they are looked at.
    """
    dtype = np.dtype(dtype)
    unsigned = dtype if dtype.kind == "u" else np.dtype(f"{dtype.byteorder}u{dtype.itemsize}")

    def look(first: int) -> tuple[bytes, int, int]:
        own, high, end = hashlib.sha256(), 0, min(first + BLOCK, size)
        buffer = np.empty(min(STEP, end - first), np.uint8)
        for at in range(first, end, STEP):
            block = buffer[: end - at]
            fill(at, block)
            own.update(block)
            high = max(high, int(block.view(unsigned).max()))
        return own.digest(), high, end - first

    digest, highest = hashlib.sha256(), 0
    with ThreadPoolExecutor(threads) as pool:
        for own, high, count in _ahead(pool, look, range(0, size, BLOCK), 2 * threads):
            digest.update(own)
            highest = max(highest, high)
            told(count)
    return digest.digest(), highest


def _ahead(pool: ThreadPoolExecutor, function, arguments: range, depth: int) -> Iterator:
    """Results in order, at most `depth` of them computed ahead."""
    running = []
    for argument in arguments:
        running.append(pool.submit(function, argument))
        if len(running) == depth:
            yield running.pop(0).result()
    yield from (future.result() for future in running)


@contextmanager
def from_file(path: Path, offset: int = 0) -> Iterator[Fill]:
    """The bytes of a file from `offset` on."""
    with path.open("rb") as file:
        yield lambda at, block: _read(file.fileno(), path, offset + at, block)


@contextmanager
def joined(parts: list[tuple[int, Path | None]], out: Path) -> Iterator[Fill]:
    """The bytes of files one behind the other, which `out` then has. parts: the size of each, and its file; None: bytes that are 1."""
    starts = np.cumsum([0] + [size for size, _ in parts]).tolist()

    def fill(place: int, block: np.ndarray) -> None:
        done, i = 0, bisect_right(starts, place) - 1
        while done < len(block):
            path, at = parts[i][1], place + done - starts[i]
            piece = block[done : done + parts[i][0] - at]
            if path is None:
                piece[:] = 1
            else:
                with path.open("rb", buffering=0) as part:
                    _read(part.fileno(), path, at, piece)
            done, i = done + len(piece), i + 1
        left = memoryview(block)
        while len(left):
            written = os.pwrite(file.fileno(), left, place)
            left, place = left[written:], place + written

    with out.open("wb") as file:
        yield fill


def _read(file: int, path: Path, at: int, block: np.ndarray) -> None:
    left = memoryview(block)
    while len(left):
        count = os.preadv(file, [left], at)
        if not count:
            raise DataError(f"{path}: ends at byte {at:,}, earlier than it did; it changes while it is read")
        left, at = left[count:], at + count
