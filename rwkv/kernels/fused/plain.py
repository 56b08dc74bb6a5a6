"""The operations around the recurrence in plain PyTorch: their definition, and what runs wherever Triton does not."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv.kernels.common import state_dtype

GROUP_NORM_EPS = 64e-5  # whatever the head size


def norm_mix(x, out, weight, bias, last, mixes, reset):
    x = x if out is None else x + out
    z = F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype)).to(weight.dtype)
    d = token_shift(z, last, reset) - z
    return x, torch.addcmul(z, d, torch.stack(mixes)).unbind(0), z[:, -1]


def token_shift(x_BTC: Tensor, last_BC: Tensor, reset_BT: Tensor | None) -> Tensor:
    """Each token's predecessor: `last` before the first, zero before a document's first."""
    prev = torch.cat([last_BC.unsqueeze(1), x_BTC[:, :-1]], 1)
    return prev if reset_BT is None else prev.masked_fill(reset_BT.unsqueeze(-1), 0)


def wkv7_inputs(r, k, v, a, v_gate, v_first, a0, v0, k_k, k_a, r_k):
    B, T, C = r.shape
    heads = B, T, *r_k.shape
    a = torch.sigmoid(a0 + a)
    if v_gate is not None:
        v = torch.lerp(v, v_first, torch.sigmoid(v0 + v_gate))
    kk = F.normalize((k * k_k).view(heads), dim=-1, eps=1e-12)
    k = k * (1 + (a - 1) * k_a)
    r, k, v, a = (z.view(heads) for z in (r, k, v, a))
    return r, k, v, -kk, kk * a, (r * k * r_k).sum(-1)


def wkv7_readout(y, v, bonus, g, weight, bias):
    B, T, H, N = y.shape
    normed = F.group_norm(y.reshape(B * T, H * N), H, weight, bias, GROUP_NORM_EPS).view(B, T, H * N)
    return (normed + (bonus.unsqueeze(-1) * v).view(B, T, H * N)) * g


def relu_squared(x):
    return torch.relu(x).square()


def cross_entropy_(logits, targets, scale, l2wrap, gradient):
    x = logits.to(state_dtype(logits))
    target = targets.unsqueeze(1)
    log_z = torch.logsumexp(x, 1, keepdim=True)
    losses = (log_z - x.gather(1, target)).squeeze(1)
    if gradient:
        scale = scale.unsqueeze(1)
        top, where = x.max(1, keepdim=True) if l2wrap else (None, None)
        x.sub_(log_z).exp_().mul_(scale).scatter_add_(1, target, -scale)
        if l2wrap:
            x.scatter_add_(1, where, l2wrap * scale * top)
        if x is not logits:
            logits.copy_(x)
    return losses
