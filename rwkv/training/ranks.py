"""The processes of a run: which device each has, and the few things they say to each other.

Lightning's Fabric starts the processes, knows the cluster they are on, and picks the backend.
"""

import atexit
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rwkv.config.schema import Strategy
from rwkv.errors import ConfigError, UserError
from rwkv.words import count

T = TypeVar("T")
REDUCE_BYTES = 2**26  # gradients travel in flat pieces of about this size


def processes(strategy: Strategy) -> tuple[str, int]:
    """(accelerator, how many on a node), as the settings say or this machine has them. Raises ConfigError if it has not what they say."""
    accelerator, devices = strategy.accelerator, strategy.devices
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    elif accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("strategy.accelerator=cuda: PyTorch finds no CUDA device here; set strategy.accelerator=cpu")
    if devices == "auto":
        devices = torch.cuda.device_count() if accelerator == "cuda" else 1
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise ConfigError(f"strategy.devices={devices}: this machine has {count(torch.cuda.device_count(), 'CUDA device')}")
    return accelerator, devices


class Ranks:
    """rank of world processes, and this one's device."""

    def __init__(self, strategy: Strategy):
        from lightning.fabric import Fabric

        from rwkv.training.meeting import Meeting

        accelerator, devices = processes(strategy)
        warnings.filterwarnings("ignore", message="The `srun` command is available")  # a login node trains, too, if told to
        several = devices * strategy.nodes > 1
        started = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else devices * strategy.nodes
        if started != devices * strategy.nodes:
            raise ConfigError(
                f"strategy.devices={devices} x strategy.nodes={strategy.nodes}, and torchrun has started {started} processes: "
                "set these to torchrun's --nproc-per-node and --nnodes"
            )
        try:
            how = Meeting(strategy.start_timeout) if several else "auto"
            self.fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=strategy.nodes, strategy=how)
            if several:
                how.check()
            self.fabric.launch()
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise ConfigError(f"strategy.devices={devices}, strategy.nodes={strategy.nodes}, and the cluster has started others: {error}") from error
        if not several and strategy.sharded and not dist.is_initialized():  # shards of one rank: it is the whole group
            dist.init_process_group("nccl" if accelerator == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
        if dist.is_initialized():
            atexit.register(_leave)  # else a thread of the group may end the process by a signal
        self.device = self.fabric.device
        self.rank, self.world = self.fabric.global_rank, self.fabric.world_size
        self.first = self.rank == 0
        self.summed = 0  # bytes of gradients given to `sum_gradients`, in all

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all ranks, on every rank."""
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def count(self, *flags: bool) -> list[int]:
        """On how many ranks each is true: the same answer everywhere."""
        if self.world == 1:
            return [int(flag) for flag in flags]
        return [int(n) for n in self.sum(torch.tensor(flags, dtype=torch.float32, device=self.device)).tolist()]

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank: the same answer everywhere."""
        return self.count(flag)[0] > 0

    def least(self, number: int) -> int:
        """The least over all ranks, on every rank."""
        return min(self.gather(int(number)))

    def together(self, action: Callable[[], T]) -> T:
        """What `action` gives, on every rank. Where it fails on any, all end, and one leaves its message: nobody waits."""
        result, error = None, None
        try:
            result = action()
        except Exception as raised:  # whatever it is, the others need word of it
            error = raised
        failed = self.gather(error is not None)
        if any(failed):
            raise error if error and failed.index(True) == self.rank else SystemExit(2)
        return result

    def first_alone(self, action: Callable[[], T]) -> T | None:
        """The same of an action that only the first rank does; None on the others."""
        return self.together(lambda: action() if self.first else None)

    def sum_gradients(self, grads: list[Tensor]) -> None:
        """Add up each gradient over the ranks, in place: once an optimizer step, whatever number of chunks each rank had."""
        if self.world == 1:
            return
        piece: list[Tensor] = []
        for i, grad in enumerate(grads):
            piece.append(grad)
            if sum(g.numel() * g.element_size() for g in piece) >= REDUCE_BYTES or i == len(grads) - 1:
                flat = torch.cat([g.flatten() for g in piece])
                dist.all_reduce(flat)
                self.summed += flat.numel() * flat.element_size()
                for g, summed in zip(piece, flat.split([g.numel() for g in piece]), strict=True):
                    g.copy_(summed.view_as(g))
                piece = []

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
