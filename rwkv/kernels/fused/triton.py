"""Autograd functions over `triton_kernels.py`. Args and returns as in `rwkv.kernels.fused`.

A gradient of a parameter is a sum over all tokens: each program sums its own run of tokens into a row of `partial`, and the
rows are added up afterwards, always in the same order.
"""

import torch
from torch import Tensor

from rwkv.kernels import gpu
from rwkv.kernels.fused.plain import GROUP_NORM_EPS
from rwkv.kernels.gpu import cdiv

LAYER_NORM_EPS = 1e-5
MULTIPROCESSORS = 132  # of an H100: kernels that go along the tokens are a few programs for each
HEAD_TILE = 512  # numbers of one head that a program has at a time
STAGES = 3  # tokens (or tiles) of which two are on their way while one is worked on
once = torch.autograd.function.once_differentiable


def why_not(x: Tensor) -> str | None:
    """None if the kernels can run for a tensor like `x`, else the reason."""
    if reason := gpu.why_no_triton(x):
        return reason
    return None if x.dtype in (torch.bfloat16, torch.float32) else "bf16 and fp32 only"


def norm_mix(x, out, weight, bias, last, mixes, reset):
    x, *mixed, end = _NormMix.apply(x, out, weight, bias, last, torch.stack(mixes), reset)
    return x, tuple(mixed), end


def wkv7_inputs(r, k, v, a, v_gate, v_first, a0, v0, k_k, k_a, r_k):
    if v_gate is None:
        v0 = v0.detach()  # it takes no part: an undefined gradient would go as far as its hooks
    return _Wkv7Inputs.apply(r, k, v, a, v_gate, v_first, a0, v0, k_k, k_a, r_k)


def wkv7_readout(y, v, bonus, g, weight, bias):
    return _Wkv7Readout.apply(y, v, bonus, g, weight, bias)


def relu_squared(x):
    return _ReluSquared.apply(x)


def cross_entropy_(logits, targets, scale, l2wrap, gradient):
    n, V = logits.shape
    block = min(8192, _power(V))
    losses = torch.empty(n, dtype=torch.float32, device=logits.device)
    _launch(
        "cross_entropy", logits, n, logits, targets, scale, losses, V, l2wrap,
        BLOCK=block, L2WRAP=bool(l2wrap), GRADIENT=gradient, num_warps=max(1, block // 512),
    )  # fmt: skip
    return losses


def add_(total, part):
    _launch("add_in_place", total, cdiv(total.numel(), 4096), total, part, total.numel(), BLOCK=4096)


class _NormMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, out, weight, bias, last, mix, reset):
        (B, T, C), M = x.shape, len(mix)
        x, last, mix, flags = x.contiguous(), last.contiguous(), mix.contiguous(), gpu.flags(reset)
        sums = x if out is None else torch.empty_like(x)
        mixed, end = last.new_empty(M, B, T, C), last.new_empty(B, C)
        mean, rstd = torch.empty(2, B, T, dtype=torch.float32, device=x.device)
        run, runs = _runs(T, B, 8)
        _launch(
            "norm_mix_forward", x, B * runs, x, x if out is None else out.contiguous(), sums, weight, bias, last, mix,
            x if flags is None else flags, mixed, end, mean, rstd, T, C, run, runs, x.numel(),
            EPS=LAYER_NORM_EPS, M=M, ADD=out is not None, RESET=flags is not None, **_whole(C, 2, x),
        )  # fmt: skip
        ctx.save_for_backward(sums, weight, bias, last, mix, flags, mean, rstd)
        return x.view_as(x) if out is None else sums, *mixed.unbind(0), end

    @staticmethod
    @once
    def backward(ctx, dsums, *dmixed_dend):
        *grads, dend = (g.contiguous() for g in dmixed_dend)
        sums, weight, bias, last, mix, flags, mean, rstd = ctx.saved_tensors
        (B, T, C), M = sums.shape, len(mix)
        fitting = (16 if M < 3 else 8) // _warps(C)  # programs at once, by their registers
        run, runs = _runs(T, B, max(1, fitting))
        dx, dlast = torch.empty_like(sums), torch.empty_like(last)
        partial = torch.empty(B * runs, M + 2, C, dtype=torch.float32, device=sums.device)
        _launch(
            "norm_mix_backward", sums, B * runs, *grads, *[grads[0]] * (6 - M), dsums.contiguous(), dend, sums, weight, bias, last,
            mix, sums if flags is None else flags, mean, rstd, dx, dlast, partial, T, C, run, runs,
            M=M, RESET=flags is not None, **_whole(C, M + 2, sums),
        )  # fmt: skip
        total = partial.sum(0)
        dmix, dweight, dbias = total[:M].view_as(mix).to(mix.dtype), total[M].to(weight.dtype), total[M + 1].to(bias.dtype)
        return dx, dx.to(last.dtype) if ctx.needs_input_grad[1] else None, dweight, dbias, dlast, dmix, None


class _Wkv7Inputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        inputs = [None if x is None else x.contiguous() for x in inputs]
        r, k, v, a, v_gate, v_first, *params, r_k = inputs
        (B, T, _), (H, N) = r.shape, r_k.shape
        residual = v_gate is not None
        new_k, new_v, minus_kk, kk_a = (r.new_empty(B, T, H, N) if make else v.view(B, T, H, N) for make in (True, residual, True, True))
        bonus = r.new_empty(B, T, H)
        gate, first = (v_gate, v_first) if residual else (v, v)
        TT = _tile(N, 4)
        _launch(
            "wkv7_inputs_forward", r, cdiv(B * T, TT) * H, r, k, v, a, gate, first, *params, r_k,
            new_k, new_v, minus_kk, kk_a, bonus, B * T, H, N=N, NB=_power(N), TT=TT, RESIDUAL=residual, num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(*inputs)
        return r.view(B, T, H, N), new_k, new_v, minus_kk, kk_a, bonus

    @staticmethod
    @once
    def backward(ctx, *grads):
        grads = [g.contiguous() for g in grads]
        r, k, v, a, v_gate, v_first, *params, r_k = ctx.saved_tensors
        (B, T, C), (H, N) = r.shape, r_k.shape
        residual = v_gate is not None
        gate, first = (v_gate, v_first) if residual else (v, v)
        out_r, out_k, out_a = (torch.empty_like(r) for _ in range(3))
        out_v, out_gate, out_first = (torch.empty_like(r) if residual else None for _ in range(3))
        TT = _tile(N)
        run, runs = _head_runs(B * T, H, TT)
        partial = torch.empty(runs, 5, C, dtype=torch.float32, device=r.device)
        _launch(
            "wkv7_inputs_backward", r, runs * H, *grads, r, k, v, a, gate, first, *params, r_k,
            out_r, out_k, *(r if x is None else x for x in (out_v, out_a, out_gate, out_first)), partial, B * T, H, run,
            N=N, NB=_power(N), TT=TT, RESIDUAL=residual, STAGES=_stages(11 * HEAD_TILE, r), num_warps=4,
        )  # fmt: skip
        sums = [s.view_as(p).to(p.dtype) for s, p in zip(partial.sum(0), (*params, r_k), strict=True)]
        if not residual:
            out_v, sums[1] = grads[2].view_as(v), None  # v0 took no part
        return out_r, out_k, out_v, out_a, out_gate, out_first, *sums


class _Wkv7Readout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        y, v, bonus, g, weight, bias = (x.contiguous() for x in inputs)
        B, T, H, N = y.shape
        out = torch.empty_like(g)
        TT = _tile(N, 4)
        _launch(
            "wkv7_readout_forward", y, cdiv(B * T, TT) * H, y, v, bonus, g, weight, bias, out, B * T, H,
            N=N, NB=_power(N), TT=TT, EPS=GROUP_NORM_EPS, num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(y, v, bonus, g, weight, bias)
        return out

    @staticmethod
    @once
    def backward(ctx, dout):
        y, v, bonus, g, weight, bias = ctx.saved_tensors
        B, T, H, N = y.shape
        dy, dv, dbonus, dg = (torch.empty_like(x) for x in (y, v, bonus, g))
        TT = _tile(N)
        run, runs = _head_runs(B * T, H, TT)
        partial = torch.empty(runs, 2, H * N, dtype=torch.float32, device=y.device)
        _launch(
            "wkv7_readout_backward", y, runs * H, dout.contiguous(), y, v, bonus, g, weight, bias, dy, dv, dbonus, dg, partial,
            B * T, H, run, N=N, NB=_power(N), TT=TT, EPS=GROUP_NORM_EPS, STAGES=_stages(4 * HEAD_TILE, y), num_warps=4,
        )  # fmt: skip
        dweight, dbias = partial.sum(0)
        return dy, dv, dbonus, dg, dweight.to(weight.dtype), dbias.to(bias.dtype)


class _ReluSquared(torch.autograd.Function):
    """Keeps its result alone, from whose root the gradient is as exact as from x."""

    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        out = torch.empty_like(x)
        _launch("relu_squared_forward", x, cdiv(x.numel(), 4096), x, out, x.numel(), BLOCK=4096)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once
    def backward(ctx, dout):
        (out,) = ctx.saved_tensors
        dx = torch.empty_like(out)
        _launch("relu_squared_backward", out, cdiv(out.numel(), 4096), out, dout.contiguous(), dx, out.numel(), BLOCK=4096)
        return dx


def _launch(name: str, like: Tensor, programs: int, *args, **constants) -> None:
    with gpu.on_device_of(like):
        gpu.launch("fused", name, programs, *args, **constants)


def _power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << (n - 1).bit_length()


def _whole(C: int, inputs: int, like: Tensor) -> dict[str, int]:
    """How a program holds all channels of a token, eight or fewer a thread, of so many inputs."""
    return {"BLOCK": _power(C), "num_warps": _warps(C), "STAGES": _stages(inputs * _power(C), like)}


def _warps(C: int) -> int:
    return min(16, max(1, _power(C) // 256))


def _stages(numbers: int, like: Tensor) -> int:
    """STAGES, or as many as there is shared memory for, of which each but one takes so many numbers of the dtype of `like`; a little is for sums."""
    return min(STAGES, 1 + (gpu.shared_memory(like) - (16 << 10)) // (numbers * like.element_size()))


def _runs(T: int, rows: int, programs: int) -> tuple[int, int]:
    """(tokens of a program, programs a row), of so many programs for each multiprocessor."""
    run = cdiv(T, max(1, programs * MULTIPROCESSORS // rows))
    return run, cdiv(T, run)


def _tile(N: int, times: int = 1) -> int:
    """Tokens of one head that a program has at a time."""
    return max(1, times * HEAD_TILE // _power(N))


def _head_runs(tokens: int, H: int, tile: int) -> tuple[int, int]:
    """(tokens of a program, programs a head), in whole tiles."""
    run = cdiv(cdiv(tokens, max(1, 8 * MULTIPROCESSORS // H)), tile) * tile
    return run, cdiv(tokens, run)
