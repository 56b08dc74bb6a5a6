"""The fused operations around the recurrence: Triton against plain PyTorch in fp64, on a GPU and in Triton's interpreter."""

import functools

import pytest
import torch

from rwkv.kernels import fused
from rwkv.kernels.fused import triton
from tests.kernels.test_wkv7 import worst
from tests.kernels.test_wkv7_gpu import cuda, interpret, interpreted

BOUNDS = {torch.bfloat16: 8e-3, torch.float32: 2e-6}


def random(seed):
    gen = torch.Generator().manual_seed(seed)
    return lambda *s: torch.randn(*s, generator=gen, dtype=torch.float64)


def norm_mix_case(B, T, C, M, add, resets, wide=False, seed=0):
    rand = random(seed)
    out = rand(B, T, C) if add else None
    reset = rand(B, T) > 1.0 if resets else None
    x = [3 * rand(B, T, C) + 1, out, 1 + rand(C) / 4, rand(C), rand(B, C), *(rand(1, 1, C) for _ in range(M))]

    def run(backend, x, out, weight, bias, last, *mixes):
        x = x.float() if wide and x.dtype == torch.bfloat16 else x
        x, mixed, end = fused.norm_mix(x, out, weight, bias, last, list(mixes), None if reset is None else reset.to(x.device), backend)
        return x, *mixed, end

    return run, x


def wkv7_inputs_case(B, T, H, N, residual, seed=0):
    rand, C = random(seed), H * N
    x = [*(rand(B, T, C) for _ in range(6)), *(rand(1, 1, C) for _ in range(4)), rand(H, N)]
    if not residual:
        x[4] = x[5] = None
    return lambda backend, *x: fused.wkv7_inputs(*x, backend=backend), x


def wkv7_readout_case(B, T, H, N, seed=0):
    rand, C = random(seed), H * N
    x = [2 * rand(B, T, H, N) + 1, rand(B, T, H, N), rand(B, T, H), rand(B, T, C), 1 + rand(C) / 4, rand(C)]
    return lambda backend, *x: fused.wkv7_readout(*x, backend=backend), x


def relu_squared_case(*shape, seed=0):
    return lambda backend, x: fused.relu_squared(x * 1, backend), [random(seed)(*shape)]


CASES = {
    "norm_mix": functools.partial(norm_mix_case, 2, 37, 48, 6, False, False),
    "norm_mix, added, resets": functools.partial(norm_mix_case, 3, 21, 40, 6, True, True),
    "norm_mix, one token": functools.partial(norm_mix_case, 2, 1, 64, 1, True, True),
    "norm_mix, one mix": functools.partial(norm_mix_case, 1, 50, 24, 1, False, True),
    "norm_mix, three mixes": functools.partial(norm_mix_case, 1, 19, 32, 3, True, False),
    "norm_mix, a wide sum": functools.partial(norm_mix_case, 2, 37, 48, 6, True, True, True),
    "wkv7_inputs": functools.partial(wkv7_inputs_case, 2, 37, 2, 16, True),
    "wkv7_inputs, first layer": functools.partial(wkv7_inputs_case, 1, 33, 3, 32, False),
    "wkv7_inputs, heads of 24": functools.partial(wkv7_inputs_case, 1, 5, 2, 24, True),
    "wkv7_readout": functools.partial(wkv7_readout_case, 2, 37, 2, 16),
    "wkv7_readout, heads of 24": functools.partial(wkv7_readout_case, 1, 5, 3, 24),
    "relu_squared": functools.partial(relu_squared_case, 3, 1500),
}


LARGE = {  # several warps, and tokens enough that on a GPU a program has several, whose loads run ahead
    "norm_mix, 768 channels": functools.partial(norm_mix_case, 2, 1500, 768, 6, True, True),
    "norm_mix, 2048 channels, one mix": functools.partial(norm_mix_case, 1, 2500, 2048, 1, True, False),
    "wkv7_inputs, 12 heads": functools.partial(wkv7_inputs_case, 2, 1500, 12, 64, True),
    "wkv7_readout, 12 heads": functools.partial(wkv7_readout_case, 2, 1500, 12, 64),
}


def distance(name, dtype, device="cpu", backend=None):
    """The worst relative distance of results and gradients in `dtype` from the plain form in fp64, the inputs rounded alike."""
    run, inputs = (CASES | LARGE)[name]()
    inputs = [None if x is None else x.to(dtype) for x in inputs]
    found, grads = [], None
    for kind, name_of in ((torch.float64, "torch"), (dtype, backend or "triton")):
        leaves = [None if x is None else x.to(device, kind).requires_grad_() for x in inputs]
        given = [x for x in leaves if x is not None]
        outs = run(name_of, *leaves)
        outs = outs if isinstance(outs, tuple) else (outs,)
        grads = grads or [random(7 + i)(*o.shape).to(dtype) for i, o in enumerate(outs)]
        d_in = torch.autograd.grad(outs, given, [g.to(o) for g, o in zip(grads, outs, strict=True)], allow_unused=True)
        found.append([*(o.detach() for o in outs), *d_in])
    used = [g is not None for g in found[0]]
    assert used == [g is not None for g in found[1]]
    return worst(*([g for g, u in zip(f, used, strict=True) if u] for f in found[::-1]))


def cross_entropies(dtype, device, l2wrap, V=1000, backend="triton"):
    """Losses and gradients in place, and the same of the plain form in fp64."""
    rand = random(0)
    logits, scale = (4 * rand(13, V)).to(dtype), rand(13).abs().to(dtype)
    logits[3, [5, 700]] = 40.0  # two largest
    targets = torch.randint(0, V, (13,), generator=torch.Generator().manual_seed(0))
    found = []
    for kind, name in ((torch.float64, "torch"), (dtype, backend)):
        x = logits.to(device, kind, copy=True)
        losses = fused.cross_entropy_(x, targets.to(device), scale.to(device, torch.float32 if kind != torch.float64 else kind), l2wrap, True, name)
        found.append((losses, x))
    return found[1], found[0]


INTERPRET = """
    import sys
    import torch
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # what torch.empty gives is then NaN
    from rwkv.kernels.fused import triton
    triton.MULTIPROCESSORS, triton.HEAD_TILE = 1, 64  # several tokens a program, and several tiles, at these sizes
    from tests.kernels import triton_interpreter
    from rwkv.kernels import registry
    from tests.kernels.test_fused import CASES, cross_entropies, distance, worst
    registry.cannot = lambda *_: None
    for op in ("norm_mix", "wkv7_inputs", "wkv7_readout", "relu_squared", "cross_entropy_"):
        object.__setattr__(registry._OPS[op]["triton"], "can", lambda _: None)
    dtype = getattr(torch, sys.argv[1])
    for name in CASES:
        print(name.replace(" ", "_"), distance(name, dtype))
    for l2wrap in (0.0, 0.3):
        print("cross_entropy", worst(*cross_entropies(dtype, "cpu", l2wrap)))
    total, part = torch.randn(3, 2000), torch.randn(3, 2000).to(dtype)
    wanted = total + part
    triton.add_(total, part)
    print("add_", 0.0 if total.equal(wanted) else 1.0)
"""


@interpreted
@pytest.mark.parametrize("dtype", BOUNDS)
def test_in_the_interpreter(dtype):
    out = interpret(INTERPRET, str(dtype).removeprefix("torch."))
    found = list(zip(out[::2], map(float, out[1::2]), strict=True))
    assert len(found) == len(CASES) + 3 and all(x < BOUNDS[dtype] for _, x in found), found


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", CASES | LARGE)
@pytest.mark.parametrize("multiprocessors", [1, 132])  # of one, each program has all the tokens of a row
def test_on_a_gpu(name, dtype, multiprocessors, monkeypatch):
    monkeypatch.setattr(triton, "MULTIPROCESSORS", multiprocessors)
    assert distance(name, dtype, "cuda") < BOUNDS[dtype]


@pytest.mark.gpu
@cuda
def test_a_large_sum_is_that_of_pytorch():
    total, part = torch.randn(1025, 1024, device="cuda"), torch.randn(1025, 1024, device="cuda").bfloat16()
    wanted = total + part
    fused.add_(total, part)
    assert total.equal(wanted)
