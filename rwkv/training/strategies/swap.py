"""strategy=ds3_nvme: where on the disk DeepSpeed keeps master weights, moments and gradients, and whether it can."""

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from rwkv import disk
from rwkv.config.schema import Strategy
from rwkv.errors import ConfigError
from rwkv.memory import human

PIECE = 5 * 10**7  # elements of a share that come and go together
BYTES = 16  # of a parameter: master weight, two moments, gradient
PREFIX = "rwkv-swap-"
PINNING = "pin_memory"  # an extension that DeepSpeed compiles before async_io, which needs it


def needed(n: int, nodes: int) -> int:
    """Bytes on the disk of each node, for n parameters."""
    return BYTES * n // nodes


def check(strategy: Strategy, n: int, build: bool = True) -> None:
    """Whether shares of n parameters can be on the disk; folders that dead processes have left there are removed first, none is made.

    build: see `load_operator`.

    Raises:
        ConfigError: there is no room, no direct access, or no operator.
    """
    load_operator(build)
    parent = _parent(strategy)
    there = next(folder for folder in (parent, *parent.parents) if folder.exists())
    try:
        clean(parent)
        with tempfile.TemporaryDirectory(dir=there) as probe:
            os.close(os.open(Path(probe) / "direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT))
    except OSError as error:
        raise ConfigError(
            f"strategy.swap={parent}: {error.strerror}: it must be a folder of a disk, not of memory; set strategy.swap=FOLDER",
            f"strategy.swap: {error.strerror}",
        ) from error
    wanted, free = needed(n, strategy.nodes), shutil.disk_usage(there).free
    if wanted > free:
        raise ConfigError(
            f"strategy.swap={parent}: this run needs {human(wanted)} there on each node, and {human(free)} are free; set strategy.swap=FOLDER",
            f"{human(wanted)} on the disk, {human(free)} free",
        )


def folder(strategy: Strategy) -> Path:
    """A new folder of this process, gone when it ends. Killed, it leaves it, without its lock: `clean` of any other removes it."""
    parent = _parent(strategy)
    parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=parent))
    disk.try_lock(os.open(new, os.O_RDONLY | os.O_DIRECTORY))  # open, and so locked, until the process ends
    found = new.rename(new.with_name(PREFIX + new.name))  # under this name it has always been locked
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    return found


def clean(parent: Path) -> None:
    """Remove the folders whose processes are no more."""
    for left in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another's, or gone by now
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if disk.try_lock(handle):
                    shutil.rmtree(left)
            finally:
                os.close(handle)


def _parent(strategy: Strategy) -> Path:
    return Path(strategy.swap or tempfile.gettempdir())


def _build_folder(name: str) -> Path:
    """Where PyTorch compiles an extension of this name, and keeps it."""
    from torch.utils.cpp_extension import _get_build_directory

    return Path(_get_build_directory(name, verbose=False))


def load_operator(build: bool = True) -> None:
    """DeepSpeed's own for disks, compiled at first use. Raises ConfigError if it cannot be; without `build`, if what that takes is not there."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    builder = AsyncIOBuilder()
    if not builder.is_compatible():
        raise ConfigError(
            "strategy=ds3_nvme: DeepSpeed's operator for disks, async_io, needs libaio and a C++ compiler: apt-get install libaio-dev g++ ninja-build; "
            "or set strategy=ds3_offload",
            "async_io needs libaio and a compiler",
        )
    if not build:
        return
    try:
        with (_build_folder(builder.name) / "rwkv.lock").open("a+") as mine:
            disk.lock(mine, lambda holder: print(f"waiting for {holder}, which compiles {builder.name}", flush=True))
            for name in (PINNING, builder.name):  # PyTorch waits for this file without end, and without a word, where a process was killed while it compiled
                (_build_folder(name) / "lock").unlink(missing_ok=True)
            builder.load(verbose=False)
    except (RuntimeError, ImportError, OSError) as error:
        raise ConfigError(f"strategy=ds3_nvme: DeepSpeed's operator for disks, async_io, cannot be built: {error}; or set strategy=ds3_offload") from error
