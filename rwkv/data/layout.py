"""How documents become the rows of optimizer steps. Step n's batch is a pure function of (seed, n, corpus).

`stream`: each row is a lane that reads documents back to back, the same number of tokens every step; its state is carried
from step to step and cleared at each document's first token.
`document`: each row is a whole document from its first token to its end.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rwkv.data.corpus import Corpus
from rwkv.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Rows that are read side by side in one go.

    tokens: [B, T + 1] ids; position t predicts token t + 1.
    predict: [B, T] bool, target-aligned: whether token t + 1 is trained at position t.
    reset: [B, T] bool, true at a document's first token; None where only position 0 starts one.
    carry: whether the rows go on where the batch before ended, with its state.
    """

    tokens: np.ndarray
    predict: np.ndarray
    reset: np.ndarray | None
    carry: bool

    @property
    def length(self) -> int:
        return self.tokens.shape[1] - 1

    @property
    def predicted(self) -> int:
        return int(self.predict.sum())

    @property
    def count(self) -> int:
        """Tokens read: all of a lane's, all but the filling of documents side by side."""
        return self.predicted if self.reset is None else self.predict.size

    def rows(self, rank: int, ranks: int) -> "Batch":
        """Every ranks-th row, from row `rank` on; without the filling behind the longest document among them."""
        if ranks == 1:
            return self
        cut = slice(rank, None, ranks)
        predict = self.predict[cut]
        used = self.length if self.reset is not None else int(np.flatnonzero(predict.any(0)).max(initial=0)) + 1
        reset = None if self.reset is None else self.reset[cut, :used]
        return Batch(self.tokens[cut, : used + 1], predict[:, :used], reset, self.carry)

    def chunks(self, ctx_len: int) -> int:
        return -(-self.length // ctx_len)

    def chunk(self, i: int, ctx_len: int, denominator: float, device: torch.device | str) -> "Chunk":
        """The i-th chunk on a device, each trained target weighing 1 / denominator."""
        start, stop = i * ctx_len, min((i + 1) * ctx_len, self.length)

        def move(x: np.ndarray, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(x)).to(device, non_blocking=True).to(dtype)

        ids = move(self.tokens[:, start : stop + 1].astype(np.int32), torch.int64)
        weight = move(self.predict[:, start:stop], torch.float64) / denominator
        reset = None if self.reset is None else move(self.reset[:, start:stop], torch.bool)
        return Chunk(ids[:, :-1], ids[:, 1:], weight, reset)


@dataclass(frozen=True)
class Chunk:
    """tokens, targets: [B, t] int64; weight: [B, t] fp64, each target's share of the loss; reset: [B, t] bool or None."""

    tokens: Tensor
    targets: Tensor
    weight: Tensor
    reset: Tensor | None


class Stream:
    """Lanes over the documents of an epoch, shuffled and joined; each lane has an equal stretch of them.

    With `fresh`, no state is carried from one batch to the next.
    """

    def __init__(self, corpus: Corpus, rows: int, step_tokens: int, seed: int, shuffle: bool = True, fresh: bool = False):
        self.corpus, self.rows, self.step_tokens, self.seed, self.shuffle = corpus, rows, step_tokens, seed, shuffle
        self.fresh = fresh
        self.lane = (len(corpus.tokens) - 1) // rows
        if self.lane < 1:
            raise DataError(f"the data has {len(corpus.tokens)} tokens, too few for layout.rows={rows}; use fewer rows or more data")
        self.steps_per_epoch = -(-self.lane // step_tokens)
        self.tokens_per_step = len(corpus.tokens) / self.steps_per_epoch
        self._epoch = -1

    def batch(self, index: int) -> Batch:
        """The index-th batch of the run, any index."""
        epoch, step = divmod(index, self.steps_per_epoch)
        self._enter(epoch)
        start = step * self.step_tokens
        stop = min(start + self.step_tokens, self.lane)
        at = np.arange(self.rows)[:, None] * self.lane + np.arange(start, stop + 1)  # in the epoch's documents, joined
        nth = np.searchsorted(self._starts, at, side="right") - 1
        inside = at - self._starts[nth]
        tokens = self.corpus.tokens[self.corpus.offsets[self._order[nth]] + inside]  # the corpus may be larger than memory
        first = inside == 0
        # a document's first token is no target: nothing before it may predict it
        return Batch(tokens, ~first[:, 1:], first[:, :-1], carry=step > 0 and not self.fresh)

    def _enter(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        self._order = shuffled(len(self.corpus), self.seed, epoch) if self.shuffle else np.arange(len(self.corpus))
        sizes = np.diff(self.corpus.offsets)[self._order]
        self._starts = np.cumsum(sizes) - sizes
        self._epoch = epoch


class Documents:
    """Whole documents in shuffled order, `rows` side by side; shorter ones end early in their row."""

    def __init__(self, corpus: Corpus, rows: int, seed: int, max_tokens: int | None = None):
        self.corpus, self.rows, self.seed = corpus, rows, seed
        starts, sizes = corpus.offsets[:-1], np.diff(corpus.offsets)
        limit = max_tokens or int(sizes.max())
        self.cut_documents = int((sizes > limit + 1).sum())
        pieces = [(s + o, min(limit + 1, n - o)) for s, n in zip(starts, sizes, strict=True) for o in range(0, max(n - 1, 1), limit)]
        self.pieces = [(int(s), int(n)) for s, n in pieces if n > 1]
        if not self.pieces:
            raise DataError("the data has no document of at least one token")
        self.steps_per_epoch = -(-len(self.pieces) // rows)
        self.tokens_per_step = len(corpus.tokens) / self.steps_per_epoch  # on average
        self._epoch = -1

    def batch(self, index: int) -> Batch:
        """The index-th batch of the run, any index; an epoch's last may have fewer documents and empty rows."""
        epoch, step = divmod(index, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order, self._epoch = shuffled(len(self.pieces), self.seed, epoch), epoch
        spans = [self.pieces[i] for i in self._order[step * self.rows : (step + 1) * self.rows]]
        if self.rows == 1:  # a view: the document may be larger than memory
            (start, n) = spans[0]
            return Batch(self.corpus.tokens[None, start : start + n], np.broadcast_to(True, (1, n - 1)), None, carry=False)
        longest = max(n for _, n in spans)
        tokens = np.zeros((self.rows, longest), dtype=self.corpus.tokens.dtype)
        predict = np.zeros((self.rows, longest - 1), dtype=bool)
        for row, (start, n) in enumerate(spans):
            tokens[row, :n] = self.corpus.tokens[start : start + n]
            predict[row, : n - 1] = True
        return Batch(tokens, predict, None, carry=False)


def shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of n things in an epoch: a function of (n, seed, epoch) alone."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)
