"""The Triton kernels of `rwkv.kernels.fused`; `triton.py` launches them.

A program of `norm_mix` has a run of `run` tokens of one row, all channels of a token at a time. A program of the two around
WKV-7 has `run` tokens of one head, TT at a time. What a kernel would write in the model's dtype and read again is rounded to
it in registers too, so that a chunk's end is like any other place.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(x * -LOG2_E))


@triton.jit
def _load(x, at, live):
    return tl.load(x + at, mask=live, other=0.0).to(tl.float32)


@triton.jit
def _put(x, at, value, live):
    tl.store(x + at, value.to(x.dtype.element_ty), mask=live)


# ---- layer norm, token shift, mix ----


@triton.jit
def _mixes(mix, c, live, C, M: tl.constexpr):
    """The M rows of mix, and as many times the last as are wanting to six. Loaded once, before a loop whose loads run ahead."""
    m0 = tl.load(mix + c, mask=live, other=0.0)
    m1 = tl.load(mix + C + c, mask=live, other=0.0) if M > 1 else m0
    m2 = tl.load(mix + 2 * C + c, mask=live, other=0.0) if M > 2 else m1
    m3 = tl.load(mix + 3 * C + c, mask=live, other=0.0) if M > 3 else m2
    m4 = tl.load(mix + 4 * C + c, mask=live, other=0.0) if M > 4 else m3
    m5 = tl.load(mix + 5 * C + c, mask=live, other=0.0) if M > 5 else m4
    return m0, m1, m2, m3, m4, m5


@triton.jit
def _put_mixed(mixed, at, plane, z, d, m, live):
    """One mixed input. Returns where in the next plane it goes, as a sum: a multiple of `plane` may not fit in 32 bits."""
    _put(mixed, at, z + d * m.to(tl.float32), live)
    return at + plane


@triton.jit
def norm_mix_forward(
    x, out, sums, weight, bias, last, mix, reset, mixed, end, mean, rstd, T, C, run, runs, plane,
    EPS: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, RESET: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """sums = x + out (if ADD), its mean and 1/deviation, mixed [M, B, T, C], and end, the last token's z."""
    pid = tl.program_id(0).to(tl.int64)
    row, t0 = pid // runs, pid % runs * run
    c = tl.arange(0, BLOCK)
    live = c < C
    w, b = _load(weight, c, live), _load(bias, c, live)
    m0, m1, m2, m3, m4, m5 = _mixes(mix, c, live, C, M)
    dtype = mixed.dtype.element_ty
    if t0 == 0:
        before = _load(last, row * C + c, live)
    else:
        at = (row * T + t0 - 1) * C + c
        value = _load(x, at, live)
        if ADD:
            value = (value + _load(out, at, live)).to(sums.dtype.element_ty).to(tl.float32)
        off = tl.where(live, value - tl.sum(value, 0) / C, 0.0)
        before = (off * tl.rsqrt(tl.sum(off * off, 0) / C + EPS) * w + b).to(dtype).to(tl.float32)
    for t in tl.range(t0, tl.minimum(t0 + run, T), num_stages=STAGES):
        token = row * T + t
        at = token * C + c
        value = _load(x, at, live)
        if ADD:
            value = (value + _load(out, at, live)).to(sums.dtype.element_ty).to(tl.float32)
            _put(sums, at, value, live)
        mu = tl.sum(value, 0) / C
        off = tl.where(live, value - mu, 0.0)
        rs = tl.rsqrt(tl.sum(off * off, 0) / C + EPS)
        tl.store(mean + token, mu)
        tl.store(rstd + token, rs)
        z = (off * rs * w + b).to(dtype).to(tl.float32)
        if RESET:
            before = tl.where(tl.load(reset + token) != 0, 0.0, before)
        d = before - z
        at = _put_mixed(mixed, at, plane, z, d, m0, live)
        if M > 1:
            at = _put_mixed(mixed, at, plane, z, d, m1, live)
        if M > 2:
            at = _put_mixed(mixed, at, plane, z, d, m2, live)
        if M > 3:
            at = _put_mixed(mixed, at, plane, z, d, m3, live)
        if M > 4:
            at = _put_mixed(mixed, at, plane, z, d, m4, live)
        if M > 5:
            at = _put_mixed(mixed, at, plane, z, d, m5, live)
        before = z
    if t0 + run >= T:
        _put(end, row * C + c, before, live)


@triton.jit
def _take(g, m, at, live, here, back):
    """One mixed input's gradient, and what it gives to its token and to the one before."""
    grad = _load(g, at, live)
    to_back = grad * m.to(tl.float32)
    return grad, here + grad - to_back, back + to_back


@triton.jit
def _back_of(g0, g1, g2, g3, g4, g5, m0, m1, m2, m3, m4, m5, at, live, M: tl.constexpr):
    """What a token's mixed inputs give to the token before."""
    back = _load(g0, at, live) * m0.to(tl.float32)
    if M > 1:
        back += _load(g1, at, live) * m1.to(tl.float32)
    if M > 2:
        back += _load(g2, at, live) * m2.to(tl.float32)
    if M > 3:
        back += _load(g3, at, live) * m3.to(tl.float32)
    if M > 4:
        back += _load(g4, at, live) * m4.to(tl.float32)
    if M > 5:
        back += _load(g5, at, live) * m5.to(tl.float32)
    return back


@triton.jit
def _normed(x, mean, rstd, token, there, c, live, C):
    """0 where the token is not there."""
    return (_load(x, token * C + c, live & there) - tl.load(mean + token, mask=there, other=0.0)) * tl.load(rstd + token, mask=there, other=0.0)


@triton.jit
def norm_mix_backward(
    g0, g1, g2, g3, g4, g5, dsums, dend, sums, weight, bias, last, mix, reset, mean, rstd, dx, dlast, partial, T, C, run, runs,
    M: tl.constexpr, BLOCK: tl.constexpr, RESET: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """From the last token of the run to its first. partial: [programs, M + 2, C], sums for mix, weight and bias."""
    pid = tl.program_id(0).to(tl.int64)
    row, t0 = pid // runs, pid % runs * run
    c = tl.arange(0, BLOCK)
    live = c < C
    w, b = _load(weight, c, live), _load(bias, c, live)
    m0, m1, m2, m3, m4, m5 = _mixes(mix, c, live, C, M)
    dtype = dlast.dtype.element_ty
    zero = tl.zeros([BLOCK], tl.float32)
    s0, s1, s2, s3, s4, s5, sum_w, sum_b = zero, zero, zero, zero, zero, zero, zero, zero
    t1 = tl.minimum(t0 + run, T)
    if t1 < T:  # what the token after the run gives
        carry = _back_of(g0, g1, g2, g3, g4, g5, m0, m1, m2, m3, m4, m5, (row * T + t1) * C + c, live, M)
        if RESET:
            carry = tl.where(tl.load(reset + row * T + t1) != 0, 0.0, carry)
    else:
        carry = _load(dend, row * C + c, live)
    hat = _normed(sums, mean, rstd, row * T + t1 - 1, True, c, live, C)
    z_last = _load(last, row * C + c, live)
    for i in tl.range(0, t1 - t0, num_stages=STAGES):
        t = t1 - 1 - i
        token = row * T + t
        at = token * C + c
        z = (hat * w + b).to(dtype).to(tl.float32)
        hat_before = _normed(sums, mean, rstd, token - 1, t > 0, c, live, C)
        before = tl.where(t > 0, (hat_before * w + b).to(dtype).to(tl.float32), z_last)
        if RESET:
            fresh = tl.load(reset + token) != 0
            before = tl.where(fresh, 0.0, before)
        d = before - z
        here, back = carry, zero
        grad, here, back = _take(g0, m0, at, live, here, back)
        s0 += grad * d
        if M > 1:
            grad, here, back = _take(g1, m1, at, live, here, back)
            s1 += grad * d
        if M > 2:
            grad, here, back = _take(g2, m2, at, live, here, back)
            s2 += grad * d
        if M > 3:
            grad, here, back = _take(g3, m3, at, live, here, back)
            s3 += grad * d
        if M > 4:
            grad, here, back = _take(g4, m4, at, live, here, back)
            s4 += grad * d
        if M > 5:
            grad, here, back = _take(g5, m5, at, live, here, back)
            s5 += grad * d
        sum_w += here * hat
        sum_b += here
        dhat = here * w
        even = tl.sum(tl.where(live, dhat, 0.0), 0) / C
        along = tl.sum(tl.where(live, dhat * hat, 0.0), 0) / C
        _put(dx, at, _load(dsums, at, live) + tl.load(rstd + token) * (dhat - even - hat * along), live)
        if RESET:
            back = tl.where(fresh, 0.0, back)
        carry, hat = back, hat_before
    if t0 == 0:
        _put(dlast, row * C + c, carry, live)
    at = partial + pid * ((M + 2) * C) + c
    tl.store(at, s0, mask=live)
    if M > 1:
        tl.store(at + C, s1, mask=live)
    if M > 2:
        tl.store(at + 2 * C, s2, mask=live)
    if M > 3:
        tl.store(at + 3 * C, s3, mask=live)
    if M > 4:
        tl.store(at + 4 * C, s4, mask=live)
    if M > 5:
        tl.store(at + 5 * C, s5, mask=live)
    tl.store(at + M * C, sum_w, mask=live)
    tl.store(at + (M + 1) * C, sum_b, mask=live)


# ---- around WKV-7 ----


@triton.jit
def _keys(k, a, a0, k_k, k_a):
    """a after its sigmoid, the removal key, 1 / its length before it was normalised (0 where that is held), and the new k."""
    a = _sigmoid(a + a0[None, :])
    raw = k * k_k[None, :]
    length = tl.sqrt(tl.sum(raw * raw, 1))[:, None]
    scale = 1.0 / tl.maximum(length, 1e-12)
    return a, raw * scale, scale, length > 1e-12, k * (1.0 + (a - 1.0) * k_a[None, :])


@triton.jit
def wkv7_inputs_forward(
    r, k, v, a, v_gate, v_first, a0, v0, k_k, k_a, r_k, new_k, new_v, minus_kk, kk_a, bonus, tokens, H,
    N: tl.constexpr, NB: tl.constexpr, TT: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    h = pid % H
    t, n = pid // H * TT + tl.arange(0, TT), tl.arange(0, NB)
    on, c = n < N, h * N + n
    live = (t < tokens)[:, None] & on[None, :]
    at = t[:, None] * (H * N) + c[None, :]
    raw_k = _load(k, at, live)
    gate, kk, _, _, key = _keys(raw_k, _load(a, at, live), _load(a0, c, on), _load(k_k, c, on), _load(k_a, c, on))
    _put(new_k, at, key, live)
    _put(minus_kk, at, -kk, live)
    _put(kk_a, at, kk * gate, live)
    _put(bonus, t * H + h, tl.sum(_load(r, at, live) * key * _load(r_k, c, on)[None, :], 1), t < tokens)
    if RESIDUAL:
        value = _load(v, at, live)
        part = _sigmoid(_load(v_gate, at, live) + _load(v0, c, on)[None, :])
        _put(new_v, at, value + (_load(v_first, at, live) - value) * part, live)


@triton.jit
def wkv7_inputs_backward(
    dr, dk, dv, dminus_kk, dkk_a, dbonus, r, k, v, a, v_gate, v_first, a0, v0, k_k, k_a, r_k,
    out_r, out_k, out_v, out_a, out_gate, out_first, partial, tokens, H, run,
    N: tl.constexpr, NB: tl.constexpr, TT: tl.constexpr, RESIDUAL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """partial: [runs, 5, C], sums for a0, v0, k_k, k_a and r_k."""
    pid = tl.program_id(0).to(tl.int64)
    h, first = pid % H, pid // H * run
    n = tl.arange(0, NB)
    on, c = n < N, h * N + n
    p_a0, p_k_k, p_k_a, p_r_k = _load(a0, c, on), _load(k_k, c, on), _load(k_a, c, on), _load(r_k, c, on)
    p_v0 = _load(v0, c, on)
    zero = tl.zeros([TT, NB], tl.float32)
    sum_a0, sum_v0, sum_k_k, sum_k_a, sum_r_k = zero, zero, zero, zero, zero
    for start in tl.range(first, tl.minimum(first + run, tokens), TT, num_stages=STAGES):
        t = start + tl.arange(0, TT)
        live = (t < tokens)[:, None] & on[None, :]
        at = t[:, None] * (H * N) + c[None, :]
        rr, kr = _load(r, at, live), _load(k, at, live)
        gate, kk, scale, free, key = _keys(kr, _load(a, at, live), p_a0, p_k_k, p_k_a)
        db = _load(dbonus, t * H + h, t < tokens)[:, None]
        _put(out_r, at, _load(dr, at, live) + db * key * p_r_k[None, :], live)
        sum_r_k += db * rr * key
        dkey = _load(dk, at, live) + db * rr * p_r_k[None, :]
        d_kk_a = _load(dkk_a, at, live)
        dkk = d_kk_a * gate - _load(dminus_kk, at, live)
        dgate = (d_kk_a * kk + dkey * kr * p_k_a[None, :]) * gate * (1.0 - gate)
        _put(out_a, at, dgate, live)
        sum_a0 += dgate
        sum_k_a += dkey * kr * (gate - 1.0)
        draw = (dkk - tl.where(free, kk * tl.sum(dkk * kk, 1)[:, None], 0.0)) * scale
        sum_k_k += draw * kr
        _put(out_k, at, dkey * (1.0 + (gate - 1.0) * p_k_a[None, :]) + draw * p_k_k[None, :], live)
        if RESIDUAL:
            part = _sigmoid(_load(v_gate, at, live) + p_v0[None, :])
            dvalue = _load(dv, at, live)
            _put(out_v, at, dvalue * (1.0 - part), live)
            _put(out_first, at, dvalue * part, live)
            dpart = dvalue * (_load(v_first, at, live) - _load(v, at, live)) * part * (1.0 - part)
            _put(out_gate, at, dpart, live)
            sum_v0 += dpart
    at = partial + pid // H * (5 * H * N) + c
    tl.store(at, tl.sum(sum_a0, 0), mask=on)
    tl.store(at + H * N, tl.sum(sum_v0, 0), mask=on)
    tl.store(at + 2 * H * N, tl.sum(sum_k_k, 0), mask=on)
    tl.store(at + 3 * H * N, tl.sum(sum_k_a, 0), mask=on)
    tl.store(at + 4 * H * N, tl.sum(sum_r_k, 0), mask=on)


@triton.jit
def _group_normed(y, live, N: tl.constexpr, EPS: tl.constexpr):
    """y normalised over the head, and 1 / deviation."""
    off = tl.where(live, y - (tl.sum(y, 1) / N)[:, None], 0.0)
    rs = tl.rsqrt(tl.sum(off * off, 1) / N + EPS)[:, None]
    return off * rs, rs


@triton.jit
def wkv7_readout_forward(y, v, bonus, g, weight, bias, out, tokens, H, N: tl.constexpr, NB: tl.constexpr, TT: tl.constexpr, EPS: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)
    h = pid % H
    t, n = pid // H * TT + tl.arange(0, TT), tl.arange(0, NB)
    on, c = n < N, h * N + n
    live = (t < tokens)[:, None] & on[None, :]
    at = t[:, None] * (H * N) + c[None, :]
    hat, _ = _group_normed(_load(y, at, live), live, N, EPS)
    read = hat * _load(weight, c, on)[None, :] + _load(bias, c, on)[None, :]
    read += _load(bonus, t * H + h, t < tokens)[:, None] * _load(v, at, live)
    _put(out, at, read * _load(g, at, live), live)


@triton.jit
def wkv7_readout_backward(
    dout, y, v, bonus, g, weight, bias, dy, dv, dbonus, dg, partial, tokens, H, run,
    N: tl.constexpr, NB: tl.constexpr, TT: tl.constexpr, EPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """partial: [runs, 2, C], sums for weight and bias."""
    pid = tl.program_id(0).to(tl.int64)
    h, first = pid % H, pid // H * run
    n = tl.arange(0, NB)
    on, c = n < N, h * N + n
    w, b = _load(weight, c, on), _load(bias, c, on)
    sum_w, sum_b = tl.zeros([TT, NB], tl.float32), tl.zeros([TT, NB], tl.float32)
    for start in tl.range(first, tl.minimum(first + run, tokens), TT, num_stages=STAGES):
        t = start + tl.arange(0, TT)
        live = (t < tokens)[:, None] & on[None, :]
        at = t[:, None] * (H * N) + c[None, :]
        hat, rs = _group_normed(_load(y, at, live), live, N, EPS)
        value, s = _load(v, at, live), _load(bonus, t * H + h, t < tokens)[:, None]
        do = _load(dout, at, live)
        _put(dg, at, do * (hat * w[None, :] + b[None, :] + s * value), live)
        do *= _load(g, at, live)
        sum_w += do * hat
        sum_b += do
        _put(dv, at, do * s, live)
        _put(dbonus, t * H + h, tl.sum(do * value, 1), t < tokens)
        dhat = do * w[None, :]
        even, along = (tl.sum(dhat, 1) / N)[:, None], (tl.sum(dhat * hat, 1) / N)[:, None]
        _put(dy, at, rs * (dhat - even - hat * along), live)
    at = partial + pid // H * (2 * H * N) + c
    tl.store(at, tl.sum(sum_w, 0), mask=on)
    tl.store(at + H * N, tl.sum(sum_b, 0), mask=on)


# ---- squared ReLU, cross-entropy, sums of gradients ----


@triton.jit
def relu_squared_forward(x, out, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.maximum(_load(x, at, at < size), 0.0)
    _put(out, at, value * value, at < size)


@triton.jit
def relu_squared_backward(out, dout, dx, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    _put(dx, at, 2.0 * tl.sqrt(_load(out, at, at < size)) * _load(dout, at, at < size), at < size)


@triton.jit
def cross_entropy(logits, targets, scale, losses, V, l2wrap, BLOCK: tl.constexpr, L2WRAP: tl.constexpr, GRADIENT: tl.constexpr):
    """One program a row: each lane has its own maximum and sum as it goes along the row, joined at its end."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    target = tl.load(targets + row)
    of_target = tl.load(logits + target).to(tl.float32)
    lane = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total, where = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.int32)
    for start in range(0, V, BLOCK):
        x = tl.load(logits + start + lane, mask=start + lane < V, other=-1e38).to(tl.float32)
        higher = tl.maximum(top, x)
        total = total * tl.exp2((top - higher) * LOG2_E) + tl.exp2((x - higher) * LOG2_E)
        if L2WRAP:
            where = tl.where(x > top, start + lane, where)
        top = higher
    highest = tl.max(top, 0)
    log_z = highest + tl.log(tl.sum(total * tl.exp2((top - highest) * LOG2_E), 0))
    tl.store(losses + row, log_z - of_target)
    if GRADIENT:
        share = tl.load(scale + row)
        best = tl.min(tl.where(top == highest, where, V), 0) if L2WRAP else 0
        for start in range(0, V, BLOCK):
            at = start + lane
            x = tl.load(logits + at, mask=at < V, other=0.0).to(tl.float32)
            grad = tl.exp2((x - log_z) * LOG2_E) - tl.where(at == target, 1.0, 0.0)
            if L2WRAP:
                grad += tl.where(at == best, l2wrap * highest, 0.0)
            _put(logits, at, grad * share, at < V)


@triton.jit
def add_in_place(total, part, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    _put(total, at, _load(total, at, at < size) + _load(part, at, at < size), at < size)
