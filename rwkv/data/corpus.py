"""Corpus: the documents of a store of tokens, each ending in the end-of-document token."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 2**20  # tokens of a memory-mapped file looked at together


@dataclass(frozen=True, eq=False)
class Corpus:
    """Arrays may be memory-mapped; a store of 100 million documents is never held as a whole.

    tokens: [n] uint8, uint16 or uint32 ids.
    starts: [documents] int64, where each begins in `tokens`; sizes: [documents] int32 or int64, its tokens, end token included.
    trained: [n] bool, whether each token is a target; None: all are. A document's first token never is.
    held: [m] int64, sorted numbers of documents of the arrays that this corpus leaves out.
    fingerprint: changes when a token, a mask or a boundary does.
    """

    tokens: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    trained: np.ndarray | None = None
    held: np.ndarray | None = None
    fingerprint: str = ""

    def __post_init__(self):
        for name in ("tokens", "starts", "sizes", "trained"):
            if isinstance(array := getattr(self, name), np.memmap):  # a slice of which takes ten times longer than of an array
                object.__setattr__(self, name, np.asarray(array))

    def __len__(self) -> int:
        return len(self.sizes) - (0 if self.held is None else len(self.held))

    def spans(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(starts, sizes) of documents by their numbers 0 .. len - 1, both int64."""
        if self.held is not None and len(self.held):
            numbers = numbers + np.searchsorted(self.held - np.arange(len(self.held)), numbers, side="right")
        return self.starts[numbers].astype(np.int64), self.sizes[numbers].astype(np.int64)

    def document(self, i: int) -> np.ndarray:
        """The i-th document's tokens, its end token included: a view."""
        (start,), (size,) = self.spans(np.array([i]))
        return self.tokens[start : start + size]

    def blocks(self) -> Iterator[np.ndarray]:
        """Numbers of documents, all of them in order, some at a time."""
        for first in range(0, len(self), BLOCK):
            yield np.arange(first, min(first + BLOCK, len(self)))

    @functools.cached_property
    def count(self) -> int:
        """Tokens in all."""
        return sum(int(self.spans(block)[1].sum()) for block in self.blocks())

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(int(self.spans(block)[1].max()) for block in self.blocks())

    def unigram_entropy(self, vocab_size: int) -> float:
        """Nats a token of a model that knows only how often each token occurs, by at most 2^28 of them."""
        counts, left = np.zeros(vocab_size, dtype=np.int64), 2**28
        for block in self.blocks():
            starts, sizes = self.spans(block)
            for start, end in zip(*runs(starts, starts + sizes), strict=True):
                for at in range(start, min(end, start + left), BLOCK):
                    counts += np.bincount(self.tokens[at : min(at + BLOCK, end)], minlength=vocab_size)
                left -= end - start
                if left <= 0:
                    break
            if left <= 0:
                break
        p = counts[counts > 0] / counts.sum()
        return float(-(p * np.log(p)).sum())


def runs(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends) of spans, those that follow each other as one. At least one span."""
    cuts = np.flatnonzero(starts[1:] != ends[:-1])
    return starts[np.append(0, cuts + 1)], ends[np.append(cuts, len(ends) - 1)]


def split(corpus: Corpus, share: float) -> tuple[Corpus, Corpus | None]:
    """(training, validation): a share of the documents; where that is less than one, that share of each one's tail. No copies.

    Which ones are held out depends on their number alone, so that every seed is validated on the same text. Nothing is
    held out (None) where that would leave no token to predict there: each document of the validation has at least one.
    """
    if share == 0:
        return corpus, None
    n = len(corpus)
    if round(n * share, 9) >= 1:
        # the number of documents held out before the i-th is floor(i share + c): evenly spread, the first about half of 1 / share in
        k = np.arange(1, math.floor(n * share + 0.5 - share / 4) + 1)
        held = np.ceil(np.round((k - 0.5 + share / 4) / share, 9)).astype(np.int64) - 1
        held = held[held < n]
        if 0 < len(held) < n:
            starts, sizes = corpus.starts[held], corpus.sizes[held]
            train, full = _with(corpus, held=held), sizes > 1
            vars(train)["count"] = corpus.count - int(sizes.sum())  # cached properties: nothing is read of what is not held out
            if sizes.max() < corpus.longest:
                vars(train)["longest"] = corpus.longest
            return train, _with(corpus, starts=starts[full], sizes=sizes[full]) if full.any() else None
    keep = np.maximum(1, np.floor(corpus.sizes * (1 - share))).astype(np.int64)
    rest = corpus.sizes - keep
    full = rest > 1
    if not full.any():
        return corpus, None
    return _with(corpus, sizes=keep), _with(corpus, starts=(corpus.starts + keep)[full], sizes=rest[full])


def _with(corpus: Corpus, **changes) -> Corpus:
    fields = {"tokens": corpus.tokens, "starts": corpus.starts, "sizes": corpus.sizes, "trained": corpus.trained, "fingerprint": corpus.fingerprint}
    return Corpus(**(fields | changes))
