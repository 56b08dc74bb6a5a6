"""Adam as RWKV is trained with it: the generation's parameter groups, and fp32 masters under bf16 weights."""

import torch
from torch import Tensor, nn

from rwkv.kernels.fused import add_

MASTER = "master"  # beside Adam's own entries: exp_avg, exp_avg_sq, step


class Optimizer:
    """AdamW over fp32 masters (fp64 in an fp64 model), which are the parameters themselves unless those are bf16.

    bf16 gradients are added up in fp32, into the masters, as each backward gives them: a sum of thousands of chunks in
    bf16 would stand still.

    Args:
        groups: parameter name -> (learning-rate factor, whether weight decay applies).
    """

    def __init__(self, model: nn.Module, groups: dict[str, tuple[float, bool]], *, betas, eps, weight_decay, layerwise_lr=True):
        self.params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.masters = {n: p if p.dtype == master_dtype(p.dtype) else p.detach().to(master_dtype(p.dtype)) for n, p in self.params.items()}
        self.apart = [n for n, p in self.params.items() if self.masters[n] is not p]
        for name in self.apart:
            self.params[name].register_post_accumulate_grad_hook(_adder(self.masters[name]))
        self.adam = torch.optim.AdamW(
            adam_groups(self.masters, groups, weight_decay, layerwise_lr),
            lr=0.0,
            betas=tuple(betas),
            eps=eps,
            fused=True,
        )

    def grads(self) -> list[Tensor]:
        """The gradients as they stand, in the masters' dtype; parameters that took no part have none."""
        return [m.grad for m in self.masters.values() if m.grad is not None]

    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients to a global L2 norm of at most max_norm (0: leave them); returns the norm before."""
        grads = self.grads()
        norm = nn.utils.get_total_norm(grads)
        if max_norm:
            nn.utils.clip_grads_with_norm_(self.masters.values(), max_norm, norm)
        return norm

    def step(self, lr: float) -> None:
        """One update at this learning rate, times each group's factor; gradients are cleared."""
        set_rate(self.adam, lr)
        self.adam.step()
        if self.apart:  # all in a few launches: one by one they take longer to launch than to run
            with torch.no_grad():
                torch._foreach_copy_([self.params[n] for n in self.apart], [self.masters[n] for n in self.apart])
        self.zero_grad()

    def zero_grad(self) -> None:
        """On a GPU the tensors stay and are zeroed, for captured graphs add into them."""
        kept = []
        for tensor in (*self.masters.values(), *self.params.values()):
            if tensor.grad is not None and tensor.is_cuda:
                kept.append(tensor.grad)
            else:
                tensor.grad = None
        if kept:
            torch._foreach_zero_(kept)

    def take_grads(self) -> dict[str, Tensor]:
        """The gradients by parameter name, of those that have any; none are left."""
        grads = {n: m.grad.clone() for n, m in self.masters.items() if m.grad is not None}
        self.zero_grad()
        return grads

    def entries(self, name: str) -> dict[str, Tensor]:
        """A parameter's master weight as `master`, and Adam's exp_avg, exp_avg_sq and step, once there are any."""
        master = self.masters[name]
        return {MASTER: master, **self.adam.state.get(master, {})}

    @torch.no_grad()
    def put(self, name: str, entries: dict[str, Tensor]) -> None:
        """Take copies of what `entries` gave."""
        master, param = self.masters[name], self.params[name]
        master.copy_(entries[MASTER])
        if master is not param:
            param.copy_(master)
        moments = {n: x.to(master.device, copy=True) for n, x in entries.items() if n != MASTER}
        self.adam.state.pop(master, None)
        if moments:
            self.adam.state[master] = moments


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of master weights, moments and sums of gradients, for weights of a dtype."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def set_rate(adam: torch.optim.Optimizer, lr: float) -> None:
    """In each group of `adam_groups`, times its factor."""
    for group in adam.param_groups:
        group["lr"] = lr * group["scale"]


def adam_groups(params: dict[str, Tensor], groups: dict[str, tuple[float, bool]], weight_decay: float, layerwise_lr: bool) -> list[dict]:
    """AdamW's groups of parameters, each with its learning-rate factor as `scale`."""
    by_group: dict[tuple[float, bool], list[Tensor]] = {}
    for name, param in params.items():
        scale, decays = groups[name]
        by_group.setdefault((scale if layerwise_lr else 1.0, decays), []).append(param)
    return [
        {"params": members, "scale": scale, "weight_decay": weight_decay if decays else 0.0} for (scale, decays), members in by_group.items()
    ]


def _adder(master: Tensor):
    def add(param: Tensor) -> None:
        if master.grad is None:
            master.grad = param.grad.float()
        else:
            add_(master.grad, param.grad)
        param.grad = None

    return add
