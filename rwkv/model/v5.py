"""RWKV-5 "Eagle" (x052), and its forerunners 5.0 and 5.1: time-mix and channel-mix with their initialisation, and its
optimizer groups.

Parameter names and shapes are those of the official files, the formulas those of the official trainer (RWKV-LM, RWKV-v5):
a matrix-valued state per head that decays by a learned factor per channel (one per head in 5.0 and 5.1), a bonus of the
current token, a group norm per head, and a gate (none in 5.0).

Legend: B rows, T tokens, C channels (n_embd), H heads, N head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv.kernels.fused.plain import GROUP_NORM_EPS
from rwkv.kernels.registry import Kernels
from rwkv.kernels.wkv5 import wkv5
from rwkv.model import v4
from rwkv.model.parts import is_matrix, linear, orthogonal, ramps, raw, zigzag
from rwkv.model.size import Size

WKV = "wkv5"
EMB_SCALE = 1e-4


def version_in(att: dict[str, Tensor]) -> str | None:
    """The version whose time-mix of layer 0 has these tensors; None if it is none of this module's."""
    if "time_mix_k" not in att or "ln_x.weight" not in att:
        return None
    if "gate.weight" not in att:
        return "v5.0"
    decay = att["time_decay"]
    return "v5" if decay.dim() > 1 and decay.shape[1] > 1 else "v5.1"


def heads_and_rank(att: dict[str, Tensor]) -> tuple[int, None]:
    """(head size, ranks) of a layer's time-mix."""
    return len(att["ln_x.weight"]) // len(att["time_decay"]), None


def default_rank(n_embd: int) -> None:
    return None


class TimeMix(nn.Module):
    def __init__(self, size: Size, layer: int):
        super().__init__()
        C, H, N = size.n_embd, size.n_head, size.head_size
        self.size, self.layer = size, layer
        self.gated = size.version != "v5.0"
        per_head = (H, N) if size.version == "v5" else (H,)
        self.time_mix_k, self.time_mix_v, self.time_mix_r = (raw(1, 1, C) for _ in range(3))
        self.time_decay = raw(*per_head)
        if self.gated:
            self.time_mix_g, self.time_faaaa = raw(1, 1, C), raw(*per_head)
            self.gate = linear(C, C)
        else:
            self.time_first = raw(*per_head)
        self.receptance, self.key, self.value, self.output = (linear(C, C) for _ in range(4))
        self.ln_x = nn.GroupNorm(H, C, eps=GROUP_NORM_EPS)

    def mixes(self) -> list[Tensor]:
        """Factors of the token shift, of what `forward` takes."""
        gate = [self.time_mix_g] if self.gated else []
        return [1 - mix for mix in (self.time_mix_r, self.time_mix_k, self.time_mix_v, *gate)]

    def forward(
        self, mixed: tuple[Tensor, ...], S_BHNN: Tensor, v_first: Tensor | None, reset: Tensor | None, kernels: Kernels
    ) -> tuple[Tensor, Tensor, None]:
        """Returns (out [B, T, C], final wkv state, None: v5 hands nothing from the first layer to those above)."""
        x_r, x_k, x_v, *x_g = mixed
        (B, T, C), H, N = x_r.shape, self.size.n_head, self.size.head_size
        r, k, v = self.receptance(x_r), self.key(x_k), self.value(x_v)
        u = self.time_faaaa if self.gated else torch.exp(self.time_first)
        w, u = (p.view(H, -1).expand(H, N) for p in (self.time_decay, u))
        y, S_BHNN = wkv5(*(z.view(B, T, H, N) if z.dim() == 3 else z for z in (r, w, k, v, u)), S_BHNN, reset, backend=kernels[WKV])
        y = F.group_norm(y.reshape(B * T, C), H, self.ln_x.weight, self.ln_x.bias, self.ln_x.eps).view(B, T, C)
        if self.gated:
            y = y * F.silu(self.gate(x_g[0]))
        return self.output(y), S_BHNN, None

    @torch.no_grad()
    def init_weights(self) -> None:
        """The table of RWKV-v5 (x052); for 5.0 and 5.1 that of RWKV-v4neo, with one value per head."""
        H, L = self.size.n_head, self.size.n_layer
        r01, r10 = self.size.depth(self.layer)
        d, lin = ramps(self.size.n_embd)
        self.time_mix_k.copy_(d**r10)
        self.time_mix_v.copy_(d**r10 + 0.3 * r01)
        self.time_mix_r.copy_(d ** (0.5 * r10))
        final = self.size.version == "v5"
        place = lin if final else torch.arange(H, dtype=torch.float64) / max(H - 1, 1)
        self.time_decay.copy_((-6 + 5 * place ** (0.7 + 1.3 * r01)).view_as(self.time_decay))
        if self.gated:
            self.time_mix_g.copy_(d ** (0.5 * r10))
            bonus = r01 * (1 - place) + (0.1 * zigzag(self.size.n_embd) if final else 0)
            self.time_faaaa.copy_(bonus.view_as(self.time_faaaa))
            orthogonal(self.gate.weight, 0.1)
        else:
            self.time_first.fill_(-3.0)
        orthogonal(self.receptance.weight, 1.0)
        orthogonal(self.key.weight, 0.1)
        orthogonal(self.value.weight, 1.0)
        self.output.weight.zero_()
        self.ln_x.weight.fill_(((1 + self.layer) / L) ** 0.7)
        self.ln_x.bias.zero_()


class ChannelMix(v4.ChannelMix):
    """That of v4, 3.5 times as wide as the model from 5.1 on."""

    @staticmethod
    def width(size: Size) -> int:
        return 4 * size.n_embd if size.version == "v5.0" else int(3.5 * size.n_embd) // 32 * 32

    @torch.no_grad()
    def init_weights(self) -> None:
        super().init_weights()
        orthogonal(self.key.weight, 1.0)


def optimizer_group(name: str, param: Tensor) -> tuple[float, bool]:
    """(learning-rate factor, whether weight decay applies) of a parameter, as the official trainer groups them."""
    if name.endswith("att.time_decay"):
        return 2.0, False
    if name.endswith("att.time_first"):
        return 3.0, False
    return 1.0, is_matrix(name, param)
