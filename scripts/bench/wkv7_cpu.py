"""Speed of the WKV-7 backends on the CPU, forward and backward in fp32 at head size 64, interleaved in one run.

    python scripts/bench/wkv7_cpu.py [--threads 1] [--seconds 12]
"""

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch

from rwkv.kernels import registry
from rwkv.kernels.wkv7 import wkv7

SHAPES = [(1, 1024, 4), (8, 256, 2), (4, 1024, 12)]  # B, T, H
N = 64
LOOP_LIMIT = 8192  # token-heads above which the loop over tokens takes too long to be measured here


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=12, help="for each shape")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{cpu_name()}, {args.threads} thread(s), torch {torch.__version__}; token-heads/s: median (best)")
    for shape in SHAPES:
        measure(shape, args.seconds)
    single_token()


def measure(shape, seconds):
    B, T, H = shape
    backends = [b for b in ("reference", "chunked", "cpu") if b != "reference" or B * T * H <= LOOP_LIMIT]
    inputs, dy = make_inputs(B, T, H)
    reasons = {b: registry.cannot("wkv7", b, dy) for b in backends}
    times = {b: [] for b in backends if reasons[b] is None}
    for b in times:
        step(b, inputs, dy)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times["chunked"]) < 3:
        for b, taken in times.items():
            for _ in range(1 if b == "reference" else 3):
                taken.append(step(b, inputs, dy))
    print(f"B={B} T={T} H={H}")
    base = statistics.median(times["chunked"])
    for b in backends:
        if reasons[b]:
            print(f"  {b:10} {reasons[b]}")
            continue
        middle, best = statistics.median(times[b]), min(times[b])
        rates = f"{B * T * H / middle:10,.0f} ({B * T * H / best:,.0f})"
        print(f"  {b:10} {rates:24} {base / middle:6.2f} x chunked   {len(times[b])} runs")


def make_inputs(B, T, H):
    torch.manual_seed(0)
    kk = torch.nn.functional.normalize(torch.randn(B, T, H, N), dim=-1)
    inputs = [torch.randn(B, T, H, N), torch.rand(B, T, H, N) * 8 - 6, torch.randn(B, T, H, N), torch.randn(B, T, H, N)]
    inputs += [-kk, kk * torch.rand(B, T, H, N)]
    return [x.requires_grad_() for x in inputs], torch.randn(B, T, H, N)


def step(backend, inputs, dy) -> float:
    start = time.perf_counter()
    y, _ = wkv7(*inputs, backend=backend)
    torch.autograd.grad(y, inputs, dy)
    return time.perf_counter() - start


def single_token():
    """Microseconds for one token without gradient, as in sampling."""
    print("one token, no gradient, microseconds a call: median")
    for B, H in ((1, 4), (1, 12), (8, 12)):
        inputs, dy = make_inputs(B, 1, H)
        inputs = [x.detach() for x in inputs]
        state = torch.randn(B, H, N, N)
        line = []
        for b in registry.names("wkv7"):
            if registry.cannot("wkv7", b, dy):
                continue
            taken = []
            for _ in range(100):
                start = time.perf_counter()
                wkv7(*inputs, state, backend=b)
                taken.append(time.perf_counter() - start)
            line.append(f"{b} {statistics.median(taken) * 1e6:.0f}")
        print(f"  B={B} H={H}: " + ", ".join(line))


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
