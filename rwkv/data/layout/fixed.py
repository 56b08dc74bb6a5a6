"""Rows of a fixed length, cut from the documents joined; each begins from the zero state."""

import numpy as np

from rwkv.data.batch import Batch, Segment
from rwkv.data.corpus import Corpus, runs
from rwkv.data.feed import Feed


class Samples:
    """`length` positions each, one behind the other in the documents joined; what is left at the end is left out.

    With `reset` documents are told apart: the state is cleared and nothing is predicted from one to the next. Without, what
    lies side by side in the store is one text, as in RWKV-LM.
    """

    def __init__(self, corpus: Corpus, length: int, reset: bool):
        self.corpus, self.length, self.reset = corpus, length, reset
        starts, sizes = corpus.spans(np.arange(len(corpus)))
        if not reset:
            starts, ends = runs(starts, starts + sizes)
            sizes = ends - starts
        self.starts, self.sizes = starts, sizes
        self.ends = np.cumsum(sizes)

    @property
    def tokens(self) -> int:
        return int(self.ends[-1])

    def __len__(self) -> int:
        return (self.tokens - 1) // self.length

    def spans(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Starts are places in the documents joined, for `segments`."""
        return numbers * self.length, np.full(len(numbers), self.length), np.full(len(numbers), True)

    def segments(self, start: int, source: int) -> list[Segment]:
        first, last = np.searchsorted(self.ends, (start, start + self.length - 1), side="right").tolist()
        around = slice(first, last + 1)
        out, at = [], 0
        for begin, size, end in zip(*(x[around].tolist() for x in (self.starts, self.sizes, self.ends)), strict=True):
            before = end - start - at  # tokens from here to the document's end
            count, inside = min(self.length - at, before), size - before
            fresh = self.reset and inside == 0 and at > 0
            out.append(Segment(self.corpus, begin + inside, count, at, fresh, count < before, source))
            at += count
        return out


class Fixed:
    """Batches of `rows` samples, in the order of the feed."""

    def __init__(self, feed: Feed, rows: int, length: int):
        self.feed, self.rows, self.length = feed, rows, length
        self.tokens_per_step = float(rows * length)

    def next(self) -> Batch | None:
        """The next batch; None once the feed has ended."""
        rows = []
        for _ in range(self.rows):
            item = self.feed.next()
            rows.append(self.feed.supplies[item.source].items.segments(item.start, item.source) if item else [])
        return Batch(rows, self.length, False, len(self.feed.supplies)) if any(rows) else None

    def state_dict(self) -> dict:
        return {"feed": self.feed.state_dict()}

    def load_state_dict(self, saved: dict) -> None:
        self.feed.load_state_dict(saved["feed"])
