"""WKV-4, WKV-5 and WKV-6 in Triton on a GPU: errors against fp64, times beside the chunked form and flash-linear-attention.

    PYTHONPATH=. python3 scripts/bench/wkv456_gpu.py [--write TABLE.md] [--parts times,errors,kernels,variants]

flash-linear-attention is timed if it is installed (`fla_peers.py`), WKV-5 by its WKV-6.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import statistics
import sys
import time
from pathlib import Path

import fla_peers
import torch

from rwkv.kernels.wkv4 import triton as triton4
from rwkv.kernels.wkv4 import wkv4
from rwkv.kernels.wkv5 import wkv5
from rwkv.kernels.wkv6 import triton as triton6
from rwkv.kernels.wkv6 import wkv6

N = 64
SHAPES = [(8, 4096, 12), (8, 4096, 32), (1, 16384, 64)]  # B, T, H
OPS = {"wkv4": wkv4, "wkv5": wkv5, "wkv6": wkv6}
CHECKS = {  # dtype, T, range of the raw decay, resets
    "bf16": (torch.bfloat16, 4096, (-6, 1), False),
    "bf16, resets, T = 1000": (torch.bfloat16, 1000, (-6, 1), True),
    "bf16, slow": (torch.bfloat16, 4096, (-8, -8), False),
    "bf16, fast": (torch.bfloat16, 4096, (3, 3), False),
    "bf16, far apart": (torch.bfloat16, 4096, (-20, 5), False),
    "fp32": (torch.float32, 4096, (-6, 1), False),
    "fp32, far apart, resets": (torch.float32, 1000, (-20, 5), True),
}
VARIANTS = {
    "as planned": {}, "gradients 2 warps": {"gradients": 2}, "gradients 8 warps": {"gradients": 8},
    "outputs 2 warps": {"outputs": 2}, "outputs 8 warps": {"outputs": 8}, "states 2 warps": {"states": 2}, "states 8 warps": {"states": 8},
    "chain 4 rows": {"chain": (4, 1, 4)}, "chain 16 rows, 2 warps": {"chain": (16, 2, 4)}, "chain, 8 ahead": {"chain": (8, 1, 8)},
    "chunk 16": {"chunk": 16, "gradients": 4}, "chunk 16, 2 warps": {"chunk": 16, "gradients": 2, "outputs": 2, "states": 2},
    "chunk 16, 1 warp": {"chunk": 16, "gradients": 1, "outputs": 1, "states": 1},
}  # fmt: skip
NAMES = "chunk_states chain outputs gradients chunk_ends backward_ends backward_chain".split()
WKV4_VARIANTS = [(64, 128, 2), (32, 128, 2), (128, 128, 2), (64, 64, 1), (64, 128, 4), (64, 256, 4), (64, 128, 1)]  # tokens, channels, warps


def make_inputs(op, B, T, H, dtype=torch.bfloat16, decay=(-6, 1), resets=False):
    """What the op takes, reset, and gradients of y and of the final state."""
    gen = torch.Generator("cuda").manual_seed(B * T + H)
    rand = lambda *s: torch.randn(*s, generator=gen, device="cuda")  # noqa: E731
    lo, hi = decay
    spread = lambda *s: lo + (hi - lo) * torch.rand(*s, generator=gen, device="cuda")  # noqa: E731
    reset = torch.rand(B, T, generator=gen, device="cuda") < 0.02 if resets else None
    if op == "wkv4":
        C = H * N
        state = torch.stack([rand(B, C), rand(B, C).abs() + 0.1, rand(B, C)], 1)
        x = [spread(C), rand(C), 2 * rand(B, T, C), rand(B, T, C), state]
        return [t.to(dtype if t.dim() == 3 and t is not state else torch.float32) for t in x], reset, (rand(B, T, C).to(dtype), rand(B, 2, C))
    w = spread(B, T, H, N) if op == "wkv6" else spread(H, N)
    x = [rand(B, T, H, N), w, rand(B, T, H, N), rand(B, T, H, N), rand(H, N)]
    return [*(t.to(dtype if t.dim() == 4 else torch.float32) for t in x), rand(B, H, N, N)], reset, (rand(B, T, H, N).to(dtype), rand(B, H, N, N))


def run(fn, x, reset, grads):
    """Results and gradients; of WKV-4's state the sums alone, which pp scales."""
    x = [t.detach().requires_grad_() for t in x]
    y, s = fn(*x, reset)
    dy, ds = grads
    s = s[:, : ds.shape[1]]
    return y.detach(), s.detach(), *torch.autograd.grad([y, s], x, [dy, ds])


def errors(op, dtype, T, decay, resets):
    """The relative L2 distances to the chunked form in fp64, the worst first."""
    x, reset, grads = make_inputs(op, 2, T, 2, dtype, decay, resets)

    def plain_sums(backend, *args):
        y, s = OPS[op](*args, backend=backend)
        return (y, s[:, :2] * torch.exp(s[:, 2:])) if op == "wkv4" else (y, s)

    torch.use_deterministic_algorithms(True, warn_only=True)  # what torch.empty gives is then NaN
    got, again = (run(functools.partial(plain_sums, "triton"), x, reset, grads) for _ in range(2))
    torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, got, again)), f"{op}: two runs differ"
    want = run(functools.partial(plain_sums, "chunked"), [t.double() for t in x], reset, [g.double() for g in grads])
    names = ["y", "state", *(f"d{n}" for n in ("wukv" if op == "wkv4" else "rwkvu")), "dstate"]
    found = {}
    for name, a, b in zip(names, got, want, strict=True):
        a, b = (t[:, :2].double() if op == "wkv4" and name == "dstate" else t.double() for t in (a, b))
        found[name] = ((a - b).norm() / b.norm().clamp_min(1e-30)).item()
    worst = max(found, key=lambda n: float("inf") if found[n] != found[n] else found[n])
    return found[worst], worst, found


def times(op, shape, peers=True):
    """Median milliseconds of forward and backward."""
    x, _, grads = make_inputs(op, *shape)
    out = {}
    forms = {"triton": functools.partial(OPS[op], backend="triton"), "chunked": functools.partial(OPS[op], backend="chunked")}
    if peers:
        forms |= fla_peers.forms(op)
    for name, fn in forms.items():
        try:
            out[name] = median_ms(lambda fn=fn: run(fn, x, None, grads), most=5 if name == "chunked" else 20)
            if name != "chunked":
                out[f"{name} forward"] = median_ms(lambda fn=fn: fn(*x, None))
        except Exception as e:  # one that fails, or has no room, must not hide the others
            out[name] = f"{type(e).__name__}: {e}".splitlines()[0][:150]
        torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(forms["triton"], x, None, grads)
    out["MB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return out


def median_ms(fn, most=20):
    """Median of up to `most` runs, in about 0.3 s."""
    for _ in range(2):
        fn()
    torch.cuda.synchronize()
    start, found = time.perf_counter(), []
    while len(found) < most and (len(found) < 3 or time.perf_counter() - start < 0.3):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        fn()
        b.record()
        b.synchronize()
        found.append(a.elapsed_time(b))
    return statistics.median(found)


def kernels(op, shape):
    """Milliseconds of each launch of one forward and backward."""
    x, _, grads = make_inputs(op, *shape)
    fn = functools.partial(OPS[op], backend="triton")
    run(fn, x, None, grads)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(fn, x, None, grads)
        torch.cuda.synchronize()
    return {e.key: e.device_time_total / 1000 for e in profile.key_averages() if e.device_time_total > 5 and e.key in NAMES}


@contextlib.contextmanager
def changed_plan(changes):
    plan = triton6.plan
    triton6.plan = lambda r: dataclasses.replace(plan(r), **changes)
    try:
        yield
    finally:
        triton6.plan = plan


def show(cells):
    return "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in cells.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="a table of times and errors")
    parser.add_argument("--parts", default="times,errors", help="of times, errors, kernels (the time of each), variants (of the plan)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("needs a CUDA device")
    if "times" in args.parts:
        fla_peers.compile_ahead(["wkv4", "wkv6"])
    parts = {name: part for name, part in PARTS.items() if name in args.parts.split(",")}
    lines = [line for part in parts.values() for line in part()]
    if args.write:
        args.write.write_text("\n".join(lines) + "\n")


def time_table():
    date = datetime.date.today()
    yield from [
        "# WKV-4, WKV-5 and WKV-6 on one GPU", "",
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {date.day} {date:%B %Y}; written by `scripts/bench/wkv456_gpu.py`, whose head says how.",
        "bf16, forward + backward with first and final state and the gradients of both, heads of 64; median milliseconds (forward alone).", "",
        "| op | B, T, H | Triton | chunked PyTorch | flash-linear-attention | times as fast as these | peak MB |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for op in OPS:
        for shape in SHAPES:
            t = times(op, shape)
            print(op, shape, show(t), flush=True)
            cells = [cell(t, name) for name in ("triton", "chunked", "fla")]
            ratios = [f"{t[n] / t['triton']:.1f}" if isinstance(t.get(n), float) and isinstance(t["triton"], float) else "-" for n in ("chunked", "fla")]
            yield f"| {op} | {', '.join(map(str, shape))} | {' | '.join(cells)} | {', '.join(ratios)} | {t['MB']:,.0f} |"


def cell(t, name):
    forward = f" ({t[f'{name} forward']:.2f})" if f"{name} forward" in t else ""
    return f"{t[name]:.2f}{forward}" if isinstance(t.get(name), float) else "-"


def error_table():
    yield from ["", "Largest relative L2 distance of outputs and gradients to fp64, from the same rounded inputs; two runs were equal to the bit.", ""]
    yield from [f"| 2 rows, 2 heads, T = 4096 | {' | '.join(OPS)} |", "|---|---|---|---|"]
    for name, check in CHECKS.items():
        found = {op: errors(op, *check) for op in OPS}
        print(name, *(f"{op} {w} {e:.2e} [{' '.join(f'{x:.0e}' for x in all_.values())}] " for op, (e, w, all_) in found.items()), flush=True)
        yield f"| {name} | {' | '.join(f'{e:.1e} ({w})' for e, w, _ in found.values())} |"


def kernel_times():
    for op in OPS:
        for shape in SHAPES:
            print(op, shape, show(kernels(op, shape)), flush=True)
    return []


def variants():
    for shape in ((8, 4096, 32), (1, 16384, 64)):
        for name, changes in VARIANTS.items():
            with changed_plan(changes):
                print("wkv6", shape, name, show(kernels("wkv6", shape)), flush=True)
        for sizes in WKV4_VARIANTS:
            triton4.CHUNK, triton4.CHANNELS, triton4.WARPS = sizes
            print("wkv4", shape, sizes, show(kernels("wkv4", shape)), flush=True)
    return []


PARTS = {"times": time_table, "errors": error_table, "kernels": kernel_times, "variants": variants}


if __name__ == "__main__":
    main()
