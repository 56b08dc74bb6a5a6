"""WKV-7 in Triton: on a GPU where there is one, and in Triton's interpreter on the CPU."""

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from rwkv.errors import KernelError
from rwkv.kernels import dry, registry
from rwkv.kernels.wkv7 import triton, wkv7
from tests.kernels.test_wkv7 import make_inputs, worst

ROOT = Path(__file__).parents[2]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
interpreted = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
BOUNDS = {torch.bfloat16: 5.5e-3, torch.float16: 1.5e-3, torch.float32: 1e-5}


def both(fn, x, reset, grads, dtype, device="cpu"):
    """Results and gradients of `fn` in `dtype` and of the chunked form in fp64, from the same rounded inputs."""
    x = [t.to(dtype).double() for t in x[:6]] + [x[6].float().double()]
    if dtype == torch.float16:
        x[1].clamp_(-6, 6)  # beyond, its gradient is below the least fp16
    dy, ds = grads[0].to(dtype).double(), grads[1].float().double()
    out = []
    for run, kind, state in ((fn, dtype, torch.float32), (chunked, torch.float64, torch.float64)):
        leaves = [t.to(device, kind if i < 6 else state).requires_grad_() for i, t in enumerate(x)]
        y, s = run(*leaves, None if reset is None else reset.to(device))
        torch.autograd.backward([y, s], [dy.to(y), ds.to(s)])
        out.append([y.detach(), s.detach(), *(t.grad for t in leaves)])
    return out


def chunked(*args):
    return wkv7(*args, backend="chunked")


def on_gpu(*args):
    """By the CUDA kernels where they can, else by Triton's."""
    return wkv7(*args, backend="triton" if registry.cannot("wkv7", "cuda", args[0]) else "cuda")


def other_chain():
    """`triton.plan`, but that the chain computes what it otherwise leaves to kernels of their own, and leaves what it would compute."""
    plan = triton.plan
    return lambda r: dataclasses.replace(plan(r), fused_chain=tuple(not x for x in plan(r).fused_chain))


def repeated_keys(x):
    """The worst case for the inverse: one key at every token, nothing forgotten, the old value replaced whole."""
    r, w, k, v, a, b, s = x
    kk = a[:, :1].expand_as(a)
    return [r, torch.full_like(w, -8.0), k, v, kk, -kk, s]


def slow(x):
    """Almost nothing forgotten: what rounding does to the state adds up over the chunks."""
    return [x[0], torch.full_like(x[1], -8.0), *x[2:]]


def cases():
    """B, T, H, N, decay, resets: ragged ends, a single token, one chunk and many."""
    return [
        (2, 37, 2, 16, "mixed", False), (1, 70, 1, 64, "mixed", True), (2, 33, 1, 32, "fastest", True),
        (1, 1, 2, 64, "slowest", False), (1, 64, 1, 64, "slowest", False),
    ]  # fmt: skip


INTERPRET = """
    import sys
    import torch
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # what torch.empty gives is then NaN
    from tests.kernels import triton_interpreter
    from tests.kernels.test_wkv7_gpu import both, cases, make_inputs, other_chain, repeated_keys, triton, worst
    wkv7_triton, dtype = triton.wkv7_triton, getattr(torch, sys.argv[1])
    if sys.argv[2] == "other":
        triton.plan = other_chain()
        triton_interpreter.backwards()
    for i, (B, T, H, N, decay, resets) in enumerate(cases()):
        x, reset, grads = make_inputs(B, T, H, N, decay, resets, seed=i)
        print(worst(*both(wkv7_triton, x, reset, grads, dtype)))
    if dtype == torch.float32:
        x, reset, grads = make_inputs(1, 48, 1, 64)
        print(worst(*both(wkv7_triton, repeated_keys(x), reset, grads, dtype)))
"""
FAR = """
    import torch
    torch.set_num_threads(1)
    from tests.kernels import triton_interpreter
    from tests.kernels.test_wkv7_gpu import both, make_inputs, repeated_keys, slow, triton, worst
    x, reset, grads = make_inputs(1, 512, 1, 64)
    for inputs in (slow(x), repeated_keys(x)):
        got, want = both(triton.wkv7_triton, inputs, reset, grads, torch.bfloat16)
        print(worst(got, want), worst(got[:2], want[:2]))
"""


@interpreted
@pytest.mark.parametrize("chain", ["planned", "other"])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_kernels_in_the_interpreter(dtype, chain):
    out = interpret(INTERPRET, str(dtype).removeprefix("torch."), chain)
    assert len(out) >= len(cases()) and all(float(x) < BOUNDS[dtype] for x in out), out


@interpreted
def test_errors_do_not_add_up_over_chunks():
    """The transition of a chunk in fp16, and two parts of what the state is multiplied with and made of: without, 6.0e-3, 1.6e-2 and 3.8e-3."""
    far, _, repeated, of_state = map(float, interpret(FAR))
    assert far < 5e-3 and repeated < 1.1e-2 and of_state < 3.6e-3


@interpreted
def test_rows_of_the_state_may_be_of_any_size():
    """The state meets the transition in fp16, each row by its own size: what is 2^100 times larger gives that, to the bit."""
    interpret("""
        import torch
        torch.set_num_threads(1)
        from tests.kernels import triton_interpreter
        from tests.kernels.test_wkv7_gpu import make_inputs, slow, triton
        x, _, grads = make_inputs(1, 70, 1, 64)
        size, inverse = torch.ones(2, 64)
        size[10:20], inverse[10:20] = 2.0**100, 2.0**-100
        size[20:30], inverse[20:30] = 2.0**-100, 2.0**100
        size[30:32] = inverse[30:32] = 0

        def run(size, inverse):  # of the rows, that is of values: those of the state and of v, and those of the gradients
            leaves = [t.bfloat16() for t in slow(x)[:6]] + [x[6].float()]
            leaves[3], leaves[6] = leaves[3] * size.bfloat16(), leaves[6] * size[:, None]
            leaves = [t.requires_grad_() for t in leaves]
            y, s = triton.wkv7_triton(*leaves, None)
            dv, d_start = torch.autograd.grad([y, s], [leaves[3], leaves[6]], [grads[0].bfloat16() * inverse.bfloat16(), grads[1].float() * inverse[:, None]])
            return y, s, dv, d_start

        (y, s, dv, d_start), got = run(torch.ones(64), torch.ones(64)), run(size, inverse)
        for a, b in zip(got, (y * size, s * size[:, None], dv * inverse, d_start * inverse[:, None]), strict=True):
            assert torch.equal(a.float(), b.float())
    """)


EMULATE = """
    import ctypes
    import functools
    import sys
    import torch
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    from tests.kernels import triton_interpreter
    from tests.kernels.test_wkv7_gpu import both, make_inputs, repeated_keys, slow, worst
    from rwkv.kernels import cuda
    from rwkv.kernels.wkv7 import triton
    library, (name,) = ctypes.CDLL(sys.argv[1]), sys.argv[2:]
    launched = []

    def launch(kernel, blocks, *args):
        launched.append((kernel.name, blocks))
        values, pointers = cuda.arguments(args)
        getattr(library, kernel.name + "_emulated")(ctypes.c_longlong(blocks), kernel.threads, kernel.shared, pointers)

    def errors(x, reset, grads):
        for kernels in ((name,), ()):
            yield worst(*both(functools.partial(triton.wkv7_triton, kernels=kernels), x, reset, grads, torch.bfloat16))

    cuda.Kernel.launch = launch
    sizes = [(1, 70, 1, "mixed", True), (2, 33, 2, "fastest", True), (1, 1, 2, "slowest", False), (1, 64, 1, "slowest", False)]
    for i, (B, T, H, decay, resets) in enumerate(sizes):
        x, reset, grads = make_inputs(B, T, H, 64, decay, resets, seed=i)
        print(*errors(x, reset, grads))
    assert launched == [(name, 3), (name, 8), (name, 2), (name, 2)], launched
    x, reset, grads = make_inputs(1, 48, 1, 64)
    print(*errors(repeated_keys(x), reset, grads))
    x, reset, grads = make_inputs(1, 256, 1, 64)
    print(*errors(slow(x), reset, grads))
    with torch.no_grad():  # without what the backward needs
        triton.wkv7_triton(*[t.bfloat16() for t in x[:6]], x[6].float(), None, kernels=(name,))
"""


@interpreted
@pytest.mark.parametrize("kernel", ["chunk_factors", "gradients"])
@pytest.mark.parametrize("options", [[], ["-DSTORES_8X8"]], ids=["sm_80", "sm_90"])
def test_the_cuda_kernels_emulated(tmp_path, kernel, options):
    """A .cu file, compiled for the CPU: each thread a fiber (emulated/warp.cuh), in the place of Triton's kernel. As exact as that."""
    source, library = tmp_path / "emulated.cpp", tmp_path / "emulated.so"
    source.write_text(f'#include "{ROOT}/rwkv/kernels/wkv7/{kernel}.cu"\nEMULATED({kernel})\n')
    compiler = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", *options, "-include", f"{ROOT}/tests/kernels/emulated/warp.cuh"]
    subprocess.run([*compiler, "-o", str(library), str(source)], check=True)
    out = [float(x) for x in interpret(EMULATE, str(library), kernel)]
    assert len(out) == 12 and all(x < 1.02 * y for x, y in zip(out[::2], out[1::2], strict=True)), out


@interpreted
def test_parts_of_the_gradient_in_the_interpreter():
    """No gradient kept, that of one input only, that of the final state only, and no grad at all agree."""
    interpret("""
        import torch
        from tests.kernels import triton_interpreter
        from tests.kernels.test_wkv7_gpu import make_inputs, other_chain, triton
        wkv7_triton = triton.wkv7_triton
        x, reset, (dy, ds) = make_inputs(1, 20, 1, 16, resets=True)
        x, dy, ds = [t.float().requires_grad_() for t in x], dy.float(), ds.float()
        for triton.plan in (triton.plan, other_chain()):
            y, s = wkv7_triton(*x, reset)
            whole = torch.autograd.grad([y, s], x, [dy, ds], retain_graph=True)
            parts = [torch.autograd.grad(t, x, g, retain_graph=True) for t, g in ((y, dy), (s, ds))]
            for a, b, c in zip(whole, *parts):
                torch.testing.assert_close(a, b + c)
            with torch.no_grad():
                got = wkv7_triton(*x, reset)
            assert torch.equal(got[0], y) and torch.equal(got[1], s) and not got[0].requires_grad
            one = [t.detach() for t in x]
            one[2].requires_grad_()
            assert torch.equal(torch.autograd.grad(wkv7_triton(*one, reset), one[2], [dy, ds])[0], whole[2])
    """)


def interpret(code, *args):
    """The lines that `code` prints in a process whose Triton kernels run in the interpreter."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", textwrap.dedent(code), *args]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_wkv7_does_not_import_triton():
    code = "import sys, rwkv.kernels.wkv7; sys.exit('rwkv.kernels.wkv7.triton_kernels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_reasons(backend):
    assert registry.cannot("wkv7", backend, torch.empty(1, 2, 1, 64)) == "CUDA devices only"
    with pytest.raises(KernelError, match="CUDA devices only"):
        wkv7(*[torch.randn(1, 2, 1, 64)] * 6, backend=backend)


def test_what_is_taken_on_a_cuda_device():
    with dry.on("cuda"):
        taken = {(N, dtype): registry.chosen("wkv7", "auto", torch.empty(1, 20, 1, N, dtype=dtype)) for N in (32, 64, 256) for dtype in BOUNDS}
    assert [kind for kind, name in taken.items() if name == "cuda"] == [(64, torch.bfloat16)]
    assert [N for (N, _), name in taken.items() if name == "chunked"] == [256] * 3


def test_inputs_of_different_kinds_are_refused():
    x, state = [torch.randn(1, 4, 1, 16) for _ in range(6)], torch.zeros(1, 1, 16, 16)
    with pytest.raises(KernelError, match="bfloat16"):
        triton.wkv7_triton(*x[:5], x[5].bfloat16(), state, None)
    with pytest.raises(KernelError, match=r"\[1, 3, 1, 16\]"):
        triton.wkv7_triton(*x[:5], x[5][:, :3], state, None)
    with pytest.raises(KernelError, match="state"):
        triton.wkv7_triton(*x, state.double(), None)
    with pytest.raises(KernelError, match="reset"):
        triton.wkv7_triton(*x, state, torch.zeros(1, 5, dtype=torch.bool))


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("plan", [triton.plan, other_chain()], ids=["planned", "other chain"])
@pytest.mark.parametrize("case", [*cases(), (1, 200, 2, 128, "mixed", True), (2, 300, 3, 64, "mixed", True), (40, 70, 4, 64, "mixed", True)])
def test_outputs_and_gradients(dtype, case, plan, monkeypatch):
    monkeypatch.setattr(triton, "plan", plan)
    B, T, H, N, decay, resets = case
    if reason := registry.cannot("wkv7", "triton", torch.empty(1, 1, 1, N, dtype=dtype, device="cuda")):
        pytest.skip(reason)
    x, reset, grads = make_inputs(B, T, H, N, decay, resets)
    assert worst(*both(on_gpu, x, reset, grads, dtype, "cuda")) < BOUNDS[dtype]


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("case", [*(x for x in cases() if x[3] == 64), (2, 300, 3, 64, "mixed", True), (1, 96, 2, 64, "one key", False)])
def test_cuda_kernels_are_as_exact_as_tritons(case):
    *shape, decay, resets = case
    x, reset, grads = make_inputs(*shape, "mixed" if decay == "one key" else decay, resets)
    x = repeated_keys(x) if decay == "one key" else x
    got = {}
    for kernels in ((), ("chunk_factors",), ("gradients",), ("chunk_factors", "gradients")):
        run = functools.partial(triton.wkv7_triton, kernels=kernels)
        got[kernels], again = (both(run, x, reset, grads, torch.bfloat16, "cuda") for _ in range(2))
        assert all(map(torch.equal, got[kernels][0], again[0]))  # a race would show
    assert all(worst(*x) < 1.03 * worst(*got[()]) for x in got.values()), {k: worst(*x) for k, x in got.items()}


@pytest.mark.gpu
@cuda
def test_repeated_keys():
    x, reset, grads = make_inputs(1, 200, 1, 64)
    assert worst(*both(on_gpu, repeated_keys(x), reset, grads, torch.float32, "cuda")) < BOUNDS[torch.float32]


@pytest.mark.gpu
@cuda
def test_strided_inputs_and_a_subset_of_gradients():
    x, _, (dy, ds) = make_inputs(2, 40, 3, 64)
    x = [t.float().cuda() for t in x]
    want = [torch.zeros(0)]
    for strided in (False, True):
        leaves = [torch.stack([t, t], 2)[:, :, 1] if strided and i < 6 else t.clone() for i, t in enumerate(x)]
        leaves[3].requires_grad_()
        y, s = on_gpu(*leaves)
        got = torch.autograd.grad([y, s], leaves[3], [dy.float().cuda(), ds.float().cuda()])
        want = want if strided else got
    assert torch.equal(got[0], want[0])


@pytest.mark.gpu
@cuda
def test_captured_in_a_graph_on_another_stream():
    x, _, (dy, ds) = make_inputs(1, 100, 2, 64)
    x = [t.to("cuda", torch.bfloat16 if i < 6 else torch.float32).requires_grad_() for i, t in enumerate(x)]
    dy, ds = dy.to("cuda", torch.bfloat16), ds.float().cuda()

    def step():
        return torch.autograd.grad(on_gpu(*x), x, [dy, ds])

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
def test_auto_takes_it():
    taken = [registry.chosen("wkv7", "auto", torch.empty(1, 20, 1, 64, device="cuda", dtype=dtype)) for dtype in (torch.bfloat16, torch.float32)]
    assert taken == ["cuda", "triton"]
    assert "head sizes" in registry.cannot("wkv7", "triton", torch.empty(1, 20, 1, 24, device="cuda"))
