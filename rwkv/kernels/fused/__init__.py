"""What a model computes around its recurrence, in few passes over memory: each operation in plain PyTorch, which defines it, and
compiled for the CPU.
"""

from torch import Tensor

from rwkv.kernels import registry
from rwkv.kernels.fused import cpu, plain


def relu_squared(x: Tensor, backend: str = "auto") -> Tensor:
    """max(x, 0)^2."""
    return registry.pick("relu_squared", backend, x)(x)


def cross_entropy_(logits: Tensor, targets: Tensor, scale: Tensor, l2wrap: float, gradient: bool, backend: str = "auto") -> Tensor:
    """-log softmax(logits)[target] of each row, in fp32 (fp64 for fp64); with `gradient`, `logits` become scale * its gradient. No autograd.

    Args:
        logits: [n, V]; targets: [n] int; scale: [n] in the dtype of the losses.
        l2wrap: adds l2wrap * scale * max_logit to the gradient of each row's largest logit.
    """
    return registry.pick("cross_entropy_", backend, logits)(logits, targets, scale, l2wrap, gradient)


for op in ("relu_squared", "cross_entropy_"):
    registry.register(op, "cpu", getattr(cpu, op), can=cpu.why_not)
    registry.register(op, "torch", getattr(plain, op))
