"""What several tests need: running a command as a user would, and a tiny run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# a run of seconds: one thread, few tokens
_TINY = {
    "threads": 1, "model.n_layer": 2, "model.n_embd": 64, "layout.rows": 2, "ctx_len": 32,
    "trainer.tokens": 1280, "trainer.val_tokens": 256, "sample.tokens": 8, "optim.lr": 3e-3,
}  # fmt: skip


if "PYTEST_XDIST_WORKER" in os.environ:  # beside others: threads that spin while they wait take their cores
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.parent.name not in ("sweep", "training"))  # whole runs first: at the end all cores have small tests
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def tiny(*changes: str) -> list[str]:
    """The overrides of a run of seconds, some of them changed."""
    return [f"{k}={v}" for k, v in (_TINY | dict(c.split("=", 1) for c in changes)).items()]


def command(module: str, *args: str, cwd: Path, timeout: float = 300, env: dict | None = None) -> subprocess.CompletedProcess:
    """python -m rwkv.<module> <args> in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", f"rwkv.{module}", *args],
        cwd=cwd,
        timeout=timeout,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
    )


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """The folder of a finished tiny run on text."""
    folder = tmp_path_factory.mktemp("run")
    write_text(folder / "text.txt")
    done = command("train", *tiny("data=text", f"data.path={folder / 'text.txt'}", f"out={folder / 'out'}"), cwd=folder)
    assert done.returncode == 0, done.stderr
    return the_run(folder / "out")


def the_run(out: Path) -> Path:
    """The only run's folder in `out`; prepared data lies beside it."""
    (folder,) = (f for f in out.iterdir() if f.name != "data")
    return folder


def write_text(path: Path, length: int = 20_000) -> Path:
    """A text with some structure to learn."""
    words = "the quick brown fox jumps over the lazy dog and runs away from here ".split()
    out, x = [], 1
    while sum(map(len, out)) + len(out) < length:
        x = (x * 1103515245 + 12345) % 2**31
        out.append(words[x % len(words)])
    path.write_text(" ".join(out))
    return path
