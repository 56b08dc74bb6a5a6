"""WKV-7 backends against an independent fp64 recurrence, written here from the formula alone."""

import math
import random

import pytest
import torch

from rwkv.kernels import registry
from rwkv.kernels.wkv7 import wkv7

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
    return [y.detach(), s.detach(), *(t.grad for t in x)]


def worst(got, want):
    return max(((g.double() - w.double()).norm() / w.double().norm().clamp_min(1e-30)).item() for g, w in zip(got, want, strict=True))


BACKENDS = registry.names("wkv7")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("resets", [False, True])
def test_fp64_and_fp32_match_the_recurrence(backend, decay, resets):
    x, reset, grads = make_inputs(2, 37, 2, 16, decay, resets)
    want = run(naive, x, reset, grads)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        if registry.why_not("wkv7", x[0].to(dtype))[backend] == "fp32 only" and dtype == torch.float64:
            continue
        got = run(lambda *args: wkv7(*args, backend=backend), x, reset, grads, dtype)
        assert worst(got, want) < bound


@pytest.mark.parametrize("seed", range(24))
def test_random_shapes(seed):
    pick = random.Random(seed)
    B, T, H, N = pick.choice([1, 2, 3]), pick.randint(1, 70), pick.choice([1, 2, 3]), pick.choice([8, 32, 64])
    x, reset, grads = make_inputs(B, T, H, N, "mixed", pick.random() < 0.5, seed)
    want = run(naive, x, reset, grads)
    got = run(lambda *args: wkv7(*args, backend="chunked"), x, reset, grads)
    assert worst(got, want) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_with_carried_state_equal_one_call(backend):
    (r, w, k, v, a, b, s), reset, _ = make_inputs(2, 50, 2, 16, resets=True)
    whole = wkv7(r, w, k, v, a, b, s, reset, backend=backend)
    ys, pos = [], 0
    for n in (1, 16, 20, 13):
        cut = slice(pos, pos + n)
        y, s = wkv7(*(x[:, cut] for x in (r, w, k, v, a, b)), s, reset[:, cut], backend=backend)
        ys.append(y)
        pos += n
    torch.testing.assert_close(torch.cat(ys, 1), whole[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(s, whole[1], rtol=1e-10, atol=1e-10)


def test_bf16_keeps_types():
    x, _, _ = make_inputs(1, 20, 1, 16)
    y, s = wkv7(*(t.bfloat16() for t in x[:6]))
    assert y.dtype == torch.bfloat16 and s.dtype == torch.float32
