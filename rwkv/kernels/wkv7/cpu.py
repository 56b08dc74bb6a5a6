"""WKV-7 for fp32 on the CPU: `cpu.cpp`, compiled by the machine's own compiler at first use and loaded by ctypes."""

import ctypes
import threading
from pathlib import Path

import torch
from torch import Tensor

from rwkv.compile_cpp import compile_cpp
from rwkv.errors import KernelError
from rwkv.kernels.pool import empty

SOURCE = Path(__file__).with_name("cpu.cpp")


def why_not(r: Tensor) -> str | None:
    """None if the kernel can run for a tensor like `r`, else the reason. Compiles it where nothing else speaks against it."""
    if r.device.type != "cpu" or r.dtype != torch.float32:
        return "fp32 CPU tensors only"
    if r.shape[-1] % 8:
        return "head sizes that are multiples of 8 only"
    return _library()[1]


def wkv7_cpu(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Args and returns as `rwkv.kernels.wkv7.wkv7`, fp32 on the CPU; raises KernelError where that does not hold."""
    _check(r, w, k, v, a, b, state, reset)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (r, w, k, v, a, b, state)):
        return _Compiled.apply(r, w, k, v, a, b, state, reset)
    inputs = [x.contiguous() for x in (r, w, k, v, a, b)]
    return _forward(inputs, state.contiguous(), _contiguous(reset), keep=False)[:2]


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, r, w, k, v, a, b, state, reset):
        inputs = [x.contiguous() for x in (r, w, k, v, a, b)]
        reset = _contiguous(reset)
        y, last, saved, U = _forward(inputs, state.contiguous(), reset, keep=True)
        ctx.save_for_backward(*inputs, reset, saved, U)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dlast):
        *inputs, reset, saved, U = ctx.saved_tensors
        B, T, H, N = inputs[0].shape
        dy = torch.zeros_like(inputs[0]) if dy is None else dy.contiguous()
        dlast = _contiguous(dlast)
        grads = [empty(B, T, H, N) for _ in inputs]
        dstate = torch.empty(B, H, N, N)
        _call(
            "rwkv_wkv7_backward", B, T, H, N, torch.get_num_threads(), *inputs, reset, saved, saved.shape[1] - 1, U,
            dy, dlast, *grads, dstate,
        )  # fmt: skip
        return *grads, dstate, None


def _forward(inputs, state, reset, keep):
    """y, the final state and, if `keep`, what the backward needs: the states between chunks and U (see cpu.cpp)."""
    B, T, H, N = inputs[0].shape
    y, last = empty(B, T, H, N), torch.empty(B, H, N, N)
    n, saved, U = 0, None, None
    if keep:
        n = _library()[0].rwkv_wkv7_chunks(_address(reset), B, T)
        saved, U = empty(B * H, n + 1, N, N), empty(B * H, T, N)
    _call("rwkv_wkv7_forward", B, T, H, N, torch.get_num_threads(), *inputs, state, reset, y, last, saved, n, U)
    return y, last, saved, U


def _check(r, w, k, v, a, b, state, reset):
    B, T, H, N = r.shape
    for x, shape in ((w, r.shape), (k, r.shape), (v, r.shape), (a, r.shape), (b, r.shape), (state, (B, H, N, N))):
        if x.shape != shape or x.dtype != torch.float32 or x.device != r.device:
            raise KernelError(f"wkv7: wanted fp32 {list(shape)} on {r.device}, got {x.dtype} {list(x.shape)} on {x.device}")
    if reset is not None and (reset.shape != (B, T) or reset.dtype != torch.bool or reset.device != r.device):
        raise KernelError(f"wkv7: reset must be bool {[B, T]} on {r.device}, got {reset.dtype} {list(reset.shape)}")


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _call(name: str, *args) -> None:
    if getattr(_library()[0], name)(*(_address(x) if x is None or isinstance(x, Tensor) else x for x in args)):
        raise MemoryError(f"{name}: no memory for scratch")


_lock = threading.Lock()
_loaded: tuple[ctypes.CDLL | None, str | None] | None = None


def _library() -> tuple[ctypes.CDLL | None, str | None]:
    """The loaded library and None, or None and the reason why there is none. Tried once per process."""
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                _loaded = _load()
    return _loaded


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    try:
        lib = ctypes.CDLL(str(compile_cpp(SOURCE)))
        sizes, pointer = [ctypes.c_int64] * 4, ctypes.c_void_p
        lib.rwkv_wkv7_chunks.argtypes = [pointer, ctypes.c_int64, ctypes.c_int64]
        lib.rwkv_wkv7_chunks.restype = ctypes.c_int64
        lib.rwkv_wkv7_forward.argtypes = [*sizes, ctypes.c_int, *[pointer] * 11, ctypes.c_int64, pointer]
        lib.rwkv_wkv7_backward.argtypes = [*sizes, ctypes.c_int, *[pointer] * 8, ctypes.c_int64, *[pointer] * 10]
    except (KernelError, OSError, AttributeError) as e:
        return None, str(e).splitlines()[0]
    return lib, None
