"""A program of its own, so that Fabric can start it on every rank: OUT.safetensors overrides... -> one step's gradients."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from rwkv.config.compose import load
from rwkv.training.ranks import Ranks
from rwkv.training.session import Session
from rwkv.training.strategies import MASTER


def main(out: Path, overrides: list[str]) -> None:
    cfg = load(overrides)
    torch.set_num_threads(cfg.threads)
    session = Session(cfg, Ranks(cfg.strategy), None)
    noise = torch.Generator().manual_seed(0)
    for name, shape in session.strategy.shapes.items():  # at the official initialisation most gradients are zero
        weight = session.strategy.whole(name, True)[MASTER]
        session.strategy.put(name, {MASTER: weight + 0.05 * torch.randn(shape, generator=noise, dtype=weight.dtype)})
    step = session.next_step()
    while not step.done:
        step.advance()
    loss = session.ranks.sum(step.loss.clone())
    norm = session.strategy.clip(cfg.optim.clip)
    session.strategy.step(1e-3)
    # after the first step Adam's exp_avg is (1 - beta1) times the gradient
    moments = {n: session.strategy.whole(n, True).get("exp_avg") for n in session.strategy.shapes}
    if session.ranks.first:
        grads = {n: m / (1 - cfg.optim.betas[0]) for n, m in moments.items() if m is not None}
        save_file(grads | {"loss": loss, "norm": torch.tensor(norm, dtype=torch.float64)}, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
