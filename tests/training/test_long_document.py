"""A document far longer than a chunk: memory stays where it was."""

import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, tiny

MEASURE = """
import resource, sys
sys.path.insert(0, {root!r})
from rwkv import train
from rwkv.config import cli
code = cli.guarded(train.main, sys.argv[1:])
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def peak_kib(tokens: int, tmp_path, *args: str) -> int:
    """Peak memory of one optimizer step on one document of so many tokens."""
    np.save(tmp_path / f"{tokens}.npy", np.random.default_rng(0).integers(1, 257, tokens + 1).astype(np.uint16))
    args = tiny(
        "data=tokens", f"data.path={tmp_path}/{tokens}.npy", "layout=document", "layout.rows=1", "ctx_len=2k", "model.n_layer=1",
        f"trainer.tokens={tokens}", "threads=2", f"out={tmp_path}/out", *args,
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", MEASURE.format(root=str(ROOT)), *args], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert f"1 step, {tokens:,} tokens" in done.stdout
    return int(done.stdout.split("PEAK")[1])


@pytest.mark.slow
def test_a_million_tokens(tmp_path):
    short = peak_kib(2**15, tmp_path)
    long = peak_kib(2**20, tmp_path)
    # 512 states of 17 kB, the tokens and their mask; a graph over all of it would take gigabytes
    assert long < short + 64 * 1024


def test_states_on_disk(tmp_path):
    assert peak_kib(2**15, tmp_path, "bptt.states=disk") > 0
    assert not list(tmp_path.glob("out/*/states-*"))  # the files are gone with the run
