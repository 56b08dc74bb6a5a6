"""WKV-4 by definition, in the form that never overflows: one token after the other. Other backends are tested against this one.

Legend: B rows, T tokens, C channels.
"""

import torch
from torch import Tensor

from rwkv.kernels.common import state_dtype

EMPTY = -1e38  # an exponent whose exp is 0 beside any other


def log_decay(w_raw: Tensor) -> Tensor:
    """Log of the decay from its raw parameter, -exp(w): fp32, or fp64 for fp64 input; finite for any w."""
    return -torch.exp(w_raw.to(state_dtype(w_raw)).clamp(max=50.0))


def exponent(state: Tensor) -> Tensor:
    """pp of a state [B, 3, C]: `EMPTY` where no token has been (bb = 0), so that zeros are the start of a document."""
    return torch.where(state[:, 1] > 0, state[:, 2], EMPTY)


def wkv4_reference(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """q = max(pp, u + k_t); y_t = (e^(pp-q) aa + e^(u+k_t-q) v_t) / (e^(pp-q) bb + e^(u+k_t-q)); then aa and bb decay by w
    and take in e^k_t v_t and e^k_t, with pp as their common exponent.

    Args and returns as `rwkv.kernels.wkv4.wkv4`.
    """
    acc = state_dtype(k)
    lw, u, state = log_decay(w).to(acc), u.to(acc), state.to(acc)
    aa, bb, pp = state[:, 0], state[:, 1], exponent(state)
    ys = []
    for t, (k_t, v_t) in enumerate(zip(k.to(acc).unbind(1), v.to(acc).unbind(1), strict=True)):
        if reset is not None:
            fresh = reset[:, t, None]
            aa, bb, pp = torch.where(fresh, 0.0, aa), torch.where(fresh, 0.0, bb), torch.where(fresh, EMPTY, pp)
        q = torch.maximum(pp, u + k_t).detach()  # any q gives the same y, so it has no gradient
        old, new = torch.exp(pp - q), torch.exp(u + k_t - q)
        ys.append((old * aa + new * v_t) / (old * bb + new))
        q = torch.maximum(pp + lw, k_t).detach()
        old, new = torch.exp(pp + lw - q), torch.exp(k_t - q)
        aa, bb, pp = old * aa + new * v_t, old * bb + new, q
    return torch.stack(ys, 1).to(k.dtype), torch.stack([aa, bb, pp], 1)
