"""The numbers that fix a model's tensors."""

import math
from dataclasses import dataclass


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
class FinchRank:
    """Ranks of the low-rank parts of RWKV-6: token-shift factors (mix) and decay."""

    mix: int
    decay: int

    @staticmethod
    def default(n_embd: int) -> "FinchRank":
        """As released: 32 and 64, twice that from a width of 4096 on."""
        return FinchRank(64, 128) if n_embd >= 4096 else FinchRank(32, 64)


@dataclass(frozen=True)
class Size:
    """n_layer blocks of width n_embd, with n_embd / head_size heads, over a vocabulary of vocab_size tokens.

    lora_rank: `FinchRank` in v6, none in v4 and v5. version: v4, v5.0, v5.1, v5 (5.2), v6 or v7.
    """

    n_layer: int
    n_embd: int
    vocab_size: int
    lora_rank: LoraRank | FinchRank | None
    head_size: int = 64
    version: str = "v7"

    @property
    def n_head(self) -> int:
        return self.n_embd // self.head_size

    def depth(self, layer: int) -> tuple[float, float]:
        """(r01, r10): the layer's place as 0..1 from the first to the last, and as 1..1/n_layer."""
        return layer / max(self.n_layer - 1, 1), 1 - layer / self.n_layer
