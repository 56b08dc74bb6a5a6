"""WKV-7 on a GPU: errors against fp64, times beside the chunked form and other packages, and the time of each kernel.

    PYTHONPATH=. python3 scripts/bench/wkv7_gpu.py [--write results.json] [--variants [WORD ...]] [--peers FILE.py] [--seconds 150]

flash-linear-attention is timed if it is installed (`fla_peers.py`); others are what `PEERS` of the file given has: names, and functions of
r, w, k, v, a, b, state as `wkv7` takes them, but that w is the logarithm of the decay, to y and state.
Every measurement stands alone: one that fails prints its error, and those that would begin after --seconds are left out.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import json
import runpy
import statistics
import subprocess
import sys
import time

import fla_peers
import torch

from rwkv.kernels import cuda, gpu
from rwkv.kernels.wkv7 import triton as backend
from rwkv.kernels.wkv7.chunked import wkv7_chunked

N = 64
SHAPES = [(8, 4096, 12), (1, 4096, 12), (8, 4096, 32), (1, 4096, 32), (1, 16384, 64), (8, 4096, 64), (1, 65536, 32)]  # B, T, H
NAMES = ["y", "S", "dr", "dw", "dk", "dv", "da", "db", "dS0"]
START = time.perf_counter()

# name: dtype, T, decay, resets, and B, H if not 2, 2, and changes to the plan (`kernels` that are CUDA's, and fields of `Plan`)
CHECKS = {
    "bf16": (torch.bfloat16, 4096, "mixed", False),
    "bf16 resets, T=1000": (torch.bfloat16, 1000, "mixed", True),
    "bf16 fast decay": (torch.bfloat16, 4096, "fast", False),
    "bf16 slow decay": (torch.bfloat16, 4096, "slow", False),
    "bf16 slow decay, T=65536": (torch.bfloat16, 65536, "slow", False, 1, 1),
    "bf16 one key": (torch.bfloat16, 4096, "one key", False),
    "bf16, none that is CUDA's": (torch.bfloat16, 4096, "mixed", False, 2, 2, {"kernels": (), "fused_chain": (False, False)}),
    "bf16 T=1": (torch.bfloat16, 1, "mixed", False),
    "bf16 B=50 H=4 T=500": (torch.bfloat16, 500, "mixed", True, 50, 4),
    "fp32": (torch.float32, 4096, "mixed", False),
    "fp32 resets, T=1000": (torch.float32, 1000, "mixed", True),
    "fp32 one key": (torch.float32, 4096, "one key", False),
    "fp16": (torch.float16, 4096, "mixed", False),
}

# changes to the plan, tried on VARIANT_SHAPES, a fused chain on all; each is compiled in a process of its own beforehand
VARIANTS = {
    "as planned": {},
    "none that is CUDA's": {"kernels": ()},
    "chain by itself": {"fused_chain": (False, False)},
    "fused chain 16 rows": {"fused_chain": (True, True), "rows": 16, "chain": (16, 4)},
    "fused chain 32 rows": {"fused_chain": (True, True), "rows": 32, "chain": (16, 3)},
    "fused chain 32 rows of one warp": {"fused_chain": (True, True), "rows": 32, "chain": (32, 3)},
    "fused chain 64 rows": {"fused_chain": (True, True), "rows": 64, "chain": (16, 3)},
    "fused chain 64 rows, 2 stages": {"fused_chain": (True, True), "rows": 64, "chain": (16, 2)},
    "4 warps, any registers": {"kernels": (), "factors": (4, None), "gradients": (4, None)},
    "4 warps, 128 registers": {"kernels": (), "factors": (4, 128), "gradients": (4, 128), "small": (2, None)},
    "8 warps, 128 registers": {"kernels": (), "factors": (8, 128), "gradients": (8, 128), "small": (8, None)},
    "8 warps, 80 registers": {"kernels": (), "factors": (8, 80), "gradients": (8, 80), "small": (1, None)},
    "2 warps": {"kernels": (), "factors": (2, None), "gradients": (2, None), "rows": 16, "chain": (16, 3)},
    "chunk 64, 4 warps": {"kernels": (), "chunk": 64, "factors": (4, None), "gradients": (4, None), "rows": 32},
    "chunk 64, 8 warps": {"kernels": (), "chunk": 64, "factors": (8, None), "gradients": (8, None), "small": (8, None), "rows": 16},
    "chunk 64, 8 warps, 128 registers": {"kernels": (), "chunk": 64, "factors": (8, 128), "gradients": (8, 128), "rows": 64},
    "chunk 16, 4 warps, 128 registers": {"kernels": (), "chunk": 16, "factors": (4, 128), "gradients": (4, 128)},
    "chunk 16, 2 warps": {"kernels": (), "chunk": 16, "factors": (2, None), "gradients": (2, None)},
    "chain 16 rows, 6 stages": {"rows": 16, "chain": (16, 6)},
    "chain 32 rows, 3 stages": {"rows": 32, "chain": (16, 3)},
    "chain 32 rows of one warp": {"rows": 32, "chain": (32, 4)},
    "chain 64 rows": {"rows": 64, "chain": (16, 3)},
    "recompute": {"recompute": True},
}
VARIANT_SHAPES = [(8, 4096, 32), (1, 4096, 12)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", help="a JSON file for the results")
    parser.add_argument("--variants", nargs="*", metavar="WORD", help="try other plans too: all, or those with a WORD in their names")
    parser.add_argument("--peers", metavar="FILE", help="a Python file with other packages' kernels as PEERS")
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--warm", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.warm is not None:
        return warm(args.warm)
    if not torch.cuda.is_available():
        sys.exit("needs a CUDA device")
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, CUDA {torch.version.cuda}, {datetime.date.today()}", flush=True)
    results = {"device": device, "date": str(datetime.date.today()), "torch": torch.__version__}
    words = [""] if args.variants == [] else args.variants or []
    variants = {name: changes for name, changes in VARIANTS.items() if any(word in name for word in words)}
    compile_ahead({"as planned": {}} | variants)
    results["errors"] = section("errors", CHECKS.items(), check, args.seconds)
    results["ms"] = section("ms", [(str(s), s) for s in SHAPES], speed, args.seconds)
    results["kernels"] = section("kernels", [(str(s), (s, {})) for s in SHAPES], kernels, args.seconds)
    if variants:
        tried = [(s, v) for s in SHAPES for v, changes in variants.items() if s in VARIANT_SHAPES or "fused_chain" in changes]
        todo = [(f"{v}, {s}", (s, variants[v])) for s, v in tried]
        results["variants"] = section("variants", todo, kernels, args.seconds)
    fla_peers.compile_ahead(["wkv7"])
    others = fla_peers.forms("wkv7") | (runpy.run_path(args.peers)["PEERS"] if args.peers else {})
    if others:
        results["peers"] = section("peers", [(f"{name}, {s}", (fn, s)) for s in SHAPES for name, fn in others.items()], peer, args.seconds)
    print(f"{time.perf_counter() - START:.0f} s")
    if args.write:
        with open(args.write, "w") as f:
            json.dump(results, f, indent=1)


def section(title, todo, measure, seconds):
    """Measures one after the other and prints a row for each."""
    out = {}
    print(f"\n{title}: {HEADERS[title]}")
    for name, what in todo:
        if time.perf_counter() - START > seconds:
            print(f"  {name:42} left out: no time")
            continue
        try:
            out[name] = measure(*what)
            cells = "  ".join(f"{k} {v:.3g}" for k, v in out[name].items())
        except Exception as e:  # a kernel that fails must not hide the others
            out[name] = {"failed": f"{type(e).__name__}: {e}"[:300]}
            cells = out[name]["failed"]
        print(f"  {name:42} {cells}", flush=True)
        torch.cuda.empty_cache()
    return out


HEADERS = {
    "errors": "relative L2 distance to the chunked form in fp64",
    "ms": "bf16, median milliseconds: forward, forward + backward, the same replayed as a CUDA graph, the chunked form",
    "peers": "as ms, of other packages",
    "kernels": "milliseconds of each kernel alone, bf16; the two of the chain are forward and backward",
    "variants": "the same with other plans",
}


def check(dtype, T, decay, resets, B=2, H=2, changes={}):
    """The worst first; NaN where a result was not written; `moved` if a second run differs, as a race makes it."""
    x, reset, (dy, ds) = make_inputs(B, T, H, decay, resets, dtype)
    torch.use_deterministic_algorithms(True, warn_only=True)  # what torch.empty gives is then NaN
    try:
        with changed_plan(changes):
            got, again = (grads(form(dtype, changes), x, reset, dy, ds) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    want = grads(wkv7_chunked, [t.double() for t in x], reset, dy.double(), ds.double())
    pairs = zip(NAMES, got, want, strict=True)
    errors = {n: ((a.double() - b).norm() / b.norm()).item() for n, a, b in pairs}
    moved = {} if all(map(torch.equal, got, again)) else {"moved": 1.0}
    return {"worst": max(errors.values(), key=lambda e: float("inf") if e != e else e)} | moved | errors


def form(dtype, changes):
    return functools.partial(backend.wkv7_triton, kernels=changes.get("kernels", backend.KERNELS) if dtype == torch.bfloat16 else ())


def grads(fn, x, reset, dy, ds):
    x = [t.detach().requires_grad_() for t in x]
    y, s = fn(*x, reset)
    return y.detach(), s.detach(), *torch.autograd.grad([y, s], x, [dy, ds.to(s.dtype)])


def make_inputs(B, T, H, decay="mixed", resets=False, dtype=torch.bfloat16):
    gen = torch.Generator("cuda").manual_seed(B * T + H)
    rand = lambda *s: torch.randn(*s, generator=gen, device="cuda")  # noqa: E731
    kk = torch.nn.functional.normalize(rand(B, T, H, N), dim=-1)
    gate = torch.rand(B, T, H, N, generator=gen, device="cuda")
    w = torch.rand(B, T, H, N, generator=gen, device="cuda") * 8 - 6
    if decay in ("fast", "slow"):
        w = torch.full_like(w, 6.0 if decay == "fast" else -8.0)
    if decay == "one key":
        kk, gate, w = kk[:, :1].expand_as(kk).contiguous(), torch.ones_like(gate), torch.full_like(w, -8.0)
    x = [t.to(dtype) for t in (rand(B, T, H, N), w, rand(B, T, H, N), rand(B, T, H, N), -kk, kk * gate)]
    reset = torch.rand(B, T, generator=gen, device="cuda") < 0.02 if resets else None
    return [*x, rand(B, H, N, N)], reset, (rand(B, T, H, N).to(dtype), rand(B, H, N, N))


def speed(B, T, H):
    x, _, (dy, ds) = make_inputs(B, T, H)
    out = times(backend.wkv7_cuda, x, dy, ds)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    grads(backend.wkv7_cuda, x, None, dy, ds)
    out["peak MB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    if B * T * H <= 2**19:  # larger ones do not fit, or take seconds
        out["chunked"] = median_ms(lambda: grads(wkv7_chunked, x, None, dy, ds), most=5)
        out["ratio"] = out["chunked"] / out["fwd+bwd"]
    return out


def peer(fn, shape):
    """As `speed`. All get the logarithm of a decay in place of w."""
    x, _, (dy, ds) = make_inputs(*shape)
    x[1] = fla_peers.LOG_DECAY_SCALE * torch.sigmoid(x[1])
    return times(lambda *args: fn(*args[:-1]), x, dy, ds)


def times(fn, x, dy, ds):
    """Milliseconds: forward, forward and backward, the same as a CUDA graph where it can be one."""
    both = lambda: grads(fn, x, None, dy, ds)  # noqa: E731
    out = {"fwd": median_ms(lambda: fn(*x, None)), "fwd+bwd": median_ms(both)}
    with contextlib.suppress(RuntimeError):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            both()
        out["graph"] = median_ms(graph.replay)
    return out


def median_ms(fn, most=30):
    """Median of up to `most` runs, in about 0.3 s."""
    for _ in range(2):
        fn()
    torch.cuda.synchronize()
    start, times = time.perf_counter(), []
    while len(times) < most and (len(times) < 3 or time.perf_counter() - start < 0.3):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        fn()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b))
    return statistics.median(times)


def kernels(shape, changes):
    """Each launch of one forward and backward, repeated between two events."""
    x, _, (dy, ds) = make_inputs(*shape)
    out = {}

    def timed(op, name, programs, *args, **constants):
        run = lambda: launch(op, name, programs, *args, **constants)  # noqa: E731
        run()
        label = name + "'" if constants.get("REVERSE") else name
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):  # so that what is timed is the GPU, not the launching
                for _ in range(5):
                    run()
            out[label] = median_ms(graph.replay, most=7) / 5
        except RuntimeError:
            out[label] = median_ms(run, most=15)

    def timed_cuda(kernel, programs, *args):
        timed(None, kernel.name, programs, kernel, *args)

    def launch(op, name, programs, *args, **constants):
        return triton_launch(op, name, programs, *args, **constants) if op else cuda_launch(args[0], programs, *args[1:])

    triton_launch, gpu.launch, cuda_launch, cuda.Kernel.launch = gpu.launch, timed, cuda.Kernel.launch, timed_cuda
    try:
        with changed_plan(changes):
            # straight to the two halves: autograd's own thread would capture on another stream
            names = changes.get("kernels", backend.KERNELS)
            y, s, kept = backend._forward(x[:6], x[6], None, names, keep=True)
            backend._backward(kept, dy, ds, names)
    finally:
        gpu.launch, cuda.Kernel.launch = triton_launch, cuda_launch
    return {"sum": sum(out.values())} | out


@contextlib.contextmanager
def changed_plan(changes):
    plan = backend.plan
    backend.plan = lambda r: dataclasses.replace(plan(r), **{name: x for name, x in changes.items() if name != "kernels"})
    try:
        yield
    finally:
        backend.plan = plan


def compile_ahead(variants):
    """Fills Triton's cache on all cores at once: the kernels of one plan take seconds to compile."""
    names = [*variants, "fp32", "fp16", "resets", "fp32 resets"]
    start = time.perf_counter()
    command = [sys.executable, __file__, "--warm"]
    running = {n: subprocess.Popen([*command, n], stderr=subprocess.PIPE, text=True) for n in names}
    for name, process in running.items():
        try:
            _, err = process.communicate(timeout=max(1, 60 - (time.perf_counter() - start)))
            if process.returncode:
                print(f"  compiling {name}: {(err.strip().splitlines() or ['failed'])[-1][:300]}")
        except subprocess.TimeoutExpired:
            process.kill()
            print(f"  compiling {name}: not ready in time")
    print(f"compiled in {time.perf_counter() - start:.0f} s", flush=True)


def warm(name):
    dtype = torch.float32 if "fp32" in name else torch.float16 if "fp16" in name else torch.bfloat16
    run = form(dtype, VARIANTS.get(name, {}))
    with changed_plan(VARIANTS.get(name, {})):
        for B in (1, 20, 200):  # the plan differs
            x, reset, (dy, ds) = make_inputs(B, 20, 1, "mixed", "resets" in name, dtype)
            grads(run, x, reset, dy, ds)
    if name not in VARIANTS or name == "as planned":
        run(*x, reset)  # without a gradient
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
