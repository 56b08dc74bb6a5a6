"""The machine that is planned for: this one, or one described by `plan.` settings."""

import os
import re
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from rwkv.config.compose import convert, parse
from rwkv.config.schema import Count, Positive, Strategy
from rwkv.errors import ConfigError
from rwkv.memory import free_host_bytes, human
from rwkv.training.environment import device_name
from rwkv.training.ranks import processes

GIB = 2**30


@plain_dataclass(frozen=True)
class Gpu:
    """memory: bytes, as CUDA gives them in all; peak: FLOP/s of dense bf16 products with fp32 sums."""

    memory: int
    peak: float


# peaks of the makers' data sheets, without sparsity
GPUS = {
    "b200": Gpu(int(178.4 * GIB), 2250e12),
    "h200": Gpu(int(139.8 * GIB), 989e12),
    "h100": Gpu(int(79.1 * GIB), 989e12),
    "a100": Gpu(int(79.2 * GIB), 312e12),
    "a100-40": Gpu(int(39.4 * GIB), 312e12),
    "l40s": Gpu(int(44.4 * GIB), 362e12),
    "a6000": Gpu(int(47.4 * GIB), 155e12),
    "a10": Gpu(int(22.0 * GIB), 125e12),
    "l4": Gpu(int(22.0 * GIB), 121e12),
    "rtx5090": Gpu(int(31.4 * GIB), 209e12),
    "rtx4090": Gpu(int(23.5 * GIB), 165e12),
    "rtx3090": Gpu(int(23.6 * GIB), 71e12),
}
# FLOP/s of matrix products on one CPU thread, of an AMD EPYC: scripts/bench/results/cpu.md
CPU_PEAK = 89e9

# bytes of code, libraries and what they keep for themselves: on the host without and with CUDA, and of the device by CUDA's context
PROGRAM, PROGRAM_CUDA, CONTEXT = 470 * 10**6, 2500 * 10**6, 600 * 10**6

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_bytes(value: object) -> object:
    """An int of bytes from "80G", "512GB" or "1.5TiB"; what is no text is returned as it is."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*", value)
    if not match:
        raise PydanticCustomError("bytes", "this is no size; sizes are written as 80GB, 1.5TB or 512GiB")
    base = 1024 ** "kMGT".index(match[2]) * 1024 if match[2] and match[3] else _UNITS[match[2]]
    return int(float(match[1]) * base)


def _known_name(name: object) -> object:
    if name in (*GPUS, "none", None):
        return name
    known = ", ".join(GPUS)
    raise PydanticCustomError("gpu", f"no such GPU is known; known are {known}, and none for CPUs; {OTHER}")


OTHER = "for another, take one of these and set plan.memory= to what it has and plan.rate= to its tokens a second"
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(ge=1, strict=True)]


@dataclass(config=ConfigDict(extra="forbid"), frozen=True)
class Asked:
    """`plan.` settings: what `python -m rwkv.plan` takes besides those of a run."""

    gpu: Annotated[str | None, BeforeValidator(_known_name)] = None  # a GPU of the table, none for CPUs; null: this machine
    gpus: Count | None = None  # of a node; 1
    nodes: Count | None = None  # strategy.nodes
    memory: Bytes | None = None  # of a GPU, where it is not the table's
    host_memory: Bytes | None = None  # of a node; null: this machine's free memory, or of one described, any
    rate: Positive | None = None  # tokens a second of the whole machine
    mfu: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None  # 6 FLOPs a weight and token over the peak
    document: Count | None = None  # layout=document: tokens of the longest one


def split(overrides: list[str]) -> tuple[Asked, list[str]]:
    """(the `plan.` settings, the others). Raises ConfigError for one that is unknown, twice there or out of range."""
    mine = [text for text in overrides if text.lstrip("+").startswith("plan.")]
    tree: dict = {}
    for text in mine:
        override = parse(text)
        name = override.key_or_group.removeprefix("plan.")
        if name in tree:
            raise ConfigError(f"plan.{name} is set twice; keep one")
        value = override.value()
        tree[name] = float(value) if name in ("rate", "mfu") and isinstance(value, int) else value
    asked = convert(tree, mine, Asked, "plan")
    if asked.rate and asked.mfu:
        raise ConfigError("plan.rate= and plan.mfu= each say how fast it is; keep one")
    return asked, [text for text in overrides if text not in mine]


@plain_dataclass(frozen=True)
class Machine:
    """
    device: "cuda", or "cpu", whose memory is the host's.
    each: processes of a node, one a GPU; memory: bytes free on a GPU; host: on a node, None for any.
    peak: FLOP/s of a process's matrix products; None: not known.
    here: whether it is this one, so that what is installed counts.
    """

    name: str
    device: Literal["cpu", "cuda"]
    each: int
    nodes: int
    memory: int | None
    host: int | None
    peak: float | None
    here: bool = False

    @property
    def world(self) -> int:
        return self.each * self.nodes


def machine(asked: Asked, strategy: Strategy) -> Machine:
    """The machine described, or this one. Raises ConfigError for a description that is none."""
    nodes = asked.nodes or strategy.nodes
    if asked.gpu in GPUS:
        gpu, each = GPUS[asked.gpu], asked.gpus or (strategy.devices if isinstance(strategy.devices, int) else 1)
        name = f"{nodes} x {each} x {asked.gpu}" if nodes > 1 else f"{each} x {asked.gpu}"
        return Machine(name, "cuda", each, nodes, asked.memory or gpu.memory, asked.host_memory, gpu.peak)
    if asked.memory:
        raise ConfigError(f"plan.memory={human(asked.memory)}: of which GPU? plan.gpu= names it: {', '.join(GPUS)}")
    if asked.gpu is None:
        processes(strategy if asked.gpus is None else replace(strategy, devices="auto"))
    here = this_machine(strategy, asked.gpu == "none", asked.gpus)
    return replace(here, nodes=nodes, host=asked.host_memory or here.host)


def this_machine(strategy: Strategy, cpu: bool = False, each: int | None = None) -> Machine:
    """What is here, and free now; what this process has taken for itself counts as free, for training will take that anew."""
    cuda = torch.cuda.is_available() and strategy.accelerator != "cpu" and not cpu
    most = torch.cuda.device_count() if cuda else 1
    named = strategy.devices if isinstance(strategy.devices, int) and (strategy.kind, strategy.devices) != ("auto", 1) else most
    each = each or named
    if not cuda:
        threads = min(os.cpu_count() or 1, torch.get_num_threads() * each)
        return Machine(f"this machine, {device_name()}", "cpu", each, strategy.nodes, None, free_host_bytes() + PROGRAM, CPU_PEAK * threads / each, True)
    name, free = torch.cuda.get_device_name(), min(torch.cuda.mem_get_info(i)[0] for i in range(most))
    found = known(name)
    return Machine(f"this machine, {each} x {name}", "cuda", each, strategy.nodes, free + CONTEXT, free_host_bytes() + PROGRAM_CUDA, found and found.peak, True)


def known(name: str) -> Gpu | None:
    """Of the table the GPU whose name CUDA gives, as "NVIDIA H100 80GB HBM3"; None if it is not in it."""
    words = "".join(c if c.isalnum() else " " for c in name.lower())
    words = re.sub(r"rtx (\d)", r"rtx\1", words).split()
    return next((gpu for key, gpu in GPUS.items() if key in words), None)
