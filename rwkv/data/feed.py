"""Feed: an endless sequence of pieces of documents from one or several sources, in training order.

Its position is a few integers, from which it goes on at once, however far it has come.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from rwkv.data.batch import Segment
from rwkv.data.corpus import Corpus
from rwkv.data.order import Order

BLOCK = 8192  # places looked up together


class Items(Protocol):
    """What is read as one: pieces of documents, or samples of a fixed length. `len` of them, by number."""

    corpus: Corpus

    def __len__(self) -> int: ...

    def spans(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(start, count, last) of each as `rwkv.data.batch.Segment` has them; of no use where the count is 0."""
        ...


class Pieces:
    """Documents, those of more than `limit` positions cut into pieces of so many; the first pieces have the documents' numbers.

    A document of n tokens has n - 1 positions, for its end predicts nothing; n where `joined` lets the state go on.
    cut: documents that are cut.
    """

    def __init__(self, corpus: Corpus, limit: int | None = None, joined: bool = False):
        self.corpus, self.limit, self.joined = corpus, limit, joined
        self.documents, self.offsets = np.empty(0, np.int64), np.empty(0, np.int64)
        self.cut = 0
        if limit and self._positions(corpus.longest) > limit:
            self._cut()

    def _positions(self, size):
        return size if self.joined else size - 1

    def _cut(self) -> None:
        documents, more = [], []
        for block in self.corpus.blocks():
            pieces = -(-self._positions(self.corpus.spans(block)[1]) // self.limit)
            documents.append(block[pieces > 1])
            more.append(pieces[pieces > 1] - 1)
        documents, more = np.concatenate(documents), np.concatenate(more)
        self.cut = len(documents)
        self.documents = np.repeat(documents, more)
        nth = np.arange(len(self.documents)) - np.repeat(np.cumsum(more) - more, more)
        self.offsets = (nth + 1) * self.limit

    def __len__(self) -> int:
        return len(self.corpus) + len(self.documents)

    def spans(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        extra = numbers - len(self.corpus)
        first = extra < 0
        if len(self.documents):
            documents = np.where(first, numbers, self.documents[np.maximum(extra, 0)])
            offsets = np.where(first, 0, self.offsets[np.maximum(extra, 0)])
        else:
            documents, offsets = numbers, np.zeros_like(numbers)
        starts, sizes = self.corpus.spans(documents)
        left = self._positions(sizes) - offsets
        count = left if self.limit is None else np.minimum(left, self.limit)
        return starts + offsets, count, (count < left) | (not self.joined)


class Item(NamedTuple):
    source: int
    number: int
    start: int
    count: int
    last: bool


@dataclass(frozen=True)
class Supply:
    """A source of a feed: its items, in which order, its share of the positions, and at most how many items."""

    items: Items
    order: Order
    weight: float = 1.0
    limit: int | None = None


class Feed:
    """Of several sources, the next item is of the one that is furthest behind its share of the positions so far.

    taken, used: items and positions that came from each source.
    """

    def __init__(self, supplies: list[Supply]):
        self.supplies = supplies
        self._corpora = [supply.items.corpus for supply in supplies]
        self.taken, self.used = [0] * len(supplies), [0] * len(supplies)
        self._coming = self._from_here()

    def next(self) -> Item | None:
        """None once every source has given all that it may."""
        while (source := self._furthest_behind()) is not None:
            item = next(self._coming[source])
            self.taken[source] += 1
            self.used[source] += item.count
            if item.count:  # a document of one token has nothing to predict
                return item
        return None

    def shares(self) -> list[dict[str, float]]:
        """Of each source, tokens and epochs handed out so far."""
        return [{"tokens": u, "epochs": t / len(s.items)} for s, t, u in zip(self.supplies, self.taken, self.used, strict=True)]

    def item(self, source: int, number: int) -> Item:
        (start,), (count,), (last,) = (x.tolist() for x in self.supplies[source].items.spans(np.array([number])))
        return Item(source, number, start, count, last)

    def segment(self, item: Item, done: int, count: int, at: int, fresh: bool) -> Segment:
        """`count` positions of an item, from its position `done` on, read at the positions from `at` on of a row."""
        source, _, start, whole, last = item
        return Segment(self._corpora[source], start + done, count, at, fresh, last or done + count < whole, source)

    def _furthest_behind(self) -> int | None:
        if len(self.supplies) == 1:
            limit = self.supplies[0].limit
            return 0 if limit is None or self.taken[0] < limit else None
        best, least = None, float("inf")
        for i, (supply, taken, used) in enumerate(zip(self.supplies, self.taken, self.used, strict=True)):
            if used / supply.weight < least and (supply.limit is None or taken < supply.limit):
                best, least = i, used / supply.weight
        return best

    def _from_here(self) -> list[Iterator[Item]]:
        """The items that are to come, of each source."""
        return [self._items(source, taken) for source, taken in enumerate(self.taken)]

    def _items(self, source: int, taken: int) -> Iterator[Item]:
        supply = self.supplies[source]
        for first in itertools.count(taken, BLOCK):
            numbers = supply.order(np.arange(first, first + BLOCK))
            columns = [x.tolist() for x in (numbers, *supply.items.spans(numbers))]
            yield from map(Item, itertools.repeat(source), *columns)

    def state_dict(self) -> dict:
        return {"taken": list(self.taken), "used": list(self.used)}

    def load_state_dict(self, saved: dict) -> None:
        self.taken, self.used = list(saved["taken"]), list(saved["used"])
        self._coming = self._from_here()
