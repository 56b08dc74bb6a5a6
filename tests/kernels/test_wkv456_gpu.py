"""WKV-4, WKV-5 and WKV-6 in Triton: on a GPU where there is one, and in Triton's interpreter on the CPU."""

import pytest
import torch

from rwkv.errors import KernelError
from rwkv.kernels import registry
from rwkv.kernels.wkv4.triton import wkv4_triton
from rwkv.kernels.wkv6.triton import wkv5_triton, wkv6_triton
from tests.kernels.test_wkv7 import worst
from tests.kernels.test_wkv7_gpu import cuda, interpret, interpreted
from tests.kernels.test_wkv456 import DECAYS, OPS, make_inputs, plain4

TRITON = {"wkv4": wkv4_triton, "wkv5": wkv5_triton, "wkv6": wkv6_triton}
BOUNDS = {torch.bfloat16: 5e-3, torch.float16: 1.5e-3, torch.float32: 1e-5}
INTERPRETED = {torch.bfloat16: 5e-3, torch.float32: 3e-6}  # where exponentials are exact to the last digit

# op, B, T, H, N, decay, share of resets: ragged ends, one token, one chunk and many, widths that are no powers of 2
CASES = [
    ("wkv6", 1, 70, 2, 16, "mixed", 0.0), ("wkv6", 2, 45, 1, 24, "far apart", 0.1), ("wkv6", 1, 33, 1, 128, "slow", 0.05),
    ("wkv6", 2, 1, 1, 64, "mixed", 0.0), ("wkv6", 1, 64, 1, 48, "none", 0.0), ("wkv6", 2, 40, 2, 16, "fast", 0.0),
    ("wkv6", 1, 35, 1, 16, "fastest", 1.0), ("wkv5", 2, 70, 2, 16, "far apart", 0.1), ("wkv5", 1, 32, 1, 80, "slowest", 0.0),
    ("wkv4", 1, 67, 1, 130, "mixed", 0.06), ("wkv4", 1, 130, 1, 24, "slow", 0.0), ("wkv4", 1, 1, 1, 8, "far apart", 0.0),
    ("wkv4", 2, 64, 1, 16, "fastest", 0.0), ("wkv4", 1, 66, 1, 16, "mixed", 1.0),
]  # fmt: skip
LONG = [(op, 2, 1000, 3, 64, decay, share) for op in TRITON for decay, share in ((d, s) for d in DECAYS for s in (0.0, 0.02))]


def case(op, B, T, H, N, decay, share, dtype, seed=0):
    """Inputs and gradients rounded to `dtype` as the op takes them, in fp64; reset."""
    x, (dy, ds) = make_inputs(op, B, T, H, N, decay, seed)
    if dtype == torch.float16 and decay in ("fast", "far apart"):  # gradients below the least fp16
        x[0 if op == "wkv4" else 1].clamp_(-6, 1)
    reset = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < share if share else None
    return [t.to(dtype).double() for t in x[:-1]] + [x[-1]], reset, (dy.to(dtype).double(), ds)


def results(op, fn, x, reset, grads, dtype, state_dtype, device="cpu"):
    fn = plain4(fn) if op == "wkv4" else fn
    leaves = [t.to(device, dtype if t is not x[-1] else state_dtype).requires_grad_() for t in x]
    y, s = fn(*leaves, None if reset is None else reset.to(device))
    found = torch.autograd.grad([y, s], leaves, [g.to(o) for g, o in zip(grads, (y, s), strict=True)])
    return [y.detach(), s.detach(), *(g[:, :2] if op == "wkv4" and g is found[-1] else g for g in found)]


def distance(op, *what, dtype, device="cpu", fn=None):
    """The worst relative distance of results and gradients in `dtype` from the chunked form in fp64."""
    x, reset, grads = case(op, *what, dtype)
    got = results(op, fn or TRITON[op], x, reset, grads, dtype, torch.float32, device)
    want = results(op, lambda *a: OPS[op](*a, backend="chunked"), x, reset, grads, torch.float64, torch.float64, device)
    return worst(got, want)


INTERPRET = """
    import sys
    import torch
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # what torch.empty gives is then NaN
    from tests.kernels import triton_interpreter
    from tests.kernels.test_wkv456_gpu import CASES, distance
    for what in CASES:
        if what[0] == sys.argv[2]:
            print(distance(*what, dtype=getattr(torch, sys.argv[1])))
"""


@interpreted
@pytest.mark.parametrize("dtype", INTERPRETED)
@pytest.mark.parametrize("op", TRITON)
def test_the_kernels_in_the_interpreter(op, dtype):
    out = [float(x) for x in interpret(INTERPRET, str(dtype).removeprefix("torch."), op)]
    assert len(out) == sum(c[0] == op for c in CASES) and all(x < INTERPRETED[dtype] for x in out), out


@interpreted
def test_parts_of_the_gradient_in_the_interpreter():
    """The gradient of y alone, that of the final state alone, and no grad at all agree."""
    interpret("""
        import torch
        from tests.kernels import triton_interpreter
        from tests.kernels.test_wkv456_gpu import TRITON, case
        for op, fn in TRITON.items():
            x, reset, (dy, ds) = case(op, 1, 20, 1, 16, "mixed", 0.1, torch.float32)
            x, dy, ds = [t.float().requires_grad_() for t in x], dy.float(), ds.float()
            y, s = fn(*x, reset)
            of_s = s[:, :2] if op == "wkv4" else s
            whole = torch.autograd.grad([y, of_s], x, [dy, ds], retain_graph=True)
            parts = [torch.autograd.grad(t, x, g, retain_graph=True) for t, g in ((y, dy), (of_s, ds))]
            for a, b, c in zip(whole, *parts):
                torch.testing.assert_close(a, b + c, rtol=1e-5, atol=1e-5)
            with torch.no_grad():
                got = fn(*x, reset)
            assert torch.equal(got[0], y) and torch.equal(got[1], s) and not got[0].requires_grad
    """)


@interpreted
def test_wkv4_does_not_overflow_in_the_interpreter():
    """Keys of hundreds, whose exponentials are no fp32 numbers, from the start of a document; and what was not a number before a reset."""
    interpret("""
        import torch
        from tests.kernels import triton_interpreter
        from tests.kernels.test_wkv456_gpu import wkv4_triton
        k = torch.tensor([-500.0, 300.0, -500.0, 200.0, 310.0]).view(1, 5, 1).expand(1, 5, 8).clone().requires_grad_()
        v = torch.tensor([5.0, 1.0, 2.0, 3.0, 4.0]).view(1, 5, 1).expand(1, 5, 8)
        w, u, state = torch.full((8,), -20.0), torch.zeros(8), torch.zeros(1, 3, 8)
        y, last = wkv4_triton(w, u, k, v, state, None)
        want = torch.tensor([5.0, 1.0, 1.0, 1.0, (1 + 4 * torch.e**10) / (1 + torch.e**10)])
        torch.testing.assert_close(y[0], want.unsqueeze(1).expand(5, 8))
        y.sum().backward()
        assert last.isfinite().all() and k.grad.isfinite().all()
        reset = torch.tensor([[False, False, True, False, False]])
        spoilt = v.clone()
        spoilt[0, 0] = torch.nan
        y, last = wkv4_triton(w, u, k.detach(), spoilt, state, reset)
        assert y[0, :2].isnan().all() and y[0, 2:].isfinite().all() and last.isfinite().all()
    """)


def test_reasons():
    for op, width in (("wkv4", 64), ("wkv5", 64), ("wkv6", 64)):
        assert registry.cannot(op, "triton", torch.empty(1, 2, 1, width)) == "CUDA devices only"


def test_tensors_that_do_not_fit_are_refused():
    x = [torch.randn(1, 4, 1, 16) for _ in range(4)]
    u, state = torch.randn(1, 16), torch.zeros(1, 1, 16, 16)
    with pytest.raises(KernelError, match="wkv6: v must be torch.float32 .* got torch.bfloat16"):
        wkv6_triton(*x[:3], x[3].bfloat16(), u, state, None)
    with pytest.raises(KernelError, match=r"wkv5: w must be a tensor \[1, 16\]"):
        wkv5_triton(*x, u, state, None)
    with pytest.raises(KernelError, match="wkv4: state must be torch.float32"):
        wkv4_triton(torch.zeros(8), torch.zeros(8), torch.zeros(1, 4, 8), torch.zeros(1, 4, 8), torch.zeros(1, 3, 8).double(), None)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("what", [*CASES, *LONG], ids=str)
def test_outputs_and_gradients(what, dtype):
    if dtype == torch.float16 and what[0] != "wkv4":
        pytest.skip("bf16 and fp32 only")
    assert distance(*what, dtype=dtype, device="cuda") < BOUNDS[dtype]


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("op", TRITON)
def test_two_runs_are_equal_and_strided_inputs_too(op):
    x, reset, grads = case(op, 2, 300, 3, 64, "mixed", 0.02, torch.bfloat16)
    strided = lambda *a: TRITON[op](*(torch.stack([t, t], -1)[..., 0] for t in a[:-1]), a[-1])  # noqa: E731
    forms = TRITON[op], TRITON[op], strided
    plain, again, strided = (results(op, fn, x, reset, grads, torch.bfloat16, torch.float32, "cuda") for fn in forms)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(plain, again, strided, strict=True))


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("op", TRITON)
def test_captured_in_a_graph(op):
    x, _, (dy, ds) = case(op, 1, 100, 2, 64, "mixed", 0.0, torch.bfloat16)
    x = [t.to("cuda", torch.bfloat16 if t is not x[-1] else torch.float32).requires_grad_() for t in x]

    def step():
        y, s = TRITON[op](*x, None)
        return torch.autograd.grad([y, s[:, : ds.shape[1]]], x, [dy.to(y), ds.to(s)])

    dy, ds = dy.to("cuda", torch.bfloat16), ds.float().cuda()
    want = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    for t in got:
        t.fill_(float("nan"))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.gpu
@cuda
def test_where_they_can_run():
    for op in ("wkv5", "wkv6"):
        assert registry.cannot(op, "triton", torch.empty(1, 20, 1, 24, device="cuda", dtype=torch.bfloat16)) is None
        assert "head sizes" in registry.cannot(op, "triton", torch.empty(1, 20, 1, 192, device="cuda"))
    assert registry.cannot("wkv4", "triton", torch.empty(1, 20, 100, device="cuda", dtype=torch.bfloat16)) is None
