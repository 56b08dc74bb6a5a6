"""RWKV-6 "Finch" (x060): time-mix and channel-mix with their initialisation, and its optimizer groups.

Parameter names and shapes are those of the official files, the formulas those of the official trainer (RWKV-LM, RWKV-v5):
the recurrence of v5 with a decay for each token, and a token shift whose factors, too, come from the token itself, both by
low-rank matrices.

Legend: B rows, T tokens, C channels (n_embd), H heads, N head size, M and D ranks of the mix and of the decay.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv.kernels.fused import relu_squared
from rwkv.kernels.fused.plain import GROUP_NORM_EPS
from rwkv.kernels.registry import Kernels
from rwkv.kernels.wkv6 import wkv6
from rwkv.model.parts import is_matrix, linear, orthogonal, ramps, raw, zigzag
from rwkv.model.size import Size

WKV = "wkv6"
EMB_SCALE = 1e-4


@dataclass(frozen=True)
class FinchRank:
    """Ranks of the low-rank parts: token-shift factors (mix) and decay."""

    mix: int
    decay: int


def version_in(att: dict[str, Tensor]) -> str | None:
    """The version whose time-mix of layer 0 has these tensors; None if it is none of this module's."""
    return "v6" if "time_maa_x" in att else None


def heads_and_rank(att: dict[str, Tensor]) -> tuple[int, FinchRank]:
    """(head size, ranks) of a layer's time-mix."""
    return att["time_faaaa"].shape[1], FinchRank(att["time_maa_w1"].shape[1] // 5, att["time_decay_w1"].shape[1])


def default_rank(n_embd: int) -> FinchRank:
    """As released: 32 and 64, twice that from a width of 4096 on."""
    return FinchRank(64, 128) if n_embd >= 4096 else FinchRank(32, 64)


class TimeMix(nn.Module):
    def __init__(self, size: Size, layer: int):
        super().__init__()
        C, H, N = size.n_embd, size.n_head, size.head_size
        M, D = size.lora_rank.mix, size.lora_rank.decay
        self.size, self.layer = size, layer
        self.time_maa_x, self.time_maa_w, self.time_maa_k, self.time_maa_v, self.time_maa_r, self.time_maa_g = (
            raw(1, 1, C) for _ in range(6)
        )
        self.time_maa_w1, self.time_maa_w2 = raw(C, 5 * M), raw(5, M, C)
        self.time_decay, self.time_decay_w1, self.time_decay_w2 = raw(1, 1, C), raw(C, D), raw(D, C)
        self.time_faaaa = raw(H, N)
        self.receptance, self.key, self.value, self.output, self.gate = (linear(C, C) for _ in range(5))
        self.ln_x = nn.GroupNorm(H, C, eps=GROUP_NORM_EPS)

    def mixes(self) -> list[Tensor]:
        """Factors of the token shift, of what `forward` takes: a token, the one before it, and a mix of both."""
        return [torch.zeros_like(self.time_maa_x), torch.ones_like(self.time_maa_x), self.time_maa_x]

    def forward(
        self, mixed: tuple[Tensor, ...], S_BHNN: Tensor, v_first: Tensor | None, reset: Tensor | None, kernels: Kernels
    ) -> tuple[Tensor, Tensor, None]:
        """Returns (out [B, T, C], final wkv state, None: v6 hands nothing from the first layer to those above)."""
        x, prev, x_x = mixed
        B, T, C = x.shape
        heads, d = (B, T, self.size.n_head, self.size.head_size), prev - x
        z = torch.tanh(x_x @ self.time_maa_w1)
        moved = torch.einsum("btcm,cmn->cbtn", z.view(B, T, 5, -1), self.time_maa_w2)
        maa = torch.stack([self.time_maa_w, self.time_maa_k, self.time_maa_v, self.time_maa_r, self.time_maa_g])
        x_w, x_k, x_v, x_r, x_g = torch.addcmul(x, d, maa + moved).unbind(0)

        r, k, v, g = self.receptance(x_r), self.key(x_k), self.value(x_v), F.silu(self.gate(x_g))
        w = self.time_decay + torch.tanh(x_w @ self.time_decay_w1) @ self.time_decay_w2
        y, S_BHNN = wkv6(*(z.view(heads) for z in (r, w, k, v)), self.time_faaaa, S_BHNN, reset, backend=kernels[WKV])
        y = F.group_norm(y.reshape(B * T, C), heads[2], self.ln_x.weight, self.ln_x.bias, self.ln_x.eps).view(B, T, C)
        return self.output(y * g), S_BHNN, None

    @torch.no_grad()
    def init_weights(self) -> None:
        """The table of RWKV-v5 (x060)."""
        C, L = self.size.n_embd, self.size.n_layer
        r01, r10 = self.size.depth(self.layer)
        d, lin = ramps(C)
        for maa in (self.time_maa_x, self.time_maa_w, self.time_maa_k):
            maa.copy_(1 - d**r10)
        self.time_maa_v.copy_(1 - (d**r10 + 0.3 * r01))
        for maa in (self.time_maa_r, self.time_maa_g):
            maa.copy_(1 - d ** (0.5 * r10))
        self.time_maa_w1.zero_()
        self.time_decay_w1.zero_()
        self.time_maa_w2.uniform_(-0.01, 0.01)
        self.time_decay_w2.uniform_(-0.01, 0.01)
        self.time_decay.copy_(-6 + 5 * lin ** (0.7 + 1.3 * r01))
        self.time_faaaa.copy_((r01 * (1 - lin) + 0.1 * zigzag(C)).view_as(self.time_faaaa))
        orthogonal(self.receptance.weight, 1.0)
        orthogonal(self.key.weight, 0.1)
        orthogonal(self.value.weight, 1.0)
        orthogonal(self.gate.weight, 0.1)
        self.output.weight.zero_()
        self.ln_x.weight.fill_(((1 + self.layer) / L) ** 0.7)
        self.ln_x.bias.zero_()


class ChannelMix(nn.Module):
    def __init__(self, size: Size, layer: int):
        super().__init__()
        C, F = size.n_embd, int(3.5 * size.n_embd) // 32 * 32
        self.size, self.layer = size, layer
        self.time_maa_k, self.time_maa_r = raw(1, 1, C), raw(1, 1, C)
        self.key, self.receptance, self.value = linear(C, F), linear(C, C), linear(F, C)

    def mixes(self) -> list[Tensor]:
        return [self.time_maa_k, self.time_maa_r]

    def forward(self, mixed: tuple[Tensor, ...], kernels: Kernels) -> Tensor:
        x_k, x_r = mixed
        return torch.sigmoid(self.receptance(x_r)) * self.value(relu_squared(self.key(x_k), kernels["relu_squared"]))

    @torch.no_grad()
    def init_weights(self) -> None:
        _, r10 = self.size.depth(self.layer)
        d, _ = ramps(self.size.n_embd)
        self.time_maa_k.copy_(1 - d ** (r10**3))
        self.time_maa_r.copy_(1 - d ** (r10**3))
        orthogonal(self.key.weight, 1.0)
        self.value.weight.zero_()
        self.receptance.weight.zero_()


def optimizer_group(name: str, param: Tensor) -> tuple[float, bool]:
    """(learning-rate factor, whether weight decay applies) of a parameter, as the official trainer groups them."""
    if name.endswith("att.time_decay"):
        return 2.0, False
    return 1.0, is_matrix(name, param)
