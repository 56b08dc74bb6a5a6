"""Other people's programs read the files written here and compute the same logits and states."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv.checkpoint import official
from rwkv.model.rwkv import RWKV
from rwkv.model.size import LoraRank, Size
from rwkv.model.v6 import FinchRank

pytestmark = pytest.mark.slow
RANKS = {"v6": FinchRank(32, 64), "v7": LoraRank(32, 32, 32, 64)}
TOKENS = torch.randint(0, 100, (1, 30), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def peers(tmp_path_factory):
    """A folder with the peers, seen only by the process that asks them: their package `rwkv` never meets this one."""
    folder = tmp_path_factory.mktemp("peers")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(folder)]
    steps = [
        ["--no-deps", "rwkv==0.8.32", "rwkv7-hf==0.9.0", "transformers==5.23.0"],
        ["huggingface-hub", "regex", "tqdm", "pyyaml", "packaging", "filelock", "requests", "typer"],
    ]
    for step in steps:
        done = subprocess.run([*pip, *step], capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.skip(f"the peers cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return folder


def model_of(version, seed=0):
    model = RWKV(Size(3, 128, 100, RANKS.get(version), 64, version)).init_weights(seed)
    gen = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=gen)
    return model


def ask(peers, peer, path, tmp_path):
    np.save(tmp_path / "tokens.npy", TOKENS[0].numpy())
    script = Path(__file__).with_name("peers.py")
    env = {**os.environ, "PYTHONPATH": str(peers), "HF_HUB_OFFLINE": "1"}
    args = [sys.executable, "-P", str(script), peer, str(path), str(tmp_path / "tokens.npy"), str(tmp_path / "out.npz")]
    done = subprocess.run(args, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(tmp_path / "out.npz")


def close(got, want):
    """Within 1e-5 of the largest value, all fp32."""
    assert np.abs(got - want).max() < 1e-5 * max(np.abs(want).max(), 1)


@torch.no_grad()
@pytest.mark.parametrize("version", ["v4", "v5.0", "v5.1", "v5", "v6", "v7"])
def test_rwkv_package_reads_our_pth(version, peers, tmp_path):
    model = model_of(version)
    official.save(dict(model.named_parameters()), tmp_path / "m.pth", torch.float32)
    found = ask(peers, "rwkv-v7" if version == "v7" else "rwkv-v4-6", tmp_path / "m.pth", tmp_path)
    hidden, state = model(TOKENS)
    logits = model.logits(hidden)[0].numpy()
    close(found["whole"], logits)
    close(found["pieces"], logits)
    per_layer = 5 if version == "v4" else 3
    for layer in range(3):
        theirs = [found[f"state{per_layer * layer + i}"] for i in range(per_layer)]
        shift, wkv = state.shift[0, layer].numpy(), state.wkv[0, layer].numpy()
        close(theirs[0], shift[0])
        close(theirs[-1], shift[1])
        if version == "v4":
            sums = lambda aa, bb, pp: np.stack([aa, bb]) * np.exp(pp)  # noqa: E731
            close(sums(*theirs[1:4]), sums(*wkv))
        else:
            close(theirs[1] if version == "v7" else theirs[1].swapaxes(-1, -2), wkv)


@torch.no_grad()
@pytest.mark.parametrize(("version", "peer"), [("v4", "transformers"), ("v7", "rwkv7-hf")])
def test_hugging_face_reads_our_folder(version, peer, peers, tmp_path):
    model = model_of(version)
    official.write(dict(model.named_parameters()), tmp_path / "hf")
    found = ask(peers, peer, tmp_path / "hf", tmp_path)
    logits = model.logits(model(TOKENS)[0])[0].numpy()
    close(found["whole"], logits)
    close(found["pieces"], logits)
