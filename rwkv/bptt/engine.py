"""Gradients of a batch of any length, one chunk on the accelerator at a time.

Pass 1 runs the chunks forward without a graph and keeps only the state at each boundary. Pass 2 goes from the last chunk
to the first: the chunk again with a graph from its saved state, then backward from its loss and from the gradient of its
final state, which the chunk after it has given; the gradient of its initial state goes to the chunk before. Parameter
gradients add up. The result is that of one backward over the whole batch; the cost is 4/3 of a backward cut at every chunk.

`truncated` does the same in windows of `depth` chunks and lets no gradient pass between windows; one of depth 1 needs no
pass 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rwkv.bptt import layerwise
from rwkv.bptt.chunks import Eager
from rwkv.bptt.states import Buffers, Sqrt, States, choose, room_for, size_bytes
from rwkv.data.batch import Batch, Chunk
from rwkv.model.loss import LossModel
from rwkv.model.state import State


@dataclass(frozen=True)
class Settings:
    """ctx_len: tokens a chunk; window: chunks that a gradient goes back through, None for all; states: as `bptt.states`.

    recompute: activation checkpointing: one block's graph at a time, block by block (`rwkv.bptt.layerwise`). What entered
    the blocks in pass 1 is kept for as many of the last chunks as there is room; None: no limit but memory.
    """

    ctx_len: int
    window: int | None = None
    states: str = "auto"
    folder: Path | None = None  # of states on disk
    recompute: bool = False
    keep_chunks: int | None = None
    sharing: int = 1  # processes on this host, which its memory is for
    least: Callable[[int], int] = int  # the least of a number over those ranks that must go through the same passes together


class Bptt:
    """The gradient of one batch, computed chunk by chunk: call `advance` until `done`.

    Between any two calls the work so far can be saved (`state_dict`) and taken up by another process
    (`load_state_dict`), given the parameter gradients so far.

    Attributes:
        loss: fp64 scalar on the device, the loss of the chunks whose backward is done; [sources] of a batch of several.
        total, work: calls of `advance` in all, and done.
        final: the state after the batch, detached; set once `done`.
        d_state: the gradient of the initial state; set once `done`, if `want_state_grad`.
    """

    def __init__(
        self, model: LossModel | Eager, batch: Batch, state: State, settings: Settings, denominator: float, want_state_grad: bool = False
    ):
        self.runner = model if isinstance(model, Eager) else Eager(model)
        self.batch, self.settings, self.denominator = batch, settings, denominator
        self.device = state.wkv.device
        self.n = batch.chunks(settings.ctx_len)
        self.size = min(settings.window or self.n, self.n)
        self.total = self.work_of(batch, settings)
        self.want_state_grad = want_state_grad
        self.loss = torch.zeros((batch.sources,) if batch.sources > 1 else (), dtype=torch.float64, device=self.device)
        self.work = 0
        self.d_state: State | None = None
        self._store: States | Sqrt | None = None
        self._kept: Buffers | None = None
        self._open(0, state.detach())

    @staticmethod
    def work_of(batch: Batch, settings: Settings) -> int:
        """Chunks to go through, both passes counted: the number of calls of `advance`."""
        n = batch.chunks(settings.ctx_len)
        windows, rest = divmod(n, min(settings.window or n, n))
        return 2 * n - windows - (1 if rest else 0)

    @property
    def done(self) -> bool:
        return self.first >= self.n

    @property
    def goes_back(self) -> bool:
        """Whether the next chunk is one of the second pass."""
        return self.at >= self.last

    def advance(self) -> None:
        """One chunk of one pass."""
        self._backward() if self.goes_back else self._forward()
        self.work += 1

    def _open(self, first: int, state: State) -> None:
        """Begin the window at chunk `first`, whose initial state is given."""
        self.first, self.last = first, min(first + self.size, self.n) - 1
        self.at = first  # next chunk of pass 1; `last` once that is through
        self.down = self.last  # next chunk of pass 2
        self.current = state
        self.kept_from = self.last  # what entered the blocks is kept from this chunk on
        self.grad: list[Tensor] | None = None
        if first >= self.n:
            self.final = state
            return
        count = self.last - first + 1
        if self._store is None:
            self._store = self._make_store(count, state)
        self._store.put(0, state)

    def _make_store(self, count: int, like: State, kind: str | None = None) -> States | Sqrt:
        kind = kind or (self._choose(count, like) if self.settings.states == "auto" else self.settings.states)
        if kind == "sqrt":
            return Sqrt(count, like, lambda i, state: self._next_state(self.first + i, state))
        return States(count, like, kind, self.settings.folder)

    def _choose(self, count: int, like: State) -> str:
        kind = choose(count, like, self.settings.sharing)
        return kind if self.settings.least(kind != "sqrt") else "sqrt"

    def _chunk(self, i: int) -> Chunk:
        return self.batch.chunk(i, self.settings.ctx_len, self.denominator, self.device)

    def _next_state(self, i: int, state: State) -> State:
        return self.runner.forward(self._chunk(i), state)

    def _forward(self) -> None:
        if self.settings.recompute:
            self.current, kept = layerwise.forward(self.runner.model, self._chunk(self.at), self.current)
            self._keep(self.at, kept)
        else:
            self.current = self._next_state(self.at, self.current)
        self.at += 1
        self._store.put(self.at - self.first, self.current)

    def _keep(self, i: int, kept: list[Tensor]) -> None:
        """Keep what entered the blocks of chunk i of pass 1, if it is among the last for which there is room."""
        if self._kept is None:
            wanted = min(self.size - 1, self.size if self.settings.keep_chunks is None else self.settings.keep_chunks)
            kind, room = room_for(size_bytes(kept), wanted, self.device, self.settings.sharing)
            self.room = self.settings.least(room)
            self._kept = Buffers(self.room, kept, kind)
        slot = self.room - (self.last - i)
        if slot >= 0:
            self._kept.put(slot, kept)
            self.kept_from = min(self.kept_from, i)

    def _kept_inputs(self, i: int, chunk: Chunk, state: State) -> list[Tensor]:
        """What entered the blocks of chunk i: as kept, or computed again."""
        if i < self.kept_from or i == self.last:
            end, kept = layerwise.forward(self.runner.model, chunk, state)
            if i == self.last:
                self.current = end
            return kept
        return self._kept.get(self.room - (self.last - i))

    def _backward(self) -> None:
        i = self.down
        chunk = self._chunk(i)
        state = self._store.get(i - self.first)
        if self.settings.recompute:
            loss, self.grad = layerwise.backward(self.runner.model, chunk, state, self._kept_inputs(i, chunk, state), self.grad)
        else:
            # nobody asks for the gradient of the first chunk's initial state but `want_state_grad`
            loss, end, self.grad = self.runner.backward(chunk, state, self.grad, i > self.first or (self.want_state_grad and i == 0))
            if i == self.last:
                self.current = end
        self.loss += loss
        if i > self.first:
            self.down -= 1
            return
        if self.want_state_grad and i == 0:
            self.d_state = State(*self.grad)
        self._open(self.last + 1, self.current)

    def state_dict(self) -> dict:
        """All that another process needs to go on from here, besides the parameter gradients: plain numbers and tensors."""
        kept = 0 if self.done else (self.at if self.at < self.last else self.down) - self.first + 1
        return {
            "first": self.first,
            "at": self.at,
            "down": self.down,
            "work": self.work,
            "loss": self.loss.cpu(),
            "current": [x.detach().cpu() for x in self.current.tensors()],
            "grad": None if self.grad is None else [x.cpu() for x in self.grad],
            "sqrt": int(isinstance(self._store, Sqrt)),
            "states": self._store.saved(kept),
        }

    def load_state_dict(self, saved: dict) -> None:
        if saved["sqrt"] != isinstance(self._store, Sqrt):  # these settings, or the memory there is now, gave another kind
            kind = "sqrt" if saved["sqrt"] else "host"
            self._store = self._make_store(self.size, self.current, kind)
        self._open(saved["first"], State(*(x.to(self.device) for x in saved["current"])))
        self.at, self.down, self.work = saved["at"], saved["down"], saved["work"]
        self.loss = saved["loss"].to(self.device)
        self.grad = None if saved["grad"] is None else [x.to(self.device) for x in saved["grad"]]
        self._store.restore(saved["states"])


def gradient(model: LossModel | Eager, batch: Batch, state: State, settings: Settings, denominator: float, want_state_grad: bool = False) -> Bptt:
    """The whole gradient in one call: parameter gradients are added to `.grad`; see `Bptt` for what is returned."""
    bptt = Bptt(model, batch, state, settings, denominator, want_state_grad)
    while not bptt.done:
        bptt.advance()
    return bptt
