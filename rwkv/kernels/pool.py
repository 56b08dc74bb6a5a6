"""Large CPU tensors whose memory is used again.

Fresh memory costs a page fault for every 4 KiB touched, and malloc gives blocks of this size back to the system as soon
as they are freed. Here a block returns to a free list when the tensor over it dies, wherever that happens.
"""

import ctypes
import math
import mmap
import os
import threading
import weakref

import torch
from torch import Tensor

from rwkv.kernels import dry

SMALLEST = 2 << 20  # bytes; below, malloc keeps the memory itself
KEPT = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4  # free bytes kept at most

_free: dict[int, list[mmap.mmap]] = {}  # by size
_free_bytes = 0
_lock = threading.RLock()  # a tensor may die, and its block come back, while this thread holds it


def empty(*shape: int) -> Tensor:
    """An uninitialised fp32 CPU tensor."""
    size = _rounded(math.prod(shape) * 4)
    if dry.running():
        return torch.empty(shape, dtype=torch.float32, device="meta")
    if size < SMALLEST:
        return torch.empty(shape, dtype=torch.float32)
    block = _take(size)
    lease = (ctypes.c_char * size).from_buffer(block)
    weakref.finalize(lease, _give, block).atexit = False  # the tensor holds the lease, and nobody else does
    return torch.frombuffer(lease, dtype=torch.float32, count=math.prod(shape)).view(shape)


def _rounded(size: int) -> int:
    """Up to an eighth more, so that nearly equal sizes share blocks; at least whole pages."""
    step = max(1 << max(size.bit_length() - 4, 0), mmap.PAGESIZE)
    return -(-size // step) * step


def _take(size: int) -> mmap.mmap:
    global _free_bytes
    with _lock:
        if blocks := _free.get(size):
            _free_bytes -= size
            return blocks.pop()
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _give(block: mmap.mmap) -> None:
    global _free_bytes
    with _lock:
        if _free_bytes + len(block) <= KEPT:
            _free.setdefault(len(block), []).append(block)
            _free_bytes += len(block)
