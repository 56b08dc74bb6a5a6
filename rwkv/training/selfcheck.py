"""Runs the certificate with the model, precision, kernels and states that a run's settings give."""

from collections.abc import Iterator

import torch

from rwkv.bptt.certificate import BOUNDS, Certificate, certify
from rwkv.bptt.chunks import runner
from rwkv.bptt.engine import Settings
from rwkv.config.derived import model_of
from rwkv.config.schema import TrainConfig
from rwkv.model.loss import LossModel
from rwkv.model.size import Size
from rwkv.model.state import State
from rwkv.training.optimizer import Optimizer

ROWS = 2  # documents side by side
NOISE = 0.05  # at the official initialisation most gradients are zero: every weight is moved by so much of a unit


def certificates(cfg: TrainConfig, size: Size, settings: Settings, lengths: list[int], device: torch.device, dtype) -> Iterator[Certificate]:
    """One certificate for each length, in tokens, of a freshly made model."""
    with torch.device("meta"):
        rwkv = model_of(cfg, size)
    rwkv = rwkv.to_empty(device="cpu").init_weights(cfg.seed)
    generator = torch.Generator().manual_seed(cfg.seed)
    with torch.no_grad():
        for p in rwkv.parameters():
            p += NOISE * torch.randn(p.shape, generator=generator)
    model = LossModel(rwkv.to(device, dtype), cfg.optim.l2wrap)
    optimizer = Optimizer(rwkv, rwkv.optimizer_groups(), betas=cfg.optim.betas, eps=cfg.optim.eps, weight_decay=0.0)

    zero = State.zeros(size, ROWS, dtype, "cpu")
    state = zero.map(lambda x: torch.randn(x.shape, generator=generator).to(x.dtype)).to(device)
    for length in lengths:
        yield certify(runner(model, cfg.bptt.graphs), optimizer.take_grads, state, settings, length, size.vocab_size, BOUNDS[dtype], cfg.seed)
