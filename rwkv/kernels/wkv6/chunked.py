"""WKV-6 in chunks: plain PyTorch on any device, any T, any decay, exact gradients of every input and of the state.

Let lw = log w. Inside a chunk of C tokens, with sums over the tokens strictly between,

    A[t, i] = sum_n r_t k_i exp(lw_{i+1} + ... + lw_{t-1})     for i < t,  and  A[t, t] = sum_n r_t u k_t
    Y = A V + (r_t exp(lw_1 + ... + lw_{t-1})) S0^T
    S_C = S0 diag(exp(lw_1 + ... + lw_C)) + V^T (k_i exp(lw_{i+1} + ... + lw_C))

Every exponent is a sum of decays, never a difference of sums, so that nothing overflows and no digit is lost however fast
the decay; the price is a tensor of C x C x N a chunk, formed for SLAB elements at a time. Only S_C is serial over chunks.

Legend: n chunks, G = B*H, C tokens a chunk, N head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv.kernels import dry
from rwkv.kernels.common import Layout, Segments, state_dtype
from rwkv.kernels.wkv6.reference import log_decay

SLAB = 2**25  # elements: 128 MiB in fp32


def wkv6_chunked(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, u: Tensor, state: Tensor, reset: Tensor | None, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Args and returns as `rwkv.kernels.wkv6.wkv6`; `chunk` is C: by default the fastest measured on a CPU (8), or 16 to have fewer and larger operations."""
    return _Chunked.apply(r, w, k, v, u, state, reset, min(chunk or (8 if dry.device_type(r) == "cpu" else 16), r.shape[1]))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, r, w, k, v, u, state, reset, chunk):
        B, T, H, N = r.shape
        x = _Split(Layout(B, T, H, N, chunk, state_dtype(r)), r, w, k, v, u, reset)
        S = x.R.new_empty(x.layout.n + 1, B * H, N, N)
        S[0] = state.reshape(B * H, N, N)
        VK = x.V.mT @ x.Ke
        for c in range(x.layout.n):
            torch.addcmul(VK[c], S[c], x.whole[c], out=S[c + 1])
        Y = x.Rs @ S[:-1].mT
        Y += x.now * x.V
        for cut in x.slabs():
            Y[cut] += x.scores(cut)[0] @ x.V[cut]
        ctx.save_for_backward(r, w, k, v, u, reset, S)
        ctx.chunk = chunk
        return x.layout.join(Y, r.dtype), S[-1].reshape(B, H, N, N).clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dstate):
        r, w, k, v, u, reset, S = ctx.saved_tensors
        B, T, H, N = r.shape
        x = _Split(Layout(B, T, H, N, ctx.chunk, state_dtype(r)), r, w, k, v, u, reset)
        dY = x.layout.split(dy)

        # serial part: the gradient G of the state, from the last chunk to the first
        RY = dY.mT @ x.Rs
        G = torch.empty_like(S)
        G[-1] = dstate.reshape(B * H, N, N)
        for c in reversed(range(x.layout.n)):
            torch.addcmul(RY[c], G[c + 1], x.whole[c], out=G[c])
        S0, G1 = S[:-1], G[1:]

        dRs, dKe = dY @ S0, x.V @ G1  # of Rs and Ke
        VdY = (x.V * dY).sum(-1, keepdim=True)
        dV = x.Ke @ G1.mT + x.now * dY
        dR = dRs * x.before + x.u * x.K * VdY
        dK = dKe * x.after + x.u * x.R * VdY
        du = (x.R * x.K * VdY).sum((0, 2)).view(B, H, N).sum(0)
        # gradients of the exponents: of the sums before t, after i, over the chunk, and between i and t
        d_before, d_after = dRs * x.Rs, dKe * x.Ke
        dlw = ((G1 * S0).sum(-2, keepdim=True) * x.whole).expand_as(x.lw).clone()
        dlw += _after(d_before) + _before(d_after)
        for cut in x.slabs():
            A, E = x.scores(cut)
            dA = dY[cut] @ x.V[cut].mT
            dV[cut] += A.mT @ dY[cut]
            dAE = dA.unsqueeze(-1) * E
            dR[cut] += torch.einsum("ngtik,ngik->ngtk", dAE, x.K[cut])
            dK[cut] += torch.einsum("ngtik,ngtk->ngik", dAE, x.R[cut])
            # the exponent between i and t holds lw_s for i < s < t
            dE = dAE.mul_(x.R[cut].unsqueeze(-2)).mul_(x.K[cut].unsqueeze(-3))
            dlw[cut] += torch.where(x.earlier, _before(dE), 0.0).sum(-3)
        dw = dlw * x.lw
        grads = [x.layout.join(g, inp.dtype) for g, inp in ((dR, r), (dw, w), (dK, k), (dV, v))]
        return *grads, du.to(u.dtype), G[0].reshape(B, H, N, N).clone(), None, None


class _Split:
    """The inputs in chunks, and the decays of each token to and from the ends of its chunk."""

    def __init__(self, layout: Layout, r, w, k, v, u, reset):
        B, C = layout.B, layout.C
        self.layout = layout
        self.R, self.K, self.V = (layout.split(x) for x in (r, k, v))
        self.lw = log_decay(layout.split(w))
        if layout.pad:
            self.lw[-1, :, C - layout.pad :] = 0  # filling tokens leave the state alone
        self.u = u.to(layout.acc).repeat(B, 1).unsqueeze(1)  # [G, 1, N]
        seg = layout.segments(reset)
        self.seg: Segments | None = seg
        self.before, self.after = _before(self.lw).exp(), _after(self.lw).exp()
        self.whole = self.lw.sum(-2, keepdim=True).exp()
        if seg is not None:
            self.before, self.after, self.whole = self.before * seg.first, self.after * seg.last, self.whole * seg.whole
        self.Rs, self.Ke = self.R * self.before, self.K * self.after
        self.now = (self.R * self.u * self.K).sum(-1, keepdim=True)
        earlier = torch.ones(C, C, dtype=torch.bool, device=r.device).tril(-1)
        self.earlier = earlier.unsqueeze(-1)  # [t, i, 1]: i < t

    def slabs(self):
        """Chunks to form C x C x N tensors of at a time."""
        n, G, C, N = self.R.shape
        step = max(1, SLAB // (G * C * C * N))
        return [slice(i, i + step) for i in range(0, n, step)]

    def scores(self, cut: slice) -> tuple[Tensor, Tensor]:
        """A without its diagonal [.., C, C], and the decay between i and t [.., C, C, N], zero where i is not before t."""
        lw = self.lw[cut].unsqueeze(-2)  # of t
        between = torch.where(self.earlier, lw, 0.0).cumsum(-3)
        E = torch.where(self.earlier, F.pad(between[..., :-1, :, :], (0, 0, 0, 0, 1, 0)).exp(), 0.0)
        if self.seg is not None:
            E = E * self.seg.same[cut].unsqueeze(-1)
        return torch.einsum("ngtk,ngtik,ngik->ngti", self.R[cut], E, self.K[cut]), E


def _before(x: Tensor) -> Tensor:
    """At each token (axis -2) the sum over those before it in the chunk."""
    return F.pad(x.cumsum(-2)[..., :-1, :], (0, 0, 1, 0))


def _after(x: Tensor) -> Tensor:
    """At each token the sum over those after it."""
    return _before(x.flip(-2)).flip(-2)
