"""WKV-7 on a GPU through Triton: bf16, fp16 and fp32, any T, exact gradients of every input and of the state. In bf16 with heads of 64,
what is parallel over chunks is in CUDA too.

Legend: n chunks, G = B*H, C tokens a chunk, N head size. `triton_kernels.py` has the math of P, Q, D, Rw, Y0 and Ti.
Kept for the backward: the inputs, and for each chunk S, P [N, N], Rw [C, N] and Ti [C, C] in the dtype of the products, P in a finer one;
with `Plan.recompute`, or selective recomputation (`rwkv.kernels.again`), only S.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rwkv.errors import KernelError
from rwkv.kernels import again, cuda, gpu

# Kernels of triton_kernels.py again, for bf16, chunks of 32 and heads of 64, in 0.6 and 0.5 of their time on an H200.
CHUNK, HEAD, WARPS = 32, 64, 4
SLAB, SQUARE, SCORES = CHUNK * HEAD, HEAD * HEAD, CHUNK * CHUNK
FACTORS = cuda.Kernel(Path(__file__).with_name("chunk_factors.cu"), shared=2 * (10 * SLAB + 4 * SCORES), threads=32 * WARPS)
GRADIENTS = cuda.Kernel(Path(__file__).with_name("gradients.cu"), shared=2 * (11 * SLAB + 2 * SQUARE + 4 * SCORES), threads=32 * WARPS)
KERNELS = FACTORS.name, GRADIENTS.name

# larger ones do not fit in the registers
HEAD_SIZES = {torch.bfloat16: (16, 32, 64, 128), torch.float16: (16, 32, 64), torch.float32: (16, 32, 64)}


def why_not(r: Tensor) -> str | None:
    """None if the kernels can run for a tensor like `r`, else the reason."""
    if reason := gpu.why_no_triton(r):
        return reason
    if r.dtype not in HEAD_SIZES:
        return "bf16, fp16 and fp32 only"
    if r.shape[-1] not in HEAD_SIZES[r.dtype]:
        return f"head sizes {', '.join(map(str, HEAD_SIZES[r.dtype]))} only in this dtype"
    return None


def why_no_cuda(r: Tensor) -> str | None:
    """The same of `wkv7_cuda`. Compiles its kernels at the first call."""
    if reason := why_not(r):
        return reason
    if r.dtype != torch.bfloat16 or r.shape[-1] != HEAD:
        return f"bf16 and heads of {HEAD} only"
    return FACTORS.why_not(r) or GRADIENTS.why_not(r)


def wkv7_triton(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, reset: Tensor | None, kernels: tuple[str, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Args and returns as `rwkv.kernels.wkv7.wkv7`; raises KernelError where they are not of one kind.

    In bf16, a, b and what a chunk makes of them (P) must be below 65520, from which fp16 is infinite, and then the state is not finite.
    With -kk and kk * gate they are of the size of 1. kernels: those that are CUDA's.
    """
    _check(r, w, k, v, a, b, state, reset)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (r, w, k, v, a, b, state)):
        return _Triton.apply(r, w, k, v, a, b, state, reset, kernels)
    return _forward([r, w, k, v, a, b], state, reset, kernels, keep=False)[:2]


def wkv7_cuda(*args: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same with the CUDA kernels; for tensors for which `why_no_cuda` has no reason."""
    return wkv7_triton(*args, kernels=KERNELS)


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *args):
        *inputs, state, reset, ctx.kernels = args
        y, last, kept = _forward(inputs, state, reset, ctx.kernels, keep=True)
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dlast):
        return *_backward(ctx.saved_tensors, dy, dlast, ctx.kernels), None, None


@dataclass(frozen=True)
class Plan:
    """How one call is launched: constants, for autotuning would cost seconds at start."""

    chunk: int  # C
    dot: torch.dtype  # of the operands of products, and of the tiles kept; where it is bf16, not of P and what P is made of and multiplied with
    prec: str  # how fp32 operands multiply
    rows: int  # of the state in one program of the chain
    recompute: bool = False  # more of what the backward can compute again, rather than keep it: less memory, more time
    factors: tuple[int, int | None] = (4, None)  # warps of chunk_factors, and its most registers a thread
    gradients: tuple[int, int | None] = (4, None)  # the same of gradients
    small: tuple[int, int | None] = (4, None)  # the same of outputs and chain_source
    chain: tuple[int, int] = (16, 4)  # rows of the state a warp, and chunks loaded ahead + 1; a warp alone waits for no other
    fused_chain: tuple[bool, bool] = (False, False)  # forward and backward: does the work of outputs, of chain_source: fewer bytes, more time a chunk

    @property
    def finer(self) -> torch.dtype:
        """Of P: where keys repeat it is the same in all chunks, and its error adds up.

        It stands beside a decay in D + P, and its product beside Q, so that what is below fp16's 6e-8 does not matter: it is missed where a
        chunk decays the state to e^-11 and less in all channels and adds nothing, by 1% of what is left (e^-19: 80%).
        """
        return torch.float16 if self.dot == torch.bfloat16 else self.dot


def plan(r: Tensor) -> Plan:
    """For inputs like `r`."""
    B, _, H, N = r.shape
    few = B * H <= 128
    rows = 16 if few or N == 16 else 32
    if r.dtype == torch.bfloat16:
        if N == 128:
            return Plan(32, torch.bfloat16, "tf32", rows, factors=(8, None), gradients=(8, None), chain=(16, 3))
        return Plan(32, torch.bfloat16, "tf32", rows, factors=(2, None), chain=(16, 4 if few else 3), fused_chain=(B * H > 16, True))
    # fp16 as fp32: it cannot hold 1/decay^C, and the GPU truncates to tf32, which errs to one side
    return Plan(16, torch.float32, "tf32x3", rows, gradients=(8, None), chain=(16, 3))


def _forward(inputs, state, reset, kernels, keep):
    """y, the last state and, if `keep`, what the backward needs."""
    inputs = [x.contiguous() for x in inputs]
    r, state, flags = inputs[0], state.contiguous(), gpu.flags(reset)
    go = _Launch(r, flags, kernels)
    fused = go.plan.fused_chain[0]
    S = go.tile(go.N, go.N) if keep or not fused else None
    y, last = torch.empty_like(r), torch.empty_like(state)
    recompute = go.plan.recompute or again.selecting()
    with gpu.on_device_of(r):
        P, Q, D, Rw, Y0, Ti = _factors(go, inputs, keep and not recompute)
        if fused:
            go.chain(P, Q, D, state, S, last, Rw, Y0, y)
        else:
            go.chain(P, Q, D, state, S, last)
            go.chunks("outputs", Rw, Y0, S, y)
    factors = (None,) * 4 if recompute else (P, D, Rw, Ti)
    return y, last, (*inputs, flags, S, *factors) if keep else None


def _factors(go, inputs, keep):
    """P, Q, D, Rw, Y0 and, if `keep`, Ti."""
    C, N = go.plan.chunk, go.N
    P, Q, Rw, Y0 = go.tile(N, N, dtype=go.plan.finer), go.tile(N, N), go.tile(C, N), go.tile(C, N)
    D, Ti = torch.empty(go.G, go.n, N, dtype=torch.float32, device=P.device), go.tile(C, C) if keep else P
    if FACTORS.name in go.kernels:
        go.blocks(FACTORS, *inputs, go.reset_flags, P, Q, D, Rw, Y0, Ti if keep else None)
    else:
        go.chunks("chunk_factors", *inputs, go.flags, P, Q, D, Rw, Y0, Ti, RESET=go.reset, KEEP=keep)
    return P, Q, D, Rw, Y0, Ti


def _backward(kept, dy, dlast, kernels):
    """The gradients of the six inputs and of the first state."""
    *inputs, flags, S, P, D, Rw, Ti = kept
    r = inputs[0]
    B, _, H, N = r.shape
    go = _Launch(r, flags, kernels)
    dy = torch.zeros_like(r) if dy is None else dy.contiguous()
    dlast = torch.zeros(B, H, N, N, dtype=torch.float32, device=r.device) if dlast is None else dlast.contiguous()
    Gr, dstate = go.tile(N, N), torch.empty_like(dlast)
    grads = [torch.empty_like(x) for x in inputs]
    with gpu.on_device_of(r):
        if P is None:
            P, _, D, Rw, _, Ti = _factors(go, inputs, keep=True)
        if go.plan.fused_chain[1]:
            go.chain(P, None, D, dlast, Gr, dstate, Rw, dy=dy, REVERSE=True)
        else:
            Q = go.tile(N, N)
            go.chunks("chain_source", dy, Rw, Q)
            go.chain(P, Q, D, dlast, Gr, dstate, REVERSE=True)
        if GRADIENTS.name in go.kernels:
            go.blocks(GRADIENTS, *inputs, go.reset_flags, dy, D, S, Ti, Gr, *grads)
        else:
            go.chunks("gradients", *inputs, go.flags, dy, D, S, Ti, Gr, *grads, RESET=go.reset)
    return *grads, dstate


class _Launch:
    """The sizes of one call and what its launches have in common."""

    def __init__(self, r: Tensor, flags: Tensor | None, kernels: tuple[str, ...]):
        B, self.T, self.H, self.N = r.shape
        self.G, self.plan, self.like, self.kernels = B * self.H, plan(r), r, kernels
        self.n = gpu.cdiv(self.T, self.plan.chunk)
        self.reset_flags = flags  # for CUDA; Triton takes no null
        self.flags, self.reset = (r, False) if flags is None else (flags, True)
        self.common = {"N": self.N, "C": self.plan.chunk, "PREC": self.plan.prec, "DOT": self.plan.dot}

    def tile(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(self.G, self.n, *shape, dtype=dtype or self.plan.dot, device=self.like.device)

    def chunks(self, name: str, *args, **constants):
        """One program for each chunk of each head."""
        warps, registers = {"chunk_factors": self.plan.factors, "gradients": self.plan.gradients}.get(name, self.plan.small)
        sizes = self.n, self.G, self.H, self.T
        constants |= self.common | {"num_warps": warps, "maxnreg": registers}
        gpu.launch("wkv7", name, self.n * self.G, *args, *sizes, **constants)

    def blocks(self, kernel: cuda.Kernel, *args):
        """One block for each chunk of each head."""
        kernel.launch(self.n * self.G, *args, self.n, self.G, self.H, self.T)

    def chain(self, P, Q, D, start, S, out, Rw=None, Y0=None, y=None, dy=None, REVERSE=False):
        """One program for `rows` rows of the state of each head."""
        rows, (of_a_warp, stages) = self.plan.rows, self.plan.chain
        args = P, Q, D, start, S, out, Rw, Y0, y, dy, self.n, self.H, self.T
        constants = self.common | {"BV": rows, "STAGES": stages, "num_warps": rows // of_a_warp}
        gpu.launch("wkv7", "chain", self.G * (self.N // rows), *args, REVERSE=REVERSE, **constants)


def _check(r, w, k, v, a, b, state, reset):
    B, T, H, N = r.shape
    for x in (w, k, v, a, b):
        if x.shape != r.shape or x.dtype != r.dtype or x.device != r.device:
            wanted = f"{r.dtype} {list(r.shape)} on {r.device}"
            raise KernelError(f"wkv7: wanted {wanted} as r is, got {x.dtype} {list(x.shape)} on {x.device}")
    if state.shape != (B, H, N, N) or state.dtype != torch.float32 or state.device != r.device:
        raise KernelError(
            f"wkv7: state must be fp32 {[B, H, N, N]} on {r.device}, got {state.dtype} {list(state.shape)} on {state.device}"
        )
    if reset is not None and (reset.shape != (B, T) or reset.dtype != torch.bool or reset.device != r.device):
        raise KernelError(f"wkv7: reset must be bool {[B, T]} on {r.device}, got {reset.dtype} {list(reset.shape)}")
