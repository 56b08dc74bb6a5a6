"""Whole documents, each with its exact gradient: short ones packed into rows, rows of equally many chunks side by side.

The feed's documents are planned a window at a time, from their sizes alone, so the plan is the same on every rank. A document
longer than the cap goes on in the same row of the next batches, with the state carried; its gradient is that of each piece.
"""

from bisect import bisect_left, insort

import numpy as np

from rwkv.data.batch import Batch, Segment
from rwkv.data.feed import Feed, Item

Row = list[Segment]


class Documents:
    """
    Args:
        rows: side by side, over all ranks.
        unit: positions of a chunk; a row's length is rounded up to them.
        least: positions that a row of packed documents has at least.
        cap: positions of a document that are read in one batch, whole units and at least `least`; None: all of them.
        window: batches of `least` positions a row that are planned together, about.
        reset: whether the state is cleared before each document of a row.
    """

    def __init__(self, feed: Feed, rows: int, unit: int, least: int, cap: int | None, window: int, seed: int, reset: bool = True):
        self.feed, self.rows, self.unit, self.least, self.cap, self.seed, self.reset = feed, rows, unit, least, cap, seed, reset
        corpora = [supply.items.corpus for supply in feed.supplies]
        documents, positions = sum(map(len, corpora)), sum(c.count - len(c) for c in corpora)
        self.tokens_per_step = max(least * rows * 0.9, positions / documents * rows)  # about
        self.documents = self._window(window * rows * least * documents / max(1, positions))
        self.start, self.step, self.plan = feed.state_dict(), 0, []

    def _window(self, about: float) -> int:
        """Documents of a window: equal parts of an epoch, if there is one source."""
        about = max(about, self.rows)
        if len(self.feed.supplies) > 1:
            return round(about)
        n = len(self.feed.supplies[0].items)
        return -(-n // max(1, round(n / about)))

    def next(self) -> Batch | None:
        """The next batch; None once the feed has ended."""
        if self.step == len(self.plan):
            self.start, self.step = self.feed.state_dict(), 0
            self._make_plan()
        if not self.plan:
            return None
        self.step += 1
        return self.plan[self.step - 1]

    def _make_plan(self) -> None:
        items, taken = [], self.feed.taken
        several, epoch = len(taken) > 1, len(self.feed.supplies[0].items)
        until = min(taken[0] + self.documents, (taken[0] // epoch + 1) * epoch)  # of one source, no window holds parts of two epochs
        while (len(items) < self.documents if several else taken[0] < until) and (item := self.feed.next()):
            items.append(item)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, sum(self.start["taken"])]))
        self.plan = [batch for group in self._groups(items, rng) for batch in group]

    def _groups(self, items: list[Item], rng: np.random.Generator) -> list[list[Batch]]:
        """Batches in shuffled order; those that carry a state are in one group, in theirs."""
        cap = self.cap or max((item.count for item in items), default=0)
        long = [item for item in items if item.count > cap]
        packs = pack([item for item in items if item.count <= cap], self.unit, self.least)
        rows = [self._row(p) for p in sorted(packs, key=lambda p: -sum(i.count for i in p))]
        groups = [self._long(long, rows)] if long else []
        groups += [[self._batch(rows[k : k + self.rows], False)] for k in range(0, len(rows), self.rows)]
        return [groups[i] for i in rng.permutation(len(groups))]

    def _row(self, items: list[Item]) -> Row:
        row, at = [], 0
        for item in items:
            row.append(self.feed.segment(item, 0, item.count, at, self.reset or at == 0))
            at += item.count
        return row

    def _long(self, items: list[Item], rows: list[Row]) -> list[Batch]:
        """Documents longer than the cap, piece by piece, dealt to lanes of about equal length; a lane that has ended early is
        filled from the front of `rows`."""
        lanes: list[list[Row]] = [[] for _ in range(self.rows)]
        for item in sorted(items, key=lambda item: -item.count):
            min(lanes, key=len).extend(self._pieces(item))
        batches = []
        for nth in range(max(map(len, lanes))):
            now = [lane[nth] if nth < len(lane) else rows.pop(0) if rows else [] for lane in lanes]
            batches.append(self._batch(now, nth > 0))
        return batches

    def _pieces(self, item: Item) -> list[Row]:
        return [[self.feed.segment(item, i, min(self.cap, item.count - i), 0, i == 0)] for i in range(0, item.count, self.cap)]

    def _batch(self, rows: list[Row], carry: bool) -> Batch:
        rows = [*rows, *([] for _ in range(self.rows - len(rows)))]
        return Batch(rows, max(row[-1].at + row[-1].count for row in rows if row), carry, len(self.feed.supplies))

    def state_dict(self) -> dict:
        return {"feed": self.start, "step": self.step}

    def load_state_dict(self, saved: dict) -> None:
        self.feed.load_state_dict(saved["feed"])
        self.start, self.step = self.feed.state_dict(), saved["step"]
        if self.step:
            self._make_plan()


def pack(items: list[Item], unit: int, least: int) -> list[list[Item]]:
    """Best fit, longest first: rows of at least `least` positions, else as many units as their longest document needs."""
    rows: list[list[Item]] = []
    room: list[tuple[int, int]] = []  # (positions left, row), sorted
    for item in sorted(items, key=lambda item: -item.count):
        k = bisect_left(room, (item.count, -1))
        if k < len(room):
            left, row = room.pop(k)
        else:
            left, row = max(least, -(-item.count // unit) * unit), len(rows)
            rows.append([])
        rows[row].append(item)
        if left > item.count:
            insort(room, (left - item.count, row))
    return rows
