"""WKV-4, WKV-5 and WKV-6 against independent fp64 recurrences, written here from the formulas alone."""

import random

import pytest
import torch

from rwkv.kernels import registry
from rwkv.kernels.wkv4 import wkv4
from rwkv.kernels.wkv5 import wkv5
from rwkv.kernels.wkv6 import wkv6
from tests.kernels.test_wkv7 import run, worst

torch.set_num_threads(1)

DECAYS = {"mixed": (-6.0, 1.0), "slowest": (-20.0, -20.0), "fastest": (5.0, 5.0), "far apart": (-20.0, 5.0)}
BOUNDS = {torch.float64: 1e-11, torch.float32: 1e-5}


def naive4(w, u, k, v, state, reset):
    """The quotient of plain sums: the exponents here are small enough for fp64."""
    lw = -torch.exp(w)
    B, T, C = k.shape
    num, den = state[:, 0] * torch.exp(state[:, 2]), state[:, 1] * torch.exp(state[:, 2])
    ys = []
    for t in range(T):
        if reset is not None:
            keep = (~reset[:, t]).to(num.dtype).unsqueeze(1)
            num, den = num * keep, den * keep
        now = torch.exp(u + k[:, t])
        ys.append((num + now * v[:, t]) / (den + now))
        num, den = num * torch.exp(lw) + torch.exp(k[:, t]) * v[:, t], den * torch.exp(lw) + torch.exp(k[:, t])
    return torch.stack(ys, 1), torch.stack([num, den], 1)


def naive6(r, w, k, v, u, state, reset):
    """One row and head at a time, in plain matrix products."""
    B, T, H, N = r.shape
    decay = torch.exp(-torch.exp(w))
    ys, states = [], []
    for i in range(B):
        for h in range(H):
            S, out = state[i, h], []
            for t in range(T):
                if reset is not None and reset[i, t]:
                    S = torch.zeros_like(S)
                out.append((S + torch.outer(v[i, t, h], u[h] * k[i, t, h])) @ r[i, t, h])
                S = S @ torch.diag(decay[i, t, h]) + torch.outer(v[i, t, h], k[i, t, h])
            ys.append(torch.stack(out))
            states.append(S)
    return torch.stack(ys).view(B, H, T, N).transpose(1, 2), torch.stack(states).view(B, H, N, N)


def naive5(r, w, k, v, u, state, reset):
    return naive6(r, w.expand(r.shape), k, v, u, state, reset)


def plain4(fn):
    """With the state as plain sums, so that states of different exponents compare."""

    def run(*args):
        y, s = fn(*args)
        return y, s[:, :2] * torch.exp(s[:, 2:])

    return run


def make_inputs(op, B, T, H, N, decay, seed=0):
    gen = torch.Generator().manual_seed(seed)
    rand = lambda *s: torch.randn(*s, generator=gen, dtype=torch.float64)  # noqa: E731
    lo, hi = DECAYS[decay]
    spread = lambda *s: lo + (hi - lo) * torch.rand(*s, generator=gen, dtype=torch.float64)  # noqa: E731
    if op == "wkv4":
        C = H * N
        state = torch.stack([rand(B, C), rand(B, C).abs() + 0.1, rand(B, C)], 1)
        return [spread(C), rand(C), 2 * rand(B, T, C), rand(B, T, C), state], (rand(B, T, C), rand(B, 2, C))
    w = spread(B, T, H, N) if op == "wkv6" else spread(H, N)
    x = [rand(B, T, H, N), w, rand(B, T, H, N), rand(B, T, H, N), rand(H, N), rand(B, H, N, N)]
    return x, (rand(B, T, H, N), rand(B, H, N, N))


def backend_of(op, name):
    fn = {"wkv4": wkv4, "wkv5": wkv5, "wkv6": wkv6}[op]
    bound = lambda *args: fn(*args, backend=name)  # noqa: E731
    return plain4(bound) if op == "wkv4" else bound


NAIVE = {"wkv4": naive4, "wkv5": naive5, "wkv6": naive6}
CASES = [(op, name) for op in NAIVE for name in registry.names(op)]


@pytest.mark.parametrize(("op", "backend"), CASES)
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("decay", DECAYS)
def test_outputs_and_gradients_match_the_recurrence(op, backend, dtype, decay):
    x, grads = make_inputs(op, 2, 50, 2, 16, decay)
    reset = torch.rand(2, 50, generator=torch.Generator().manual_seed(1)) < 0.06
    for resets in (None, reset):
        assert worst(run(backend_of(op, backend), x, resets, grads, dtype), run(NAIVE[op], x, resets, grads)) < BOUNDS[dtype]


@pytest.mark.parametrize(("op", "backend"), CASES)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_random_shapes(op, backend, dtype):
    for seed in range(200 if backend == "chunked" and dtype == torch.float64 else 34):
        pick = random.Random(seed)
        T = [1, 15, 16, 17, 32, 33, 65][seed] if seed < 7 else pick.randint(1, 70)
        B, H, N = pick.choice([1, 2, 3]), pick.choice([1, 2]), pick.choice([4, 8, 16])
        x, grads = make_inputs(op, B, T, H, N, pick.choice(list(DECAYS)), seed)
        reset = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < 0.1 if seed % 2 else None
        got, want = run(backend_of(op, backend), x, reset, grads, dtype), run(NAIVE[op], x, reset, grads)
        assert worst(got, want) < BOUNDS[dtype], f"seed {seed}"


@pytest.mark.parametrize(("op", "backend"), CASES)
def test_pieces_with_carried_state_equal_one_call(op, backend):
    x, grads = make_inputs(op, 2, 50, 2, 8, "mixed")
    reset = torch.rand(2, 50, generator=torch.Generator().manual_seed(2)) < 0.06
    fn = {"wkv4": wkv4, "wkv5": wkv5, "wkv6": wkv6}[op]
    per_token = {"wkv4": (2, 3), "wkv5": (0, 2, 3), "wkv6": (0, 1, 2, 3)}[op]

    def in_pieces(*args):
        *inputs, state, reset = args
        ys, pos = [], 0
        for n in (1, 16, 20, 13):
            cut = slice(pos, pos + n)
            cut_inputs = [t[:, cut] if i in per_token else t for i, t in enumerate(inputs)]
            y, state = fn(*cut_inputs, state, reset[:, cut], backend=backend)
            ys.append(y)
            pos += n
        return torch.cat(ys, 1), state

    fn_ = plain4(in_pieces) if op == "wkv4" else in_pieces
    assert worst(run(fn_, x, reset, grads), run(NAIVE[op], x, reset, grads)) < 1e-11


@pytest.mark.parametrize("backend", registry.names("wkv4"))
def test_wkv4_does_not_overflow(backend):
    """Keys of hundreds, whose exponentials are no fp32 numbers, from the start of a document."""
    k = torch.tensor([300.0, -500.0, 200.0, 310.0]).view(1, 4, 1)
    v = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1)
    y, state = wkv4(torch.tensor([-20.0]), torch.tensor([0.0]), k, v, backend=backend)
    torch.testing.assert_close(y.flatten(), torch.tensor([1.0, 1.0, 1.0, (1 + 4 * torch.e**10) / (1 + torch.e**10)]))
    assert state.isfinite().all()


@pytest.mark.parametrize("op", ["wkv5", "wkv6"])
def test_bf16_keeps_types(op):
    x, _ = make_inputs(op, 1, 20, 1, 16, "mixed")
    y, s = {"wkv5": wkv5, "wkv6": wkv6}[op](*(t.bfloat16() for t in x[:5]))
    assert y.dtype == torch.bfloat16 and s.dtype == torch.float32
