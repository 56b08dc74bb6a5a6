"""WKV-7 by definition: one token after the other. Every other backend is tested against this one.

Legend: B rows, T tokens, H heads, N head size; V, K both N, the value and key axes of the state.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv.kernels.common import state_dtype

LOG_DECAY_SCALE = -math.exp(-0.5)  # log w = LOG_DECAY_SCALE * sigmoid(w_raw), so w is in (0.5452, 1)


def log_decay(w_raw: Tensor) -> Tensor:
    """Log of the decay from its raw parameter: fp32, or fp64 for fp64 input.

    Written as -exp(logsigmoid(w) - 0.5), whose derivative keeps its digits where sigmoid(w) rounds to 1.
    """
    return -torch.exp(F.logsigmoid(w_raw.to(state_dtype(w_raw))) - 0.5)


def wkv7_reference(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The recurrence S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T,  y_t = S_t r_t.

    Args and returns as `rwkv.kernels.wkv7.wkv7`.
    """
    dtype = r.dtype
    acc = state_dtype(r)
    decay = log_decay(w).exp()
    r, k, v, a, b = (x.to(acc) for x in (r, k, v, a, b))
    steps = zip(*(x.unbind(1) for x in (r, decay, k, v, a, b)), strict=True)
    S_BHVK = state.to(acc)
    ys = []
    for t, (r_t, w_t, k_t, v_t, a_t, b_t) in enumerate(steps):
        if reset is not None:
            S_BHVK = torch.where(reset[:, t, None, None, None], 0.0, S_BHVK)
        sa = torch.einsum("bhvk,bhk->bhv", S_BHVK, a_t)
        S_BHVK = S_BHVK * w_t.unsqueeze(-2) + sa.unsqueeze(-1) * b_t.unsqueeze(-2) + v_t.unsqueeze(-1) * k_t.unsqueeze(-2)
        ys.append(torch.einsum("bhvk,bhk->bhv", S_BHVK, r_t))
    return torch.stack(ys, 1).to(dtype), S_BHVK
