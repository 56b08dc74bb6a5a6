"""What a model computes around its recurrence, in few passes over memory: each operation in plain PyTorch, which defines it, and
in Triton, which runs on CUDA devices, two of them compiled for the CPU too. The kernels of the model are these and those of `wkv4` to `wkv7`.

Sums are formed in fp32 (fp64 for fp64), gradients are deterministic and those of all inputs.
"""

from torch import Tensor

from rwkv.kernels import again, registry
from rwkv.kernels.fused import cpu, plain, triton

Mixed = tuple[Tensor, ...]


def norm_mix(
    x: Tensor, out: Tensor | None, weight: Tensor, bias: Tensor, last: Tensor, mixes: list[Tensor], reset: Tensor | None, backend: str = "auto"
) -> tuple[Tensor, Mixed, Tensor]:
    """x += out; z = layer_norm(x); then z_t + (z_{t-1} - z_t) * mix for each of `mixes`.

    Args:
        x, out: [B, T, C]; `out` is what the layer before adds to x, None for nothing. x may have a wider dtype than all others.
        weight, bias: [C], of the norm, whose eps is 1e-5.
        last: [B, C], z of the token before the first.
        mixes: one to six of [1, 1, C].
        reset: [B, T] bool: z_{t-1} is zero there.

    Returns:
        x + out, in the dtype of x; the mixed, [B, T, C] each; z of the last token, [B, C].
    """
    run = registry.pick("norm_mix", backend, last)
    x, mixed, end = run(x, out, weight, bias, last, mixes, reset)
    again.offer(mixed, lambda x, w, b, last, reset, *mixes: run(x, None, w, b, last, mixes, reset)[1], x, weight, bias, last, reset, *mixes)
    return x, mixed, end


def wkv7_inputs(
    r: Tensor, k: Tensor, v: Tensor, a: Tensor, v_gate: Tensor | None, v_first: Tensor | None,
    a0: Tensor, v0: Tensor, k_k: Tensor, k_a: Tensor, r_k: Tensor, backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What `wkv7` and `wkv7_readout` take, from the projections of RWKV-7's time-mix.

        a <- sigmoid(a0 + a)                   in-context learning rate
        v <- lerp(v, v_first, sigmoid(v0 + v_gate))   value residual, unless v_gate is None (as in the first layer)
        kk = normalize(k * k_k)                removal key, of length 1 in each head
        k <- k * (1 + (a - 1) * k_a)
        bonus = sum of r * k * r_k over the head

    Args:
        r, k, v, a, v_gate, v_first: [B, T, C]; a0, v0, k_k, k_a: [1, 1, C]; r_k: [H, N].

    Returns:
        r, k, v, -kk, kk * a, each [B, T, H, N], and bonus [B, T, H].
    """
    run, inputs = registry.pick("wkv7_inputs", backend, r), (r, k, v, a, v_gate, v_first, a0, v0, k_k, k_a, r_k)
    outputs = run(*inputs)
    again.offer(outputs, run, *inputs)
    return outputs


def wkv7_readout(y: Tensor, v: Tensor, bonus: Tensor, g: Tensor, weight: Tensor, bias: Tensor, backend: str = "auto") -> Tensor:
    """(group_norm(y) + bonus * v) * g [B, T, C], with one group a head and an eps of 64e-5.

    Args:
        y, v: [B, T, H, N]; bonus: [B, T, H]; g: [B, T, C]; weight, bias: [C], of the norm.
    """
    run, inputs = registry.pick("wkv7_readout", backend, y), (y, v, bonus, g, weight, bias)
    out = run(*inputs)
    again.offer([out], lambda *inputs: [run(*inputs)], *inputs)
    return out


def relu_squared(x: Tensor, backend: str = "auto") -> Tensor:
    """max(x, 0)^2. Its backward needs the result alone; `x` may be overwritten with it, if nothing else needs it."""
    return registry.pick("relu_squared", backend, x)(x)


def cross_entropy_(logits: Tensor, targets: Tensor, scale: Tensor, l2wrap: float, gradient: bool, backend: str = "auto") -> Tensor:
    """-log softmax(logits)[target] of each row, in fp32; with `gradient`, `logits` become scale * its gradient. No autograd.

    Args:
        logits: [n, V]; targets: [n] int; scale: [n] in the dtype of the losses.
        l2wrap: adds l2wrap * scale * max_logit to the gradient of each row's largest logit.
    """
    return registry.pick("cross_entropy_", backend, logits)(logits, targets, scale, l2wrap, gradient)


def add_(total: Tensor, part: Tensor) -> None:
    """total += part. Of an fp32 and a bf16 tensor PyTorch's own takes 1.5 times what Triton does; a small one takes Triton longer to launch."""
    if part.numel() >= 1 << 20 and total.is_contiguous() and part.is_contiguous() and triton.why_not(part) is None:
        triton.add_(total, part)
    else:
        total += part


for op in ("norm_mix", "wkv7_inputs", "wkv7_readout", "relu_squared", "cross_entropy_"):
    registry.register(op, "triton", getattr(triton, op), can=triton.why_not, device="cuda")
    if hasattr(cpu, op):
        registry.register(op, "cpu", getattr(cpu, op), can=cpu.why_not, device="cpu")
    registry.register(op, "torch", getattr(plain, op))
