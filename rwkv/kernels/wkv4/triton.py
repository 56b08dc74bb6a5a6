"""WKV-4 on a GPU through Triton: bf16, fp16 and fp32, any T and width, exact and deterministic gradients of every input and of the state.

Kept for the backward: the inputs, the state before each chunk and the last one.
"""

import torch
from torch import Tensor

from rwkv.kernels import gpu
from rwkv.kernels.compiled import check, wants_grad
from rwkv.kernels.wkv4.reference import log_decay

DTYPES = torch.bfloat16, torch.float16, torch.float32
CHUNK = 64  # tokens, L
CHANNELS, WARPS = 128, 2  # of a program, BC
CHAIN = {"BC": 32, "num_warps": 1, "STAGES": 4}  # of the loops over chunks


def why_not(k: Tensor) -> str | None:
    """None if the kernels can run for a tensor like `k`, else the reason."""
    return gpu.why_no_triton(k) or (None if k.dtype in DTYPES else "bf16, fp16 and fp32 only")


def wkv4_triton(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Args and returns as `rwkv.kernels.wkv4.wkv4`, where `why_not` says nothing; raises KernelError for tensors that do not fit."""
    B, T, C = k.shape
    inputs = {"w": (w, (C,), None), "u": (u, (C,), None), "v": (v, k.shape, k.dtype)}
    check("wkv4", k, {**inputs, "state": (state, (B, 3, C), torch.float32), "reset": (reset, (B, T), torch.bool)})
    if wants_grad(w, u, k, v, state):
        return _Triton.apply(w, u, k, v, state, reset)
    return _forward([x.contiguous() for x in (w, u, k, v)], state.contiguous(), gpu.flags(reset))[:2]


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs_state_reset):
        *inputs, reset = inputs_state_reset
        *inputs, state = [x.contiguous() for x in inputs]
        flags = gpu.flags(reset)
        y, last, starts = _forward(inputs, state, flags)
        ctx.save_for_backward(*inputs, state, flags, starts, last)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dlast):
        w, u, k, v, state, flags, starts, last = ctx.saved_tensors
        B, T, C = k.shape
        n = gpu.cdiv(T, CHUNK)
        dy = torch.zeros_like(k) if dy is None else dy.contiguous()
        dlast = torch.zeros_like(last) if dlast is None else dlast.contiguous()
        y, D = (torch.empty(B, T, C, dtype=torch.float32, device=k.device) for _ in range(2))
        ends, slopes, parts, after = (state.new_empty(B, n, m, C) for m in (4, 3, 2, 3))
        dk, dv, dstate, through = torch.empty_like(k), torch.empty_like(v), torch.empty_like(state), state.new_empty(B, C)
        _over_chunks("backward_ends", k, w, u, k, v, flags, dy, starts, y, D, ends, slopes, parts)
        _over_rows("backward_chain", k, state, last, dlast, ends, slopes, after, dstate, through)
        _over_chunks("gradients", k, w, u, k, v, flags, dy, y, D, after, dk, dv)
        dlw, du = parts.sum((0, 1))
        dw = (dlw + through.sum(0)) * log_decay(w)
        return dw.to(w.dtype), du.to(u.dtype), dk, dv, dstate, None


def _forward(inputs, state, flags):
    """y, the last state and the states before the chunks [B, n, 3, C]."""
    w, u, k, v = inputs
    B, T, C = k.shape
    n = gpu.cdiv(T, CHUNK)
    ends, starts, y, last = state.new_empty(B, n, 4, C), state.new_empty(B, n, 3, C), torch.empty_like(k), torch.empty_like(state)
    _over_chunks("chunk_ends", k, w, k, v, flags, ends)
    _over_rows("chain", k, state, ends, starts, last)
    _over_chunks("outputs", k, w, u, k, v, flags, starts, y)
    return y, last, starts


def _over_chunks(name: str, k: Tensor, *args: Tensor | None) -> None:
    """A program for each chunk and CHANNELS channels. Of `args` only the reset flags may be None."""
    B, T, C = k.shape
    n = gpu.cdiv(T, CHUNK)
    resets = all(x is not None for x in args)
    args = [k if x is None else x for x in args]
    _launch(name, k, B * n * gpu.cdiv(C, CHANNELS), *args, n, T, C, L=CHUNK, BC=CHANNELS, RESET=resets, num_warps=WARPS)


def _over_rows(name: str, k: Tensor, *args: Tensor) -> None:
    """A program for some channels of each row."""
    B, T, C = k.shape
    _launch(name, k, B * gpu.cdiv(C, CHAIN["BC"]), *args, gpu.cdiv(T, CHUNK), T, C, **CHAIN)


def _launch(name: str, k: Tensor, programs: int, *args, **constants) -> None:
    with gpu.on_device_of(k):
        gpu.launch("wkv4", name, programs, *args, **constants)
