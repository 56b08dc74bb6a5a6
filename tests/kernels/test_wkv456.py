"""WKV-4, WKV-5 and WKV-6 against independent fp64 recurrences, written here from the formulas alone."""

import random

import pytest
import torch

from rwkv.errors import KernelError
from rwkv.kernels import registry
from rwkv.kernels.wkv4 import wkv4
from rwkv.kernels.wkv5 import wkv5
from rwkv.kernels.wkv6 import wkv6
from tests.kernels.test_wkv7 import run, worst

torch.set_num_threads(1)

DECAYS = {
    "mixed": (-6.0, 1.0), "none": (-200.0, -200.0), "slowest": (-20.0, -20.0), "slow": (-7.0, -7.0), "fast": (4.1, 4.3),
    "fastest": (5.0, 5.0), "far apart": (-20.0, 5.0),
}  # fmt: skip
DTYPES = torch.float64, torch.float32


def bound(backend, dtype):
    """The largest error. In fp32 the loop rounds at every token, the chunked form the decay's log."""
    return 1e-11 if dtype == torch.float64 else {"cpu": 2e-6, "chunked": 1e-5, "reference": 3e-5}[backend]


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
    """Numbers of fp32, in fp64."""
    gen = torch.Generator().manual_seed(seed)
    rand = lambda *s: torch.randn(*s, generator=gen).double()  # noqa: E731
    lo, hi = DECAYS[decay]
    spread = lambda *s: (lo + (hi - lo) * torch.rand(*s, generator=gen)).double()  # noqa: E731
    if op == "wkv4":
        C = H * N
        state = torch.stack([rand(B, C), (rand(B, C).abs() + 0.1).float().double(), rand(B, C)], 1)
        return [spread(C), rand(C), 2 * rand(B, T, C), rand(B, T, C), state], (rand(B, T, C), rand(B, 2, C))
    w = spread(B, T, H, N) if op == "wkv6" else spread(H, N)
    x = [rand(B, T, H, N), w, rand(B, T, H, N), rand(B, T, H, N), rand(H, N), rand(B, H, N, N)]
    return x, (rand(B, T, H, N), rand(B, H, N, N))


OPS = {"wkv4": wkv4, "wkv5": wkv5, "wkv6": wkv6}
NAIVE = {"wkv4": naive4, "wkv5": naive5, "wkv6": naive6}
CASES = [(op, name) for op in OPS for name in registry.names(op) if name != "triton"]  # which has tests of its own


def backend_of(op, name, dtype):
    """`op` bound to one backend; skips the test where that backend cannot run."""
    if reason := registry.cannot(op, name, torch.empty(1, 1, 64, dtype=dtype)):
        pytest.skip(reason)
    fn = lambda *args: OPS[op](*args, backend=name)  # noqa: E731
    return plain4(fn) if op == "wkv4" else fn


@pytest.mark.parametrize(("op", "backend"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", DECAYS)
def test_outputs_and_gradients_match_the_recurrence(op, backend, dtype, decay):
    fn = backend_of(op, backend, dtype)
    x, grads = make_inputs(op, 2, 50, 2, 16, decay)
    reset = torch.rand(2, 50, generator=torch.Generator().manual_seed(1)) < 0.06
    for resets in (None, reset):
        assert worst(run(fn, x, resets, grads, dtype), run(NAIVE[op], x, resets, grads)) < bound(backend, dtype)


@pytest.mark.parametrize(("op", "backend"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_shapes(op, backend, dtype):
    fn = backend_of(op, backend, dtype)
    sizes = [8, 16, 24, 48, 64, 80] if backend == "cpu" else [4, 8, 16]
    for seed in range(200 if (backend, dtype) in (("chunked", torch.float64), ("cpu", torch.float32)) else 34):
        pick = random.Random(seed)
        T = [1, 15, 16, 17, 32, 33, 65][seed] if seed < 7 else pick.randint(1, 70)
        B, H, N = pick.choice([1, 2, 3]), pick.choice([1, 2]), pick.choice(sizes if T < 40 else sizes[:3])
        x, grads = make_inputs(op, B, T, H, N, pick.choice(list(DECAYS)), seed)
        reset = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < 0.1 if seed % 2 else None
        got, want = run(fn, x, reset, grads, dtype), run(NAIVE[op], x, reset, grads)
        assert worst(got, want) < bound(backend, dtype), f"seed {seed}"


@pytest.mark.parametrize("op", OPS)
def test_long_and_wide(op):
    """Many chunks of full heads, where rounding adds up."""
    fn = backend_of(op, "cpu", torch.float32)
    for decay in ("mixed", "slow", "far apart"):
        x, grads = make_inputs(op, 1, 400, 1, 64, decay)
        assert worst(run(fn, x, None, grads, torch.float32), run(NAIVE[op], x, None, grads)) < bound("cpu", torch.float32)


@pytest.mark.parametrize("op", OPS)
def test_the_log_of_a_fast_decay_keeps_its_digits(op):
    """Rounded to fp32, a log of -64 is off by up to 4e-6, and the gradient of the decay as much."""
    fn = backend_of(op, "cpu", torch.float32)
    x, grads = make_inputs(op, 2, 50, 2, 16, "fast")
    assert worst(run(fn, x, None, grads, torch.float32), run(NAIVE[op], x, None, grads)) < 6e-7


@pytest.mark.parametrize(("op", "backend"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_with_carried_state_equal_one_call(op, backend, dtype):
    fn = backend_of(op, backend, dtype)
    x, grads = make_inputs(op, 2, 50, 2, 8, "mixed")
    reset = torch.rand(2, 50, generator=torch.Generator().manual_seed(2)) < 0.06
    per_token = {"wkv4": (2, 3), "wkv5": (0, 2, 3), "wkv6": (0, 1, 2, 3)}[op]

    def in_pieces(*args):
        *inputs, state, reset = args
        ys, pos = [], 0
        for n in (1, 16, 20, 13):
            cut = slice(pos, pos + n)
            cut_inputs = [t[:, cut] if i in per_token else t for i, t in enumerate(inputs)]
            y, state = OPS[op](*cut_inputs, state, reset[:, cut], backend=backend)
            ys.append(y)
            pos += n
        return torch.cat(ys, 1), state

    fn = plain4(in_pieces) if op == "wkv4" else in_pieces
    assert worst(run(fn, x, reset, grads, dtype), run(NAIVE[op], x, reset, grads)) < bound(backend, dtype)


@pytest.mark.parametrize(("op", "backend"), CASES)
@pytest.mark.parametrize("T", [1, 2, 40])
def test_no_grad_equals_grad(op, backend, T):
    fn = backend_of(op, backend, torch.float32)
    x, _ = make_inputs(op, 2, T, 2, 64, "mixed")
    reset = torch.arange(2 * T).view(2, T) % 3 == 1
    x = [t.float().requires_grad_() for t in x]
    want = [t.detach() for t in fn(*x, reset)]
    with torch.no_grad():
        assert worst(fn(*x, reset), want) < 1e-6


@pytest.mark.parametrize("op", OPS)
def test_a_gradient_of_the_output_or_of_the_state_alone(op):
    fn = backend_of(op, "cpu", torch.float32)
    x, grads = make_inputs(op, 2, 37, 2, 16, "mixed")
    x, grads = [t.float().requires_grad_() for t in x], [g.float() for g in grads]
    out = fn(*x, None)
    whole = torch.autograd.grad(out, x, grads, retain_graph=True)
    parts = [torch.autograd.grad(out[i], x, grads[i], retain_graph=True) for i in (0, 1)]
    for all_, of_y, of_s in zip(whole, *parts, strict=True):
        torch.testing.assert_close(all_, of_y + of_s, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", [name for op, name in CASES if op == "wkv4"])
def test_wkv4_does_not_overflow(backend):
    """Keys of hundreds, whose exponentials are no fp32 numbers, from the start of a document."""
    k = torch.tensor([300.0, -500.0, 200.0, 310.0]).view(1, 4, 1).expand(1, 4, 8)
    v = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1).expand(1, 4, 8)
    y, state = wkv4(torch.full((8,), -20.0), torch.zeros(8), k, v, backend=backend)
    want = torch.tensor([1.0, 1.0, 1.0, (1 + 4 * torch.e**10) / (1 + torch.e**10)])
    torch.testing.assert_close(y[0], want.unsqueeze(1).expand(4, 8))
    assert state.isfinite().all()


@pytest.mark.parametrize(("op", "backend"), CASES)
def test_bf16_in_and_out_fp32_inside(op, backend):
    x, grads = make_inputs(op, 1, 20, 1, 16, "mixed")
    x = [t.bfloat16().requires_grad_() for t in x[:-1]]
    y, s = OPS[op](*x, backend=backend)
    got = [y, s, *torch.autograd.grad(y, x, grads[0].bfloat16())]
    assert [t.dtype for t in got] == [torch.bfloat16, torch.float32, *[torch.bfloat16] * len(x)]
    exact = [t.detach().double().requires_grad_() for t in x]
    y, s = OPS[op](*exact, backend="reference")
    want = [y, s, *torch.autograd.grad(y, exact, grads[0].bfloat16().double())]
    pairs = [(a, b) for a, b in zip(got, want, strict=True) if a is not got[1] or op != "wkv4"]  # states of other exponents
    assert worst(*([t.detach() for t in side] for side in zip(*pairs, strict=True))) < 5e-3


def results(op, x, threads=1):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        leaves = [t.float().requires_grad_() for t in x]
        y, s = backend_of(op, "cpu", torch.float32)(*leaves, None)
        return [y, s, *torch.autograd.grad(y.square().sum() + s.square().sum(), leaves)]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("op", OPS)
def test_threads_do_not_change_a_bit(op):
    x, _ = make_inputs(op, 3, 40, 3, 16, "mixed")
    assert all(torch.equal(a, b) for a, b in zip(results(op, x), results(op, x, threads=4), strict=True))


@pytest.mark.parametrize("op", OPS)
def test_not_a_number_stays_visible(op):
    fn = backend_of(op, "cpu", torch.float32)
    per_token = {"wkv4": (2, 3), "wkv5": (0, 2, 3), "wkv6": (0, 1, 2, 3)}[op]
    for i in range(4):
        x = [t.float() for t in make_inputs(op, 1, 20, 1, 16, "mixed")[0]]
        x[i].view(-1)[3 * 16 + 5 if i in per_token else 5] = float("nan")
        y = fn(*x, None)[0].flatten(2)
        first = 0 if i not in per_token else 3
        assert y[0, first + 1 :].isnan().any() or y[0, first].isnan().any()
        assert not y[0, :first].isnan().any()


def test_tensors_that_do_not_fit_are_refused():
    x = [t.float() for t in make_inputs("wkv6", 1, 4, 1, 8, "mixed")[0]]
    with pytest.raises(KernelError, match=r"wkv6: v must be torch.float32 .* got torch.float64"):
        wkv6(*x[:3], x[3].double(), *x[4:], backend="cpu")
    with pytest.raises(KernelError, match=r"wkv5: w must be a tensor \[1, 8\]"):
        wkv5(*x, backend="cpu")
    with pytest.raises(KernelError, match="reset"):
        wkv6(*x, reset=torch.zeros(1, 5, dtype=torch.bool), backend="cpu")
    with pytest.raises(KernelError, match="widths that are multiples of 8 only"):
        wkv4(torch.zeros(12), torch.zeros(12), torch.zeros(1, 4, 12), torch.zeros(1, 4, 12), backend="cpu")


@pytest.mark.parametrize("op", OPS)
def test_auto_takes_the_compiled_kernel(op):
    backend_of(op, "cpu", torch.float32)
    assert registry.chosen(op, "auto", torch.empty(1, 20, 64)) == "cpu"
    assert registry.chosen(op, "auto", torch.empty(1, 20, 64, dtype=torch.float64)) == "chunked"
