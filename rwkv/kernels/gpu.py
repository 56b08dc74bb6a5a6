"""What the Triton kernels of all operations share: where they can run, and how they are launched."""

import contextlib
import functools
import importlib
import importlib.util

import torch
from torch import Tensor

from rwkv.kernels import dry


def why_no_triton(x: Tensor) -> str | None:
    """None if Triton kernels run on the device of `x`, else the reason."""
    if dry.device_type(x) != "cuda" or torch.version.hip:
        return "CUDA devices only"
    if dry.running():
        return None
    if not _installed():
        return "triton is not installed"
    if torch.cuda.get_device_capability(x.device) < (8, 0):
        return "compute capability 8.0 and newer only"
    return None


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def shared_memory(x: Tensor) -> int:
    """Bytes that a program may have on the device of `x`; where it is no CUDA device, as many as on an H100."""
    return _shared_memory(x.device.index) if x.is_cuda else 227 << 10


@functools.cache
def _shared_memory(device: int) -> int:
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def on_device_of(x: Tensor):
    """The context of a launch: Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def launch(op: str, name: str, programs: int, *args, **constants) -> None:
    """Runs the kernel `name` of `op`, in a dry run nothing. Of the constants, torch's dtypes become Triton's."""
    if dry.running():
        return
    import triton.language as tl  # here, as the kernels, so that importing ours needs no Triton

    kernels = importlib.import_module(f"rwkv.kernels.{op}.triton_kernels")
    constants = {key: getattr(tl, str(x).split(".")[1]) if isinstance(x, torch.dtype) else x for key, x in constants.items()}
    getattr(kernels, name)[(programs,)](*args, **constants)


def flags(reset: Tensor | None) -> Tensor | None:
    """[B, T] bool as bytes."""
    return None if reset is None else reset.contiguous().view(torch.uint8)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)
