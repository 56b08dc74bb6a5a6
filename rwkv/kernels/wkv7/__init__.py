"""WKV-7, the recurrence of RWKV v7: one op, several backends."""

from torch import Tensor

from rwkv.kernels import registry
from rwkv.kernels.common import single_token, zero_state
from rwkv.kernels.wkv7 import cpu, triton
from rwkv.kernels.wkv7.chunked import wkv7_chunked
from rwkv.kernels.wkv7.reference import wkv7_reference


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T and y_t = S_t r_t, per head.

    Args:
        r, w, k, v, a, b: [B, T, H, N], one dtype of bf16, fp16, fp32, fp64; T >= 1. `w` is the raw decay: the decay
            is exp(-e^-0.5 sigmoid(w)), computed in fp32. In RWKV-7, a = -kk and b = kk * a_gate.
        state: [B, H, N, N] (value, key), fp32 (fp64 with fp64 inputs): S before the first token; None is zero.
        reset: [B, T] bool: True clears the state before that token, as a document's first token does.
        backend: a name of `registry.names("wkv7")`, or "auto".

    Returns:
        y [B, T, H, N] in the dtype of r, and the final state as `state`. Every backend gives the gradients of all six
        inputs and of `state`, from those of y and of the final state.

    Raises:
        KernelError: the backend asked for cannot run here; the message says why.
    """
    state = zero_state(r) if state is None else state
    return registry.pick("wkv7", backend, r)(r, w, k, v, a, b, state, reset)


registry.register("wkv7", "reference", wkv7_reference, auto=single_token)
registry.register("wkv7", "cpu", cpu.wkv7_cpu, can=cpu.why_not, device="cpu")
registry.register("wkv7", "cuda", triton.wkv7_cuda, can=triton.why_no_cuda, device="cuda")
registry.register("wkv7", "triton", triton.wkv7_triton, can=triton.why_not, device="cuda")
registry.register("wkv7", "chunked", wkv7_chunked)
