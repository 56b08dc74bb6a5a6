"""Whether a run fits a machine, under each strategy, and what to change if it does not."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

import torch

from rwkv.config.check import check
from rwkv.config.schema import Strategy, TrainConfig
from rwkv.errors import ConfigError
from rwkv.kernels.registry import Kernels
from rwkv.memory import free_bytes, human
from rwkv.model.size import Size
from rwkv.training import strategies
from rwkv.training.planning.machine import CONTEXT, Machine, this_machine
from rwkv.training.planning.memory import Need, need
from rwkv.training.planning.work import Work, parameters
from rwkv.training.ranks import Ranks

KINDS = get_args(Strategy.__annotations__["kind"])
MOST_GPUS = 4096  # of those that are looked at


@dataclass(frozen=True)
class Verdict:
    """Of a strategy: world processes, what they need, and why it cannot be (None if it can).

    lack: in a few words, what this machine has not, where it is not memory.
    """

    kind: str
    world: int
    need: Need | None
    why_not: str | None
    lack: str | None = None

    @property
    def fits(self) -> bool:
        return self.why_not is None


def verdict(cfg: TrainConfig, kind: str, work: Work, machine: Machine) -> Verdict:
    """Of the settings with another strategy: memory alone."""
    world = world_of(cfg, kind, machine)
    work = replace(work, rows=-(-work.rows // world) * world)  # dealt equally, which a plan says
    try:
        check(replace(_under(cfg, kind, machine), layout=replace(cfg.layout, rows=work.rows)), reads_data=False)
    except ConfigError as error:
        return Verdict(kind, world, None, str(error))
    found = need(kind, work, machine, world)
    return Verdict(kind, world, found, shortage(found, machine, min(machine.each, world)))


def _under(cfg: TrainConfig, kind: str, machine: Machine) -> TrainConfig:
    """The settings with another strategy, on such a machine."""
    theirs = {"deepspeed": cfg.strategy.deepspeed if kind.startswith("ds") else {}, "swap": cfg.strategy.swap if kind == "ds3_nvme" else None}
    each = -(-world_of(cfg, kind, machine) // machine.nodes)
    return replace(cfg, strategy=replace(cfg.strategy, kind=kind, devices=each, nodes=machine.nodes, **theirs))


def full_verdict(cfg: TrainConfig, kind: str, work: Work, machine: Machine) -> Verdict:
    """Of the settings with another strategy: memory, and if the machine is this one, what else the strategy needs of it."""
    found = verdict(cfg, kind, work, machine)
    if machine.here and found.fits:
        try:
            strategies.check(_under(cfg, kind, machine), parameters(work.size).total, machine.device, build=False)
        except ConfigError as error:
            return replace(found, why_not=str(error), lack=error.short)
    return found


def world_of(cfg: TrainConfig, kind: str, machine: Machine) -> int:
    """auto is one process, unless the settings say how many."""
    alone = kind == "auto" and (cfg.strategy.kind != "auto" or cfg.strategy.devices == 1)
    return machine.nodes if alone else machine.world


def shortage(found: Need, machine: Machine, ranks: int) -> str | None:
    """What there is not enough of, in words; None if it fits."""
    host = found.of_node(ranks)
    if machine.memory is not None and found.of_device > machine.memory:
        return f"{human(found.of_device)} on a GPU of {human(machine.memory)}"
    if machine.host is not None and host > machine.host:
        return f"{human(host)} on a host of {human(machine.host)}"
    return None


def verdicts(cfg: TrainConfig, work: Work, machine: Machine) -> list[Verdict]:
    """Of every strategy, memory and what else it needs."""
    return [full_verdict(cfg, kind, work, machine) for kind in KINDS]


def remedies(cfg: TrainConfig, work: Work, machine: Machine) -> list[str]:
    """What would make it fit: strategies, smaller settings, more GPUs; the least change first, none if nothing is found."""
    kinds = [v.kind for v in verdicts(cfg, work, machine) if v.fits and v.kind != cfg.strategy.kind]
    found = [f"strategy={'|'.join(kinds)}"] if kinds else []
    for change, smaller in _smaller(cfg, work, machine):
        if full_verdict(_with(cfg, smaller), cfg.strategy.kind, smaller, machine).fits:
            found.append(change)
            break
    if not found and machine.device == "cuda":
        found += list(_more_gpus(cfg, work, machine))
    return found


def _smaller(cfg: TrainConfig, work: Work, machine: Machine) -> Iterator[tuple[str, Work]]:
    rows = min(work.rows, world_of(cfg, cfg.strategy.kind, machine))
    changes = {f"layout.rows={rows}": {"rows": rows}, "ctx_len=128": {"ctx": min(128, work.ctx)}, "bptt.recompute=true": {"recompute": True, "selective": False}}
    for name, change in changes.items():
        yield name, replace(work, **change)
    yield " ".join(changes), replace(work, **{k: v for change in changes.values() for k, v in change.items()})


def _with(cfg: TrainConfig, work: Work) -> TrainConfig:
    return replace(cfg, bptt=replace(cfg.bptt, recompute="selective" if work.selective else work.recompute))


def _more_gpus(cfg: TrainConfig, work: Work, machine: Machine) -> Iterator[str]:
    """The fewest GPUs of this kind, in nodes of eight, on which a sharded strategy fits."""
    for kind in ("fsdp", "ds3", "ds3_offload"):
        gpus = 1
        while gpus <= MOST_GPUS:
            larger = replace(machine, each=min(gpus, 8), nodes=max(1, gpus // 8))
            if verdict(replace(cfg, strategy=replace(cfg.strategy, kind=kind)), kind, work, larger).fits:
                yield f"strategy={kind} on {gpus} such GPUs"
                break
            gpus *= 2


def check_fit(cfg: TrainConfig, work: Work, ranks: Ranks) -> Need:
    """What a rank will take. Raises ConfigError before anything is allocated if that cannot fit this machine, with the numbers and what would."""
    here = this_machine(cfg.strategy, cpu=ranks.device.type == "cpu")
    here = replace(here, each=ranks.world // cfg.strategy.nodes, memory=free_bytes(ranks.device) + CONTEXT if ranks.device.type == "cuda" else None)
    if (told := verdict(cfg, cfg.strategy.kind, work, here)).fits:
        return told.need
    raise ConfigError(message(cfg, work, here, told))


def message(cfg: TrainConfig, work: Work, machine: Machine, told: Verdict) -> str:
    """Why it does not fit, and what would."""
    if told.need is None:
        return told.why_not
    on_device = machine.device == "cuda" and told.need.of_device > machine.memory
    ranks = min(machine.each, told.world)
    parts, total, free = (told.need.device, told.need.of_device, machine.memory) if on_device else (
        {k: v * ranks for k, v in told.need.host.items()}, told.need.of_node(ranks), machine.host)
    where = f"on each of {told.world} GPUs" if on_device and told.world > 1 else "on the GPU" if on_device else "of memory"
    listed = ", ".join(f"{name} {human(size)}" for name, size in sorted(parts.items(), key=lambda x: -x[1]))
    device = "there" if on_device else "on this machine"
    return (
        f"this run does not fit: it needs about {human(total)} {where} ({listed}), and {human(free)} are free {device}; "
        f"{advice(cfg, machine, told, remedies(cfg, work, machine))}; "
        "python -m rwkv.plan with the same arguments shows every strategy, and other machines with plan.gpu=h100 plan.gpus=8"
    )


def advice(cfg: TrainConfig, machine: Machine, told: Verdict, found: list[str]) -> str:
    """What to do where memory does not suffice. found: `remedies`."""
    smaller = "" if cfg.precision.weights == "bf16" else "precision=bf16, "
    text = f"it fits with {', or '.join(found)}" if found else f"take a smaller model=, {smaller}or a machine with more memory"
    if cfg.strategy.sharded and machine.device == "cpu" and told.world == 1:
        text += f" (strategy={cfg.strategy.kind} shares this out over GPUs; here it runs on the CPU, where one process has all of it)"
    return text


def one_backward(size: Size, rows: int, tokens: int, weights: str, device: torch.device) -> int:
    """Bytes of one backward over rows of so many tokens, with the model and its gradients, on the device: for certificates."""
    work = Work(size, weights, rows, None, tokens, 1, 1, 1, False, False, "device", False, Kernels(), tokens)
    machine = Machine("", device.type, 1, 1, free_bytes(device) if device.type == "cuda" else None, None, None)
    found = need("auto", work, machine, 1)
    parts = found.device or found.host
    return sum(parts.values()) - parts["optimizer"] - parts["program"]
