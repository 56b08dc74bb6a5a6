"""The operations around the recurrence in plain PyTorch, on any device: their definition."""

import torch
from torch import Tensor

from rwkv.kernels.common import state_dtype


def relu_squared(x: Tensor) -> Tensor:
    return torch.relu(x).square()


def cross_entropy_(logits: Tensor, targets: Tensor, scale: Tensor, l2wrap: float, gradient: bool) -> Tensor:
    target, scale = targets.unsqueeze(1), scale.unsqueeze(1)
    exact = logits.to(state_dtype(logits))
    log_z = torch.logsumexp(exact, 1, keepdim=True)
    losses = (log_z - exact.gather(1, target)).squeeze(1)
    if gradient:
        top, where = exact.max(1, keepdim=True) if l2wrap else (None, None)
        grad = exact.sub_(log_z).exp_().mul_(scale)
        grad.scatter_add_(1, target, -scale)
        if l2wrap:
            grad.scatter_add_(1, where, l2wrap * scale * top)
        if grad is not logits:
            logits.copy_(grad)
    return losses
