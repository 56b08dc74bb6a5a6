"""WKV-6 on a GPU through Triton, and WKV-5, which is WKV-6 with one decay for all tokens: bf16, fp16 and fp32, head sizes to 128,
any T, exact and deterministic gradients of every input and of the state.

Legend: n chunks, G = B*H, C tokens a chunk, N head size, BN the next power of 2. Kept for the backward: the inputs, the state
before each chunk [BN, BN] in the dtype of the products, and the decay over each chunk [BN].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rwkv.kernels import gpu
from rwkv.kernels.compiled import check, wants_grad

DTYPES = torch.bfloat16, torch.float32  # of slow decays fp16 loses up to 3 %
LARGEST = 128


def why_not(r: Tensor) -> str | None:
    """None if the kernels can run for a tensor like `r`, else the reason."""
    if reason := gpu.why_no_triton(r):
        return reason
    if r.dtype not in DTYPES:
        return "bf16 and fp32 only"
    return None if r.shape[-1] <= LARGEST else f"head sizes to {LARGEST} only"


def wkv6_triton(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, u: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Args and returns as `rwkv.kernels.wkv6.wkv6`, where `why_not` says nothing; raises KernelError for tensors that do not fit."""
    return _run("wkv6", (w, r.shape, r.dtype), r, k, v, u, state, reset)


def wkv5_triton(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, u: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Args and returns as `rwkv.kernels.wkv5.wkv5`, the rest as `wkv6_triton`."""
    return _run("wkv5", (w, r.shape[2:], None), r, k, v, u, state, reset)


def _run(op, decay, r, k, v, u, state, reset):
    """`decay`: w, and the shape and dtype that it must have."""
    B, T, H, N = r.shape
    inputs = {"w": decay, "u": (u, (H, N), None), **{name: (x, r.shape, r.dtype) for name, x in (("k", k), ("v", v))}}
    check(op, r, {**inputs, "state": (state, (B, H, N, N), torch.float32), "reset": (reset, (B, T), torch.bool)})
    inputs = r, decay[0], k, v, u
    if wants_grad(*inputs, state):
        return _Triton.apply(*inputs, state, reset)
    return _forward(inputs, state, reset)[:2]


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs_state_reset):
        *inputs, state, reset = inputs_state_reset
        y, last, kept = _forward(inputs, state, reset)
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dlast):
        return *_backward(ctx.saved_tensors, dy, dlast), None


@dataclass(frozen=True)
class Plan:
    """How one call is launched: constants, for autotuning would cost seconds at start."""

    chunk: int  # C
    dot: torch.dtype  # of the operands of products, and of the tiles kept
    prec: str  # how fp32 operands multiply
    values: int  # of a head at a time
    chain: tuple[int, int, int] = (8, 1, 4)  # rows of the state in one program of the chain, its warps, chunks loaded ahead + 1
    states: int = 4  # warps of chunk_states
    outputs: int = 4
    gradients: int = 4


def plan(r: Tensor) -> Plan:
    """For inputs like `r`."""
    wide = r.shape[-1] > 64
    if r.dtype == torch.bfloat16:
        return Plan(32, torch.bfloat16, "tf32", 64, outputs=8 if wide else 4, gradients=8 if wide else 4)
    # fp16 as fp32, which holds every state; tf32x3, for a GPU truncates to tf32, which errs to one side
    return Plan(16, torch.float32, "tf32x3", 32, gradients=8 if wide else 4)


def _forward(inputs, state, reset):
    """y, the last state and what the backward needs."""
    r, w, k, v, u = inputs = [x.contiguous() for x in inputs]
    state, flags = state.contiguous(), gpu.flags(reset)
    go = _Launch(r, w, flags)
    Q, S, D = go.squares(), go.squares(), go.vectors(go.BN)
    y, last = torch.empty_like(r), torch.empty_like(state)
    with gpu.on_device_of(r):
        go.chunks("chunk_states", w, k, v, go.flags, Q, D, REVERSE=False)
        go.chain(Q, D, state, S, last, REVERSE=False)
        go.chunks("outputs", *inputs, go.flags, S, y)
    return y, last, (*inputs, flags, S, D)


def _backward(kept, dy, dlast):
    """The gradients of the five inputs and of the first state."""
    *inputs, flags, S, D = kept
    r, w, _, _, u = inputs
    B, _, H, N = r.shape
    go = _Launch(r, w, flags)
    dy = torch.zeros_like(r) if dy is None else dy.contiguous()
    dlast = r.new_zeros(B, H, N, N, dtype=torch.float32) if dlast is None else dlast.contiguous()
    Q, Gr, dstate = go.squares(), go.squares(), torch.empty_like(dlast)
    dr, dk, dv = (torch.empty_like(r) for _ in range(3))
    dw, du = torch.empty_like(w) if go.each else go.vectors(N), go.vectors(N)
    with gpu.on_device_of(r):
        go.chunks("chunk_states", w, r, dy, go.flags, Q, D, REVERSE=True)
        go.chain(Q, D, dlast, Gr, dstate, REVERSE=True)
        go.chunks("gradients", *inputs, go.flags, dy, D, S, Gr, dr, dw, dk, dv, du)
    of_heads = lambda x: x.view(B, H, go.n, N).sum((0, 2))  # noqa: E731
    return dr, dw if go.each else of_heads(dw).to(w.dtype), dk, dv, of_heads(du).to(u.dtype), dstate


class _Launch:
    """The sizes of one call and what its launches have in common."""

    def __init__(self, r: Tensor, w: Tensor, flags: Tensor | None):
        B, self.T, self.H, N = r.shape
        self.G, self.plan, self.like, self.each = B * self.H, plan(r), r, w.dim() == 4
        self.n, self.BN = gpu.cdiv(self.T, self.plan.chunk), max(16, 1 << (N - 1).bit_length())
        self.flags = r if flags is None else flags
        self.sizes = {"N": N, "BN": self.BN}
        self.common = {
            "BV": min(self.BN, self.plan.values), "C": self.plan.chunk, "RESET": flags is not None, "EACH": self.each,
            "DOT": self.plan.dot, "PREC": self.plan.prec,
        }  # fmt: skip

    def squares(self) -> Tensor:
        return torch.empty(self.G, self.n, self.BN, self.BN, dtype=self.plan.dot, device=self.like.device)

    def vectors(self, N: int) -> Tensor:
        return torch.empty(self.G, self.n, N, dtype=torch.float32, device=self.like.device)

    def chunks(self, name: str, *args, **constants):
        """One program for each chunk of each head."""
        warps = {"outputs": self.plan.outputs, "gradients": self.plan.gradients}.get(name, self.plan.states)
        if name != "chunk_states":
            constants["LEVELS"] = self.plan.chunk.bit_length() - 1
        constants |= self.sizes | self.common | {"num_warps": warps}
        gpu.launch("wkv6", name, self.n * self.G, *args, self.n, self.G, self.H, self.T, **constants)

    def chain(self, *args, REVERSE: bool):
        """One program for some rows of the state of each head."""
        rows, warps, stages = self.plan.chain
        constants = self.sizes | {"BV": rows, "STAGES": stages, "num_warps": warps, "REVERSE": REVERSE}
        gpu.launch("wkv6", "chain", self.G * (self.BN // rows), *args, self.n, **constants)
