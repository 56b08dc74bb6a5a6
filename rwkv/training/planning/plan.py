"""All that is known of a run before it begins, from its settings and a machine."""

from dataclasses import asdict, dataclass, replace

from rwkv.checkpoint.run import RunFolder
from rwkv.config.schema import TrainConfig
from rwkv.model.rwkv import GENERATIONS
from rwkv.model.size import Size
from rwkv.training.planning.cost import Flops, Rate, flops, rate, traffic
from rwkv.training.planning.fit import Verdict, remedies, verdict, verdicts
from rwkv.training.planning.machine import Asked, Machine
from rwkv.training.planning.work import Parameters, Work, parameters
from rwkv.training.strategies import swap


@dataclass(frozen=True)
class Plan:
    """
    chosen: the verdict on the settings as they are; all: on each strategy.
    remedies: what would make it fit; rows, ctx_len: the largest that would fit, None if none would or nothing bounds them.
    checkpoint: bytes of one on the disk; swap: of each node, on the disk that strategy.swap names. traffic: bytes that a rank passes to collectives in a step.
    """

    cfg: TrainConfig
    work: Work
    machine: Machine
    params: Parameters
    chosen: Verdict
    all: list[Verdict]
    remedies: list[str]
    rows: int | None
    ctx_len: int | None
    flops: Flops
    rate: Rate | None
    traffic: int
    checkpoint: int
    swap: int
    run: str

    @property
    def seconds(self) -> float | None:
        return self.work.tokens / self.rate.tokens if self.rate else None

    def as_dict(self) -> dict:
        """For JSON: bytes, seconds, FLOPs."""
        w = self.work
        return {
            "run": self.run,
            "machine": asdict(self.machine),
            "model": asdict(w.size),
            "parameters": self.params.total,
            "strategies": [_of(v, self.machine) for v in self.all],
            "chosen": _of(self.chosen, self.machine),
            "remedies": self.remedies,
            "largest": {"layout.rows": self.rows, "ctx_len": self.ctx_len},
            "tokens": w.tokens,
            "tokens_per_step": w.tokens_per_step,
            "steps": w.steps,
            "flops_per_token": asdict(self.flops),
            "flops": self.flops.executed * w.tokens,
            "tokens_per_sec": self.rate and self.rate.tokens,
            "rate_source": self.rate and self.rate.source,
            "seconds": self.seconds,
            "traffic_per_step": self.traffic,
            "checkpoint": self.checkpoint,
            "swap": self.swap,
        }


def _of(v: Verdict, machine: Machine) -> dict:
    ranks = min(machine.each, v.world)
    memory = v.need and {"device": v.need.device, "host": v.need.host, "host_of_node": v.need.of_node(ranks)}
    return {"strategy": v.kind, "processes": v.world, "memory_per_rank": memory, "fits": v.fits, "why_not": v.why_not}


def make(cfg: TrainConfig, size: Size, asked: Asked, machine: Machine) -> Plan:
    """Raises KernelError if `model.kernel` cannot run on such a device."""
    work = Work.of(cfg, size, asked.document)
    every = verdicts(cfg, work, machine)
    chosen = next(v for v in every if v.kind == cfg.strategy.kind)
    p, rows = parameters(size), work.rows
    checkpoint = 3 * p.total * work.master + rows * work.state
    return Plan(
        cfg, work, machine, p, chosen, every,
        [] if chosen.fits else remedies(cfg, work, machine),
        _largest(cfg, work, machine, "rows", chosen.world), _largest(cfg, work, machine, "ctx", 16),
        flops(work), rate(cfg, work, asked, machine, chosen.world), traffic(chosen.kind, work, chosen.world), checkpoint,
        swap.needed(p.total, machine.nodes) if chosen.kind == "ds3_nvme" else 0,
        str(RunFolder.of(cfg).path),
    )  # fmt: skip


def _largest(cfg: TrainConfig, work: Work, machine: Machine, what: str, step: int) -> int | None:
    """The largest multiple of `step` that fits in place of rows or ctx, the others as they are, by a line through two that are drawn nearer to it."""
    free = machine.memory if machine.device == "cuda" else machine.host
    if free is None:
        return None

    def taken(n: int) -> int | None:
        found = verdict(cfg, cfg.strategy.kind, replace(work, **{what: n}), machine)
        if found.need is None:
            return None
        return found.need.of_device if machine.device == "cuda" else found.need.of_node(min(machine.each, found.world))

    low = -(-getattr(work, what) // step) * step  # fewer rows than ranks take as much as one on each
    most = 2 * low
    one = taken(low)
    for _ in range(1 if work.kernels[GENERATIONS[work.size.version].WKV] == "reference" else 3):  # that is counted token by token
        if one is None or (two := taken(most)) is None:
            return None
        most = int(low + (most - low) * (free - one) / (two - one)) // step * step
        if most < step:
            return None
        if most == low:
            break
    return most
