"""RWKV-4 "Dove" (x040): time-mix and channel-mix with their initialisation, and its optimizer groups.

Parameter names and shapes are those of the official files, the formulas those of the official trainer (RWKV-LM, RWKV-v4neo):
a weighted mean of the values so far, per channel, gated by the receptance. No heads.

Legend: B rows, T tokens, C channels (n_embd).
"""

import math

import torch
from torch import Tensor, nn

from rwkv.kernels.fused import relu_squared
from rwkv.kernels.registry import Kernels
from rwkv.kernels.wkv4 import wkv4
from rwkv.model.parts import linear, orthogonal, ramps, raw, zigzag
from rwkv.model.size import Size

WKV = "wkv4"
EMB_SCALE = 6e-4  # the official trainer takes the learning rate


def version_in(att: dict[str, Tensor]) -> str | None:
    """The version whose time-mix of layer 0 has these tensors; None if it is none of this module's."""
    return "v4" if "time_first" in att and "ln_x.weight" not in att else None


def heads_and_rank(att: dict[str, Tensor]) -> tuple[int, None]:
    """(head size, ranks) of a layer's time-mix: v4 has neither."""
    return 64, None


def default_rank(n_embd: int) -> None:
    return None


class TimeMix(nn.Module):
    def __init__(self, size: Size, layer: int):
        super().__init__()
        C = size.n_embd
        self.size, self.layer = size, layer
        self.time_decay, self.time_first = raw(C), raw(C)
        self.time_mix_k, self.time_mix_v, self.time_mix_r = (raw(1, 1, C) for _ in range(3))
        self.key, self.value, self.receptance, self.output = (linear(C, C) for _ in range(4))

    def mixes(self) -> list[Tensor]:
        """Factors of the token shift, of what `forward` takes."""
        return [1 - mix for mix in (self.time_mix_k, self.time_mix_v, self.time_mix_r)]

    def forward(
        self, mixed: tuple[Tensor, ...], S_B3C: Tensor, v_first: Tensor | None, reset: Tensor | None, kernels: Kernels
    ) -> tuple[Tensor, Tensor, None]:
        """Returns (out [B, T, C], final wkv state, None: v4 hands nothing from the first layer to those above)."""
        x_k, x_v, x_r = mixed
        y, S_B3C = wkv4(self.time_decay, self.time_first, self.key(x_k), self.value(x_v), S_B3C, reset, backend=kernels[WKV])
        return self.output(torch.sigmoid(self.receptance(x_r)) * y), S_B3C, None

    @torch.no_grad()
    def init_weights(self) -> None:
        """The table of RWKV-v4neo."""
        r01, r10 = self.size.depth(self.layer)
        d, lin = ramps(self.size.n_embd)
        self.time_decay.copy_(-5 + 8 * lin ** (0.7 + 1.3 * r01))
        self.time_first.copy_(math.log(0.3) + 0.5 * zigzag(self.size.n_embd))
        self.time_mix_k.copy_(d**r10)
        self.time_mix_v.copy_(d**r10 + 0.3 * r01)
        self.time_mix_r.copy_(d ** (0.5 * r10))
        orthogonal(self.value.weight, 1.0)
        for module in (self.key, self.receptance, self.output):
            module.weight.zero_()


class ChannelMix(nn.Module):
    """That of v4 and v5, whose widths differ."""

    def __init__(self, size: Size, layer: int):
        super().__init__()
        C, F = size.n_embd, self.width(size)
        self.size, self.layer = size, layer
        self.time_mix_k, self.time_mix_r = raw(1, 1, C), raw(1, 1, C)
        self.key, self.receptance, self.value = linear(C, F), linear(C, C), linear(F, C)

    @staticmethod
    def width(size: Size) -> int:
        return 4 * size.n_embd

    def mixes(self) -> list[Tensor]:
        return [1 - self.time_mix_k, 1 - self.time_mix_r]

    def forward(self, mixed: tuple[Tensor, ...], kernels: Kernels) -> Tensor:
        x_k, x_r = mixed
        return torch.sigmoid(self.receptance(x_r)) * self.value(relu_squared(self.key(x_k), kernels["relu_squared"]))

    @torch.no_grad()
    def init_weights(self) -> None:
        _, r10 = self.size.depth(self.layer)
        d, _ = ramps(self.size.n_embd)
        self.time_mix_k.copy_(d**r10)
        self.time_mix_r.copy_(d**r10)
        orthogonal(self.key.weight, 1.0, grow=True)
        self.value.weight.zero_()
        self.receptance.weight.zero_()


def optimizer_group(name: str, param: Tensor) -> tuple[float, bool]:
    """(learning-rate factor, whether weight decay applies) of a parameter, as the official trainer groups them."""
    if name.endswith("att.time_decay"):
        return 2.0, False
    if name.endswith("att.time_first"):
        return 3.0, False
    return 1.0, param.squeeze().dim() >= 2
