"""What a strategy is: one way in which the model, its gradients and Adam lie on the ranks."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from rwkv.bptt.chunks import Eager
from rwkv.config.schema import TrainConfig
from rwkv.model.loss import LossModel
from rwkv.model.size import Size
from rwkv.training.optimizer import MASTER
from rwkv.training.ranks import Ranks


class Strategy(ABC):
    """A model without weights until `fill` or `put` gives them.

    Gradients are added up by backwards of chunks, as many as there are, and used by `clip`, `step` or `drop`, which every
    rank calls. A rank's loss is its rows' share of the whole step's mean, so gradients are summed over the ranks, not averaged.

    Attributes:
        model: gives the loss. What this rank holds of its parameters is the strategy's own affair.
        runner: runs chunks of the model.
        together: ranks talk inside of chunks, so all must go through the same passes, whatever their rows hold.
        layerwise: blocks can be run by themselves, one after the other (`rwkv.bptt.layerwise`).
        stops_inside: an unfinished step can be saved and taken up (`gradients`, `put_gradients`).
    """

    together = False
    layerwise = True
    stops_inside = True
    model: LossModel
    runner: Eager
    shapes: dict[str, torch.Size]  # of the whole parameters, in the model's order

    @abstractmethod
    def __init__(self, cfg: TrainConfig, size: Size, ranks: Ranks): ...

    def fill(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take whole weights by name, the same on every rank; Adam begins anew."""
        for name, weight in weights:
            self.put(name, {MASTER: weight})

    def last_pass(self, last: bool) -> None:
        """Whether the next pass is the step's last, told before each."""

    @abstractmethod
    def clip(self, max_norm: float) -> float:
        """Sum the gradients over the ranks; scale them to a global L2 norm of at most max_norm (0: leave them). Returns the norm before."""

    @abstractmethod
    def step(self, lr: float) -> None:
        """One update at this learning rate, times each group's factor; gradients are cleared."""

    @abstractmethod
    def drop(self) -> None:
        """Clear the gradients without an update."""

    @abstractmethod
    def whole(self, name: str, wanted: bool) -> dict[str, Tensor]:
        """A parameter's master weight and Adam's entries, whole, wherever they lie, for those ranks that want them. Every rank calls it.

        They are valid until the next step, and not to be changed.
        """

    @abstractmethod
    def put(self, name: str, entries: dict[str, Tensor]) -> None:
        """Take a copy of what `whole` gave, under whatever strategy. Every rank calls it, with the same.

        The tensors may be mapped files: what a rank has no use for is best not touched.
        """

    def gradients(self) -> dict[str, Tensor]:
        """What this rank holds of the gradients so far."""
        raise NotImplementedError

    def put_gradients(self, grads: dict[str, Tensor]) -> None:
        """Take what `gradients` gave on this rank, of as many."""
        raise NotImplementedError
