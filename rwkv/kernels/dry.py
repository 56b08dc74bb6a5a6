"""Dry runs: the wrappers of the kernels on the meta device take memory as on the device named, and compute nothing.

The memory of a chunk is counted so (`rwkv.training.planning.chunk`), for any device, on any machine, in no time.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_pretended: str | None = None


@contextmanager
def on(device: str) -> Iterator[None]:
    """Inside, what is made is made on the meta device, and kernels take that for a `device`: "cpu", or "cuda" with Triton."""
    global _pretended
    _pretended = device
    try:
        with torch.device("meta"):
            yield
    finally:
        _pretended = None


def running() -> bool:
    return _pretended is not None


def device_type(x: Tensor) -> str:
    """Of a tensor, or in a dry run that of the device it stands for."""
    return _pretended or x.device.type
