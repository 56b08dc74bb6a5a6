"""What the tests of preparation share."""

import json
import random
import struct
from pathlib import Path

import numpy as np

from rwkv.config.compose import load
from rwkv.data import tokenizer
from rwkv.data.prepare import Prepared, prepared, store_of


def settings(folder: Path, *overrides: str):
    share = [] if any(o.startswith("data.val_share") for o in overrides) else ["data.val_share=0.0"]
    return load([f"out={folder / 'out'}", *share, *overrides])


def prepare(folder: Path, *overrides: str, vocab: int | None = None) -> Prepared:
    cfg = settings(folder, *overrides)
    tok = tokenizer.build(cfg.tokenizer.kind, cfg.tokenizer.path)
    return prepared(cfg.data, cfg.tokenizer, tok, vocab or tok.vocab_size, Path(cfg.out))


def store(folder: Path, *overrides: str) -> Path:
    cfg = settings(folder, *overrides)
    return store_of(cfg.data, cfg.tokenizer, tokenizer.build(cfg.tokenizer.kind, cfg.tokenizer.path), Path(cfg.out))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store, by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def texts(p: Prepared) -> list[bytes]:
    """Documents as bytes, without their end token, for tokenizer=bytes."""
    tok = tokenizer.Bytes()
    return [tok.decode(p.train.document(i).tolist()) for i in range(len(p.train))]


def write_folder(folder: Path, files: int, seed: int = 0, size: int = 3000) -> Path:
    """Text files of random lengths."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(files):
        text = " ".join(rng.choice(["ab", "cd\n", "efg", "hij", "é"]) for _ in range(rng.randint(1, size // 4)))
        (folder / f"{i:05d}.txt").write_text(text)
    return folder


def write_binidx(prefix: Path, sequences: list[np.ndarray], code: int = 8, bounds: list[int] | None = None) -> Path:
    """A store as json2binidx_tool writes it, byte for byte from the format's description."""
    dtype = {1: "u1", 4: "<i4", 5: "<i8", 8: "<u2"}[code]
    sizes = [len(s) for s in sequences]
    bounds = list(range(len(sizes) + 1)) if bounds is None else bounds
    width = np.dtype(dtype).itemsize
    Path(f"{prefix}.bin").write_bytes(b"".join(np.asarray(s).astype(dtype).tobytes() for s in sequences))
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sizes), len(bounds))
    places = [width * sum(sizes[:i]) for i in range(len(sizes))]
    Path(f"{prefix}.idx").write_bytes(
        head + struct.pack(f"<{len(sizes)}i", *sizes) + struct.pack(f"<{len(sizes)}q", *places) + struct.pack(f"<{len(bounds)}q", *bounds)
    )
    return prefix


def about(folder: Path) -> dict:
    return json.loads((folder / "about.json").read_text())
