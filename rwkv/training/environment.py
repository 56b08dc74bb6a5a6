"""Where and with what a run is made: env.json."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

from rwkv.source import commit

PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "pydantic", "numpy", "safetensors", "triton", "deepspeed", "wandb")


def device_name() -> str:
    """The accelerator, or the processor with the number of threads in use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or "CPU")
    return f"{name}, {torch.get_num_threads()} threads"


def describe() -> dict:
    """Versions, device, command and the source's commit."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": device_name(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": versions,
        "command": sys.argv,
        **commit(),
    }
