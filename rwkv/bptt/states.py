"""Where exact BPTT keeps the states at chunk boundaries between its two passes.

All kinds hold whole `State` values in two preallocated buffers (many small tensors would fragment the heap):
`device` on the accelerator, `host` in pinned memory with copies that overlap compute, `disk` in memory-mapped files.
`sqrt` keeps every k-th state, k about sqrt(n), and recomputes the ones between, k at a time.
"""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rwkv.memory import free_host_bytes
from rwkv.model.state import State

KINDS = ("device", "host", "disk", "sqrt")


class Buffers:
    """States 0..n-1 of the form of `like`, kept in the place named by `kind`."""

    def __init__(self, n: int, like: State, kind: str, folder: Path | None = None):
        self.device = like.wkv.device
        self.kind = kind
        self._files = tempfile.TemporaryDirectory(prefix="states-", dir=folder) if kind == "disk" else None
        self.buffers = [self._allocate(n, x) for x in like.tensors()]
        self.side = torch.cuda.Stream(self.device) if self._overlaps else None
        self._ahead: tuple[int, State] | None = None

    @property
    def _overlaps(self) -> bool:
        return self.kind == "host" and self.device.type == "cuda"

    def _allocate(self, n: int, x: Tensor) -> Tensor:
        shape = n, *x.shape
        if self.kind == "disk":
            file = Path(self._files.name) / f"{x.dim()}.bin"
            return torch.from_file(str(file), shared=True, size=math.prod(shape), dtype=x.dtype).view(shape)
        if self.kind == "host" and self.device.type == "cuda":
            return torch.empty(shape, dtype=x.dtype, pin_memory=True)
        return torch.empty(shape, dtype=x.dtype, device=self.device if self.kind == "device" else "cpu")

    def put(self, i: int, state: State) -> None:
        """Keep a copy of the state before chunk i."""
        self._ahead = None
        if self.side is None:
            for buffer, x in zip(self.buffers, state.tensors(), strict=True):
                buffer[i].copy_(x.detach())
            return
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            for buffer, x in zip(self.buffers, state.tensors(), strict=True):
                buffer[i].copy_(x.detach(), non_blocking=True)
                x.record_stream(self.side)

    def get(self, i: int) -> State:
        """The state before chunk i, on the model's device; the one before it is fetched meanwhile."""
        if self.side is None:
            return State(*(buffer[i].to(self.device, copy=True) for buffer in self.buffers))
        if self._ahead is None or self._ahead[0] != i:
            self._fetch(i)
        torch.cuda.current_stream(self.device).wait_stream(self.side)
        state = self._ahead[1]
        for x in state.tensors():
            x.record_stream(torch.cuda.current_stream(self.device))
        if i > 0:
            self._fetch(i - 1)
        return state

    def _fetch(self, i: int) -> None:
        with torch.cuda.stream(self.side):
            self._ahead = i, State(*(buffer[i].to(self.device, non_blocking=True) for buffer in self.buffers))

    def saved(self, upto: int) -> list[Tensor]:
        """Copies of states 0..upto-1 for a checkpoint, on the host."""
        if self.side is not None:
            self.side.synchronize()
        return [buffer[:upto].to("cpu", copy=True) for buffer in self.buffers]

    def restore(self, saved: list[Tensor]) -> None:
        for buffer, x in zip(self.buffers, saved, strict=True):
            buffer[: len(x)].copy_(x)


class Sqrt:
    """Every k-th of n states, and those of one stretch of k recomputed by `advance(i, state before i) -> state after`."""

    def __init__(self, n: int, like: State, advance: Callable[[int, State], State]):
        self.n, self.k, self.advance = n, max(1, math.isqrt(n - 1) + 1), advance
        self.coarse = Buffers(-(-n // self.k), like, "device")
        self.fine = Buffers(self.k, like, "device")
        self._stretch = -1

    def put(self, i: int, state: State) -> None:
        self._stretch = -1
        if i % self.k == 0:
            self.coarse.put(i // self.k, state)

    def get(self, i: int) -> State:
        stretch, offset = divmod(i, self.k)
        if stretch != self._stretch:
            state = self.coarse.get(stretch)
            first = stretch * self.k
            self.fine.put(0, state)
            for j in range(1, offset + 1):  # stretches are entered at their end
                state = self.advance(first + j - 1, state)
                self.fine.put(j, state)
            self._stretch = stretch
        return self.fine.get(offset)

    def saved(self, upto: int) -> list[Tensor]:
        return self.coarse.saved(-(-upto // self.k))

    def restore(self, saved: list[Tensor]) -> None:
        self.coarse.restore(saved)
        self._stretch = -1


def choose(n: int, like: State) -> str:
    """`auto`: on the device while the states take little of its free memory, then on the host, then sqrt of them."""
    size = n * state_bytes(like)
    device = like.wkv.device
    if device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] / 16:
        return "device"
    if size <= free_host_bytes() / (2 if device.type == "cuda" else 4):
        return "host" if device.type == "cuda" else "device"
    return "sqrt"


def state_bytes(state: State) -> int:
    return sum(x.numel() * x.element_size() for x in state.tensors())
