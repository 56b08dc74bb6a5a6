"""Compiled CPU kernels: a library built by the machine's own compiler at first use, and what the wrappers of the ops share."""

import ctypes
import threading
from pathlib import Path

import torch
from torch import Tensor

from rwkv.compile_cpp import compile_cpp
from rwkv.errors import KernelError
from rwkv.kernels import dry

CHUNK = 16  # tokens, C of cpu.h
DTYPES = torch.float32, torch.bfloat16, torch.float16  # of the inputs; computed in fp32


class Library:
    """The functions of one C++ file, compiled and loaded when first asked for, once a process.

    They take int64 and pointers, null for None, and return 0, or 1 when memory runs out.
    """

    def __init__(self, source: Path):
        self.source = source
        self._lock = threading.Lock()
        self._loaded: tuple[ctypes.CDLL | None, str | None] | None = None

    def why_not(self) -> str | None:
        """None if the library can be used here, else the reason."""
        return self._load()[1]

    def why_not_for(self, x: Tensor, width: str) -> str | None:
        """None if the library can be used for tensors like x; `width` names its last axis. Compiles where nothing else speaks against it."""
        if dry.device_type(x) != "cpu" or x.dtype not in DTYPES:
            return "fp32, bf16 and fp16 CPU tensors only"
        return f"{width} that are multiples of 8 only" if x.shape[-1] % 8 else self.why_not()

    def call(self, name: str, *args: Tensor | int | None) -> None:
        if self.count(name, *args):
            raise MemoryError(f"{name}: no memory for scratch")

    def chunks(self, name: str, reset: Tensor | None, rows: int, tokens: int) -> int:
        """The most chunks that a row is cut into. Resets cut it into more, of which a dry run knows nothing."""
        return -(-tokens // CHUNK) if dry.running() else self.count(name, reset, rows, tokens)

    def count(self, name: str, *args: Tensor | int | None) -> int:
        """What the function returns; in a dry run 0."""
        if dry.running():
            return 0
        return getattr(self._load()[0], name)(*map(_argument, args))

    def _load(self) -> tuple[ctypes.CDLL | None, str | None]:
        if self._loaded is None:
            with self._lock:
                if self._loaded is None:
                    try:
                        self._loaded = ctypes.CDLL(str(compile_cpp(self.source))), None
                    except (KernelError, OSError) as e:
                        self._loaded = None, str(e).splitlines()[0]
        return self._loaded


def _argument(x: Tensor | int | None):
    return ctypes.c_int64(x) if isinstance(x, int) else ctypes.c_void_p(None if x is None else x.data_ptr())


def check(op: str, like: Tensor, tensors: dict[str, tuple[Tensor | None, tuple, torch.dtype | None]]) -> None:
    """Raises KernelError unless every tensor that is there has its shape and dtype (None: any) and lies where `like` does."""
    for name, (x, shape, dtype) in tensors.items():
        if x is not None and (x.shape != shape or dtype not in (None, x.dtype) or x.device != like.device):
            raise KernelError(
                f"{op}: {name} must be {dtype or 'a tensor'} {list(shape)} on {like.device}, got {x.dtype} {list(x.shape)} on {x.device}"
            )


def wants_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def plain(x: Tensor | None) -> Tensor | None:
    """Contiguous, in fp32 unless it is bool."""
    return x if x is None else x.contiguous() if x.dtype == torch.bool else x.float().contiguous()
