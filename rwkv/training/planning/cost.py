"""Operations, bytes between ranks, time: of a token, a step, a run."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import yaml

from rwkv.config.compose import tree_of
from rwkv.config.schema import WHOLE, TrainConfig
from rwkv.training.environment import device_name
from rwkv.training.metrics import read
from rwkv.training.planning.machine import Asked, Machine
from rwkv.training.planning.work import Work, parameters

# of the peak of products, what training's executed operations have reached
SHARE = {"cuda": (0.30, "scripts/bench/results/model-gpu.md"), "cpu": (0.62, "scripts/bench/results/cpu.md")}
# FLOPs of a token and channel in the recurrence as a loop over tokens, forward: times head_size, but for v4, which has no matrix
RECURRENCE = {"v4": 12, "v5.0": 5, "v5.1": 5, "v5": 5, "v6": 5, "v7": 9}
SPEED_KEYS = ("arch", "model", "tokenizer", "layout", "ctx_len", "bptt", "strategy", "precision", "threads")


@dataclass(frozen=True)
class Flops:
    """Of a token. model: forward and backward once, 6 a weight, and the recurrence; executed: with what is computed again."""

    model: int
    executed: int


def flops(work: Work) -> Flops:
    size, p = work.size, parameters(work.size)
    recurrence = size.n_layer * size.n_embd * RECURRENCE[size.version] * (1 if size.version == "v4" else size.head_size)
    forward = 2 * p.matrices + recurrence
    again = 1 if work.recompute else work.first_pass / work.chunks  # blocks once more, the head not
    return Flops(3 * forward, int(3 * forward + again * (forward - 2 * p.head)))


@dataclass(frozen=True)
class Rate:
    """Tokens a second of the whole machine, and where the number comes from."""

    tokens: float
    source: str


def rate(cfg: TrainConfig, work: Work, asked: Asked, machine: Machine, world: int, besides: Path | None = None) -> Rate | None:
    """As given, as an earlier run measured it here, or from what such a device has reached; None of a GPU that nothing is known of.

    besides: a run's folder, whose own measures are not asked for."""
    if asked.rate:
        return Rate(asked.rate, "plan.rate")
    if asked.mfu and machine.peak:
        return Rate(asked.mfu * machine.peak * world / flops(work).model, "plan.mfu")
    if not asked.gpu and (found := measured(cfg, besides)):
        return found
    if machine.peak is None:
        return None
    share, source = SHARE[machine.device]
    return Rate(share * machine.peak * world / flops(work).executed, f"{share:.0%} of the peak, as in {source}")


def measured(cfg: TrainConfig, besides: Path | None) -> Rate | None:
    """Of the newest run in `out` of the same shape, on the same device."""
    wanted = tree_of(cfg)
    runs = sorted(Path(cfg.out).glob("*/metrics.jsonl"), key=lambda file: -file.stat().st_mtime)
    for folder in (file.parent for file in runs if file.parent != besides):
        try:
            settings, env = yaml.safe_load((folder / "config.yaml").read_text()), json.loads((folder / "env.json").read_text())
            rates = [r["tokens_per_sec"] for r in read(folder / "metrics.jsonl") if r.get("tokens_per_sec")]
        except (OSError, ValueError):  # of a run that is being written, or was killed
            continue
        if env["device"] == device_name() and all(settings.get(key) == wanted[key] for key in SPEED_KEYS) and len(rates) > 1:
            return Rate(statistics.median(rates[1:]), f"measured: {folder}")
    return None


def traffic(kind: str, work: Work, world: int) -> int:
    """Bytes that a rank passes to collectives in a step, as planned; see `traffic_of`."""
    groups = -(-work.rows_of_rank(world) // (work.at_once or work.rows)) * work.accumulate
    return traffic_of(kind, work, world, work.first_pass * groups, work.chunks * groups)


def traffic_of(kind: str, work: Work, world: int, forwards: int, backwards: int) -> int:
    """The same of a step of so many passes without a graph and with one: of an all-reduce what is summed, of a gather what comes
    out, of a reduce-scatter what goes in, as each strategy gathers and sums. Losses and flags, some bytes, are not counted."""
    p, e, m = parameters(work.size), work.element, work.master
    if kind in WHOLE:
        return p.total * m if world > 1 else 0
    if kind == "ds1":
        return p.total * (m + e)
    if kind.startswith("ds2"):
        return p.total * (m * backwards + e)
    return forwards * (p.total - p.head) * e + backwards * p.total * (2 * e + m)
