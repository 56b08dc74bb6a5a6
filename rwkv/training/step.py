"""One optimizer step in progress: all its batches, chunk by chunk, on every rank."""

from dataclasses import replace

import torch

from rwkv.bptt.engine import Bptt, Settings
from rwkv.data.batch import Batch
from rwkv.model.state import State
from rwkv.training.ranks import Ranks
from rwkv.training.strategies import Strategy

VAL_ROWS = 8  # side by side in a validation, over all ranks


class Step:
    """Call `advance` until `done`; then the gradients stand in the parameters, of this rank's rows alone.

    Every rank goes through the same number of ticks, so that all can agree on something at any tick: one whose documents are
    shorter idles at the end of a batch or, where the strategy wants them together, reads filling. The denominator is the number of predicted tokens in the whole step, over
    batches and ranks, so that the sum of the ranks' gradients is that of one process.

    Args:
        position: of the data, before the step's batches; it is kept for a checkpoint inside the step.
        at_once: rows of a rank that are computed side by side; None: all.
    """

    def __init__(
        self, strategy: Strategy, batches: list[Batch], position: dict, carry: State, settings: Settings, ranks: Ranks, at_once: int | None = None
    ):
        self.strategy, self.settings, self.ranks, self.carry = strategy, settings, ranks, carry
        self.batches, self.position = batches, position
        self.denominator = max(1, sum(b.predicted for b in batches))
        self.tokens = sum(b.count for b in batches)
        rows = len(carry.wkv)
        each = at_once or max(rows, 1)
        self.groups = [slice(k, min(k + each, rows)) for k in range(0, rows, each)] or [slice(0, 0)]
        self.parts = [(b, group) for b in batches for group in self.groups]
        self.ticks = [max(self._work(b.rank(r, ranks.world), group) for r in range(ranks.world)) for b, group in self.parts]
        self.predicted_of = [sum(x) for x in zip(*(b.predicted_of for b in batches), strict=True)]
        self.loss = torch.zeros(len(self.predicted_of), dtype=torch.float64, device=ranks.device)  # of each source
        self.micro, self.tick = 0, 0
        self.passes = [0, 0]  # of this process: without a graph, and with one
        self._open()

    @property
    def slots(self) -> int:
        """Positions that all rows have while the longest is read; `tokens` of them are not filling."""
        return sum(b.length * len(b.rows) for b in self.batches)

    def _work(self, batch: Batch, group: slice) -> int:
        return Bptt.work_of(batch.take(group), self.settings)

    def _open(self) -> None:
        batch, group = self.parts[self.micro]
        parts = [batch.rank(r, self.ranks.world).take(group) for r in range(self.ranks.world)]
        part = parts[self.ranks.rank]
        if self.strategy.together:
            part = replace(part, length=max(p.length for p in parts))
        start = self.carry.map(lambda x: x[group])
        self.bptt = Bptt(self.strategy.runner, part, start if batch.carry else start.map(torch.zeros_like), self.settings, self.denominator)

    @property
    def done(self) -> bool:
        return self.micro == len(self.parts)

    @property
    def total(self) -> int:
        return sum(self.ticks)

    @property
    def work(self) -> int:
        return sum(self.ticks[: self.micro]) + self.tick

    def advance(self) -> None:
        """One chunk of one pass, if this rank has any left in the batch."""
        self.strategy.last_pass(self.work == self.total - 1)
        if not self.bptt.done:
            self.passes[self.bptt.goes_back] += 1
            self.bptt.advance()
        self.tick += 1
        if self.tick == self.ticks[self.micro]:
            self.loss += self.bptt.loss
            self.carry = self.carry.put(self.parts[self.micro][1], self.bptt.final)
            self.micro, self.tick = self.micro + 1, 0
            if not self.done:
                self._open()

    def state_dict(self) -> dict:
        """Where this rank is, besides the parameter gradients: plain numbers and tensors, `carry` at the batch's start."""
        return {"micro": self.micro, "tick": self.tick, "loss": self.loss.cpu(), "bptt": self.bptt.state_dict()}

    def load_state_dict(self, saved: dict) -> None:
        """`self.carry` must be the one that `state_dict` was taken with."""
        self.micro, self.tick, self.loss = saved["micro"], saved["tick"], saved["loss"].to(self.ranks.device)
        self._open()
        self.bptt.load_state_dict(saved["bptt"])
