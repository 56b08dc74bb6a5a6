"""WKV-6 on the CPU, and WKV-5, which is WKV-6 with one decay for all tokens: `cpu.cpp`, compiled at first use."""

from pathlib import Path

import torch
from torch import Tensor

from rwkv.kernels.compiled import Library, check, plain, wants_grad
from rwkv.kernels.pool import empty

library = Library(Path(__file__).with_name("cpu.cpp"))


def why_not(r: Tensor) -> str | None:
    """None if the kernel can run for a tensor like `r`, else the reason."""
    return library.why_not_for(r, "head sizes")


def wkv6_cpu(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, u: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Args and returns as `rwkv.kernels.wkv6.wkv6`, where `why_not` says nothing; raises KernelError for tensors that do not fit."""
    return _run("wkv6", (w, r.shape, r.dtype), r, k, v, u, state, reset)


def wkv5_cpu(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, u: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Args and returns as `rwkv.kernels.wkv5.wkv5`, the rest as `wkv6_cpu`."""
    return _run("wkv5", (w, r.shape[2:], None), r, k, v, u, state, reset)


def _run(op, decay, r, k, v, u, state, reset):
    """`decay`: w, and the shape and dtype that it must have."""
    B, T, H, N = r.shape
    inputs = {"w": decay, "u": (u, (H, N), None), **{name: (x, r.shape, r.dtype) for name, x in (("k", k), ("v", v))}}
    check(op, r, {**inputs, "state": (state, (B, H, N, N), torch.float32), "reset": (reset, (B, T), torch.bool)})
    w = decay[0]
    if wants_grad(r, w, k, v, u, state):
        return _Compiled.apply(r, w, k, v, u, state, reset)
    y, last, _ = _forward([plain(x) for x in (r, w, k, v, u)], plain(state), plain(reset), keep=False)
    return y.to(r.dtype), last


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, r, w, k, v, u, state, reset):
        inputs, reset = [plain(x) for x in (r, w, k, v, u)], plain(reset)
        y, last, saved = _forward(inputs, plain(state), reset, keep=True)
        ctx.save_for_backward(*inputs, reset, saved)
        ctx.dtypes = [x.dtype for x in (r, w, k, v, u)]
        ctx.set_materialize_grads(False)
        return y.to(r.dtype), last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dlast):
        *inputs, reset, saved = ctx.saved_tensors
        (B, T, H, N), each = inputs[0].shape, inputs[1].dim() == 4
        dy = torch.zeros_like(inputs[0]) if dy is None else plain(dy)
        dr, dk, dv = (empty(B, T, H, N) for _ in range(3))
        dw, du = empty(B, T, H, N) if each else empty(B, H, N), empty(B, H, N)
        dstate = empty(B, H, N, N)
        library.call(
            "rwkv_wkv6_backward", B, T, H, N, torch.get_num_threads(), each, *inputs, reset, saved, saved.shape[1] - 1,
            dy, plain(dlast), dr, dw, dk, dv, du, dstate,
        )  # fmt: skip
        grads = dr, dw if each else dw.sum(0), dk, dv, du.sum(0)
        return *(g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)), dstate, None


def _forward(inputs, state, reset, keep):
    """y, the final state and, if `keep`, the states between chunks (see cpu.cpp)."""
    (B, T, H, N), each = inputs[0].shape, inputs[1].dim() == 4
    y, last, n, saved = empty(B, T, H, N), empty(B, H, N, N), 0, None
    if keep:
        n = library.chunks("rwkv_wkv6_chunks", reset, B, T)
        saved = empty(B * H, n + 1, N, N)
    library.call("rwkv_wkv6_forward", B, T, H, N, torch.get_num_threads(), each, *inputs, state, reset, y, last, saved, n)
    return y, last, saved
