"""WKV-4 on the CPU: `cpu.cpp`, compiled at first use."""

from pathlib import Path

import torch
from torch import Tensor

from rwkv.kernels.compiled import CHUNK, Library, check, plain, wants_grad
from rwkv.kernels.pool import empty

library = Library(Path(__file__).with_name("cpu.cpp"))


def why_not(k: Tensor) -> str | None:
    """None if the kernel can run for a tensor like `k`, else the reason."""
    return library.why_not_for(k, "widths")


def wkv4_cpu(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Args and returns as `rwkv.kernels.wkv4.wkv4`, where `why_not` says nothing; raises KernelError for tensors that do not fit."""
    B, T, C = k.shape
    inputs = {"w": (w, (C,), None), "u": (u, (C,), None), "v": (v, k.shape, k.dtype)}
    check("wkv4", k, {**inputs, "state": (state, (B, 3, C), torch.float32), "reset": (reset, (B, T), torch.bool)})
    if wants_grad(w, u, k, v, state):
        return _Compiled.apply(w, u, k, v, state, reset)
    y, last = _forward([plain(x) for x in (w, u, k, v, state, reset)], None)
    return y.to(k.dtype), last


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, u, k, v, state, reset):
        inputs = [plain(x) for x in (w, u, k, v, state, reset)]
        B, T, C = k.shape
        saved = empty(B, -(-T // CHUNK), 4, C)
        y, last = _forward(inputs, saved)
        ctx.save_for_backward(*inputs, saved, last)
        ctx.dtypes = [x.dtype for x in (w, u, k, v)]
        ctx.set_materialize_grads(False)
        return y.to(k.dtype), last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dlast):
        *inputs, saved, last = ctx.saved_tensors
        k = inputs[2]
        B, T, C = k.shape
        dy = torch.zeros_like(k) if dy is None else plain(dy)
        dw, du, dk, dv, dstate = empty(B, C), empty(B, C), empty(B, T, C), empty(B, T, C), empty(B, 3, C)
        library.call(
            "rwkv_wkv4_backward", B, T, C, torch.get_num_threads(), *inputs, saved, last, dy, plain(dlast), dw, du, dk, dv, dstate
        )  # fmt: skip
        grads = dw.sum(0), du.sum(0), dk, dv
        return *(g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)), dstate, None


def _forward(inputs, saved):
    """y and the final state; what the backward needs goes to `saved`, if it is not None."""
    B, T, C = inputs[2].shape
    y, last = empty(B, T, C), empty(B, 3, C)
    library.call("rwkv_wkv4_forward", B, T, C, torch.get_num_threads(), *inputs, y, last, saved)
    return y, last
