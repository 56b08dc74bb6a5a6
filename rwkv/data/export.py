"""Documents of any store as an official binidx store, with the mask beside it where some tokens are not trained."""

import os
from pathlib import Path

import numpy as np

from rwkv.data import binidx
from rwkv.data.corpus import Corpus, runs
from rwkv.disk import sync
from rwkv.errors import DataError

BLOCK = 2**24  # tokens copied together
ENDS = (".bin", ".trained", ".idx")  # in the order in which they come to be: the index last


def check(prefix: Path) -> None:
    """Raises DataError if something would be overwritten, or the folder is missing."""
    there = [f"{prefix}{end}" for end in ENDS if Path(f"{prefix}{end}").exists()]
    if there:
        raise DataError(f"{there[0]}: exists already; delete it, or give another PREFIX")
    if not prefix.parent.is_dir():
        raise DataError(f"{prefix.parent}: no such folder to write {prefix.name}.bin and .idx into")


def binidx_of(corpus: Corpus, prefix: Path) -> None:
    """Write PREFIX.bin, PREFIX.idx and, if the corpus has a mask, PREFIX.trained.

    Raises:
        DataError: a document is too long for the format, or the disk is full.
    """
    if corpus.longest > binidx.LONGEST:
        raise DataError(f"a document of {corpus.longest:,} tokens: binidx holds at most {binidx.LONGEST:,} in one")
    dtype = np.dtype("<u2" if corpus.tokens.dtype.itemsize <= 2 else "<i4")
    files = {end: Path(f"{prefix}{end}.writing") for end in ENDS if end != ".trained" or corpus.trained is not None}
    try:
        _copy(corpus, corpus.tokens, dtype, files[".bin"])
        if corpus.trained is not None:
            _copy(corpus, corpus.trained, np.dtype(bool), files[".trained"])
        with files[".idx"].open("wb") as file:
            binidx.write_index(file, np.concatenate([corpus.spans(block)[1] for block in corpus.blocks()]), dtype)
        for end, file in files.items():
            sync(file)
            os.rename(file, f"{prefix}{end}")
    except OSError as error:
        raise DataError(f"{prefix}: could not be written: {error.strerror}") from error
    finally:
        for file in files.values():
            file.unlink(missing_ok=True)


def _copy(corpus: Corpus, values: np.ndarray, dtype: np.dtype, path: Path) -> None:
    with path.open("wb") as file:
        for block in corpus.blocks():
            starts, sizes = corpus.spans(block)
            for begin, end in zip(*runs(starts, starts + sizes), strict=True):
                for at in range(begin, end, BLOCK):
                    file.write(np.ascontiguousarray(values[at : min(at + BLOCK, end)], dtype))
