"""WKV-7 backends against an independent fp64 recurrence, written here from the formula alone."""

import math
import random

import pytest
import torch

from rwkv.kernels import registry
from rwkv.kernels.wkv7 import wkv7

torch.set_num_threads(1)  # the ops here are tiny: more threads only wait for each other

DECAYS = {"mixed": (-6.0, 2.0), "slowest": (-30.0, -30.0), "fastest": (30.0, 30.0)}


def naive(r, w, k, v, a, b, state, reset):
    """One head, one token at a time, in plain matrix products."""
    B, T, H, N = r.shape
    w = torch.exp(-math.exp(-0.5) / (1 + torch.exp(-w)))
    ys, states = torch.empty_like(r), []
    rows = []
    for i in range(B):
        heads = []
        for h in range(H):
            S, out = state[i, h], []
            for t in range(T):
                if reset is not None and reset[i, t]:
                    S = torch.zeros_like(S)
                S = S @ torch.diag(w[i, t, h]) + torch.outer(S @ a[i, t, h], b[i, t, h]) + torch.outer(v[i, t, h], k[i, t, h])
                out.append(S @ r[i, t, h])
            heads.append(torch.stack(out))
            states.append(S)
        rows.append(torch.stack(heads, 1))
    ys = torch.stack(rows)
    return ys, torch.stack(states).view(B, H, N, N)


def make_inputs(B, T, H, N, decay="mixed", resets=False, seed=0):
    gen = torch.Generator().manual_seed(seed)
    rand = lambda *s: torch.randn(*s, generator=gen, dtype=torch.float64)  # noqa: E731
    lo, hi = DECAYS[decay]
    kk = torch.nn.functional.normalize(rand(B, T, H, N), dim=-1)
    gate = torch.rand(B, T, H, N, generator=gen, dtype=torch.float64)
    w = lo + (hi - lo) * torch.rand(B, T, H, N, generator=gen, dtype=torch.float64)
    x = [rand(B, T, H, N), w, rand(B, T, H, N), rand(B, T, H, N), -kk, kk * gate, rand(B, H, N, N)]
    reset = torch.rand(B, T, generator=gen) < 0.1 if resets else None
    grads = rand(B, T, H, N), rand(B, H, N, N)
    return x, reset, grads


def run(fn, x, reset, grads, dtype=torch.float64):
    x = [t.to(dtype).clone().requires_grad_() for t in x]
    y, s = fn(*x, reset)
    torch.autograd.backward([y, s], [g.to(dtype) for g in grads])
    return [y.detach(), s.detach(), *(torch.zeros_like(t) if t.grad is None else t.grad for t in x)]


def worst(got, want):
    """The largest relative L2 distance over all tensors; NaN if one is."""
    pairs = [(g.double(), w.double()) for g, w in zip(got, want, strict=True)]
    return torch.stack([(g - w).norm() / w.norm().clamp_min(1e-30) for g, w in pairs]).max().item()


BACKENDS = registry.names("wkv7")
BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-6}


def backend_for(name, dtype, N):
    """`wkv7` bound to one backend; skips the test where that backend cannot run."""
    if reason := registry.cannot("wkv7", name, torch.empty(1, 1, 1, N, dtype=dtype)):
        pytest.skip(reason)
    return lambda *args: wkv7(*args, backend=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("N", [16, 64])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("resets", [False, True])
def test_outputs_and_gradients_match_the_recurrence(backend, dtype, N, decay, resets):
    fn = backend_for(backend, dtype, N)
    x, reset, grads = make_inputs(2, 37, 2, N, decay, resets)
    # in fp32 the reference rounds the state at every token, which decays near 1 keep
    bound = 1e-5 if (backend, dtype) == ("reference", torch.float32) else BOUNDS[dtype]
    assert worst(run(fn, x, reset, grads, dtype), run(naive, x, reset, grads)) < bound


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("seed", range(24))
def test_random_shapes(backend, dtype, seed):
    pick = random.Random(seed)
    T = [1, 15, 16, 17, 32, 33][seed] if seed < 6 else pick.randint(1, 70)
    B, H, N = pick.choice([1, 2, 3]), pick.choice([1, 2, 3]), pick.choice([8, 16, 24, 32, 64, 128] if T < 40 else [8, 32, 64])
    fn = backend_for(backend, dtype, N)
    x, reset, grads = make_inputs(B, T, H, N, "mixed", pick.random() < 0.5, seed)
    assert worst(run(fn, x, reset, grads, dtype), run(naive, x, reset, grads)) < BOUNDS[dtype]


@pytest.mark.parametrize(("backend", "dtype"), [("chunked", torch.float64), ("cpu", torch.float32)])
def test_two_hundred_small_shapes(backend, dtype):
    for seed in range(200):
        pick = random.Random(1000 + seed)
        B, T, H, N = pick.choice([1, 2]), pick.randint(1, 40), pick.choice([1, 2]), pick.choice([8, 16, 32])
        fn = backend_for(backend, dtype, N)
        x, reset, grads = make_inputs(B, T, H, N, pick.choice(list(DECAYS)), pick.random() < 0.5, seed)
        assert worst(run(fn, x, reset, grads, dtype), run(naive, x, reset, grads)) < BOUNDS[dtype], f"seed {seed}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_reset_at_every_token_and_none_at_all(backend, dtype):
    fn = backend_for(backend, dtype, 16)
    x, _, grads = make_inputs(2, 35, 1, 16)
    reset = torch.tensor([[True], [False]]).expand(2, 35)
    assert worst(run(fn, x, reset, grads, dtype), run(naive, x, reset, grads)) < BOUNDS[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_pieces_with_carried_state_equal_one_call(backend, dtype):
    """Outputs and, through the states handed on, every gradient."""
    fn = backend_for(backend, dtype, 16)
    x, reset, grads = make_inputs(2, 50, 2, 16, resets=True)

    def in_pieces(r, w, k, v, a, b, s, reset):
        ys, pos = [], 0
        for n in (1, 16, 20, 13):
            cut = slice(pos, pos + n)
            y, s = fn(*(t[:, cut] for t in (r, w, k, v, a, b)), s, reset[:, cut])
            ys.append(y)
            pos += n
        return torch.cat(ys, 1), s

    assert worst(run(in_pieces, x, reset, grads, dtype), run(naive, x, reset, grads)) < BOUNDS[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_strided_inputs_and_gradients(backend, dtype):
    """Inputs that are views of wider tensors, an expanded gradient of y, none of the state."""
    fn = backend_for(backend, dtype, 16)
    x, _, _ = make_inputs(2, 21, 3, 16)
    want = run(naive, x, None, (torch.ones(2, 21, 3, 16), torch.zeros(2, 3, 16, 16)))
    leaves = [torch.stack([t, t], 2).to(dtype).requires_grad_() for t in x]
    y, s = fn(*(t[:, :, 1] if t is not leaves[-1] else t[:, :, 1].transpose(-1, -2).mT for t in leaves), None)
    y.sum().backward()
    got = [y.detach(), s.detach(), *(t.grad[:, :, 1] for t in leaves)]
    assert worst(got, want) < BOUNDS[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("T", [1, 2, 40])
def test_no_grad_equals_grad(backend, T):
    fn = backend_for(backend, torch.float32, 64)
    x, reset, _ = make_inputs(2, T, 2, 64, resets=True)
    x = [t.float().requires_grad_() for t in x]
    want = fn(*x, reset)
    with torch.no_grad():
        got = fn(*x, reset)
    assert worst(got, [t.detach() for t in want]) < 1e-6


def test_bf16_keeps_types():
    x, _, _ = make_inputs(1, 20, 1, 16)
    y, s = wkv7(*(t.bfloat16() for t in x[:6]))
    assert y.dtype == torch.bfloat16 and s.dtype == torch.float32
