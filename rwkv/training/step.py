"""One optimizer step in progress: all its batches, chunk by chunk, on every rank."""

import torch

from rwkv.bptt.chunks import Eager
from rwkv.bptt.engine import Bptt, Settings
from rwkv.data.layout import Batch, Documents, Stream
from rwkv.data.official_order import Official
from rwkv.model.state import State
from rwkv.training.ranks import Ranks


class Step:
    """Call `advance` until `done`; then the gradients stand in the parameters, of this rank's rows alone.

    Every rank goes through the same number of ticks: one whose documents are shorter idles at the end of a batch, so that
    all ranks can agree on something at any tick. The denominator is the number of predicted tokens in the whole step, over
    batches and ranks, so that the sum of the ranks' gradients is that of one process.
    """

    def __init__(
        self, runner: Eager, data: Stream | Documents | Official, index: int, accumulate: int, carry: State, settings: Settings, ranks: Ranks
    ):
        self.runner, self.settings, self.ranks, self.carry = runner, settings, ranks, carry
        self.batches = [data.batch(index * accumulate + i) for i in range(accumulate)]
        self.denominator = max(1, sum(b.predicted for b in self.batches))
        self.tokens = sum(b.count for b in self.batches)
        self.ticks = [max(self._work(b.rows(r, ranks.world)) for r in range(ranks.world)) for b in self.batches]
        self.loss = torch.zeros((), dtype=torch.float64, device=ranks.device)
        self.micro, self.tick = 0, 0
        self._open()

    def _work(self, batch: Batch) -> int:
        return Bptt.work_of(batch, self.settings)

    def _open(self) -> None:
        batch = self.batches[self.micro].rows(self.ranks.rank, self.ranks.world)
        zero = self.carry.map(torch.zeros_like)
        self.bptt = Bptt(self.runner, batch, self.carry if batch.carry else zero, self.settings, self.denominator)

    @property
    def done(self) -> bool:
        return self.micro == len(self.batches)

    @property
    def total(self) -> int:
        return sum(self.ticks)

    @property
    def work(self) -> int:
        return sum(self.ticks[: self.micro]) + self.tick

    def advance(self) -> None:
        """One chunk of one pass, if this rank has any left in the batch."""
        if not self.bptt.done:
            self.bptt.advance()
        self.tick += 1
        if self.tick == self.ticks[self.micro]:
            self.loss += self.bptt.loss
            self.carry = self.bptt.final
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
