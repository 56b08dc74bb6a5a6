"""RWKV-7 "Goose" (x070): time-mix and channel-mix with their initialisation, and its optimizer groups.

Parameter names and shapes are those of the official files, the formulas those of the official trainer
(RWKV-LM, RWKV-v7/train_temp). Notable:
- token shift mixes each input with the one before it, by a learned factor per channel and use (r, w, k, v, a, g);
- decay, in-context learning rate, value residual and gate come from low-rank matrices (w1 w2, a1 a2, v1 v2, g1 g2);
- the removal key kk is k * k_k, normalised per head; k itself is then scaled by the learning rate a;
- layers above the first blend their value with the first layer's;
- the read-out is group-normalised per head, plus a bonus of the current token, times the gate.

Legend: B rows, T tokens, C channels (n_embd), H heads, N head size.
"""

import torch
from torch import Tensor, nn

from rwkv.kernels.fused import relu_squared, wkv7_inputs, wkv7_readout
from rwkv.kernels.fused.plain import GROUP_NORM_EPS
from rwkv.kernels.registry import Kernels
from rwkv.kernels.wkv7 import wkv7
from rwkv.model.parts import is_matrix, linear, orthogonal, plus, ramps, raw
from rwkv.model.size import LoraRank, Size

WKV = "wkv7"
EMB_SCALE = 1e-4


def version_in(att: dict[str, Tensor]) -> str | None:
    """The version whose time-mix of layer 0 has these tensors; None if it is none of this module's."""
    return "v7" if "r_k" in att else None


def heads_and_rank(att: dict[str, Tensor]) -> tuple[int, LoraRank]:
    """(head size, ranks) of a layer's time-mix; layer 0 of a released file has no v1."""
    return att["r_k"].shape[1], LoraRank(*(att[f"{c}1"].shape[1] if f"{c}1" in att else 32 for c in "wavg"))


def default_rank(n_embd: int) -> LoraRank:
    return LoraRank.default(n_embd)


class TimeMix(nn.Module):
    def __init__(self, size: Size, layer: int):
        super().__init__()
        C, H, N, rank = size.n_embd, size.n_head, size.head_size, size.lora_rank
        self.size, self.layer = size, layer

        self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g = (raw(1, 1, C) for _ in range(6))
        self.w1, self.w2, self.w0 = raw(C, rank.w), raw(rank.w, C), raw(1, 1, C)
        self.a1, self.a2, self.a0 = raw(C, rank.a), raw(rank.a, C), raw(1, 1, C)
        self.v1, self.v2, self.v0 = raw(C, rank.v), raw(rank.v, C), raw(1, 1, C)  # unused in layer 0, as in official files
        self.g1, self.g2 = raw(C, rank.g), raw(rank.g, C)
        self.k_k, self.k_a, self.r_k = raw(1, 1, C), raw(1, 1, C), raw(H, N)
        self.receptance, self.key, self.value, self.output = (linear(C, C) for _ in range(4))
        self.ln_x = nn.GroupNorm(H, C, eps=GROUP_NORM_EPS)

    def mixes(self) -> list[Tensor]:
        """Factors of the token shift, of what `forward` takes."""
        return [self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g]

    def forward(
        self, mixed: tuple[Tensor, ...], S_BHNN: Tensor, v_first: Tensor | None, reset: Tensor | None, kernels: Kernels
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (out [B, T, C], final wkv state, the first layer's value for the layers above)."""
        x_r, x_w, x_k, x_v, x_a, x_g = mixed
        r, k, v = self.receptance(x_r), self.key(x_k), self.value(x_v)
        w = plus(self.w0, torch.tanh(x_w @ self.w1), self.w2)
        a = (x_a @ self.a1) @ self.a2
        v_gate = None if self.layer == 0 else (x_v @ self.v1) @ self.v2
        v_first = v if self.layer == 0 else v_first
        g = torch.sigmoid(x_g @ self.g1) @ self.g2

        # a = sigmoid(a0 + a), v = lerp(v, v_first, sigmoid(v0 + v_gate)), kk = normalize(k k_k), k = k (1 + (a - 1) k_a)
        r, k, v, minus_kk, kk_a, bonus = wkv7_inputs(r, k, v, a, v_gate, v_first, self.a0, self.v0, self.k_k, self.k_a, self.r_k, kernels["wkv7_inputs"])
        y, S_BHNN = wkv7(r, w.view(r.shape), k, v, minus_kk, kk_a, S_BHNN, reset, backend=kernels[WKV])
        # (group_norm(y) + bonus v) g
        out = wkv7_readout(y, v, bonus, g, self.ln_x.weight, self.ln_x.bias, kernels["wkv7_readout"])
        return self.output(out), S_BHNN, v_first

    @torch.no_grad()
    def init_weights(self) -> None:
        """The table of RWKV-v7/train_temp (x070)."""
        C, N, L = self.size.n_embd, self.size.head_size, self.size.n_layer
        r01, r10 = self.size.depth(self.layer)
        d, lin = ramps(C)
        z = ((torch.arange(C, dtype=torch.float64) % N) - (N - 1) / 2) / ((N - 1) / 2)
        zz, lc = z * z.abs(), lin - 0.5

        self.x_r.copy_(1 - d ** (0.2 * r10))
        self.x_g.copy_(1 - d ** (0.2 * r10))
        self.x_w.copy_(1 - d ** (0.9 * r10))
        self.x_a.copy_(1 - d ** (0.9 * r10))
        self.x_k.copy_(1 - d ** (0.7 * r10))
        self.x_v.copy_(1 - d ** (0.7 * r10))
        self.w0.copy_(-6 + 6 * lin ** (1 + r01**0.3) + 0.5 + 2.5 * zz)
        self.a0.copy_(-0.19 + 0.3 * zz + 0.4 * lc)
        self.v0.copy_(0.73 - 0.4 * lc)
        self.k_k.copy_(0.71 - 0.1 * lc)
        self.k_a.fill_(1.02)
        self.r_k.fill_(-0.04)
        for first, second in (("w1", "w2"), ("a1", "a2"), ("v1", "v2"), ("g1", "g2")):
            getattr(self, first).zero_()
            orthogonal(getattr(self, second), 0.1, grow=True)
        orthogonal(self.receptance.weight, 1.0)
        orthogonal(self.key.weight, 0.1)
        orthogonal(self.value.weight, 1.0)
        self.output.weight.zero_()
        self.ln_x.weight.fill_(((1 + self.layer) / L) ** 0.7)
        self.ln_x.bias.zero_()


class ChannelMix(nn.Module):
    def __init__(self, size: Size, layer: int):
        super().__init__()
        C = size.n_embd
        self.size, self.layer = size, layer
        self.x_k = raw(1, 1, C)
        self.key, self.value = linear(C, 4 * C), linear(4 * C, C)

    def mixes(self) -> list[Tensor]:
        return [self.x_k]

    def forward(self, mixed: tuple[Tensor, ...], kernels: Kernels) -> Tensor:
        (x_k,) = mixed
        return self.value(relu_squared(self.key(x_k), kernels["relu_squared"]))

    @torch.no_grad()
    def init_weights(self) -> None:
        _, r10 = self.size.depth(self.layer)
        self.x_k.copy_(1 - ramps(self.size.n_embd)[0] ** (r10**4))
        orthogonal(self.key.weight, 1.0)
        self.value.weight.zero_()


def optimizer_group(name: str, param: Tensor) -> tuple[float, bool]:
    """(learning-rate factor, whether weight decay applies) of a parameter, as the official trainer groups them."""
    if name.endswith("att.w0"):
        return 2.0, False
    return 1.0, is_matrix(name, param)
