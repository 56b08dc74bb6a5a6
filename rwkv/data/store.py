"""A prepared source: a folder that is either whole or not there, and opened without being read.

    tokens.bin tokens.idx    all tokens, and the official index of them (`binidx.py`): RWKV-LM trains on these two
    tokens.trained           a byte a token, whether it is trained; only where some are not. Bytes, for then it is memory-mapped as it is
    starts.i64 sizes.i32     where each document begins in the tokens, and its length, both in tokens (sizes.i64 if one is longer than 2^31)
    about.json               counts, fingerprint, settings, what was dropped and why

Of data that is read in place (binidx and .npy files of others) there are only the last three.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rwkv.data.binidx import LONGEST
from rwkv.data.corpus import Corpus, runs
from rwkv.data.scan import from_file, scan
from rwkv.disk import sync
from rwkv.errors import DataError

FORMAT = 1
ABOUT = "about.json"


@dataclass(frozen=True)
class Place:
    """Where tokens lie: `count` of `dtype` in a file from the byte `offset` on; path: absolute, or in the store's folder."""

    path: str
    dtype: str
    offset: int
    count: int
    trained: str | None = None  # the file of the mask


@dataclass(frozen=True)
class About:
    """What about.json says.

    trained: tokens that are targets, so not the first of a document. highest: the highest token id. longest: document, in tokens.
    histogram: the i-th is the number of documents of 2^i to 2^(i+1) - 1 tokens.
    dropped: reason -> number of records. bad: (where, why) of the first of them that were no documents.
    """

    place: Place
    documents: int
    tokens: int
    trained: int
    highest: int
    longest: int
    fingerprint: str
    histogram: list[int]
    dropped: dict[str, int]
    bad: list[list[str]]
    settings: dict
    format: int = FORMAT


def open_store(folder: Path) -> tuple[Corpus, About]:
    """Nothing of its arrays is read, so that it takes no longer for 100 million documents. Raises DataError if it is damaged."""
    try:
        known = json.loads((folder / ABOUT).read_text())
        about = About(**known | {"place": Place(**known["place"])})
        place = about.place
        if not about.documents:
            return Corpus(*(np.empty(0, np.int64) for _ in range(3)), fingerprint=about.fingerprint), about
        sizes = folder / "sizes.i32"
        sizes = _mapped(sizes, "<i4", about.documents) if sizes.exists() else _mapped(folder / "sizes.i64", "<i8", about.documents)
        corpus = Corpus(
            tokens=_mapped(folder / place.path, place.dtype, place.count, place.offset),
            starts=_mapped(folder / "starts.i64", "<i8", about.documents),
            sizes=sizes,
            trained=_mapped(folder / place.trained, "?", place.count) if place.trained else None,
            fingerprint=about.fingerprint,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: this prepared data is damaged ({error}); delete the folder, and it is made anew") from error
    vars(corpus).update(count=about.tokens, longest=about.longest)  # cached properties, known without reading the index
    return corpus, about


def _mapped(file: Path, dtype: str, count: int, offset: int = 0) -> np.ndarray:
    if file.stat().st_size < offset + count * np.dtype(dtype).itemsize:
        raise ValueError(f"{file.name} is too short")
    return np.memmap(file, dtype, mode="r", offset=offset, shape=(count,))


class IndexWriter:
    """Writes starts and sizes of documents as they come, and counts them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.starts, self.sizes = (folder / "starts.i64").open("wb"), (folder / "sizes.i32").open("wb")
        self.documents = self.tokens = self.longest = 0
        self.histogram = np.zeros(64, dtype=np.int64)

    def add(self, starts: np.ndarray, sizes: np.ndarray) -> None:
        """Both [n] int64, in tokens."""
        if not len(sizes):
            return
        longest = int(sizes.max())
        if longest > LONGEST >= self.longest:
            self._widen()
        self.starts.write(starts.astype("<i8").tobytes())
        self.documents += len(sizes)
        self.tokens += int(sizes.sum())
        self.longest = max(self.longest, longest)
        self.sizes.write(sizes.astype("<i4" if self.longest <= LONGEST else "<i8").tobytes())
        self.histogram += np.bincount(np.frexp(sizes)[1] - 1, minlength=64)

    def _widen(self) -> None:
        self.sizes.close()
        narrow = self.folder / "sizes.i32"
        np.fromfile(narrow, "<i4").astype("<i8").tofile(self.folder / "sizes.i64")
        narrow.unlink()
        self.sizes = (self.folder / "sizes.i64").open("ab")

    def close(self) -> None:
        self.starts.close()
        self.sizes.close()


def complete(folder: Path, index: IndexWriter, place: Place, digests: list[bytes], highest: int, dropped: dict[str, int], bad: list, settings: dict) -> None:
    """Sync what lies in `folder`, and write about.json.

    digests: of the tokens and, where there is one, of their mask, as of `scan`; highest: the highest token id.
    """
    index.close()
    trained = _count_trained(folder, place, index.documents) if place.trained else index.tokens - index.documents
    for path in sorted(folder.glob("starts.*")) + sorted(folder.glob("sizes.*")):
        with from_file(path) as content:
            digests.append(scan(content, "u1", path.stat().st_size, 1)[0])
    about = About(
        place=place,
        documents=index.documents,
        tokens=index.tokens,
        trained=trained,
        highest=highest,
        longest=index.longest,
        fingerprint=hashlib.sha256(b"".join(digests)).hexdigest()[:16],
        histogram=np.trim_zeros(index.histogram, "b").tolist(),
        dropped=dropped,
        bad=bad,
        settings=settings,
    )
    (folder / ABOUT).write_text(json.dumps(asdict(about), indent=1))
    for path in (*folder.iterdir(), folder):
        sync(path)


def _count_trained(folder: Path, place: Place, documents: int) -> int:
    mask = _mapped(folder / place.trained, "u1", place.count)
    starts, sizes = _mapped(folder / "starts.i64", "<i8", documents), np.memmap(next(folder.glob("sizes.*")), mode="r")
    sizes = sizes.view("<i4" if sizes.nbytes == 4 * documents else "<i8")
    total = 0
    for i in range(0, documents, 2**16):
        first, behind = starts[i : i + 2**16], starts[i : i + 2**16] + sizes[i : i + 2**16]
        total -= int(mask[first].sum())
        total += sum(int(np.count_nonzero(mask[a:b])) for a, b in zip(*runs(first, behind), strict=True))
    return total
