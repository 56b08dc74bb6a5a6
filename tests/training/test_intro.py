"""The lines before the first step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rwkv.errors import KernelError
from rwkv.kernels import registry
from rwkv.kernels.registry import Kernels
from rwkv.model import rwkv  # noqa: F401  (registers the kernels)
from rwkv.training.intro import kernels_text, slower_kernels

ROOT = Path(__file__).parents[2]
SAY = """
import torch
from rwkv.kernels.registry import Kernels
from rwkv.model import rwkv
from rwkv.training.intro import slower_kernels
print(slower_kernels("wkv7", Kernels(), torch.empty(1, 20, 1, 64)))
print(slower_kernels("wkv7", Kernels.of("chunked", "wkv7"), torch.empty(1, 20, 1, 64)))
print(slower_kernels("wkv7", Kernels.of({"relu_squared": "torch"}, "wkv7"), torch.empty(1, 20, 1, 64)))
"""


def test_a_compiler_that_fails_is_named(tmp_path):
    env = {**os.environ, "CXX": "/bin/false", "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SAY], env=env, capture_output=True, text=True, timeout=300)
    taken, *_ = lines = done.stdout.splitlines()
    assert "without cpu: /bin/false cannot build cpu.cpp: exit 1" in taken, done.stderr
    taken, asked, around = (line.split(" without ")[0].split(", ") for line in lines)
    assert "wkv7" in taken and "relu_squared" in taken
    assert "wkv7" not in asked and "relu_squared" in asked  # the chunked form was asked for
    assert "wkv7" in around and "relu_squared" not in around


def test_what_is_made_for_another_device_is_no_reason():
    assert all("cuda" not in registry.passed_over(op, torch.empty(1, 20, 1, 64)) for op in registry.ops())
    assert "CUDA" not in slower_kernels("wkv6", Kernels(), torch.empty(1, 20, 1, 64))


def test_a_dtype_without_a_kernel_is_named():
    assert "wkv6 without cpu: fp32, bf16 and fp16 CPU tensors only" in slower_kernels("wkv6", Kernels(), torch.empty(1, 20, 1, 64, dtype=torch.float64))


def test_kernels_asked_for_are_shown():
    sample = torch.empty(1, 20, 1, 64)
    assert kernels_text("wkv6", Kernels.of("chunked", "wkv6"), sample) == "wkv6 kernel: chunked"
    assert kernels_text("wkv7", Kernels.of({"norm_mix": "torch", "wkv7": "reference"}, "wkv7"), sample) == "wkv7 kernel: reference, norm_mix: torch"
    with pytest.raises(KernelError, match="kernel=triton: norm_mix cannot run there: CUDA devices only"):
        kernels_text("wkv7", Kernels.of({"norm_mix": "triton"}, "wkv7"), sample)


def test_missing_triton_is_named(monkeypatch):
    """On a CUDA device, were Triton not there."""
    triton = registry._OPS["wkv6"]["triton"]
    monkeypatch.setitem(registry._OPS, "wkv6", {
        "triton": registry.Backend("triton", triton.run, lambda _: "triton is not installed", triton.auto, "cpu"),  # as if made for this device
        "chunked": registry._OPS["wkv6"]["chunked"],
    })  # fmt: skip
    assert slower_kernels("wkv6", Kernels(), torch.empty(1, 20, 1, 64)).startswith("wkv6 without triton: triton is not installed")
