"""WKV-4 in chunks: plain PyTorch on any device, any T, exact gradients of every input and of the state.

Inside a chunk every token's sums over the tokens before it are formed at once, each with its own largest exponent taken
out; what the chunk carries in joins them with another. A tensor of C x C x channels a chunk is formed for SLAB elements at
a time, and again in the backward. Only the state is serial over chunks. Exponents taken out have no gradient, for the
quotient does not depend on them.

Legend: B rows, n chunks, C tokens a chunk; channels last.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rwkv.kernels import dry
from rwkv.kernels.common import state_dtype
from rwkv.kernels.wkv4.reference import EMPTY, exponent, log_decay

SLAB = 2**25  # elements: 128 MiB in fp32


def wkv4_chunked(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, reset: Tensor | None, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Args and returns as `rwkv.kernels.wkv4.wkv4`; `chunk` is C: by default the fastest measured on a CPU (8), or 16 to have fewer and larger operations."""
    (B, T, channels), acc = k.shape, state_dtype(k)
    C = min(chunk or (8 if dry.device_type(k) == "cpu" else 16), T)
    n = -(-T // C)
    split = lambda x: F.pad(x, (0, 0, 0, n * C - T)).view(B, n, C, -1)  # noqa: E731
    lw, u, K, V, state = log_decay(w).to(acc), u.to(acc), split(k.to(acc)), split(v.to(acc)), state.to(acc)
    fresh = torch.zeros(B, T, dtype=torch.bool, device=k.device) if reset is None else reset
    segment = F.pad(fresh, (0, n * C - T)).view(B, n, C, 1).cumsum(2)
    count = torch.full((n, 1, 1), C, device=k.device)
    count[-1] = T - (n - 1) * C  # tokens of each chunk

    # each token's sums over its own chunk
    step = max(1, SLAB // (B * C * C * channels))
    num, den, q = (
        torch.cat(parts, 1)
        for parts in zip(*(checkpoint(_within, lw, u, K[:, i : i + step], V[:, i : i + step], segment[:, i : i + step], use_reentrant=False)
                           for i in range(0, n, step)), strict=True)
    )  # fmt: skip

    # each chunk's contribution to the state, then the state at every chunk's start
    at = torch.arange(C, device=k.device).view(C, 1)
    last = segment.gather(2, (count - 1).view(1, n, 1, 1).expand(B, n, 1, 1))
    reaches = (segment == last) & (at < count)
    e = torch.where(reaches, (count - 1 - at) * lw + K, EMPTY)
    top = e.detach().amax(2)
    p = torch.exp(e - top.unsqueeze(2))
    a_end, b_end = (p * V).sum(2), p.sum(2)
    passes = last.squeeze(2) == 0  # [B, n, 1]: no reset in the chunk
    aa, bb, pp = state[:, 0], state[:, 1], exponent(state)
    starts = []
    for c in range(n):
        starts.append(torch.stack([aa, bb, pp]))
        carried = torch.where(passes[:, c], pp + count[c] * lw, EMPTY)
        join = torch.maximum(carried, top[:, c]).detach()
        old, new = torch.exp(carried - join), torch.exp(top[:, c] - join)
        aa, bb, pp = old * aa + new * a_end[:, c], old * bb + new * b_end[:, c], join
    aa0, bb0, pp0 = (x.unsqueeze(2) for x in torch.stack(starts, 2))

    carried = torch.where(segment == 0, pp0 + at * lw, EMPTY)
    join = torch.maximum(carried, q).detach()
    old, own = torch.exp(carried - join), torch.exp(q - join)
    y = (old * aa0 + own * num) / (old * bb0 + own * den)
    return y.view(B, n * C, channels)[:, :T].to(k.dtype), torch.stack([aa, bb, pp], 1)


def _within(lw: Tensor, u: Tensor, K: Tensor, V: Tensor, segment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(numerator, denominator, exponent taken out of both) of each token, from its own chunk: [B, n, C, channels]."""
    C = K.shape[2]
    at = torch.arange(C, device=K.device)
    between = (at.view(C, 1) - 1 - at).clamp(min=0).unsqueeze(-1)  # [t, i, 1]: decays between i and t
    seen = (at.view(C, 1) > at).unsqueeze(-1) & (segment.unsqueeze(3) == segment.unsqueeze(2))
    e = torch.where(seen, between * lw + K.unsqueeze(2), EMPTY)
    own = u + K
    q = torch.maximum(e.amax(3), own).detach()
    p, p_own = torch.exp(e - q.unsqueeze(3)), torch.exp(own - q)
    return torch.einsum("bntic,bnic->bntc", p, V) + p_own * V, p.sum(3) + p_own, q
