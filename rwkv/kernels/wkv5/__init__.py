"""WKV-5, the recurrence of RWKV v5: that of v6 with a decay that is the same for every token."""

from collections.abc import Callable

from torch import Tensor

from rwkv.kernels import registry
from rwkv.kernels.common import single_token, zero_state
from rwkv.kernels.wkv6 import cpu, triton
from rwkv.kernels.wkv6.chunked import wkv6_chunked
from rwkv.kernels.wkv6.reference import wkv6_reference


def wkv5(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y_t = (S_{t-1} + v_t (u k_t)^T) r_t and S_t = S_{t-1} diag(w) + v_t k_t^T, per head.

    Args and returns as `rwkv.kernels.wkv6.wkv6`, but w: [H, N] in any float dtype, the raw decay of every token.
    """
    state = zero_state(r) if state is None else state
    return registry.pick("wkv5", backend, r)(r, w, k, v, u, state, reset)


def _of_every_token(wkv6_backend: Callable) -> Callable:
    def run(r, w, k, v, u, state, reset):
        return wkv6_backend(r, w.expand(r.shape), k, v, u, state, reset)

    return run


registry.register("wkv5", "reference", _of_every_token(wkv6_reference), auto=single_token)
registry.register("wkv5", "cpu", cpu.wkv5_cpu, can=cpu.why_not, device="cpu")
registry.register("wkv5", "triton", triton.wkv5_triton, can=triton.why_not, device="cuda")
registry.register("wkv5", "chunked", _of_every_token(wkv6_chunked))
