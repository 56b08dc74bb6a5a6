"""One step's gradients under each of several strategies, behind steps that were dropped; to be run on every rank."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rwkv.config.compose import load
from rwkv.config.schema import TrainConfig
from rwkv.training.ranks import Ranks
from rwkv.training.session import Session
from rwkv.training.strategies import MASTER


def main(folder: Path, strategies: list[str], overrides: list[str]) -> None:
    """Strategies are overrides of their own, separated by blanks. The first writes 0.safetensors, the next 1.safetensors, ..."""
    ranks = None
    for i, each in enumerate(strategies):
        cfg = load([*overrides, *each.split(" ")])
        torch.set_num_threads(cfg.threads)
        ranks = ranks or Ranks(cfg.strategy)
        write_gradients(cfg, ranks, folder / f"{i}.safetensors")


def write_gradients(cfg: TrainConfig, ranks: Ranks, out: Path) -> None:
    session = Session(cfg, ranks, None)
    noise = torch.Generator().manual_seed(0)
    for name, shape in session.strategy.shapes.items():  # at the official initialisation most gradients are zero
        weight = session.strategy.whole(name, True)[MASTER]
        session.strategy.put(name, {MASTER: weight + 0.05 * torch.randn(shape, generator=noise, dtype=weight.dtype)})
    position, backward_from = session.data.state_dict(), session.strategy.runner.backward_from
    for factor in (float("nan"), 3.0):  # steps that are dropped leave nothing behind
        session.strategy.runner.backward_from = lambda scalar, factor=factor: backward_from(factor * scalar)
        finish_step(session)
        session.strategy.drop()
        session.data.load_state_dict(position)
    session.strategy.runner.backward_from = backward_from
    loss, norm = finish_step(session)
    session.strategy.step(1e-3)
    # after the first step Adam's exp_avg is (1 - beta1) times the gradient
    moments = {n: session.strategy.whole(n, True).get("exp_avg") for n in session.strategy.shapes}
    if session.ranks.first:
        grads = {n: m / (1 - cfg.optim.betas[0]) for n, m in moments.items() if m is not None}
        save_file(grads | {"loss": loss, "norm": torch.tensor(norm, dtype=torch.float64)}, out)


def finish_step(session: Session) -> tuple[Tensor, float]:
    """The loss and the gradient's norm; gradients are left."""
    step = session.next_step()
    while not step.done:
        step.advance()
    return session.ranks.sum(step.loss.clone()), session.strategy.clip(session.cfg.optim.clip)
