"""WKV-4, the recurrence of RWKV v4: one op, several backends."""

import torch
from torch import Tensor

from rwkv.kernels import registry
from rwkv.kernels.common import single_token, state_dtype
from rwkv.kernels.wkv4 import cpu, triton
from rwkv.kernels.wkv4.chunked import wkv4_chunked
from rwkv.kernels.wkv4.reference import wkv4_reference


def wkv4(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None, reset: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """y_t = (sum_{i<t} e^(k_i + (t-1-i) lw) v_i + e^(u+k_t) v_t) / (the same without v), per channel; lw = -exp(w).

    Args:
        w, u: [C] in any float dtype: the raw decay, computed in fp32 and any value of it safe; the bonus of the current token.
        k, v: [B, T, C], one dtype of bf16, fp16, fp32, fp64; T >= 1.
        state: [B, 3, C], fp32 (fp64 with fp64 inputs): numerator aa and denominator bb before the first token, and pp, the
            exponent taken out of both. Zeros are the start of a document; None is zeros.
        reset: [B, T] bool: True clears the state before that token, as a document's first token does.
        backend: a name of `registry.names("wkv4")`, or "auto".

    Returns:
        y [B, T, C] in the dtype of k, and the final state as `state`. Every backend gives the gradients of w, u, k, v and
        `state`, from those of y and of aa and bb of the final state; pp, which only scales them, hands none back.

    Raises:
        KernelError: the backend asked for cannot run here; the message says why.
    """
    if state is None:
        state = torch.zeros(len(k), 3, k.shape[2], dtype=state_dtype(k), device=k.device)
    return registry.pick("wkv4", backend, k)(w, u, k, v, state, reset)


registry.register("wkv4", "reference", wkv4_reference, auto=single_token)
registry.register("wkv4", "cpu", cpu.wkv4_cpu, can=cpu.why_not, device="cpu")
registry.register("wkv4", "triton", triton.wkv4_triton, can=triton.why_not, device="cuda")
registry.register("wkv4", "chunked", wkv4_chunked)
