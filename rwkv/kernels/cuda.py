"""CUDA kernels: a .cu file compiled by NVRTC, which comes with PyTorch's CUDA builds, at first use, and launched on PyTorch's stream."""

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rwkv.compile_cpp import cached, with_includes
from rwkv.errors import KernelError
from rwkv.kernels import dry

SHARED_BYTES_ATTRIBUTE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class Kernel:
    """One `KERNEL` of a .cu file, which has its name.

    Args:
        source: the file.
        shared: bytes of shared memory that a block takes.
        threads: of a block.
        capability: the least compute capability.
    """

    def __init__(self, source: Path, shared: int, threads: int, capability: tuple[int, int] = (8, 0)):
        self.source, self.name, self.shared, self.threads, self.capability = source, source.stem, shared, threads, capability

    def why_not(self, x: Tensor) -> str | None:
        """None if the kernel can be launched on the device of `x`, else the reason. Compiles at the first call."""
        if dry.device_type(x) != "cuda" or torch.version.hip:
            return "CUDA devices only"
        return None if dry.running() else self._on(x.device.index)[1]

    def launch(self, blocks: int, *args: Tensor | int | None) -> None:
        """Tensors are passed as pointers, null for None, and integers as int. The first is a tensor on the current device."""
        if dry.running():
            return
        function, reason = self._on(args[0].device.index)
        if reason:
            raise KernelError(f"{self.name}: {reason}")
        values, pointers = arguments(args)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _call("cuLaunchKernel", function, blocks, 1, 1, self.threads, 1, 1, self.shared, stream, pointers, None)

    @functools.lru_cache  # noqa: B019 - kernels live as long as the process
    def _on(self, device: int) -> tuple[ctypes.c_void_p | None, str | None]:
        """The function on a device, or why it cannot be had."""
        capability, properties = torch.cuda.get_device_capability(device), torch.cuda.get_device_properties(device)
        if capability < self.capability:
            return None, f"compute capability {'.'.join(map(str, self.capability))} and newer only"
        if properties.shared_memory_per_block_optin < self.shared:
            return None, f"{self.shared >> 10} KB of shared memory a block are needed"
        try:
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            image = _compiled(self.source, f"sm_{capability[0]}{capability[1]}")
            with torch.cuda.device(device):
                _call("cuModuleLoadData", ctypes.byref(module), image)
                _call("cuModuleGetFunction", ctypes.byref(function), module, self.name.encode())
                _call("cuFuncSetAttribute", function, SHARED_BYTES_ATTRIBUTE, self.shared)
            return function, None
        except (KernelError, OSError, AttributeError) as e:
            return None, str(e).splitlines()[0]


def arguments(args: Sequence[Tensor | int | None]) -> tuple[list, ctypes.Array]:
    """What a kernel takes, and the addresses of that."""
    values = [ctypes.c_int(x) if isinstance(x, int) else ctypes.c_void_p(None if x is None else x.data_ptr()) for x in args]
    return values, (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))


def _call(name: str, *args) -> None:
    """A function of the driver."""
    if code := getattr(_driver(), name)(*args):
        text = ctypes.c_char_p()
        _driver().cuGetErrorName(code, ctypes.byref(text))
        raise KernelError(f"{name}: {(text.value or b'error').decode()} ({code})")


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


def _compiled(source: Path, architecture: str) -> bytes:
    """The machine code, from the user's cache folder or compiled into it."""
    nvrtc = _nvrtc()
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    options = [f"--gpu-architecture={architecture}", "--std=c++17"]
    text, version = with_includes(source), f"{major.value}.{minor.value}"

    def image() -> bytes:
        return _compile(nvrtc, source.name, text, options)

    try:
        return cached(source.stem, ".cubin", [text, " ".join(options).encode(), version.encode()], lambda out: out.write_bytes(image())).read_bytes()
    except OSError:
        return image()  # as the next process will


def _compile(nvrtc: ctypes.CDLL, name: str, text: bytes, options: list[str]) -> bytes:
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    flags = (ctypes.c_char_p * len(options))(*[x.encode() for x in options])
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name.encode(), 0, None, None)
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), flags):
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            lines = log.value.decode(errors="replace").splitlines()
            raise KernelError(f"{name} was not compiled: {next((x for x in lines if 'error' in x), 'NVRTC failed')}")
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        image = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, image)
        return image.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _nvrtc() -> ctypes.CDLL:
    """As loaded by PyTorch, installed beside it, or the system's."""
    major = torch.version.cuda.split(".")[0]
    beside = sorted(Path(torch.__file__).parents[1].glob(f"nvidia/*/lib/libnvrtc.so.{major}*"))
    for name in (f"libnvrtc.so.{major}", *map(str, beside), "libnvrtc.so", f"nvrtc64_{major}0_0.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise KernelError("NVRTC was not found")
