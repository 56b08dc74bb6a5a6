"""strategy=ds3_nvme: where on the disk DeepSpeed keeps master weights, moments and gradients, and whether it can."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from rwkv.config.schema import Strategy
from rwkv.errors import ConfigError
from rwkv.memory import human

PIECE = 5 * 10**7  # elements of a share that come and go together
BYTES = 16  # of a parameter: master weight, two moments, gradient


def needed(n: int, nodes: int) -> int:
    """Bytes on the disk of each node, for n parameters."""
    return BYTES * n // nodes


def folder(strategy: Strategy, n: int) -> Path:
    """A new folder of this rank for its share of n parameters, gone when the process ends.

    Raises:
        ConfigError: there is no room, no direct access, or no operator.
    """
    load_operator()
    parent = strategy.swap or tempfile.gettempdir()
    try:
        os.makedirs(parent, exist_ok=True)
        found = Path(tempfile.mkdtemp(prefix="rwkv-swap-", dir=parent))
        atexit.register(shutil.rmtree, found, ignore_errors=True)
        os.close(os.open(found / "direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT))
    except OSError as error:
        raise ConfigError(f"strategy.swap={parent}: {error.strerror}: it must be a folder of a disk, not of memory; set strategy.swap=FOLDER") from error
    wanted, free = needed(n, strategy.nodes), shutil.disk_usage(found).free
    if wanted > free:
        raise ConfigError(f"strategy.swap={parent}: this run needs {human(wanted)} there on each node, and {human(free)} are free; set strategy.swap=FOLDER")
    return found


def load_operator() -> None:
    """DeepSpeed's own for disks, compiled at first use. Raises ConfigError if it cannot be."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    builder = AsyncIOBuilder()
    if not builder.is_compatible():
        raise ConfigError(
            "strategy=ds3_nvme: DeepSpeed's operator for disks, async_io, needs libaio and a C++ compiler: apt-get install libaio-dev g++ ninja-build; "
            "or set strategy=ds3_offload"
        )
    try:
        builder.load(verbose=False)
    except (RuntimeError, ImportError, OSError) as error:
        raise ConfigError(f"strategy=ds3_nvme: DeepSpeed's operator for disks, async_io, cannot be built: {error}; or set strategy=ds3_offload") from error
