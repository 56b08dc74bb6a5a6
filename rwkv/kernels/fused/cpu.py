"""The operations around the recurrence in fp32 on the CPU: `cpu.cpp`, compiled at first use."""

from pathlib import Path

import torch
from torch import Tensor

from rwkv.kernels import dry
from rwkv.kernels.compiled import Library
from rwkv.kernels.pool import empty

library = Library(Path(__file__).with_name("cpu.cpp"))


def why_not(x: Tensor) -> str | None:
    """None if the kernels can run for a tensor like `x`, else the reason."""
    return library.why_not() if dry.device_type(x) == "cpu" and x.dtype == torch.float32 else "fp32 CPU tensors only"


def cross_entropy_(logits: Tensor, targets: Tensor, scale: Tensor, l2wrap: float, gradient: bool) -> Tensor:
    """Args and returns as `rwkv.kernels.fused.cross_entropy_`; logits contiguous. Raises IndexError for a target outside the vocabulary."""
    losses = logits.new_empty(len(logits))
    wrap = l2wrap * scale if l2wrap else None
    if library.count(
        "rwkv_cross_entropy", *logits.shape, torch.get_num_threads(), logits, targets.long().contiguous(), scale.contiguous(), wrap, gradient, losses
    ):  # fmt: skip
        raise IndexError(f"a target is not in 0 .. {logits.shape[1] - 1}")
    return losses


def relu_squared(x: Tensor) -> Tensor:
    """As `rwkv.kernels.fused.relu_squared`."""
    return _ReluSquared.apply(x)


class _ReluSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        ctx.save_for_backward(x)
        y = empty(*x.shape)
        library.call("rwkv_relu_squared_forward", x.numel(), torch.get_num_threads(), x, y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        dx = empty(*x.shape)
        library.call("rwkv_relu_squared_backward", x.numel(), torch.get_num_threads(), x, dy.contiguous(), dx)
        return dx
