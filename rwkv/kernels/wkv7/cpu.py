"""WKV-7 on the CPU: `cpu.cpp`, compiled at first use."""

from pathlib import Path

import torch
from torch import Tensor

from rwkv.kernels.compiled import Library, check, plain, wants_grad
from rwkv.kernels.pool import empty

library = Library(Path(__file__).with_name("cpu.cpp"))


def why_not(r: Tensor) -> str | None:
    """None if the kernel can run for a tensor like `r`, else the reason."""
    return library.why_not_for(r, "head sizes")


def wkv7_cpu(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Args and returns as `rwkv.kernels.wkv7.wkv7`, where `why_not` says nothing; raises KernelError for tensors that do not fit."""
    B, T, H, N = r.shape
    inputs = {name: (x, r.shape, r.dtype) for name, x in zip("rwkvab", (r, w, k, v, a, b), strict=True)}
    check("wkv7", r, {**inputs, "state": (state, (B, H, N, N), torch.float32), "reset": (reset, (B, T), torch.bool)})
    if wants_grad(r, w, k, v, a, b, state):
        return _Compiled.apply(r, w, k, v, a, b, state, reset)
    y, last, *_ = _forward([plain(x) for x in (r, w, k, v, a, b)], plain(state), plain(reset), keep=False)
    return y.to(r.dtype), last


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, r, w, k, v, a, b, state, reset):
        inputs, reset = [plain(x) for x in (r, w, k, v, a, b)], plain(reset)
        y, last, saved, U = _forward(inputs, plain(state), reset, keep=True)
        ctx.save_for_backward(*inputs, reset, saved, U)
        ctx.dtype = r.dtype
        ctx.set_materialize_grads(False)
        return y.to(r.dtype), last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dlast):
        *inputs, reset, saved, U = ctx.saved_tensors
        B, T, H, N = inputs[0].shape
        dy = torch.zeros_like(inputs[0]) if dy is None else plain(dy)
        grads, dstate = [empty(B, T, H, N) for _ in inputs], empty(B, H, N, N)
        library.call(
            "rwkv_wkv7_backward", B, T, H, N, torch.get_num_threads(), *inputs, reset, saved, saved.shape[1] - 1, U,
            dy, plain(dlast), *grads, dstate,
        )  # fmt: skip
        return *(g.to(ctx.dtype) for g in grads), dstate, None


def _forward(inputs, state, reset, keep):
    """y, the final state and, if `keep`, what the backward needs: the states between chunks and U (see cpu.cpp)."""
    B, T, H, N = inputs[0].shape
    y, last = empty(B, T, H, N), empty(B, H, N, N)
    n, saved, U = 0, None, None
    if keep:
        n = library.chunks("rwkv_wkv7_chunks", reset, B, T)
        saved, U = empty(B * H, n + 1, N, N), empty(B * H, T, N)
    library.call("rwkv_wkv7_forward", B, T, H, N, torch.get_num_threads(), *inputs, state, reset, y, last, saved, n, U)
    return y, last, saved, U
