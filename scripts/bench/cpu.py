"""What training on a CPU is made of, one core unless said otherwise; everything compared is interleaved in one run.

    python scripts/bench/cpu.py [--seconds 10]       writes results/cpu.md
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rwkv import compile_cpp  # noqa: E402
from rwkv.kernels import registry  # noqa: E402
from rwkv.kernels.wkv4 import wkv4  # noqa: E402
from rwkv.kernels.wkv5 import wkv5  # noqa: E402
from rwkv.kernels.wkv6 import wkv6  # noqa: E402
from rwkv.kernels.wkv7 import wkv7  # noqa: E402
from rwkv.model.loss import LossModel, linear_cross_entropy  # noqa: E402
from rwkv.model.rwkv import GENERATIONS, RWKV  # noqa: E402
from rwkv.model.size import Size  # noqa: E402
from rwkv.model.state import State  # noqa: E402
from rwkv.training.environment import device_name  # noqa: E402
from rwkv.training.optimizer import Optimizer  # noqa: E402

OPS = {"wkv4": wkv4, "wkv5": wkv5, "wkv6": wkv6, "wkv7": wkv7}
N = 64
SHAPES = [(1, 1024, 4), (8, 128, 2), (4, 1024, 12)]  # B, T, H


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="for each comparison")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    lines = [
        "# Training on a CPU",
        "",
        f"{device_name()} of {os.cpu_count()} cores, torch {torch.__version__}, {time.strftime('%d %B %Y')}; written by `scripts/bench/cpu.py`.",
        f"Medians (best in brackets). Busy processes beside this one at the start: {os.getloadavg()[0]:.1f}, so ratios count, not rates.",
        *section("Compile time of the kernels", compile_times()),
        *section("WKV, forward and backward, fp32, head size 64: thousand token-heads a second", kernels(seconds)),
        *section("WKV-7 over loops over tokens, (1, 1024, 4)", loops()),
        *section("Compiled kernels on two threads over one, (4, 1024, 12)", two_threads(seconds)),
        *section("Largest relative error of outputs and gradients against fp64, (1, 512, 2)", errors()),
        *section("Head and cross-entropy, forward and backward, 1024 tokens, width 256, vocabulary 65536", cross_entropy(seconds)),
        *section("Whole training step (AdamW, clipping), 6 x 256, 4 rows of 256 tokens, over its matrix products alone", steps(seconds)),
    ]
    (ROOT / "scripts/bench/results/cpu.md").write_text("\n".join(lines) + "\n")


def section(title: str, rows: list[list]) -> list[str]:
    """A table with its title above, also shown."""
    table = ["", f"## {title}", "", *("| " + " | ".join(map(str, row)) + " |" for row in rows)]
    table.insert(4, "|" + "---|" * len(rows[0]))
    print("\n".join(table), flush=True)
    return table


def compare(runs: dict[str, Callable], seconds: float, least: int = 5) -> dict[str, list[float]]:
    """Seconds of each, in turn until the time is up."""
    times = {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def compile_times() -> list[list]:
    rows = [["kernel", "seconds"]]
    for op in ("wkv4", "wkv6", "wkv7"):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder
            start = time.perf_counter()
            compile_cpp.compile_cpp(ROOT / f"rwkv/kernels/{op}/cpu.cpp")
            rows.append([op + (" (and wkv5)" if op == "wkv6" else ""), f"{time.perf_counter() - start:.1f}"])
            del os.environ["XDG_CACHE_HOME"]
    return rows


def make_inputs(op: str, B: int, T: int, H: int, decay=(-6.0, 2.0), dtype=torch.float32):
    """Inputs that require gradients, the initial state last, and gradients of outputs and final state; numbers of fp32."""
    torch.manual_seed(0)
    rand = lambda *s: torch.randn(*s).to(dtype)  # noqa: E731
    spread = lambda *s: (decay[0] + (decay[1] - decay[0]) * torch.rand(*s)).to(dtype)  # noqa: E731
    if op == "wkv4":
        C = H * N
        state = torch.stack([rand(B, C), rand(B, C).abs() + 0.5, rand(B, C)], 1)
        x, grads = [spread(C), rand(C), rand(B, T, C), rand(B, T, C), state], (rand(B, T, C), rand(B, 3, C))
        grads[1][:, 2] = 0  # the exponent's
    else:
        heads = B, T, H, N
        kk = torch.nn.functional.normalize(torch.randn(*heads), dim=-1).to(dtype)
        rest = [-kk, (kk * torch.rand(*heads)).to(dtype)] if op == "wkv7" else [rand(H, N)]
        x = [rand(*heads), spread(H, N) if op == "wkv5" else spread(*heads), rand(*heads), rand(*heads), *rest, rand(B, H, N, N)]
        grads = rand(*heads), rand(B, H, N, N)
    return [t.requires_grad_() for t in x], grads


def both_ways(op: str, backend: str, x, grads):
    y, s = OPS[op](*x, backend=backend)
    return y, s, *torch.autograd.grad((y, s), x, grads)


def kernels(seconds: float) -> list[list]:
    rows = [["B, T, H", "op", "chunked", "cpu", "ratio", "token-head, us: forward", "backward"]]
    for shape in SHAPES:
        B, T, H = shape
        for op in OPS:
            x, grads = make_inputs(op, *shape)
            times = compare({b: lambda b=b, op=op, x=x, g=grads: both_ways(op, b, x, g) for b in ("chunked", "cpu")}, seconds / 2)
            times |= compare({"forward": lambda op=op, x=x: OPS[op](*x, backend="cpu")}, 1)
            middle = {name: statistics.median(t) for name, t in times.items()}
            rate = [f"{B * T * H / middle[b] / 1e3:,.0f} ({B * T * H / min(times[b]) / 1e3:,.0f})" for b in ("chunked", "cpu")]
            micro = [s / (B * T * H) * 1e6 for s in (middle["forward"], middle["cpu"] - middle["forward"])]
            rows.append([shape, op, *rate, f"{middle['chunked'] / middle['cpu']:.1f}", *(f"{m:.2f}" for m in micro)])
    return rows


def indexing_loop(r, w, k, v, a, b, S):
    """The recurrence as one writes it down first: token t of every tensor by index."""
    ys = []
    for t in range(r.shape[1]):
        decay = torch.exp(-0.6065306597126334 * torch.sigmoid(w[:, t]))
        sa = (S @ a[:, t].unsqueeze(-1)) @ b[:, t].unsqueeze(-2)
        S = S * decay.unsqueeze(-2) + sa + v[:, t].unsqueeze(-1) @ k[:, t].unsqueeze(-2)
        ys.append((S @ r[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(ys, 1), S


def loops() -> list[list]:
    x, grads = make_inputs("wkv7", 1, 1024, 4)
    runs = {b: lambda b=b: both_ways("wkv7", b, x, grads) for b in ("cpu", "chunked", "reference")}
    runs["index"] = lambda: torch.autograd.grad(indexing_loop(*x), x, grads)
    middle = {name: statistics.median(t) for name, t in compare(runs, 0, least=5).items()}
    names = {"reference": "loop over unbind", "index": "loop by index", "chunked": "chunked"}
    return [["", "the compiled kernel is faster by"], *([title, f"{middle[name] / middle['cpu']:.0f}"] for name, title in names.items())]


def two_threads(seconds: float) -> list[list]:
    rows = [["op", "faster by", "best over best"]]
    for op in OPS:
        x, grads = make_inputs(op, 4, 1024, 12)

        def run(threads, op=op, x=x, grads=grads):
            torch.set_num_threads(threads)
            both_ways(op, "cpu", x, grads)

        times = compare({"1": lambda run=run: run(1), "2": lambda run=run: run(2)}, seconds)
        torch.set_num_threads(1)
        rows.append([op, f"{statistics.median(times['1']) / statistics.median(times['2']):.2f}", f"{min(times['1']) / min(times['2']):.2f}"])
    return rows


def errors() -> list[list]:
    decays = {"none": (-100.0, -100.0), "slow": (-7.0, -7.0), "mixed": (-6.0, 2.0), "fast": (3.0, 4.0), "at once": (10.0, 10.0)}
    rows = [["op", *decays]]
    for op in OPS:
        row = [op]
        for decay in decays.values():
            x, grads = make_inputs(op, 1, 512, 2, decay)
            exact = [t.detach().double().requires_grad_() for t in x]
            want = both_ways(op, "reference", exact, [g.double() for g in grads])
            got = both_ways(op, "cpu", x, grads)
            pairs = [(g.detach(), w.detach()) for g, w in zip(got, want, strict=True)]
            if op == "wkv4":  # states of different exponents
                pairs[1] = tuple(s[:, :2].double() * torch.exp(s[:, 2:].double()) for s in pairs[1])
            row.append(f"{max(((g.double() - w).norm() / w.norm().clamp_min(1e-30)).item() for g, w in pairs):.1e}")
        rows.append(row)
    return rows


def product_rate(m: int, k: int, n: int) -> tuple[Callable, float]:
    """A product of matrices, and its floating-point operations."""
    a, b = torch.randn(m, k), torch.randn(k, n)
    return lambda: torch.mm(a, b), 2.0 * m * k * n


def cross_entropy(seconds: float) -> list[list]:
    n, C, V = 1024, 256, 65536
    hidden, head = torch.randn(n, C, requires_grad=True), (torch.randn(V, C) * 0.05).requires_grad_()
    targets, weight = torch.randint(V, (n,)), torch.full((n,), 1 / n)

    def ours():
        torch.autograd.grad(linear_cross_entropy(hidden, head, targets, weight), (hidden, head))

    def whole():
        torch.autograd.grad(torch.nn.functional.cross_entropy(hidden @ head.mT, targets), (hidden, head))

    square, square_flop = product_rate(1024, 1024, 1024)
    times = compare({"here": ours, "F.cross_entropy": whole, "product": square}, seconds)
    flop = 6.0 * n * C * V
    rows = [["", "GFLOP/s", "share of a product of 1024 x 1024 matrices"]]
    rate = square_flop / statistics.median(times["product"])
    for name in ("here", "F.cross_entropy"):
        got = flop / statistics.median(times[name])
        rows.append([name, f"{got / 1e9:.0f} ({flop / min(times[name]) / 1e9:.0f})", f"{got / rate:.0%}"])
    return [*rows, ["the product", f"{rate / 1e9:.0f} ({square_flop / min(times['product']) / 1e9:.0f})", "100%"]]


def steps(seconds: float) -> list[list]:
    rows = [["generation", "vocabulary", "tokens a second", "share of the products' speed"]]
    for version, vocab in (("v7", 256), ("v7", 65536), ("v4", 256), ("v5", 256), ("v6", 256)):
        step, flop, tokens = training_step(version, vocab)
        square, square_flop = product_rate(1024, 1024, 1024)
        times = compare({"step": step, "product": square}, seconds)
        middle = {name: statistics.median(t) for name, t in times.items()}
        floor = flop / square_flop * middle["product"]
        rows.append([version, vocab, f"{tokens / middle['step']:,.0f} ({tokens / min(times['step']):,.0f})", f"{floor / middle['step']:.0%}"])
    return rows


def training_step(version: str, vocab: int) -> tuple[Callable, float, int]:
    """A step, the operations of its matrix products, and its tokens."""
    B, T, C = 4, 256, 256
    size = Size(6, C, vocab, GENERATIONS[version].default_rank(C), version=version)
    model = LossModel(RWKV(size).init_weights(1))
    optimizer = Optimizer(model, {f"rwkv.{k}": g for k, g in model.rwkv.optimizer_groups().items()}, betas=(0.9, 0.99), eps=1e-18, weight_decay=0.1)
    tokens, targets, weight = torch.randint(vocab, (B, T)), torch.randint(vocab, (B, T)), torch.full((B, T), 1 / (B * T))

    def step():
        loss, _ = model(tokens, State.zeros(size, B, torch.float32, "cpu"), None, targets, weight)
        loss.backward()
        optimizer.clip(1.0)
        optimizer.step(1e-4)

    in_products = sum(p.numel() for name, p in model.named_parameters() if p.squeeze().dim() > 1 and "emb" not in name and "r_k" not in name
                      and "faaaa" not in name and (p.squeeze().dim() > 2 or min(p.shape) > 6))  # fmt: skip
    return step, 6.0 * in_products * B * T, B * T


if __name__ == "__main__":
    if reason := registry.cannot("wkv7", "cpu", torch.empty(1, 1, 1, 64)):
        sys.exit(reason)
    main()
