"""Runs as tests look at them: started, waited for, compared."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from rwkv.checkpoint import shards, store
from tests.conftest import ROOT


def start(args: list[str], cwd: Path) -> subprocess.Popen:
    """python -m rwkv.train, not waited for."""
    return subprocess.Popen(
        [sys.executable, "-m", "rwkv.train", *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, training loss) of each record that has one."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(r["step"], r["train/loss"]) for r in records if "train/loss" in r]


def assert_equal_runs(a: Path, b: Path) -> None:
    """Losses all along; weights, moments and states at the end: bit for bit."""
    assert losses(a) == losses(b)
    ends = [store.points(f / "checkpoints")[0] for f in (a, b)]
    assert ends[0].name == ends[1].name
    for kind in ("model", "optimizer", "carry"):
        x, y = (shards.Tensors(e, kind) for e in ends)
        assert x.keys() == y.keys()
        assert all((x[k] == y[k]).all() for k in x), kind


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    """Until so many records are there, or the process has ended."""
    while process.poll() is None:
        if (folder / "metrics.jsonl").exists() and len((folder / "metrics.jsonl").read_text().splitlines()) >= step:
            return
        time.sleep(0.02)
