"""The Triton kernels of WKV-7; `triton.py` launches them and says what each tensor is.

The math is that of `chunked.py`, with the parts of a chunk that do not need the state folded into few factors:

    S' = S (D + P) + Q          P = W^T Bh, Q = U0^T Bh + V^T Kh, W = Ti At, U0 = Ti Mak V, Ti = (I - Mab)^-1
    Y  = Rw S^T + Y0            Rw = Rt + Mrb W, Y0 = Mrb U0 + Mrk V
    G  = G' (D + P)^T + dY^T Rw

with D = diag(decay of the whole chunk), Bh = Bt D, Kh = Kt D, G the gradient of S. So the part that is serial over chunks
is one small product a chunk, the same kernel forward and backward, and rows of S (the value axis) are independent in it.

A factor 1/decay^C is at most e^(0.61 C), which bf16 holds as fp32 does; a score's factors multiply to at most 1.

Legend: n chunks, G = B*H, C tokens a chunk, N head size. Tensors between kernels are tiles [G, n, ., .].
DOT is the dtype of the operands of products, but fp16 where P is; PREC how fp32 operands multiply; accumulators are fp32.
"""

import triton
import triton.language as tl

from rwkv.kernels.triton_tiles import LN2, SIZES, dot, exp2_fast, first_token, load, place, segments, sigmoid

LOG2_DECAY_SCALE = tl.constexpr(-0.6065306597126334 * 1.4426950408889634)  # log w = LOG_DECAY_SCALE sigmoid(w), in base 2


@triton.jit
def _log2_decay(w, at, live):
    """Filling tokens get 0: their decay is 1."""
    return tl.where(live, LOG2_DECAY_SCALE * sigmoid(tl.load(w + at, mask=live, other=0.0).to(tl.float32)), 0.0)


@triton.jit
def _rest(x, DOT: tl.constexpr):
    """What rounding to DOT takes away."""
    return x - x.to(DOT).to(tl.float32)


@triton.jit
def _unit_lower_inverse(M, C: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr):
    """(I - M)^-1 [C, C] of strictly lower triangular M: inverses of diagonal blocks, merged to twice the size each time.

    [[X, 0], [E, Y]] has the inverse blocks X', Y' and Y' E X', never larger than the result: repeated keys, for which
    powers of M explode, lose nothing, and operands in bf16 add no error to that of the other products.
    """
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    inverse = tl.where(i == j, 1.0, tl.where(i // 2 == j // 2, M, 0.0))
    for e in tl.static_range(1, 6):
        if C > 1 << e:
            E = tl.where((i >> (e + 1) == j >> (e + 1)) & (i >> e != j >> e), M, 0.0)
            inverse += dot(dot(inverse, E, DOT, PREC), inverse, DOT, PREC)
    return inverse


@triton.jit(do_not_specialize=SIZES)
def chunk_factors(
    r, w, k, v, a, b, reset, P, Q, D, Rw, Y0, Ti, n, G, H, T,
    N: tl.constexpr, C: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, RESET: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Parallel over chunks: P, Q [N, N], D [N], Rw, Y0 [C, N] and, if KEEP, Ti [C, C]."""
    row, t0, tile, at0 = place(n, G, H, T, C, N)
    t, x, y = tl.arange(0, C), tl.arange(0, N), tl.arange(0, N)
    at, live = at0 + t[:, None] * (H * N) + x[None, :], (t0 + t < T)[:, None]
    seg, end = segments(reset, row, t0, T, C, RESET)
    first, last = (seg == 0)[:, None], (seg == end)[:, None]
    i, j = t[:, None], t[None, :]
    same = seg[:, None] == seg[None, :]

    lw = _log2_decay(w, at, live)
    L, total = tl.cumsum(lw, 0), tl.sum(lw, 0)
    tl.store(D + tile * N + x, tl.where(end == 0, exp2_fast(total), 0.0))
    raw_b, raw_k = load(b, at, live), load(k, at, live)
    At, Rt = load(a, at, live) * exp2_fast(L - lw), load(r, at, live) * exp2_fast(L)
    Bt, Kt = (raw_b * exp2_fast(-L)).to(DOT), (raw_k * exp2_fast(-L)).to(DOT)
    to_end = tl.where(last, exp2_fast(total[None, :] - L), 0.0)
    Bh, Kh = raw_b * to_end, raw_k * to_end
    V = load(v, at, live).to(DOT)

    inverse = _unit_lower_inverse(tl.where((i > j) & same, dot(At, tl.trans(Bt), DOT, PREC), 0.0), C, DOT, PREC)
    W = dot(inverse, tl.where(first, At, 0.0), DOT, PREC)
    Mrb = tl.where((i >= j) & same, dot(Rt, tl.trans(Bt), DOT, PREC), 0.0).to(DOT)
    Mak = tl.where((i > j) & same, dot(At, tl.trans(Kt), DOT, PREC), 0.0)
    Mrk = tl.where((i >= j) & same, dot(Rt, tl.trans(Kt), DOT, PREC), 0.0)
    U0 = dot(inverse, dot(Mak, V, DOT, PREC), DOT, PREC).to(DOT)

    square = tile * (N * N) + y[:, None] * N + x[None, :]
    tl.store(P + square, dot(tl.trans(W), Bh, P.dtype.element_ty, PREC))
    source = dot(tl.trans(U0), Bh, DOT, PREC) + dot(tl.trans(V), Kh, DOT, PREC)
    if DOT == tl.bfloat16:
        source += dot(tl.trans(V), _rest(Kh, DOT), DOT, PREC)
    tl.store(Q + square, source)
    slab = tile * (C * N) + t[:, None] * N + x[None, :]
    tl.store(Rw + slab, tl.where(first, Rt, 0.0) + dot(Mrb, W, DOT, PREC))
    tl.store(Y0 + slab, dot(Mrb, U0, DOT, PREC) + dot(Mrk, V, DOT, PREC))
    if KEEP:
        tl.store(Ti + tile * (C * C) + i * C + j, inverse)


@triton.jit
def _times(x, y, PREC: tl.constexpr):
    """x y. Where y is fp16, so is x, its rows divided by powers of 2 near their largest: three binary digits more than bf16 has, of any size below 2^127."""
    if y.dtype == tl.float16:
        exponent = tl.max(tl.abs(x), 1).to(tl.int32, bitcast=True) & 0x7F800000
        size, inverse = exponent.to(tl.float32, bitcast=True), (0x7F000000 - exponent).to(tl.float32, bitcast=True)
        product = tl.dot((x * inverse[:, None]).to(tl.float16), y) * size[:, None]
    else:
        product = tl.dot(x, y, input_precision=PREC)
    return product


@triton.jit(do_not_specialize=SIZES)
def chain(
    P, Q, D, start, S, out, Rw, Y0, y, dy, n, H, T,
    N: tl.constexpr, C: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr,
    REVERSE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Serial over chunks, for BV rows of the state: S[c] = x; x <- x (D + P) + Q. REVERSE: from the last chunk, with P^T.

    Given y, writes what `outputs` would, of its rows; given dy, computes what `chain_source` would rather than read Q.
    Without S, writes none.
    """
    pid = tl.program_id(0).to(tl.int64)
    g = pid // (N // BV)
    v = pid % (N // BV) * BV + tl.arange(0, BV)
    t, x, z = tl.arange(0, C), tl.arange(0, N), tl.arange(0, N)
    rows, slab = v[:, None] * N + x[None, :], t[:, None] * N + x[None, :]
    square = x[None, :] * N + z[:, None] if REVERSE else z[:, None] * N + x[None, :]
    state = tl.load(start + g * (N * N) + rows)
    for step in tl.range(0, n, num_stages=STAGES):
        c = n - 1 - step if REVERSE else step
        tile, at0 = g * n + c, first_token(g, c, H, T, C, N)
        p = tl.load(P + tile * (N * N) + square)
        d = tl.load(D + tile * N + x)
        if dy is None:
            q = tl.load(Q + tile * (N * N) + rows).to(tl.float32)
        else:
            dY = load(dy, at0 + t[None, :] * (H * N) + v[:, None], (c * C + t < T)[None, :])
            q = dot(dY, tl.load(Rw + tile * (C * N) + slab), DOT, PREC)
        if S is not None:
            tl.store(S + tile * (N * N) + rows, state)
        if y is not None:
            Y = tl.load(Y0 + tile * (C * N) + t[:, None] * N + v[None, :]).to(tl.float32)
            Y = tl.dot(tl.load(Rw + tile * (C * N) + slab), tl.trans(state.to(DOT)), Y, input_precision=PREC)
            tl.store(y + at0 + t[:, None] * (H * N) + v[None, :], Y, mask=(c * C + t < T)[:, None])
        state = state * d[None, :] + q + _times(state, p, PREC)
    tl.store(out + g * (N * N) + rows, state)


@triton.jit(do_not_specialize=SIZES)
def outputs(
    Rw, Y0, S, y, n, G, H, T, N: tl.constexpr, C: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr
):  # fmt: skip
    """Parallel over chunks: Y = Rw S^T + Y0."""
    _, t0, tile, at0 = place(n, G, H, T, C, N)
    t, x, z = tl.arange(0, C), tl.arange(0, N), tl.arange(0, N)
    slab = tile * (C * N) + t[:, None] * N + x[None, :]
    state = tl.load(S + tile * (N * N) + z[:, None] * N + x[None, :])
    Y = tl.dot(tl.load(Rw + slab), tl.trans(state), tl.load(Y0 + slab).to(tl.float32), input_precision=PREC)
    tl.store(y + at0 + t[:, None] * (H * N) + x[None, :], Y, mask=(t0 + t < T)[:, None])


@triton.jit(do_not_specialize=SIZES)
def chain_source(
    dy, Rw, Q, n, G, H, T, N: tl.constexpr, C: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr
):  # fmt: skip
    """Parallel over chunks: what Y adds to the gradient of S, dY^T Rw."""
    _, t0, tile, at0 = place(n, G, H, T, C, N)
    t, x, z = tl.arange(0, C), tl.arange(0, N), tl.arange(0, N)
    dY = load(dy, at0 + t[:, None] * (H * N) + x[None, :], (t0 + t < T)[:, None])
    tile_Rw = tl.load(Rw + tile * (C * N) + t[:, None] * N + x[None, :])
    tl.store(Q + tile * (N * N) + z[:, None] * N + x[None, :], dot(tl.trans(dY.to(DOT)), tile_Rw, DOT, PREC))


@triton.jit(do_not_specialize=SIZES)
def gradients(
    r, w, k, v, a, b, reset, dy, D, S, Ti, Gr, dr, dw, dk, dv, da, db, n, G, H, T,
    N: tl.constexpr, C: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, RESET: tl.constexpr,
):  # fmt: skip
    """Parallel over chunks: the gradients of the six inputs, from S before the chunk and the gradient Gr of S after it."""
    row, t0, tile, at0 = place(n, G, H, T, C, N)
    t, x, y = tl.arange(0, C), tl.arange(0, N), tl.arange(0, N)
    at, live = at0 + t[:, None] * (H * N) + x[None, :], (t0 + t < T)[:, None]
    seg, end = segments(reset, row, t0, T, C, RESET)
    first, last = (seg == 0)[:, None], (seg == end)[:, None]
    i, j = t[:, None], t[None, :]
    strict, inclusive = (i > j) & (seg[:, None] == seg[None, :]), (i >= j) & (seg[:, None] == seg[None, :])
    square = tile * (N * N) + y[:, None] * N + x[None, :]

    lw = _log2_decay(w, at, live)
    L, total = tl.cumsum(lw, 0), tl.sum(lw, 0)
    raw_b, raw_k = load(b, at, live), load(k, at, live)
    a_start, Rt = load(a, at, live) * exp2_fast(L - lw), (load(r, at, live) * exp2_fast(L)).to(DOT)
    At, Bt, Kt = a_start.to(DOT), (raw_b * exp2_fast(-L)).to(DOT), (raw_k * exp2_fast(-L)).to(DOT)
    to_end = tl.where(last, exp2_fast(total[None, :] - L), 0.0)
    Bh, Kh = raw_b * to_end, (raw_k * to_end).to(DOT)
    V, dY = load(v, at, live).to(DOT), load(dy, at, live).to(DOT)
    state, grad = tl.load(S + square), tl.load(Gr + square)
    inverse = tl.load(Ti + tile * (C * C) + i * C + j)
    whole = tl.load(D + tile * N + x) * tl.sum(state.to(tl.float32) * grad.to(tl.float32), 0)

    Mak = tl.where(strict, dot(At, tl.trans(Kt), DOT, PREC), 0.0).to(DOT)
    U = dot(At, tl.trans(state), DOT, PREC)
    if DOT == tl.bfloat16:
        U += dot(_rest(a_start, DOT), tl.trans(state), DOT, PREC)
    U = tl.where(first, U, 0.0) + dot(Mak, V, DOT, PREC)
    U = dot(inverse, U, tl.float32, PREC).to(DOT)  # fp32 operands: cheap at this size, and 10% less error in da and db
    Mrb = tl.where(inclusive, dot(Rt, tl.trans(Bt), DOT, PREC), 0.0).to(DOT)
    X = dot(Bh, tl.trans(grad), DOT, PREC) + dot(tl.trans(Mrb), dY, DOT, PREC)
    if DOT == tl.bfloat16:
        X += dot(_rest(Bh, DOT), tl.trans(grad), DOT, PREC)
    X = dot(tl.trans(inverse), X, tl.float32, PREC).to(DOT)
    Mrk = tl.where(inclusive, dot(Rt, tl.trans(Kt), DOT, PREC), 0.0).to(DOT)
    dV = dot(Kh, tl.trans(grad), DOT, PREC) + dot(tl.trans(Mak), X, DOT, PREC) + dot(tl.trans(Mrk), dY, DOT, PREC)
    tl.store(dv + at, dV, mask=live)

    # Below, `late` and `early` gather the gradient of L: what a token's factors at or before it get, and what those after
    # it get. Terms inside a chunk cancel, and do so to the last digits only with the rounded factors of the products.
    dMab = tl.where(strict, dot(X, tl.trans(U), DOT, PREC), 0.0).to(DOT)
    dMak = tl.where(strict, dot(X, tl.trans(V), DOT, PREC), 0.0).to(DOT)
    dA = tl.where(first, dot(X, state, DOT, PREC), 0.0) + dot(dMab, Bt, DOT, PREC) + dot(dMak, Kt, DOT, PREC)
    tl.store(da + at, dA * exp2_fast(L - lw), mask=live)
    early = dA * At.to(tl.float32)

    dMrb = tl.where(inclusive, dot(dY, tl.trans(U), DOT, PREC), 0.0).to(DOT)
    dMrk = tl.where(inclusive, dot(dY, tl.trans(V), DOT, PREC), 0.0).to(DOT)
    dR = tl.where(first, dot(dY, state, DOT, PREC), 0.0) + dot(dMrb, Bt, DOT, PREC) + dot(dMrk, Kt, DOT, PREC)
    tl.store(dr + at, dR * exp2_fast(L), mask=live)
    late = dR * Rt.to(tl.float32)

    decay = exp2_fast(total)[None, :]
    dB = tl.where(last, dot(U, grad, DOT, PREC), 0.0) * decay
    whole += tl.sum(dB * Bt.to(tl.float32), 0)
    dB += dot(tl.trans(dMab), At, DOT, PREC) + dot(tl.trans(dMrb), Rt, DOT, PREC)
    tl.store(db + at, dB * exp2_fast(-L), mask=live)
    late -= dB * Bt.to(tl.float32)

    dK = tl.where(last, dot(V, grad, DOT, PREC), 0.0) * decay
    whole += tl.sum(dK * Kt.to(tl.float32), 0)
    dK += dot(tl.trans(dMak), At, DOT, PREC) + dot(tl.trans(dMrk), Rt, DOT, PREC)
    tl.store(dk + at, dK * exp2_fast(-L), mask=live)
    late -= dK * Kt.to(tl.float32)

    both = late + early
    dlw = (whole + tl.sum(both, 0))[None, :] - tl.cumsum(both, 0) + late
    tl.store(dw + at, dlw * (lw * LN2) * sigmoid(-tl.load(w + at, mask=live, other=0.0).to(tl.float32)), mask=live)
