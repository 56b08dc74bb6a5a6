"""The numbers that fix a model's tensors."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LoraRank:
    """Ranks of the low-rank parts of RWKV-7: decay (w), in-context learning rate (a), value residual (v), gate (g)."""

    w: int
    a: int
    v: int
    g: int

    @staticmethod
    def default(n_embd: int) -> "LoraRank":
        """The rule of the official trainer (RWKV-v7/train_temp); released files follow older ones: see conf/model."""

        def rank(factor: float) -> int:
            return max(32, 32 * round(factor * math.sqrt(n_embd) / 32))

        return LoraRank(w=rank(2.5), a=rank(2.5), v=rank(1.7), g=rank(5.0))


@dataclass(frozen=True)
class Size:
    """n_layer blocks of width n_embd, with n_embd / head_size heads, over a vocabulary of vocab_size tokens.

    lora_rank: as the generation has them, a `LoraRank` in v7; None in v4 and v5.
    version: a key of `rwkv.model.rwkv.GENERATIONS`; v5 is 5.2.
    """

    n_layer: int
    n_embd: int
    vocab_size: int
    lora_rank: Any
    head_size: int = 64
    version: str = "v7"

    @property
    def n_head(self) -> int:
        return self.n_embd // self.head_size

    def depth(self, layer: int) -> tuple[float, float]:
        """(r01, r10): the layer's place as 0..1 from the first to the last, and as 1..1/n_layer."""
        return layer / max(self.n_layer - 1, 1), 1 - layer / self.n_layer
