"""The model of memory: against what a process takes, and what follows from it."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from rwkv.config.compose import load
from rwkv.training.planning.fit import KINDS
from rwkv.training.planning.machine import Machine
from rwkv.training.planning.memory import need
from rwkv.training.planning.work import Work, model_size, parameters
from tests.conftest import ROOT, write_text

GPU = Machine("a GPU", "cuda", 8, 1, 80 * 10**9, 10**12, 1e15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["model.n_embd=512", "model.n_layer=6", "layout.rows=4"],
        ["model.n_embd=256", "model.n_layer=6", "ctx_len=512", "layout.rows=4"],
    ],
    ids=["weights", "activations"],
)
def test_a_process_grows_as_planned(settings, tmp_path):
    text = write_text(tmp_path / "text.txt", 60_000)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/training/planning/peak_of_a_run.py"), "threads=1", "data=text", f"data.path={text}", f"out={tmp_path}", *settings],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["measured"] == pytest.approx(found["planned"], rel=0.25)


def work(*overrides: str) -> Work:
    cfg = load(list(overrides))
    return Work.of(cfg, model_size(cfg))


def test_the_committed_peaks_of_an_h100():
    """scripts/bench/results/model-gpu.md and plan-gpu.md: PyTorch's peak, in GB, of whole steps in bf16, ctx_len=4k."""
    peaks = [
        (12, 768, 16, "false", 45.0), (12, 768, 16, "selective", 26.3), (12, 768, 16, "true", 9.46),
        (24, 1024, 8, "false", 62.5), (24, 1024, 8, "true", 13.1), (24, 2048, 2, "false", 55.5), (24, 2048, 16, "true", 47.2),
    ]  # fmt: skip
    for layers, width, rows, recompute, peak in peaks:
        w = work(f"model.n_layer={layers}", f"model.n_embd={width}", "tokenizer=world", "precision=bf16", "ctx_len=4k", f"layout.rows={rows}", f"bptt.recompute={recompute}")
        assert need("auto", w, GPU, 1).of_tensors == pytest.approx(peak * 1e9, rel=0.05)


def test_sharing_leaves_less_to_each():
    """Weights, moments and gradients of fsdp and ds3 by the number of ranks; ddp holds them whole."""
    w = work("model=1.5b", "precision=bf16", "layout.rows=64", "tokenizer=world")
    held = lambda kind, world: sum(need(kind, w, GPU, world).device.get(n, 0) for n in ("weights", "masters", "gradients", "optimizer"))
    n = parameters(w.size).total
    assert held("ddp", 8) == held("auto", 1) == n * (2 + 4 + 4 + 8)
    for kind in ("fsdp", "ds3"):
        assert held(kind, 8) == pytest.approx(held(kind, 4) / 2, rel=1e-6)
    assert held("ds3_offload", 8) == 0 and need("ds3_offload", w, GPU, 8).host["optimizer"] == pytest.approx(n)
    assert held("ds3_nvme", 8) == 0 and "optimizer" not in need("ds3_nvme", w, GPU, 8).host
    assert held("ds1", 8) == pytest.approx(n * (2 + 4) + n * (4 + 4 + 8) / 8)  # gradients are summed whole, in fp32


def test_every_strategy_has_a_need():
    w = work("layout.rows=8")
    assert all(need(kind, w, GPU, 8).of_device > 0 and need(kind, replace(w, recompute=True), GPU, 8).of_device > 0 for kind in KINDS)


def test_parameters_are_the_models():
    assert parameters(model_size(load(["model=0.1b", "tokenizer=world"]))).total == 191_084_544


def test_kept_states_are_counted():
    """Of a document of a million tokens there is one state a chunk, on the host where the device has little room."""
    w = Work.of(cfg := load(["layout=document", "model=0.4b", "ctx_len=256", "precision=bf16"]), model_size(cfg), 2**20)
    assert w.chunks == w.window == 4096
    found = need("auto", w, GPU, 1)
    assert found.host["states"] == 4096 * w.rows * w.state and found.device["states"] < found.host["states"] / 100
