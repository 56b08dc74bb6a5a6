"""The tensors of a checkpoint: each process writes those dealt to it, and reads what it needs of all of them.

A kind of tensors, `model` say, is in files `model-00000.safetensors`, one of each process that wrote; before there were
shards it was in one, `model.safetensors`.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rwkv.checkpoint import store

_SHARD = re.compile(r"(.+?)(?:-(\d+))?\.safetensors$")


def name_of(kind: str, rank: int) -> str:
    return f"{kind}-{rank:05d}.safetensors"


def writer(tensors: dict[str, Tensor]) -> store.Writer:
    """Of a shard with these tensors, on the CPU. They are not copied, and other threads run while they are written."""
    return lambda path: save_file(tensors, path)


def deal(shapes: dict[str, torch.Size], world: int) -> dict[str, int]:
    """Name -> the process that writes the tensor: each goes, largest first, to the one that has least so far."""
    loads, owner = [0] * world, {}
    for name in sorted(shapes, key=lambda n: (-shapes[n].numel(), n)):
        owner[name] = loads.index(min(loads))
        loads[owner[name]] += shapes[name].numel()
    return owner


def files(checkpoint: Path, kind: str) -> list[Path]:
    """The shards of a kind, by process. Raises CheckpointError if the checkpoint has no sound manifest."""
    found = ((m, name) for name in store.manifest(checkpoint) if (m := _SHARD.match(name)) and m[1] == kind)
    return [checkpoint / name for _, name in sorted((int(m[2] or 0), name) for m, name in found)]


class Tensors(Mapping[str, Tensor]):
    """All of a verified checkpoint's tensors of a kind, whoever wrote them. The files are mapped: what is not touched is not read."""

    def __init__(self, checkpoint: Path, kind: str):
        opened = [safe_open(file, "pt") for file in files(checkpoint, kind)]
        self._file = {name: file for file in opened for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        return self._file[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def shapes(self) -> dict[str, torch.Size]:
        return {name: torch.Size(file.get_slice(name).get_shape()) for name, file in self._file.items()}
