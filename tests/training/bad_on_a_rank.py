"""A run, on one rank of which steps are made bad; what every rank does with each step is in EVENTS-RANK."""

import os
from pathlib import Path

from rwkv import train
from rwkv.config import cli
from rwkv.training.loop import Session
from rwkv.training.step import Step


def bad_on_a_rank(overrides: list[str], bad: dict[int, str], rank: int, events: Path) -> int:
    """bad: step, 1-based, in the order they are taken -> loss, gradient, state (not finite) or spike (a gradient many times too large)."""
    mine = int(os.environ["LOCAL_RANK"])
    told = events.with_name(f"{events.name}-{mine}").open("w", buffering=1)
    now = {"step": 0, "what": None}
    take, advance, restore = Session.next_step, Step.advance, Session.restore

    def next_step(session):
        now["step"] += 1
        now["what"] = bad.get(now["step"]) if mine == rank else None
        if now["step"] == 1:
            watch(session)
        return take(session)

    def watch(session):
        session.model.rwkv.ln_out.register_forward_hook(spoil)
        for name in ("step", "drop"):
            act = getattr(session.strategy, name)
            setattr(session.strategy, name, lambda *args, act=act, name=name: (told.write(f"{name} {now['step']}\n"), act(*args)))

    def spoil(_, __, out):
        if out.requires_grad:
            out.register_hook(lambda g: g * {"gradient": float("nan"), "spike": 1e4}.get(now["what"], 1.0))

    def advanced(step):
        advance(step)
        if step.done and now["what"] == "loss":
            step.loss += float("nan")
        if step.done and now["what"] == "state":
            step.carry.wkv[-1] = float("inf")

    def restored(session, point):
        told.write(f"restore {now['step']} {point.name}\n")
        restore(session, point)

    Session.next_step, Step.advance, Session.restore = next_step, advanced, restored
    return cli.guarded(train.main, overrides)
