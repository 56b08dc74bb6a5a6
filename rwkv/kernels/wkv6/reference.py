"""WKV-6 by definition: one token after the other. Every other backend is tested against this one.

Legend: B rows, T tokens, H heads, N head size; V, K both N, the value and key axes of the state.
"""

import torch
from torch import Tensor

from rwkv.kernels.common import state_dtype


def log_decay(w_raw: Tensor) -> Tensor:
    """Log of the decay from its raw parameter, -exp(w): fp32, or fp64 for fp64 input; finite for any w."""
    return -torch.exp(w_raw.to(state_dtype(w_raw)).clamp(max=50.0))  # exp(-exp(50)) is 0 in any dtype


def wkv6_reference(r: Tensor, w: Tensor, k: Tensor, v: Tensor, u: Tensor, state: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """The recurrence y_t = (S_{t-1} + v_t (u k_t)^T) r_t,  S_t = S_{t-1} diag(w_t) + v_t k_t^T.

    Args and returns as `rwkv.kernels.wkv6.wkv6`.
    """
    dtype, acc = r.dtype, state_dtype(r)
    decay = log_decay(w).exp().to(acc)
    r, k, v, u = (x.to(acc) for x in (r, k, v, u))
    S_BHVK = state.to(acc)
    ys = []
    for t, (r_t, w_t, k_t, v_t) in enumerate(zip(*(x.unbind(1) for x in (r, decay, k, v)), strict=True)):
        if reset is not None:
            S_BHVK = torch.where(reset[:, t, None, None, None], 0.0, S_BHVK)
        now = (r_t * u * k_t).sum(-1, keepdim=True) * v_t
        ys.append(torch.einsum("bhvk,bhk->bhv", S_BHVK, r_t) + now)
        S_BHVK = S_BHVK * w_t.unsqueeze(-2) + v_t.unsqueeze(-1) * k_t.unsqueeze(-2)
    return torch.stack(ys, 1).to(dtype), S_BHVK
