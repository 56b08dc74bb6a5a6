"""The Triton kernels of WKV-6 and WKV-5; `triton.py` launches them and says what each tensor is.

With lw = log w, and sums over tokens of a chunk, in which e^(before t) is the decay of all tokens before t, e^(after i) of all after i,

    Y  = A V + Rs S^T           A[t, i] = sum_n r_t k_i exp(lw_{i+1} + ... + lw_{t-1}),  A[t, t] = sum_n r_t u k_t
    S' = S D + V^T Ke           Rs = r e^(before), Ke = k e^(after), D the decay of the whole chunk
    G  = G' D + dY^T Rs         G the gradient of S

A is formed in levels: a pair i < t belongs to the level s = 1, 2, 4 ... whose blocks of s tokens they are neighbours in, i in an
even block and t in the odd one after it. Its exponent is then the sum of the decays before t in t's block and of those after
i in i's block. So every token has one factor a level, at most 1, and a level is one product: nothing overflows however fast
the decay, and no exponent is a difference of sums, so no digit is lost however slow.

Legend: n chunks, G = B*H, C tokens a chunk, N head size, BN the next power of 2, BV values at a time. Tensors between kernels
are tiles [G, n, ., .]. DOT is the dtype of the operands of products, PREC how fp32 operands multiply; accumulators are fp32.
EACH: w is one decay a token, [B, T, H, N], rather than one for all, [H, N].
"""

import triton
import triton.language as tl

from rwkv.kernels.triton_tiles import LN2, LOG2_E, SIZES, dot, exp2_fast, exp_exact, load, place, segments


@triton.jit
def _log2_decay(w, at, at_head, live, EACH: tl.constexpr):
    """Filling tokens get 0: their decay is 1."""
    raw = load(w, at if EACH else at_head, live)
    return tl.where(live, -LOG2_E * exp_exact(tl.where(raw > 50.0, 50.0, raw)), 0.0)  # exp(-exp(50)) is 0


@triton.jit
def _before(C: tl.constexpr):
    """[C, C] 0/1: its product with x sums the tokens before each; the transposed one those after."""
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    return tl.where(i > j, 1.0, 0.0)


@triton.jit
def _decay(M, lw, DOT: tl.constexpr):
    """The decay over the tokens that the rows of M, of 0 and 1, name: lw in bf16 parts, two that have 16 digits or all three."""
    high = lw.to(tl.bfloat16)
    rest = lw - high.to(tl.float32)
    X = tl.dot(M.to(tl.bfloat16), high)
    low = rest.to(tl.bfloat16)
    X += tl.dot(M.to(tl.bfloat16), low)
    if DOT == tl.float32:
        X += tl.dot(M.to(tl.bfloat16), (rest - low.to(tl.float32)).to(tl.bfloat16))
    return exp2_fast(X)


@triton.jit
def _level(e, C: tl.constexpr):
    """[C, C] of the level of blocks of 2^e tokens: 0/1, whose product with lw is each token's exponent; and its pairs (t, i)."""
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    block, other = i >> e, j >> e
    odd = (block & 1) == 1
    own = (block == other) & ((odd & (i > j)) | ((block & 1 == 0) & (i < j)))
    return tl.where(own, 1.0, 0.0), odd & (block == other + 1)


@triton.jit(do_not_specialize=SIZES)
def chunk_states(
    w, x, y, reset, Q, D, n, G, H, T,
    N: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr,
    RESET: tl.constexpr, EACH: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Parallel over chunks: Q = V^T Ke and D from x = k, y = v; REVERSE: Q = dY^T Rs from x = r, y = dy."""
    row, t0, tile, at0 = place(n, G, H, T, C, N)
    t, c = tl.arange(0, C), tl.arange(0, BN)
    at, live = at0 + t[:, None] * (H * N) + c[None, :], (t0 + t < T)[:, None] & (c < N)[None, :]
    lw = _log2_decay(w, at, at0 // N % H * N + c[None, :] + 0 * t[:, None], live, EACH)
    seg, end = segments(reset, row, t0, T, C, RESET)
    near, M = (seg == 0 if REVERSE else seg == end)[:, None], _before(C) if REVERSE else tl.trans(_before(C))
    X = tl.where(near, load(x, at, live) * _decay(M, lw, DOT), 0.0)
    for b in tl.static_range(BN // BV):
        z = b * BV + tl.arange(0, BV)
        Y = load(y, at0 + t[:, None] * (H * N) + z[None, :], (t0 + t < T)[:, None] & (z < N)[None, :])
        tl.store(Q + tile * (BN * BN) + z[:, None] * BN + c[None, :], dot(tl.trans(Y.to(DOT)), X, DOT, PREC))
    if not REVERSE:
        tl.store(D + tile * BN + c, tl.where(end == 0, exp2_fast(tl.sum(lw, 0)), 0.0))


@triton.jit(do_not_specialize=SIZES)
def chain(
    Q, D, start, S, out, n, N: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, REVERSE: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """Serial over chunks, for BV rows of the state: S[c] = x; x <- x D + Q. REVERSE: from the last chunk."""
    pid = tl.program_id(0).to(tl.int64)
    g = pid // (BN // BV)
    v, x = pid % (BN // BV) * BV + tl.arange(0, BV)[:, None], tl.arange(0, BN)[None, :]
    rows, whole, inside = v * BN + x, g * (N * N) + v * N + x, (v < N) & (x < N)
    state = load(start, whole, inside)
    for step in tl.range(0, n, num_stages=STAGES):
        c = g * n + (n - 1 - step if REVERSE else step)
        q = tl.load(Q + c * (BN * BN) + rows).to(tl.float32)
        d = tl.load(D + c * BN + x)
        tl.store(S + c * (BN * BN) + rows, state)
        state = state * d + q
    tl.store(out + whole, state, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def outputs(
    r, w, k, v, u, reset, S, y, n, G, H, T,
    N: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr,
    RESET: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """Parallel over chunks: Y, from S before the chunk."""
    row, t0, tile, at0 = place(n, G, H, T, C, N)
    t, c = tl.arange(0, C), tl.arange(0, BN)
    at, live = at0 + t[:, None] * (H * N) + c[None, :], (t0 + t < T)[:, None] & (c < N)[None, :]
    at_head = at0 // N % H * N + c[None, :]
    lw = _log2_decay(w, at, at_head + 0 * t[:, None], live, EACH)
    R, K = load(r, at, live), load(k, at, live)
    seg, end = segments(reset, row, t0, T, C, RESET)
    same = seg[:, None] == seg[None, :]

    A = tl.zeros([C, C], tl.float32)
    for e in tl.range(0, LEVELS):
        M, pairs = _level(e, C)
        E = _decay(M, lw, DOT)
        A += tl.where(pairs & same, dot(R * E, tl.trans((K * E).to(DOT)), DOT, PREC), 0.0)
    now = tl.sum(R * load(u, at_head, (c < N)[None, :]) * K, 1)
    A += tl.where(t[:, None] == t[None, :], now[:, None], 0.0)

    Rs = tl.where((seg == 0)[:, None], R * _decay(_before(C), lw, DOT), 0.0)
    for b in tl.static_range(BN // BV):
        z = b * BV + tl.arange(0, BV)
        at_z, live_z = at0 + t[:, None] * (H * N) + z[None, :], (t0 + t < T)[:, None] & (z < N)[None, :]
        state = tl.load(S + tile * (BN * BN) + z[:, None] * BN + c[None, :])
        Y = dot(Rs, tl.trans(state), DOT, PREC) + dot(A, load(v, at_z, live_z), DOT, PREC)
        tl.store(y + at_z, Y, mask=live_z)


@triton.jit(do_not_specialize=SIZES)
def gradients(
    r, w, k, v, u, reset, dy, D, S, Gr, dr, dw, dk, dv, du, n, G, H, T,
    N: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr,
    RESET: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """Parallel over chunks: the gradients of r, k and v, and this chunk's part of those of u and w (of w each token's, if EACH),
    from S before the chunk and the gradient Gr of S after it."""
    row, t0, tile, at0 = place(n, G, H, T, C, N)
    t, c = tl.arange(0, C), tl.arange(0, BN)
    at, live = at0 + t[:, None] * (H * N) + c[None, :], (t0 + t < T)[:, None] & (c < N)[None, :]
    at_head = at0 // N % H * N + c[None, :]
    lw = _log2_decay(w, at, at_head + 0 * t[:, None], live, EACH)
    R, K = load(r, at, live), load(k, at, live)
    seg, end = segments(reset, row, t0, T, C, RESET)
    same = seg[:, None] == seg[None, :]

    # through the states
    dR, dK, whole = tl.zeros([C, BN], tl.float32), tl.zeros([C, BN], tl.float32), tl.zeros([BN], tl.float32)
    dA = tl.zeros([C, C], tl.float32)
    for b in tl.static_range(BN // BV):
        z = b * BV + tl.arange(0, BV)
        at_z, live_z = at0 + t[:, None] * (H * N) + z[None, :], (t0 + t < T)[:, None] & (z < N)[None, :]
        V, dY = load(v, at_z, live_z).to(DOT), load(dy, at_z, live_z).to(DOT)
        square = tile * (BN * BN) + z[:, None] * BN + c[None, :]
        state, grad = tl.load(S + square), tl.load(Gr + square)
        dR += dot(dY, state, DOT, PREC)
        dK += dot(V, grad, DOT, PREC)
        dA += dot(dY, tl.trans(V), DOT, PREC)
        whole += tl.sum(state.to(tl.float32) * grad.to(tl.float32), 0)
    earlier = _before(C)
    dR *= tl.where((seg == 0)[:, None], _decay(earlier, lw, DOT), 0.0)
    after = tl.where((seg == end)[:, None], _decay(tl.trans(earlier), lw, DOT), 0.0)
    dK *= after
    dlw = (whole * tl.load(D + tile * BN + c))[None, :] + dot(tl.trans(earlier), dR * R, DOT, PREC) + dot(earlier, dK * K, DOT, PREC)

    # through the scores
    A = tl.zeros([C, C], tl.float32)
    for e in tl.range(0, LEVELS):
        M, pairs = _level(e, C)
        E = _decay(M, lw, DOT)
        RE, KE = (R * E).to(DOT), (K * E).to(DOT)
        A += tl.where(pairs & same, dot(RE, tl.trans(KE), DOT, PREC), 0.0)
        d = tl.where(pairs & same, dA, 0.0).to(DOT)
        dRe, dKe = dot(d, KE, DOT, PREC) * E, dot(tl.trans(d), RE, DOT, PREC) * E
        dR += dRe
        dK += dKe
        dlw += dot(tl.trans(M), dRe * R + dKe * K, DOT, PREC)
    bonus = load(u, at_head, (c < N)[None, :])
    diagonal = t[:, None] == t[None, :]
    A += tl.where(diagonal, tl.sum(R * bonus * K, 1)[:, None], 0.0)
    d_now = tl.sum(tl.where(diagonal, dA, 0.0), 1)[:, None]
    tl.store(dr + at, dR + d_now * bonus * K, mask=live)
    tl.store(dk + at, dK + d_now * bonus * R, mask=live)
    tl.store(du + tile * N + c, tl.sum(d_now * R * K, 0), mask=c < N)
    dlw *= lw * LN2
    if EACH:
        tl.store(dw + at, dlw, mask=live)
    else:
        tl.store(dw + tile * N + c, tl.sum(dlw, 0), mask=c < N)

    A, Ke = A.to(DOT), (K * after).to(DOT)
    for b in tl.static_range(BN // BV):
        z = b * BV + tl.arange(0, BV)
        at_z, live_z = at0 + t[:, None] * (H * N) + z[None, :], (t0 + t < T)[:, None] & (z < N)[None, :]
        grad = tl.load(Gr + tile * (BN * BN) + z[:, None] * BN + c[None, :])
        dV = dot(Ke, tl.trans(grad), DOT, PREC) + dot(tl.trans(A), load(dy, at_z, live_z), DOT, PREC)
        tl.store(dv + at_z, dV, mask=live_z)
