"""A program of its own: overrides... -> planned and measured growth of this process's memory over three steps, as JSON."""

import json
import sys

import torch

from rwkv.config.compose import load
from rwkv.memory import peak_bytes
from rwkv.training.ranks import Ranks
from rwkv.training.session import Session


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def main(overrides: list[str]) -> None:
    cfg = load(overrides)
    torch.set_num_threads(cfg.threads)
    ranks = Ranks(cfg.strategy)
    before = resident()
    session = Session(cfg, ranks, None)
    for _ in range(3):
        step = session.next_step()
        while not step.done:
            step.advance()
        session.strategy.clip(cfg.optim.clip)
        session.strategy.step(1e-4)
        session.advance(step)
    planned = sum(size for name, size in session.planned.host.items() if name not in ("program", "checkpoint"))
    print(json.dumps({"planned": planned, "measured": peak_bytes(ranks.device) - before}))


if __name__ == "__main__":
    main(sys.argv[1:])
