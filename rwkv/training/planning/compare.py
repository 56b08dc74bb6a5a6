"""The plan of a run beside what it is, once it has taken some steps."""

import torch

from rwkv.memory import human, peak_bytes
from rwkv.training.display import Display
from rwkv.training.planning.cost import rate, traffic_of
from rwkv.training.planning.machine import Asked, this_machine
from rwkv.training.session import Session
from rwkv.training.step import Step

COMPARED_AFTER = 20  # steps of a process


def compare(session: Session, display: Display, recent: list[tuple[int, float]]) -> dict[str, float | int]:
    """Say it in a line, and give it for the metrics: bytes of the rank that takes most, seconds a step, tokens a second of all ranks.

    recent: (tokens, time) after each of the last steps. Every rank calls it."""
    cfg, ranks, planned = session.cfg, session.ranks, session.planned
    cuda = ranks.device.type == "cuda"
    memory = planned.of_tensors if cuda else sum(planned.host.values()) - planned.host.get("checkpoint", 0)  # which may not have been written yet
    held = max(ranks.gather(torch.cuda.max_memory_allocated(ranks.device) if cuda else peak_bytes(ranks.device)))
    expected = rate(cfg, session.work, Asked(), this_machine(cfg.strategy, cpu=not cuda, each=ranks.world // cfg.strategy.nodes), ranks.world, session.folder.path)
    (tokens0, time0), (tokens1, time1) = recent[0], recent[-1]
    seconds, measured = (time1 - time0) / (len(recent) - 1), (tokens1 - tokens0) / (time1 - time0)
    record = {"plan/memory": memory, "peak_memory": held, "step_seconds": seconds, "measured_tokens_per_sec": measured}
    line = f"plan   {human(memory)} a rank at most, measured {human(held)} ({held / memory:.2f} of it)"
    if expected:
        per_step = (tokens1 - tokens0) / (len(recent) - 1) / expected.tokens
        record |= {"plan/step_seconds": per_step, "plan/tokens_per_sec": expected.tokens}
        line += f"; {per_step:.3g} s a step, measured {seconds:.3g}; {expected.tokens:,.0f} tokens/s, measured {measured:,.0f}"
    display.say(line)
    return record


def bytes_between(session: Session, step: Step, summed: int) -> int:
    """Bytes that this rank passed to collectives in a step: `summed` as gradients by `Ranks`, or what its passes gathered and reduced."""
    strategy = session.cfg.strategy
    return summed if not strategy.sharded else traffic_of(strategy.kind, session.work, session.ranks.world, *step.passes)
