"""Exact BPTT measured: its error, its time beside truncated BPTT, and time and memory over the length of one document.

    python scripts/bench/bptt.py [--size 0.1b] [--lengths 64k,256k,1M] [--ctx 4k] [--dtype bf16] [--write]

The device is a GPU if there is one. Everything runs in one process, what is compared side by side; medians. Tables are
markdown; --write puts them into results/bptt-DEVICE.md.
"""

import argparse
import datetime
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rwkv.bptt.certificate import BOUNDS, certify  # noqa: E402
from rwkv.bptt.chunks import Eager, runner  # noqa: E402
from rwkv.bptt.engine import Bptt, Settings  # noqa: E402
from rwkv.data.batch import Batch  # noqa: E402
from rwkv.kernels import registry  # noqa: E402
from rwkv.memory import human, peak_bytes  # noqa: E402
from rwkv.model.loss import LossModel  # noqa: E402
from rwkv.model.rwkv import RWKV, count_parameters  # noqa: E402
from rwkv.model.size import LoraRank, Size  # noqa: E402
from rwkv.model.state import State  # noqa: E402
from rwkv.training.environment import device_name  # noqa: E402
from rwkv.training.optimizer import Optimizer  # noqa: E402

SIZES = {
    "micro": Size(2, 128, 257, LoraRank.default(128)),
    "0.1b": Size(12, 768, 65536, LoraRank(64, 64, 32, 128)),
    "0.4b": Size(24, 1024, 65536, LoraRank(64, 64, 32, 128)),
}
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
GRAPHS = "--no-graphs" not in sys.argv
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Report:
    """Lines of markdown, on the screen and in a file as they come."""

    def __init__(self, path: Path | None):
        self.path, self.lines = path, []

    def add(self, *lines: str) -> None:
        self.lines += lines
        print("\n".join(lines), flush=True)
        if self.path:
            self.path.write_text("\n".join(self.lines) + "\n")


def count(text: str) -> int:
    scale = {"k": 2**10, "M": 2**20}.get(text[-1])
    return int(float(text[:-1]) * scale) if scale else int(text)


def make(size: Size, dtype: torch.dtype) -> tuple[Eager, Optimizer]:
    with torch.device("meta"):
        rwkv = RWKV(size)
    rwkv = rwkv.to_empty(device="cpu").init_weights(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in rwkv.parameters():  # at the official initialisation most gradients are zero
            p += 0.02 * torch.randn(p.shape, generator=generator)
    model = LossModel(rwkv.to(DEVICE, dtype))
    return runner(model, GRAPHS), Optimizer(rwkv, rwkv.optimizer_groups(), betas=(0.9, 0.99), eps=1e-18, weight_decay=0.0)


def document(length: int, vocab: int, rows: int = 1) -> Batch:
    tokens = np.random.default_rng(0).integers(0, vocab, (rows, length + 1)).astype(np.uint16)
    return Batch.of(tokens)


def errors(report: Report) -> None:
    """Chunked against one backward over the whole document, states initial and carried."""
    report.add("", "**Relative error of the whole gradient against one backward over the document** (2 layers x 128, chunks of 256)", "")
    report.add("| precision | 600 tokens | 2,048 tokens | bound |", "|---|---|---|---|")
    for name, dtype in DTYPES.items():
        size = SIZES["micro"]
        model, optimizer = make(size, dtype)

        state = State.zeros(size, 2, dtype, DEVICE).map(torch.randn_like)
        found = [certify(model, optimizer.take_grads, state, Settings(256), n, size.vocab_size, BOUNDS[dtype]) for n in (600, 2048)]
        report.add(f"| {name} | " + " | ".join(f"{c.total:.1e}" for c in found) + f" | {BOUNDS[dtype]:.0e} |")


def run(runs: Eager, optimizer: Optimizer, batch: Batch, settings: Settings) -> float:
    """Seconds of one gradient."""
    model = runs.model
    size = model.rwkv.size
    optimizer.zero_grad()
    state = State.zeros(size, len(batch.rows), model.rwkv.emb.weight.dtype, DEVICE)
    synchronize()
    start = time.perf_counter()
    bptt = Bptt(runs, batch, state, settings, batch.predicted)
    while not bptt.done:
        bptt.advance()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def ratios(report: Report, size: Size, dtype: torch.dtype, ctx: int, chunks: int, repeats: int, kept: list[str], checkpointing: list[bool]) -> None:
    """Exact over truncated on the same chunks, interleaved, the states kept in each of the places named."""
    report.add("", f"**Time of exact over truncated(1), {chunks} chunks of {ctx}** (medians of {repeats}, interleaved)", "")
    over = [f"{a} / {b}" for a, b in (("device", "truncated"), ("host", "device")) if {a, b} <= {*kept, "truncated"}]
    head = ["", "truncated(1)", *(f"exact, states {k}" for k in kept), *over]
    report.add("| " + " | ".join(head) + " |", "|---" * len(head) + "|")
    model, optimizer = make(size, dtype)
    for recompute in checkpointing:
        kinds = {"truncated": Settings(ctx, 1, recompute=recompute)}
        kinds |= {k: Settings(ctx, None, k, recompute=recompute) for k in kept}
        batch = document(ctx * chunks, size.vocab_size)
        times: dict[str, list[float]] = {k: [] for k in kinds}
        for i in range(repeats + 1):
            for kind, settings in kinds.items():
                seconds = run(model, optimizer, batch, settings)
                if i:
                    times[kind].append(seconds)
        m = {k: statistics.median(v) for k, v in times.items()}
        label = "activation checkpointing in both" if recompute else "no activation checkpointing"
        cells = [f"{m[k]:.3f} s" for k in kinds] + [f"{m[a] / m[b]:.3f}" for a, b in (x.split(" / ") for x in over)]
        report.add(f"| {label} | " + " | ".join(cells) + " |")


def lengths(report: Report, size: Size, dtype: torch.dtype, ctx: int, tokens: list[int], kinds: list[str]) -> None:
    """One document of each length: tokens a second, and the most memory."""
    model, optimizer = make(size, dtype)
    n = count_parameters(model.model)
    report.add("", f"**One document, exact gradient: {size.n_layer} x {size.n_embd}, {n:,} parameters, chunks of {ctx}**", "")
    report.add("| tokens | states | seconds | tokens/s | peak memory | of it states |", "|---|---|---|---|---|---|")
    run(model, optimizer, document(16 * ctx, size.vocab_size), Settings(ctx))
    each = sum(x.numel() * x.element_size() for x in State.zeros(size, 1, dtype).tensors())
    for kind in kinds:
        for length in tokens:
            chunks = -(-length // ctx)
            if kind != kinds[0] and length > 2**21:
                continue  # the longest once
            if DEVICE.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            seconds = run(model, optimizer, document(length, size.vocab_size), Settings(ctx, None, kind))
            kept = {"device": chunks, "host": 0, "disk": 0, "sqrt": 2 * int(chunks**0.5) + 2}[kind] * each
            report.add(f"| {length:,} | {kind} | {seconds:.2f} | {length / seconds:,.0f} | {human(peak_bytes(DEVICE))} | {human(kept)} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="0.1b" if DEVICE.type == "cuda" else "micro")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16" if DEVICE.type == "cuda" else "fp32")
    parser.add_argument("--ctx", type=count, default="4k" if DEVICE.type == "cuda" else "1k")
    parser.add_argument("--lengths", default="64k,256k,1M" if DEVICE.type == "cuda" else "16k,64k")
    parser.add_argument("--kinds", default="host,device,sqrt", help="where states are kept")
    parser.add_argument("--checkpointing", default="off,on")
    parser.add_argument("--sections", default="errors,ratios,lengths")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-graphs", action="store_true", help="launch kernel by kernel")
    parser.add_argument("--write", type=Path, help="file for the tables")
    args = parser.parse_args()
    size, dtype = SIZES[args.size], DTYPES[args.dtype]
    sample = torch.empty(1, args.ctx, size.n_head, size.head_size, dtype=dtype, device=DEVICE)
    kernel = registry.chosen("wkv7", "auto", sample)
    lines = [f"# Exact BPTT on {device_name()}", "", f"{datetime.date.today()}, torch {torch.__version__}, {args.dtype}, wkv7 kernel: {kernel}, CUDA graphs: {GRAPHS and DEVICE.type == 'cuda'}"]
    report = Report(args.write)
    report.add(*lines)
    if "errors" in args.sections:
        errors(report)
    if "ratios" in args.sections:
        checkpointing = [{"off": False, "on": True}[x] for x in args.checkpointing.split(",")]
        ratios(report, size, dtype, args.ctx, args.chunks, args.repeats, args.kinds.split(","), checkpointing)
    if "lengths" in args.sections:
        lengths(report, size, dtype, args.ctx, [count(t) for t in args.lengths.split(",")], args.kinds.split(","))


if __name__ == "__main__":
    main()
