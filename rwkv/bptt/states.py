"""Where exact BPTT keeps the states at chunk boundaries between its two passes.

All kinds but `sqrt` hold every state, in preallocated buffers (many small tensors would fragment the heap):
`device` on the accelerator, `host` in pinned memory with copies that overlap compute, `disk` in memory-mapped files without
names.
`sqrt` keeps every k-th state, k about sqrt(n), and recomputes the ones between, k at a time.
"""

import functools
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from rwkv.errors import ConfigError
from rwkv.memory import free_host_bytes, human
from rwkv.model.state import State

KINDS = ("device", "host", "disk", "sqrt")


class Buffers:
    """n entries, each the tensors of the form of `like`, kept in the place named by `kind`."""

    def __init__(self, n: int, like: Sequence[Tensor], kind: str, folder: Path | None = None):
        self.device, self.kind = like[0].device, kind
        self.buffers = [self._allocate(n, x, folder) for x in like]
        overlaps = kind == "host" and self.device.type == "cuda"
        self.side = _side_stream(self.device) if overlaps else None
        self._ahead: tuple[int, list[Tensor]] | None = None

    def _allocate(self, n: int, x: Tensor, folder: Path | None) -> Tensor:
        shape = n, *x.shape
        if self.kind == "disk":
            return torch.frombuffer(_map_file(n * size_bytes([x]), folder), dtype=x.dtype).view(shape)
        if self.kind == "host" and self.device.type == "cuda":
            return torch.empty(shape, dtype=x.dtype, pin_memory=True)
        return torch.empty(shape, dtype=x.dtype, device=self.device if self.kind == "device" else "cpu")

    def put(self, i: int, tensors: Sequence[Tensor]) -> None:
        """Keep copies as entry i."""
        self._ahead = None
        if self.side is not None:
            self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side) if self.side else nullcontext():
            for buffer, x in zip(self.buffers, tensors, strict=True):
                buffer[i].copy_(x.detach(), non_blocking=self.side is not None)
                if self.side is not None:
                    x.record_stream(self.side)

    def get(self, i: int) -> list[Tensor]:
        """Copies of entry i on the device; entry i - 1, asked for next, is fetched meanwhile."""
        if self.side is None:
            return [buffer[i].to(self.device, copy=True) for buffer in self.buffers]
        if self._ahead is None or self._ahead[0] != i:
            self._fetch(i)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.side)
        tensors = self._ahead[1]
        for x in tensors:
            x.record_stream(current)
        if i > 0:
            self._fetch(i - 1)
        return tensors

    def _fetch(self, i: int) -> None:
        with torch.cuda.stream(self.side):
            self._ahead = i, [buffer[i].to(self.device, non_blocking=True) for buffer in self.buffers]

    def saved(self, upto: int) -> list[Tensor]:
        """Entries 0..upto-1 on the host, to be written before the next `put`: views, where they are there already."""
        if self.side is not None:
            self.side.synchronize()
        return [buffer[:upto].cpu() for buffer in self.buffers]

    def restore(self, saved: list[Tensor]) -> None:
        if self.side is not None:
            self.side.synchronize()  # a copy still on its way would overwrite what is restored
        self._ahead = None
        for buffer, x in zip(self.buffers, saved, strict=True):
            buffer[: len(x)].copy_(x)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all copies of a process: what is fetched on it is freed to one pool of memory."""
    return torch.cuda.Stream(device)


def _map_file(size: int, folder: Path | None) -> mmap.mmap:
    """A file of so many bytes, mapped. It has no name, so that nothing is left of it however the process ends.

    Raises:
        ConfigError: the folder cannot hold it.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # writing to a mapped file that the disk has no room for kills the process
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        where = folder or tempfile.gettempdir()
        raise ConfigError(
            f"bptt.states=disk: {where} has no room for {human(size)} of states: {error.strerror}; "
            "set out=FOLDER on a larger disk, bptt.states=sqrt, or a larger ctx_len"
        ) from error


class States(Buffers):
    """States 0..n-1 of the form of `like`."""

    def __init__(self, n: int, like: State, kind: str, folder: Path | None = None):
        super().__init__(n, like.tensors(), kind, folder)

    def put(self, i: int, state: State) -> None:
        super().put(i, state.tensors())

    def get(self, i: int) -> State:
        return State(*super().get(i))


class Sqrt:
    """Every k-th of n states, and those of one stretch of k recomputed by `advance(i, state before i) -> state after`."""

    def __init__(self, n: int, like: State, advance: Callable[[int, State], State]):
        self.n, self.k, self.advance = n, max(1, math.isqrt(n - 1) + 1), advance
        self.coarse = States(-(-n // self.k), like, "device")
        self.fine = States(self.k, like, "device")
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


def choose(n: int, like: State, sharing: int = 1) -> str:
    """`auto`: on the device while the states take little of its free memory, then on the host, which `sharing` processes
    share, then sqrt of them."""
    device = like.wkv.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    return place_of_states(n * size_bytes(like.tensors()), free, free_host_bytes() / sharing)


def place_of_states(size: int, device: float | None, host: float) -> str:
    """`auto`, by the bytes of all states and those free on a CUDA device (None: there is none) and on the host."""
    if device is not None and size <= device / 16:
        return "device"
    if size <= host / 4:  # pinned memory may come in powers of two
        return "device" if device is None else "host"
    return "sqrt"


def size_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def room_for(each: int, wanted: int, device: torch.device, sharing: int = 1) -> tuple[str, int]:
    """(kind, how many entries of `each` bytes) to keep block inputs in, at most `wanted`: all on the device if they take
    little of it, else as many as a quarter of the free host memory, shared by `sharing` processes, holds."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    return place_of_inputs(each, wanted, free, free_host_bytes() / sharing)


def place_of_inputs(each: int, wanted: int, device: float | None, host: float) -> tuple[str, int]:
    """What `room_for` gives, by the bytes free on a CUDA device (None: there is none) and on the host."""
    if device is not None and wanted * each <= device / 8:
        return "device", wanted
    return "host", min(wanted, int(host / 4 / each))
