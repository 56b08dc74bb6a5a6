"""WKV-7 in matmul form: plain PyTorch on any device, any T, exact gradients of every input and of the state.

Inside a chunk of C tokens let L = cumsum(log w), g_t = exp(L_t), Gam = g_C. The substitution
S_t = Z_t diag(g_t) takes the decay out of the recurrence; with At = a g_{t-1}, Rt = r g_t, Bt = b / g_t, Kt = k / g_t

    U = (I - Mab)^-1 (At S0^T + Mak V)            row t of U is S_{t-1} a_t
    Y = Rt S0^T + Mrb U + Mrk V
    S_C = (S0 + U^T Bt + V^T Kt) diag(Gam)

where M** are the lower triangles of the products of (At, Rt) with (Bt, Kt). Only U and S_C are serial over chunks:
two small matmuls a chunk forward and two backward; everything else is batched over all chunks at once.
A reset inside a chunk cuts it into segments: scores between segments are 0, S0 reaches the first segment only,
and the last one alone reaches S_C.

Legend: n chunks, G = B*H, C tokens a chunk, N head size.
"""

import torch
from torch import Tensor

from rwkv.kernels.common import Layout, Segments, state_dtype
from rwkv.kernels.wkv7.reference import LOG_DECAY_SCALE


def wkv7_chunked(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, reset: Tensor | None, chunk: int = 16
) -> tuple[Tensor, Tensor]:
    """Args and returns as `rwkv.kernels.wkv7.wkv7`; `chunk` is C, at most 64 so that fp32 holds 1/decay^C."""
    return _Chunked.apply(r, w, k, v, a, b, state, reset, min(chunk, r.shape[1]))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, r, w, k, v, a, b, state, reset, chunk):
        B, T, H, N = r.shape
        layout = Layout(B, T, H, N, chunk, state_dtype(r))
        seg = layout.segments(reset)
        x = _Scaled(layout, r, w, k, v, a, b)
        V = layout.split(v)
        M = x.scores(seg)
        Mab, Mak, Mrb, Mrk = _quarters(M)
        Ti = _unit_lower_inverse(Mab)
        A0, R0 = (x.At, x.Rt) if seg is None else (x.At * seg.first, x.Rt * seg.first)
        B1, K1 = (x.Bt, x.Kt) if seg is None else (x.Bt * seg.last, x.Kt * seg.last)
        W, U = Ti @ A0, Ti @ (Mak @ V)
        KV = V.mT @ K1
        S = torch.empty(layout.n + 1, B * H, N, N, dtype=layout.acc, device=r.device)
        S[0] = state.reshape(B * H, N, N)
        for c in range(layout.n):
            U[c].baddbmm_(W[c], S[c].mT)
            KV[c].baddbmm_(U[c].mT, B1[c])
            kept = S[c] if seg is None else S[c] * seg.whole[c]
            torch.mul(KV[c].add_(kept), x.Gam[c], out=S[c + 1])
        Y = torch.baddbmm(_flat(Mrb @ U), _flat(R0), _flat(S[:-1]).mT).baddbmm_(_flat(Mrk), _flat(V)).view_as(V)
        ctx.save_for_backward(r, w, k, v, a, b, reset, M, Ti, U, S)
        ctx.chunk = chunk
        return layout.join(Y, r.dtype), S[-1].reshape(B, H, N, N).clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dstate):
        r, w, k, v, a, b, reset, M, Ti, U, S = ctx.saved_tensors
        B, T, H, N = r.shape
        layout = Layout(B, T, H, N, ctx.chunk, state_dtype(r))
        seg = layout.segments(reset)
        x = _Scaled(layout, r, w, k, v, a, b)
        V, dY, S0 = layout.split(v), layout.split(dy), S[:-1]
        Mab, Mak, Mrb, Mrk = _quarters(M)
        A0, R0 = (x.At, x.Rt) if seg is None else (x.At * seg.first, x.Rt * seg.first)
        B1 = x.Bt if seg is None else x.Bt * seg.last

        # serial part: the gradient G of the state, from the last chunk to the first
        TB, dX, RY = Ti.mT @ B1, Ti.mT @ (Mrb.mT @ dY), dY.mT @ R0
        G = torch.empty_like(S)
        G[-1] = dstate.reshape(B * H, N, N)
        Gt = torch.empty_like(RY)
        for c in reversed(range(layout.n)):
            torch.mul(G[c + 1], x.Gam[c], out=Gt[c])
            dX[c].baddbmm_(TB[c], Gt[c].mT)
            RY[c].baddbmm_(dX[c].mT, A0[c])
            torch.add(RY[c], Gt[c] if seg is None else Gt[c] * seg.whole[c], out=G[c])

        # the rest, all chunks at once; XY stacks dX over dY as AR stacks At over Rt
        UV, XY = torch.cat([U, V], -2), torch.cat([dX, dY], -2)
        AR, BK = torch.cat([x.At, x.Rt], -2), torch.cat([x.Bt, x.Kt], -2)
        dM = (XY @ UV.mT).mul_(mask(layout))
        UVG, XYS = UV @ Gt, XY @ S0
        if seg is not None:
            dM.mul_(seg.same.repeat(1, 1, 2, 2))
            UVG.mul_(torch.cat([seg.last, seg.last], -2))
            XYS.mul_(torch.cat([seg.first, seg.first], -2))
        dAR = XYS.add_(dM @ BK)
        dBK = UVG.add_(dM.mT @ AR)
        K1 = x.Kt if seg is None else x.Kt * seg.last
        dV = K1 @ Gt.mT + torch.cat([Mak, Mrk], -2).mT @ XY
        dAt, dRt = dAR.chunk(2, -2)
        dBt, dKt = dBK.chunk(2, -2)

        h = x.Rt * dRt - x.Bt * dBt - x.Kt * dKt
        h[..., :-1, :] += (x.At * dAt)[..., 1:, :]
        h[..., -1, :] += (G[1:] * S[1:]).sum(-2)
        dlw = h.flip(-2).cumsum(-2).flip(-2)
        dw = dlw * x.lw * torch.sigmoid(-layout.split(w))  # sigmoid(-w), for 1 - sigmoid(w) is 0 in fp32 early
        grads = (dRt * x.g, dw, dKt * x.gi, dV, dAt * x.gp, dBt * x.gi)
        inputs = (r, w, k, v, a, b)
        out = [layout.join(grad, inp.dtype) for grad, inp in zip(grads, inputs, strict=True)]
        return *out, G[0].reshape(B, H, N, N).clone(), None, None


class _Scaled:
    """The inputs with the decay folded in, and the decay's own factors."""

    def __init__(self, layout: Layout, r, w, k, v, a, b):
        self.layout = layout
        # filling tokens get log w = 0: their decay is 1
        self.lw = LOG_DECAY_SCALE * torch.sigmoid(layout.split(w))
        if layout.pad:
            self.lw[-1, :, layout.C - layout.pad :] = 0
        L = self.lw.cumsum(-2)
        self.g, self.gp, self.gi = L.exp(), (L - self.lw).exp(), (-L).exp()
        self.Gam = self.g[..., -1:, :]
        self.At, self.Rt = layout.split(a) * self.gp, layout.split(r) * self.g
        self.Bt, self.Kt = layout.split(b) * self.gi, layout.split(k) * self.gi

    def scores(self, seg: Segments | None) -> Tensor:
        M = torch.cat([self.At, self.Rt], -2) @ torch.cat([self.Bt, self.Kt], -2).mT
        M.mul_(mask(self.layout))
        return M if seg is None else M.mul_(seg.same.repeat(1, 1, 2, 2))


def mask(layout: Layout) -> Tensor:
    """[2C, 2C]: rows A see earlier tokens only, rows R also their own."""
    ones = torch.ones(layout.C, layout.C, dtype=layout.acc, device=layout.device)
    strict, inclusive = ones.tril(-1), ones.tril(0)
    return torch.cat([torch.cat([strict, strict], 1), torch.cat([inclusive, inclusive], 1)], 0)


def _quarters(M: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    C = M.shape[-1] // 2
    return M[..., :C, :C], M[..., :C, C:], M[..., C:, :C], M[..., C:, C:]


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-2:])


def _unit_lower_inverse(Mab: Tensor) -> Tensor:
    """(I - Mab)^-1 of strictly lower triangular Mab: inverses of diagonal blocks, merged to twice the size each time.

    [[X, 0], [E, Y]] has the inverse blocks X', Y' and Y' E X', never larger than the result: repeated keys, for which powers
    of Mab explode, lose nothing.
    """
    C = Mab.shape[-1]
    at = torch.arange(C, device=Mab.device)
    i, j = at.view(C, 1), at.view(1, C)
    inverse, size = torch.eye(C, dtype=Mab.dtype, device=Mab.device) + Mab * (i // 2 == j // 2).to(Mab.dtype), 2
    while size < C:
        E = Mab * ((i // (2 * size) == j // (2 * size)) & (i // size != j // size)).to(Mab.dtype)
        inverse = inverse + inverse @ E @ inverse
        size *= 2
    return inverse
