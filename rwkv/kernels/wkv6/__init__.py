"""WKV-6, the recurrence of RWKV v6: one op, several backends."""

from torch import Tensor

from rwkv.kernels import registry
from rwkv.kernels.common import single_token, zero_state
from rwkv.kernels.wkv6 import cpu, triton
from rwkv.kernels.wkv6.chunked import wkv6_chunked
from rwkv.kernels.wkv6.reference import wkv6_reference


def wkv6(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y_t = (S_{t-1} + v_t (u k_t)^T) r_t and S_t = S_{t-1} diag(w_t) + v_t k_t^T, per head.

    Args:
        r, w, k, v: [B, T, H, N], one dtype of bf16, fp16, fp32, fp64; T >= 1. `w` is the raw decay: the decay is
            exp(-exp(w)), computed in fp32; any value of w is safe.
        u: [H, N], the bonus of the current token.
        state: [B, H, N, N] (value, key), fp32 (fp64 with fp64 inputs): S before the first token; None is zero.
        reset: [B, T] bool: True clears the state before that token, as a document's first token does.
        backend: a name of `registry.names("wkv6")`, or "auto".

    Returns:
        y [B, T, H, N] in the dtype of r, and the final state as `state`. Every backend gives the gradients of all five
        inputs and of `state`, from those of y and of the final state.

    Raises:
        KernelError: the backend asked for cannot run here; the message says why.
    """
    state = zero_state(r) if state is None else state
    return registry.pick("wkv6", backend, r)(r, w, k, v, u, state, reset)


registry.register("wkv6", "reference", wkv6_reference, auto=single_token)
registry.register("wkv6", "cpu", cpu.wkv6_cpu, can=cpu.why_not, device="cpu")
registry.register("wkv6", "triton", triton.wkv6_triton, can=triton.why_not, device="cuda")
registry.register("wkv6", "chunked", wkv6_chunked)
