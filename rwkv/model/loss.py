"""Cross-entropy in fp32 that never holds the full logits, the head that computes it, and the model that ends in it."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv.kernels import dry, pool, registry
from rwkv.kernels.common import state_dtype
from rwkv.kernels.fused import cross_entropy_
from rwkv.model.state import State

if TYPE_CHECKING:
    from rwkv.model.rwkv import RWKV

LOGITS_AT_ONCE = 2**25  # elements: 128 MiB in fp32
LOGITS_IN_PLACE = 2**29  # of those that become their gradient without a copy in fp32: 1 GiB in bf16


class LossModel(nn.Module):
    """RWKV whose forward ends in the loss: the module that strategies wrap and gradient engines call.

    l2wrap is the factor of the official regulariser of each token's largest logit: 1e-4 there, 0 for none.
    """

    def __init__(self, rwkv: "RWKV", l2wrap: float = 0.0):
        super().__init__()
        self.rwkv, self.l2wrap = rwkv, l2wrap

    def forward(
        self, tokens: Tensor, state: State, reset: Tensor | None, targets: Tensor | None = None, weight: Tensor | None = None
    ) -> tuple[Tensor | None, State]:
        """
        Args:
            tokens, state, reset: as `RWKV.forward`.
            targets: [B, T] int; None computes the state alone.
            weight: [B, T] fp32: each target's share of the loss, 0 where it is not trained. Or [G, B, T]: shares of G losses.

        Returns:
            sum(weight * cross_entropy), an fp32 scalar, or [G] (None without targets); and the state after the last token.
        """
        hidden, state = self.rwkv(tokens, state, reset)
        return (None if targets is None else self.loss(hidden, targets, weight)), state

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """sum(weight * cross_entropy) of hidden [B, T, n_embd], normalised for the head."""
        return self.rwkv.head(hidden, targets, weight, self.l2wrap)


class Head(nn.Linear):
    """From hidden [..., n_embd] to logits, or at once to the loss: strategies that shard weights have them together while this runs.

    kernel: the backend of `cross_entropy_`.
    """

    def __init__(self, n_embd: int, vocab_size: int, kernel: str = "auto"):
        super().__init__(n_embd, vocab_size, bias=False)
        self.kernel = kernel

    def forward(self, hidden: Tensor, targets: Tensor | None = None, weight: Tensor | None = None, l2wrap: float = 0.0) -> Tensor:
        """Logits [..., vocab_size] in the model's dtype; with targets the loss, as `LossModel.loss`."""
        hidden = hidden.to(self.weight.dtype)
        if targets is None:
            return F.linear(hidden, self.weight)
        return linear_cross_entropy(hidden.flatten(0, 1), self.weight, targets.flatten(), weight.flatten(-2), l2wrap, self.kernel)


def linear_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, weight: Tensor, l2wrap: float = 0.0, backend: str = "auto") -> Tensor:
    """sum_t weight_t * -log softmax(head @ hidden_t)[targets_t], with the gradients of `hidden` and `head`.

    Args:
        hidden: [n, C]; head: [V, C], the same dtype; targets: [n] int; weight: [n] fp32, or [G, n] for G losses whose sum is
            what the gradients are of: backward takes one and the same gradient for each.
        l2wrap: adds l2wrap * weight_t * max_logit_t to the gradient of token t's largest logit, which is the gradient of
            l2wrap/2 * sum_t weight_t * max_logit_t^2. The returned value does not contain it (as RWKV-LM's L2Wrap).
        backend: of `cross_entropy_`.

    Returns:
        fp32 scalar, or [G] (fp64 for fp64 inputs).
    """
    return _LinearCrossEntropy.apply(hidden, head, targets, weight, l2wrap, backend)


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are formed in the forward, block of rows by block of rows, while the logits are at hand."""

    @staticmethod
    def forward(ctx, hidden, head, targets, weight, l2wrap, backend):
        acc = state_dtype(hidden)
        want_h, want_w = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if want_h else None
        d_head = torch.zeros_like(head, dtype=acc) if want_w else None
        weight = weight.to(acc)
        total = torch.zeros(weight.shape[:-1], dtype=acc, device=hidden.device)
        whole = weight if weight.dim() == 1 else weight.sum(0)
        in_place = registry.chosen("cross_entropy_", backend, hidden) == "triton"
        rows = max(1, (LOGITS_IN_PLACE if in_place else LOGITS_AT_ONCE) // len(head))
        pooled = dry.device_type(hidden) == "cpu" and hidden.dtype == torch.float32
        for start in range(0, len(hidden), rows):
            cut = slice(start, start + rows)
            h = hidden[cut]
            logits = torch.mm(h, head.mT, out=pool.empty(len(h), len(head)) if pooled else None)
            losses = cross_entropy_(logits, targets[cut], whole[cut], l2wrap, want_h or want_w, backend)  # logits are now their gradient
            total += weight[..., cut] @ losses
            if want_h:
                torch.mm(logits, head, out=d_hidden[cut])
            if want_w and d_head.dtype == logits.dtype:
                d_head.addmm_(logits.mT, h)
            elif want_w:
                d_head += logits.mT @ h
        ctx.save_for_backward(d_hidden, None if d_head is None else d_head.to(head.dtype))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_loss):
        d_hidden, d_head = ctx.saved_tensors
        d_loss = d_loss.flatten()[0]
        scale = lambda x: None if x is None else x * d_loss.to(x.dtype)  # noqa: E731
        return scale(d_hidden), scale(d_head), None, None, None, None
