"""The data loader: tokens a second from a warm file, how full rows are, and going on at 99 % of a hundred million documents.

    python scripts/bench/loader.py [--write FILE]

The peer is a DataLoader of PyTorch over the same memory-mapped file, by rows of 4096 tokens, with 0 and with 2 workers.
"""

import argparse
import dataclasses
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from rwkv.config.compose import conf_dir
from rwkv.config.schema import Layout as Settings
from rwkv.data.corpus import Corpus
from rwkv.data.layout import Layout, Source, build
from rwkv.memory import human
from rwkv.training.environment import device_name

ROW, ROWS = 4096, 8
LAYOUTS = {"stream": {}, "fixed": {}, "document": {"max_tokens": 2**20}, "official": {}}
# documents of a mix: number, median tokens, spread of their logarithm; cut at 136k. As the mix of chats, speeches, source
# files and book pieces whose median is 150 and whose 99th percentile is 21k
MIX = ((7168, 110, 0.8), (233, 9000, 0.5), (900, 1200, 1.2), (418, 12000, 0.6))


def settings(kind: str, **changes) -> Settings:
    return dataclasses.replace(Settings(**yaml.safe_load((conf_dir() / f"layout/{kind}.yaml").read_text())), **changes)


def made(kind: str, corpus: Corpus, ctx: int, **changes) -> Layout:
    return build(settings(kind, **changes), [Source("data", corpus)], ctx, 1, independent=False)[0]


def sizes_of(documents: int, mean: float) -> np.ndarray:
    return np.maximum(2, np.random.default_rng(0).exponential(mean, documents)).astype(np.int32)


def corpus_in(folder: Path, tokens: int, mean: float) -> Corpus:
    sizes = sizes_of(int(tokens / mean), mean)
    path = folder / f"{mean}.bin"
    np.random.default_rng(0).integers(1, 65536, sizes.sum(), dtype=np.uint16).tofile(path)
    return Corpus(np.memmap(path, np.uint16, "r"), np.cumsum(sizes, dtype=np.int64) - sizes, sizes)


def rate(step, tokens: int, repeats: int = 5) -> float:
    """Median tokens a second of `repeats` runs of `step`, which reads so many."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return tokens / statistics.median(times)


def ours(layout: Layout, batches: int = 50) -> float:
    def read(n: int = batches) -> int:
        count = 0
        for _ in range(n):
            batch = layout.next()
            for i in range(batch.chunks(ROW)):
                chunk = batch.chunk(i, ROW, 1.0, "cpu")
                count += chunk.tokens.numel()
        return count

    read(5)
    counts, start = [], time.perf_counter()
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        counts.append(read())
        rates.append(counts[-1] / (time.perf_counter() - start))
    return statistics.median(rates)


class Rows(torch.utils.data.Dataset):
    def __init__(self, tokens: np.ndarray):
        self.tokens = tokens
        self.order = np.random.default_rng(0).permutation((len(tokens) - 1) // ROW)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> torch.Tensor:
        start = int(self.order[i]) * ROW
        return torch.from_numpy(self.tokens[start : start + ROW + 1].astype(np.int64))


def peer(tokens: np.ndarray, workers: int, batches: int = 250) -> float:
    loader = torch.utils.data.DataLoader(Rows(tokens), batch_size=ROWS, num_workers=workers)
    rows = iter(loader)
    for _ in range(10):
        next(rows)
    start = time.perf_counter()
    for _ in range(batches):
        batch = next(rows)
        batch[:, :-1], batch[:, 1:]
    return batches * ROWS * ROW / (time.perf_counter() - start)


def fill(rows: int, ctx: int) -> float:
    rng = np.random.default_rng(0)
    sizes = np.concatenate([rng.lognormal(np.log(m), s, n) for n, m, s in MIX])
    sizes = np.clip(sizes, 8, 136_000).astype(np.int64)
    corpus = Corpus(np.empty(0, np.uint16), np.cumsum(sizes) - sizes, sizes)
    layout = made("document", corpus, ctx, rows=rows)
    read = slots = 0
    while read < corpus.count - len(corpus):
        batch = layout.next()
        read, slots = read + batch.count, slots + batch.chunks(ctx) * ctx * rows
    return read / slots


def hundred_million(folder: Path) -> None:
    """Run by a process of its own, so that its memory can be told: prints seconds and bytes."""
    starts, sizes = (np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("starts", "sizes"))
    corpus = Corpus(np.memmap(folder / "tokens", np.uint16, "r", shape=(2**20,)), starts, sizes)
    corpus.__dict__["count"], corpus.__dict__["longest"] = int(starts[-1] + sizes[-1]), 20_000  # as a store's about.json tells them
    before, start = own_memory(), time.perf_counter()
    layout = made("stream", corpus, ROW)
    at = int(0.99 * len(corpus))
    lanes = [[0, int(i), 0] for i in range(ROWS)]
    layout.load_state_dict({"feed": {"taken": [at], "used": [at * 500]}, "lanes": lanes, "begun": True})
    layout.next()
    print(time.perf_counter() - start, own_memory(), own_memory() - before)


def own_memory() -> int:
    """Bytes of this process that are not pages of files."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", type=Path)
    parser.add_argument("--tokens", type=int, default=200_000_000)
    parser.add_argument("--hundred-million", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.hundred_million:
        return hundred_million(args.hundred_million)
    torch.set_num_threads(1)
    lines = ["# The data loader", "", f"{datetime.date.today()}, {device_name()}, one thread, torch {torch.__version__}", ""]
    lines += [f"**Million tokens a second from a warm file of {args.tokens / 1e6:.0f}M**, {ROWS} rows, chunks of {ROW}, int64 tensors (ours: of inputs, targets, weights, resets)", ""]
    lines += ["| | documents of 500 tokens | documents of 5,000 tokens |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as tmp:
        corpora = [corpus_in(Path(tmp), args.tokens, mean) for mean in (500, 5000)]
        for kind, changes in LAYOUTS.items():
            cells = [ours(made(kind, c, ROW, rows=ROWS, **changes)) for c in corpora]
            lines.append(f"| layout={kind} | " + " | ".join(f"{x / 1e6:.0f}" for x in cells) + " |")
        for workers in (0, 2):
            cells = [peer(c.tokens, workers) for c in corpora]
            lines.append(f"| DataLoader, {workers} workers, no documents | " + " | ".join(f"{x / 1e6:.0f}" for x in cells) + " |")
        lines += ["", f"Memory of this process, without the pages of files: {human(own_memory())}", ""]
        lines += ["**layout=document: share of positions that are tokens**, 8,719 documents of very different lengths, whole, one row a rank", ""]
        lines += ["| ctx_len | 1 rank | 8 ranks | 64 ranks |", "|---|---|---|---|"]
        for ctx in (1024, 4096):
            lines.append(f"| {ctx} | " + " | ".join(f"{fill(ranks, ctx):.2f}" for ranks in (1, 8, 64)) + " |")
        sizes = np.resize(sizes_of(10**6, 500), 10**8)
        np.save(Path(tmp) / "sizes.npy", sizes)
        np.save(Path(tmp) / "starts.npy", np.cumsum(sizes, dtype=np.int64) - sizes)
        (Path(tmp) / "tokens").write_bytes(bytes(2**21))
        del sizes
        command = [sys.executable, __file__, "--hundred-million", tmp]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        seconds, most, more = map(float, subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout.split())
        lines += ["", f"**Going on at 99 % of 100 million documents**: {seconds:.3f} s to the next batch, {human(int(most))} of memory in all, {human(int(more))} of it for this"]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.write:
        args.write.write_text(text)


if __name__ == "__main__":
    main()
