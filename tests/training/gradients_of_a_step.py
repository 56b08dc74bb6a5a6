"""A program of its own, so that Fabric can start it on every rank: OUT.safetensors overrides... -> one step's gradients."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from rwkv.config.compose import load
from rwkv.training.ranks import Ranks
from rwkv.training.session import Session


def main(out: Path, overrides: list[str]) -> None:
    cfg = load(overrides)
    torch.set_num_threads(cfg.threads)
    session = Session(cfg, Ranks(cfg.strategy), None)
    noise = torch.Generator().manual_seed(0)
    for p in session.model.parameters():  # at the official initialisation most gradients are zero
        p.data += 0.05 * torch.randn(p.shape, generator=noise)
    step = session.next_step()
    while not step.done:
        step.advance()
    session.ranks.sum_gradients(session.optimizer.grads())
    loss = session.ranks.sum(step.loss.clone())
    if session.ranks.first:
        grads = {n: m.grad for n, m in session.optimizer.masters.items() if m.grad is not None}
        save_file(grads | {"loss": loss}, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
