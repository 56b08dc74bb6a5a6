"""Lanes that read documents back to back, the same number of tokens every step; the state is carried from step to step."""

from rwkv.data.batch import Batch, Segment
from rwkv.data.feed import Feed, Item


class Stream:
    """A lane whose document has ended takes the feed's next one, lane after lane; so the work of all lanes is equal.

    Args:
        rows: number of lanes, over all ranks.
        step_tokens: positions that each lane reads in a batch.
        carry: whether a batch goes on from the state the one before left.
        reset: whether the state is cleared before each document.
    """

    def __init__(self, feed: Feed, rows: int, step_tokens: int, carry: bool = True, reset: bool = True):
        self.feed, self.rows, self.step_tokens, self.carry, self.reset = feed, rows, step_tokens, carry, reset
        self.tokens_per_step = float(rows * step_tokens)
        self.lanes: list[tuple[Item, int] | None] = [None] * rows  # the item each is in, and positions of it done
        self.begun = False

    def next(self) -> Batch | None:
        """The next batch; None once the feed has ended and all is read."""
        rows = [self._row(lane) for lane in range(self.rows)]
        length = max((row[-1].at + row[-1].count for row in rows if row), default=0)
        carry, self.begun = self.begun and self.carry, True
        return Batch(rows, length, carry, len(self.feed.supplies)) if length else None

    def _row(self, lane: int) -> list[Segment]:
        row, at, inside = [], 0, self.lanes[lane]
        while at < self.step_tokens:
            if inside is None:
                item = self.feed.next()
                if item is None:
                    break
                inside = item, 0
            item, done = inside
            count = min(self.step_tokens - at, item.count - done)
            row.append(self.feed.segment(item, done, count, at, done == 0 and self.reset))
            at, done = at + count, done + count
            inside = None if done == item.count else (item, done)
        self.lanes[lane] = inside
        return row

    def state_dict(self) -> dict:
        lanes = [None if lane is None else [lane[0].source, lane[0].number, lane[1]] for lane in self.lanes]
        return {"feed": self.feed.state_dict(), "lanes": lanes, "begun": self.begun}

    def load_state_dict(self, saved: dict) -> None:
        self.feed.load_state_dict(saved["feed"])
        self.lanes = [None if lane is None else (self.feed.item(lane[0], lane[1]), lane[2]) for lane in saved["lanes"]]
        self.begun = saved["begun"]
