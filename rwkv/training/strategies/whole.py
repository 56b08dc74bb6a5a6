"""strategy=auto, ddp: every rank holds the model and Adam whole; gradients are summed once a step."""

import torch
from torch import Tensor

from rwkv.bptt.chunks import Eager, runner
from rwkv.config.derived import model_of
from rwkv.config.schema import TrainConfig
from rwkv.model.loss import LossModel
from rwkv.model.rwkv import RWKV
from rwkv.model.size import Size
from rwkv.model.state import DTYPES
from rwkv.training.optimizer import Optimizer
from rwkv.training.ranks import Ranks
from rwkv.training.strategies.base import Strategy


class Whole(Strategy):
    def __init__(self, cfg: TrainConfig, size: Size, ranks: Ranks):
        self.ranks = ranks
        with torch.device("meta"):
            rwkv = model_of(cfg, size).to(DTYPES[cfg.precision.weights])
        groups = rwkv.optimizer_groups()
        self.model = LossModel(self._place(rwkv).to_empty(device=ranks.device), cfg.optim.l2wrap)
        self.optimizer = Optimizer(
            self.model.rwkv,
            groups,
            betas=cfg.optim.betas,
            eps=cfg.optim.eps,
            weight_decay=cfg.optim.weight_decay,
            layerwise_lr=cfg.optim.layerwise_lr,
        )
        self.shapes = {n: m.shape for n, m in self.optimizer.masters.items()}
        self.runner = self._make_runner(cfg)

    def _place(self, rwkv: RWKV) -> RWKV:
        """Of a model on the meta device, what this rank has."""
        return rwkv

    def _make_runner(self, cfg: TrainConfig) -> Eager:
        return runner(self.model, cfg.bptt.graphs, cfg.bptt.recompute == "selective")

    def clip(self, max_norm: float) -> float:
        self.ranks.sum_gradients(self.optimizer.grads())
        return self.optimizer.clip(max_norm).item()

    def step(self, lr: float) -> None:
        self.optimizer.step(lr)

    def drop(self) -> None:
        self.optimizer.zero_grad()

    def whole(self, name: str, wanted: bool) -> dict[str, Tensor]:
        return {n: x.detach() for n, x in self.optimizer.entries(name).items()} if wanted else {}

    def put(self, name: str, entries: dict[str, Tensor]) -> None:
        self.optimizer.put(name, entries)

    def gradients(self) -> dict[str, Tensor]:
        return {n: m.grad.cpu() for n, m in self.optimizer.masters.items() if m.grad is not None}

    def put_gradients(self, grads: dict[str, Tensor]) -> None:
        for name, grad in grads.items():
            self.optimizer.masters[name].grad = grad.to(self.ranks.device)
