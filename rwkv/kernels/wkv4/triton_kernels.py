"""The Triton kernels of WKV-4; `triton.py` launches them and says what each tensor is.

A sum over tokens is kept as a number and an exponent taken out of it, so that nothing overflows. A chunk of L tokens is a loop,
all chunks and channels side by side; what it adds to the state, and to the gradient of the state, goes through a loop over chunks.

With N and D the numerator and denominator of y = N / D, A and B the sums of the state behind them, lw = log w, and g the gradient:

    gN_t = dy_t / D_t,  gD_t = -y_t gN_t          gA_{t-1} = w gA_t + gN_t,  gB_{t-1} = w gB_t + gD_t
    dv_t = e^(u+k_t) gN_t + e^k_t gA_t            dk_t = e^(u+k_t) (gN_t v_t + gD_t) + e^k_t (gA_t v_t + gB_t)

For the gradient of lw each chunk carries A' = dA/dlw and B' from zero at its start: it is the sum of gN_t A'_{t-1} + gD_t B'_{t-1}
over the tokens, and of gA A' + gB B' at the ends of chunks.

Legend: B rows, T tokens, C channels, n chunks of L tokens, BC channels a program. ends [B, n, 4, C]: what a chunk adds to two
sums, their exponent, and the log of the chunk's decay, `EMPTY` where a reset cuts it; starts [B, n, 3, C]: two sums and exponent.
"""

import triton
import triton.language as tl

from rwkv.kernels.triton_tiles import exp_exact

SIZES = ["n", "T", "C"]  # one compiled kernel serves all
EMPTY = tl.constexpr(-1e38)  # an exponent whose exp is 0 beside any other


@triton.jit
def _log_decay(w, at, live):
    raw = tl.load(w + at, mask=live, other=0.0).to(tl.float32)
    return -exp_exact(tl.where(raw > 50.0, 50.0, raw))


@triton.jit
def _weights(p, q):
    """max(p, q), and e^p and e^q over e^max: one of them is 1."""
    less = tl.exp(-tl.abs(p - q))
    return tl.where(p > q, p, q), tl.where(p > q, 1.0, less), tl.where(p > q, less, 1.0)


@triton.jit
def _take_in(pp, age, lw, x):
    """`_weights` of a decayed exponent and x, the first kept as it was and the tokens since: added up, its rounding would grow."""
    decayed = pp + (age + 1.0) * lw
    _, old, new = _weights(decayed, x)
    return tl.where(decayed > x, pp, x), tl.where(decayed > x, age + 1.0, 0.0), old, new


@triton.jit
def _place(n, T, C, L: tl.constexpr, BC: tl.constexpr):
    """This program's row, first token, tokens, chunk number over all rows, its channels and which of them there are."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(C, BC)
    tile, at = pid // blocks, pid % blocks * BC + tl.arange(0, BC)
    row, t0 = tile // n, tile % n * L
    return row, t0, tl.minimum(L, T - t0).to(tl.int32), tile, at, at < C


@triton.jit
def _load(x, at, live):
    return tl.load(x + at, mask=live, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def chunk_ends(w, k, v, reset, ends, n, T, C, L: tl.constexpr, BC: tl.constexpr, RESET: tl.constexpr):
    """What each chunk adds to the state."""
    row, t0, tokens, tile, c, live = _place(n, T, C, L, BC)
    lw = _log_decay(w, c, live)
    zero = tl.zeros([BC], tl.float32)
    aa, bb, pp, age, decay = zero, zero, zero + EMPTY, zero, tokens * lw
    for i in range(0, tokens):
        t = row * T + t0 + i
        if RESET:
            fresh = tl.load(reset + t) != 0
            aa, bb, pp, decay = tl.where(fresh, 0.0, aa), tl.where(fresh, 0.0, bb), tl.where(fresh, EMPTY, pp), tl.where(fresh, EMPTY, decay)
        pp, age, old, new = _take_in(pp, age, lw, _load(k, t * C + c, live))
        aa, bb = old * aa + new * _load(v, t * C + c, live), old * bb + new
    at = ends + tile * 4 * C + c
    tl.store(at, aa, mask=live)
    tl.store(at + C, bb, mask=live)
    tl.store(at + 2 * C, pp + age * lw, mask=live)
    tl.store(at + 3 * C, decay, mask=live)


@triton.jit(do_not_specialize=SIZES)
def chain(state, ends, starts, last, n, T, C, BC: tl.constexpr, STAGES: tl.constexpr):
    """Serial over chunks: the state before each, and the last one."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(C, BC)
    row, c = pid // blocks, pid % blocks * BC + tl.arange(0, BC)
    live = c < C
    at = row * 3 * C + c
    aa, bb, pp = _load(state, at, live), _load(state, at + C, live), _load(state, at + 2 * C, live)
    pp = tl.where(bb > 0.0, pp, EMPTY)
    for i in tl.range(0, n, num_stages=STAGES):
        to, of = (row * n + i) * 3 * C + c, (row * n + i) * 4 * C + c
        tl.store(starts + to, aa, mask=live)
        tl.store(starts + to + C, bb, mask=live)
        tl.store(starts + to + 2 * C, pp, mask=live)
        pp, old, new = _weights(pp + _load(ends, of + 3 * C, live), _load(ends, of + 2 * C, live))
        aa, bb = old * aa + new * _load(ends, of, live), old * bb + new * _load(ends, of + C, live)
    tl.store(last + at, aa, mask=live)
    tl.store(last + at + C, bb, mask=live)
    tl.store(last + at + 2 * C, pp, mask=live)


@triton.jit(do_not_specialize=SIZES)
def outputs(w, u, k, v, reset, starts, y, n, T, C, L: tl.constexpr, BC: tl.constexpr, RESET: tl.constexpr):
    row, t0, tokens, tile, c, live = _place(n, T, C, L, BC)
    lw, bonus, at = _log_decay(w, c, live), _load(u, c, live), tile * 3 * C + c
    aa, bb, pp = _load(starts, at, live), _load(starts, at + C, live), _load(starts, at + 2 * C, live)
    age = tl.zeros([BC], tl.float32)
    for i in range(0, tokens):
        t = row * T + t0 + i
        if RESET:
            fresh = tl.load(reset + t) != 0
            aa, bb, pp = tl.where(fresh, 0.0, aa), tl.where(fresh, 0.0, bb), tl.where(fresh, EMPTY, pp)
        key, value = _load(k, t * C + c, live), _load(v, t * C + c, live)
        _, old, new = _weights(pp + age * lw, bonus + key)
        tl.store(y + t * C + c, (old * aa + new * value) / (old * bb + new), mask=live)
        pp, age, old, new = _take_in(pp, age, lw, key)
        aa, bb = old * aa + new * value, old * bb + new


@triton.jit(do_not_specialize=SIZES)
def backward_ends(
    w, u, k, v, reset, dy, starts, y, D, ends, slopes, parts, n, T, C, L: tl.constexpr, BC: tl.constexpr, RESET: tl.constexpr
):  # fmt: skip
    """From a chunk's start: y and log D of each token [B, T, C] in fp32, what the chunk adds to gA and gB before it, A' and B'
    at its end with their exponent (slopes, [B, n, 3, C]), and its parts of the gradients of lw and u (parts, [B, n, 2, C])."""
    row, t0, tokens, tile, c, live = _place(n, T, C, L, BC)
    lw, bonus, at = _log_decay(w, c, live), _load(u, c, live), tile * 3 * C + c
    aa, bb, pp = _load(starts, at, live), _load(starts, at + C, live), _load(starts, at + 2 * C, live)
    zero = tl.zeros([BC], tl.float32)
    age, da, db, dlw, du = zero, zero, zero, zero, zero
    ga, gb, gp, near, decay = zero, zero, zero + EMPTY, zero + 1.0, tokens * lw
    for i in range(0, tokens):
        t = row * T + t0 + i
        if RESET:
            fresh = tl.load(reset + t) != 0
            aa, bb, pp, decay = tl.where(fresh, 0.0, aa), tl.where(fresh, 0.0, bb), tl.where(fresh, EMPTY, pp), tl.where(fresh, EMPTY, decay)
            da, db, near = tl.where(fresh, 0.0, da), tl.where(fresh, 0.0, db), tl.where(fresh, 0.0, near)
        key, value = _load(k, t * C + c, live), _load(v, t * C + c, live)
        q, old, new = _weights(pp + age * lw, bonus + key)
        den = old * bb + new
        out = (old * aa + new * value) / den
        tl.store(y + t * C + c, out, mask=live)
        tl.store(D + t * C + c, q + tl.log(den), mask=live)
        g = _load(dy, t * C + c, live) / den
        du += g * new * (value - out)
        dlw += g * old * (da - out * db)
        gp, was, now = _weights(gp, tl.where(near > 0.0, i * lw - q, EMPTY))
        ga, gb = was * ga + now * g, was * gb - now * g * out
        pp, age, old, new = _take_in(pp, age, lw, key)
        da, db = old * (da + aa), old * (db + bb)
        aa, bb = old * aa + new * value, old * bb + new
    to = ends + tile * 4 * C + c
    tl.store(to, ga, mask=live)
    tl.store(to + C, gb, mask=live)
    tl.store(to + 2 * C, gp, mask=live)
    tl.store(to + 3 * C, decay, mask=live)
    tl.store(slopes + at, da, mask=live)
    tl.store(slopes + at + C, db, mask=live)
    tl.store(slopes + at + 2 * C, pp + age * lw, mask=live)
    tl.store(parts + tile * 2 * C + c, dlw, mask=live)
    tl.store(parts + tile * 2 * C + C + c, du, mask=live)


@triton.jit(do_not_specialize=SIZES)
def backward_chain(state, last, dlast, ends, slopes, after, dstate, dlw, n, T, C, BC: tl.constexpr, STAGES: tl.constexpr):
    """Serial over chunks from the last: gA and gB after each (after, [B, n, 3, C]), the gradient of the first state, and the
    part of that of lw that goes through the ends of chunks [B, C]."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(C, BC)
    row, c = pid // blocks, pid % blocks * BC + tl.arange(0, BC)
    live = c < C
    at = row * 3 * C + c
    ga, gb, gp = _load(dlast, at, live), _load(dlast, at + C, live), -_load(last, at + 2 * C, live)
    through = tl.zeros([BC], tl.float32)
    for step in tl.range(0, n, num_stages=STAGES):
        i = row * n + n - 1 - step
        to, of = i * 3 * C + c, i * 4 * C + c
        tl.store(after + to, ga, mask=live)
        tl.store(after + to + C, gb, mask=live)
        tl.store(after + to + 2 * C, gp, mask=live)
        through += tl.exp(gp + _load(slopes, to + 2 * C, live)) * (ga * _load(slopes, to, live) + gb * _load(slopes, to + C, live))
        gp, old, new = _weights(gp + _load(ends, of + 3 * C, live), _load(ends, of + 2 * C, live))
        ga, gb = old * ga + new * _load(ends, of, live), old * gb + new * _load(ends, of + C, live)
    scale = tl.exp(gp + tl.where(_load(state, at + C, live) > 0.0, _load(state, at + 2 * C, live), EMPTY))
    tl.store(dstate + at, ga * scale, mask=live)
    tl.store(dstate + at + C, gb * scale, mask=live)
    tl.store(dstate + at + 2 * C, tl.zeros([BC], tl.float32), mask=live)
    tl.store(dlw + row * C + c, through, mask=live)


@triton.jit(do_not_specialize=SIZES)
def gradients(w, u, k, v, reset, dy, y, D, after, dk, dv, n, T, C, L: tl.constexpr, BC: tl.constexpr, RESET: tl.constexpr):
    """From a chunk's end to its start."""
    row, t0, tokens, tile, c, live = _place(n, T, C, L, BC)
    lw, bonus, at = _log_decay(w, c, live), _load(u, c, live), tile * 3 * C + c
    ga, gb, gp = _load(after, at, live), _load(after, at + C, live), _load(after, at + 2 * C, live)
    age = tl.zeros([BC], tl.float32)
    for step in range(0, tokens):
        t = row * T + t0 + tokens - 1 - step
        key, value, out, log_den = _load(k, t * C + c, live), _load(v, t * C + c, live), _load(y, t * C + c, live), _load(D, t * C + c, live)
        g = _load(dy, t * C + c, live)
        own, kept = g * tl.exp(bonus + key - log_den), tl.exp(key + gp + age * lw)
        tl.store(dv + t * C + c, own + kept * ga, mask=live)
        tl.store(dk + t * C + c, own * (value - out) + kept * (ga * value + gb), mask=live)
        gp, age, old, new = _take_in(gp, age, lw, -log_den)
        ga, gb = old * ga + new * g, old * gb - new * g * out
        if RESET:
            fresh = tl.load(reset + t) != 0
            ga, gb, gp = tl.where(fresh, 0.0, ga), tl.where(fresh, 0.0, gb), tl.where(fresh, EMPTY, gp)
