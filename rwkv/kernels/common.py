"""What the matmul forms of all generations share: chunks of tokens, and the segments that resets cut them into."""

import torch
import torch.nn.functional as F
from torch import Tensor


def state_dtype(x: Tensor) -> torch.dtype:
    """The dtype of state and accumulation: fp64 for fp64 inputs, else fp32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def zero_state(r: Tensor) -> Tensor:
    """[B, H, N, N] zeros: the state before the first token, for inputs like r [B, T, H, N]."""
    B, _, H, N = r.shape
    return torch.zeros(B, H, N, N, dtype=state_dtype(r), device=r.device)


class Layout:
    """[B, T, H, N] <-> [n, G, C, N], the last chunk filled up with tokens that leave the state alone."""

    def __init__(self, B, T, H, N, C, acc):
        self.B, self.T, self.H, self.N, self.C, self.acc = B, T, H, N, C, acc
        self.n = -(-T // C)
        self.pad = self.n * C - T

    def split(self, x: Tensor) -> Tensor:
        x = F.pad(x.to(self.acc), (0, 0, 0, 0, 0, self.pad)) if self.pad else x.to(self.acc)
        self.device = x.device
        x = x.reshape(self.B, self.n, self.C, self.H, self.N).permute(1, 0, 3, 2, 4)
        return x.reshape(self.n, self.B * self.H, self.C, self.N)

    def join(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.view(self.n, self.B, self.H, self.C, self.N).permute(1, 0, 3, 2, 4)
        return x.reshape(self.B, self.n * self.C, self.H, self.N)[:, : self.T].to(dtype)

    def segments(self, reset: Tensor | None) -> "Segments | None":
        return None if reset is None else Segments(self, reset)


class Segments:
    """Masks of the segments that resets cut a chunk into, as 0/1 in the accumulation dtype."""

    def __init__(self, layout: Layout, reset: Tensor):
        B, n, C, H = layout.B, layout.n, layout.C, layout.H
        idx = F.pad(reset, (0, layout.pad)).reshape(B, n, C).cumsum(-1).transpose(0, 1)  # [n, B, C]
        idx = idx.repeat_interleave(H, dim=1)  # [n, G, C]
        end = idx[..., -1:]
        self.first = (idx == 0).unsqueeze(-1).to(layout.acc)
        self.last = (idx == end).unsqueeze(-1).to(layout.acc)
        self.whole = (end == 0).unsqueeze(-1).to(layout.acc)
        self.same = (idx.unsqueeze(-1) == idx.unsqueeze(-2)).to(layout.acc)  # [n, G, C, C]


def single_token(x: Tensor) -> str | None:
    """Whether a loop over tokens is worth taking unasked: None for yes, else the reason."""
    return None if x.shape[1] == 1 else "a Python loop over tokens: chosen for single tokens, or when asked for"
