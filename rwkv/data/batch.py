"""Batch: the rows that an optimizer step reads side by side, and the chunks it is cut into.

A batch is a plan: tokens are read from their store when a chunk is made, so a row may be longer than memory.
"""

import functools
import itertools
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rwkv.data.corpus import Corpus


class Segment(NamedTuple):
    """`count` tokens of a store, read at the positions from `at` on; each predicts the token after it in the store.

    fresh: the state is cleared before the first of them.
    last: whether the token after the last one may be a target; false where it belongs to another document.
    source: number of the data source.
    """

    corpus: Corpus
    start: int
    count: int
    at: int
    fresh: bool
    last: bool = True
    source: int = 0

    @property
    def predicted(self) -> int:
        """Targets that are trained."""
        most = self.count - (not self.last)
        if self.corpus.trained is None:
            return most
        return int(np.count_nonzero(self.corpus.trained[self.start + 1 : self.start + 1 + most]))


@dataclass(frozen=True)
class Batch:
    """rows: each its segments in order, without gaps; what is behind the last one up to `length` is filling.

    carry: whether rows go on from the state the batch before left them in; where a row does not, its first segment is fresh.
    sources: number of data sources whose losses are told apart.
    """

    rows: list[list[Segment]]
    length: int
    carry: bool
    sources: int = 1

    @staticmethod
    def of(tokens: np.ndarray, predict: np.ndarray | bool = True, reset: np.ndarray | None = None, carry: bool = False) -> "Batch":
        """From arrays: tokens [B, T + 1]; predict [B, T] bool, whether token t + 1 is trained; reset [B, T] bool, at first tokens."""
        rows, length = tokens.shape[0], tokens.shape[1] - 1
        trained = np.ones(tokens.shape, dtype=bool)
        trained[:, 1:] = predict
        ends = np.array([tokens.size])
        corpus = Corpus(tokens.reshape(-1), ends - ends, ends, None if predict is True else trained.reshape(-1))
        out = []
        for b in range(rows):
            firsts = [] if reset is None else np.flatnonzero(reset[b]).tolist()
            cuts = sorted({0, *firsts})
            out.append(
                [Segment(corpus, b * (length + 1) + i, j - i, i, i in firsts) for i, j in zip(cuts, [*cuts[1:], length], strict=True)]
            )
        return Batch(out, length, carry)

    @functools.cached_property
    def predicted_of(self) -> list[int]:
        """Targets that are trained, of each source."""
        out = [0] * self.sources
        for segment in self.segments():
            out[segment.source] += segment.predicted
        return out

    @property
    def predicted(self) -> int:
        """Targets that are trained."""
        return sum(self.predicted_of)

    @functools.cached_property
    def count(self) -> int:
        """Tokens read, without filling."""
        return sum(segment.count for segment in self.segments())

    @functools.cached_property
    def resets(self) -> bool:
        """Whether a state is cleared anywhere but before a batch that carries none."""
        return any(s.fresh and (self.carry or s.at > 0) for s in self.segments())

    def segments(self) -> Iterator[Segment]:
        for row in self.rows:
            yield from row

    def take(self, which: slice) -> "Batch":
        """Some of its rows; without the filling behind the longest of them."""
        rows = self.rows[which]
        length = max((row[-1].at + row[-1].count for row in rows if row), default=1)
        return Batch(rows, length, self.carry, self.sources)

    def rank(self, rank: int, ranks: int) -> "Batch":
        """Every ranks-th row, from row `rank` on."""
        return self.take(slice(rank, None, ranks))

    def chunks(self, ctx_len: int) -> int:
        return -(-self.length // ctx_len)

    def chunk(self, i: int, ctx_len: int, denominator: float, device: torch.device | str) -> "Chunk":
        """The i-th chunk on a device, each trained target weighing 1 / denominator."""
        start, stop = i * ctx_len, min((i + 1) * ctx_len, self.length)
        shape = len(self.rows), stop - start
        ids = np.int64 if torch.device(device).type == "cpu" else np.int32  # half the bytes to be moved
        tokens, targets = (np.zeros(shape, dtype=ids) for _ in range(2))
        predict, reset = (np.zeros(n, dtype=bool) for n in ((self.sources, *shape), shape))
        for b, row in enumerate(self.rows):
            first = 0 if i == 0 else max(0, bisect_right(row, start, key=_at) - 1)
            _read(row, first, start, stop, tokens[b], targets[b], predict[:, b], reset[b])

        def move(x: np.ndarray, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(x).to(device, non_blocking=True).to(dtype)

        weight = move(predict if self.sources > 1 else predict[0], torch.float64).mul_(1 / denominator)
        return Chunk(move(tokens, torch.int64), move(targets, torch.int64), weight, move(reset, torch.bool) if self.resets else None)


_at = attrgetter("at")


def _read(row: list[Segment], first: int, start: int, stop: int, tokens, targets, predict, reset) -> None:
    """What of a row's segments, from the number `first` on, lies at the positions start .. stop - 1, into arrays of these, all zero."""
    ends, behind = [], []  # where documents end; where a segment does, and the token after it
    filled, all_trained = 0, len(predict) == 1
    for corpus, source, count, at, fresh, last, number in itertools.islice(row, first, None):
        if at >= stop:
            break
        low, high = start if start > at else at, at + count
        if high > stop:
            high = stop
        if low >= high:
            continue
        begin, place, filled = source + low - at, low - start, high - start
        end = begin + high - low
        tokens[place:filled] = corpus.tokens[begin:end]
        if corpus.trained is not None:
            mask = corpus.trained[begin + 1 : end + 1]
            predict[number, place : place + len(mask)] = mask
            all_trained = False
        elif not all_trained:
            predict[number, place:filled] = True
        if high == at + count and not last:
            ends.append((number, filled - 1))
        else:
            behind.append((filled - 1, corpus.tokens[end]))
        if fresh and at >= start:
            reset[place] = True
    targets[:-1] = tokens[1:]
    if all_trained:
        predict[0, :filled] = True
    for place in ends:
        targets[place[1]] = 0
        predict[place] = False
    for place, token in behind:
        targets[place] = token


@dataclass(frozen=True)
class Chunk:
    """tokens, targets: [B, t] int64; weight: [B, t] fp64, each target's share of the loss, or
    [sources, B, t]; reset: [B, t] bool or None."""

    tokens: Tensor
    targets: Tensor
    weight: Tensor
    reset: Tensor | None
