"""Ways in which the model, its gradients and Adam lie on the ranks: `strategy=` names one."""

from rwkv.config.schema import TrainConfig
from rwkv.model.size import Size
from rwkv.training.optimizer import MASTER
from rwkv.training.ranks import Ranks
from rwkv.training.strategies.base import Strategy

__all__ = ["MASTER", "Strategy", "build", "check"]


def check(cfg: TrainConfig, n: int, device: str, build: bool = True) -> None:
    """Raises ConfigError where this machine lacks what the strategy needs besides memory, for a model of n parameters: before any long work.

    device: "cpu" or "cuda"; build: whether operators are compiled that have not been yet, or only what that takes is looked for."""
    if cfg.strategy.kind.startswith("ds"):
        from rwkv.training.strategies import deepspeed

        deepspeed.check(cfg, n, device, build)


def build(cfg: TrainConfig, size: Size, ranks: Ranks) -> Strategy:
    """The strategy that the settings name, its model without weights."""
    kind = cfg.strategy.kind
    if kind == "fsdp":
        from rwkv.training.strategies.fsdp import Fsdp

        return Fsdp(cfg, size, ranks)
    if kind.startswith("ds"):
        from rwkv.training.strategies.deepspeed import DeepSpeed

        return DeepSpeed(cfg, size, ranks)
    from rwkv.training.strategies.whole import Whole

    return Whole(cfg, size, ranks)
