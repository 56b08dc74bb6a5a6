// WKV-7: the gradients of the six inputs in bf16, as `gradients` in triton_kernels.py, whose names these are. One block for each chunk of each head.
//
// Four warps, each the owner of 16 channels: of values while U, X and dV are made, of keys while the other gradients are. What one makes
// of all tokens of its channels stays in its registers; what all need (factors of tokens, U, X, scores) goes through shared memory.
#include "chunk.cuh"

typedef float Channels[4][2][2];  // of this lane: tokens row_of_lane() + 8 q, channels column_of_lane() + 8 n + e, as the rows and columns of two Sums

// x becomes its inclusive sums over tokens; returns the last.
DEVICE float sums_over_tokens(float (&x)[4]) {
    float sum = 0;
    UNROLL for (int q = 0; q < 4; q++) {
        UNROLL for (int below = 4; below < 32; below *= 2) {
            float y = from_lane_below(x[q], below);
            x[q] += lane() >= below ? y : 0;
        }
        x[q] += sum;
        sum = from_lane(x[q], 28 + lane() % 4);
    }
    return sum;
}

KERNEL(WARPS * 32, 3)
gradients(
    const bf16* r, const bf16* w, const bf16* k, const bf16* v, const bf16* a, const bf16* b, const byte* reset, const bf16* dy, const float* D,
    const bf16* S, const bf16* Ti, const bf16* Gr, bf16* dr, bf16* dw, bf16* dk, bf16* dv, bf16* da, bf16* db, int n, int G, int H, int T) {
    bf16* memory = (bf16*)shared_memory();
    const Tile<N> tw{memory}, At{memory + SLAB}, Rt{memory + 2 * SLAB}, Bt{memory + 3 * SLAB}, Kt{memory + 4 * SLAB}, V{memory + 5 * SLAB},
        dY{memory + 6 * SLAB}, U{memory + 7 * SLAB}, X{memory + 8 * SLAB}, Bh{memory + 9 * SLAB}, Kh{memory + 10 * SLAB},
        state{memory + 11 * SLAB}, grad{memory + 11 * SLAB + SQUARE};
    const Tile<C> inverse{memory + 11 * SLAB + 2 * SQUARE}, Mak{inverse.memory + SCORES}, Mrb{inverse.memory + 2 * SCORES}, Mrk{inverse.memory + 3 * SCORES};
    const Tile<C> dMab{Bh.memory}, dMak{Bh.memory + SCORES}, dMrb{Bh.memory + 2 * SCORES}, dMrk{Bh.memory + 3 * SCORES};  // once Bh and Kh are used

    const unsigned g = block() % G, c = block() / G;
    const int warp = thread() / 32, own = warp * 16;
    const long long tile = (long long)g * n + c, stride = (long long)H * N, at = ((long long)(g / H) * T + c * C) * stride + g % H * N;
    const int live = T - c * C < C ? T - c * C : C;

    copy_rows<C>(tw, w + at, stride, live);
    copy_rows<C>(At, a + at, stride, live);
    copy_rows<C>(Rt, r + at, stride, live);
    copy_rows<C>(Bt, b + at, stride, live);
    copy_rows<C>(Kt, k + at, stride, live);
    copies_begun();
    copy_rows<N>(state, S + tile * SQUARE, N, N);
    copy_rows<N>(grad, Gr + tile * SQUARE, N, N);
    copy_rows<C>(V, v + at, stride, live);
    copy_rows<C>(dY, dy + at, stride, live);
    copy16(inverse.at(thread() / 4, thread() % 4 * 8), Ti + tile * SCORES + thread() * 8, true);
    copies_begun();

    const Segments segments(reset ? reset + (long long)(g / H) * T + c * C : nullptr, live);
    auto token = [&](int q) { return row_of_lane() + 8 * q; };
    auto in = [&](unsigned tokens, int q) { return tokens & 1u << token(q); };
    auto channel = [&](int n) { return own + column_of_lane() + 8 * n; };

    // At, Rt, Bt, Kt in the place of a, r, b, k
    Channels L;
    float total[2][2];
    copies_done<1>();
    block_barrier();
    UNROLL for (int n = 0; n < 2; n++) {
        float lw[2][4], sums[2][4];
        UNROLL for (int q = 0; q < 4; q++) {
            unsigned x = tw.pair(token(q), channel(n));
            lw[0][q] = sums[0][q] = log2_decay(low(x), token(q) < live), lw[1][q] = sums[1][q] = log2_decay(high(x), token(q) < live);
        }
        UNROLL for (int e = 0; e < 2; e++) {
            total[n][e] = sums_over_tokens(sums[e]);
            UNROLL for (int q = 0; q < 4; q++) L[q][n][e] = sums[e][q];
        }
        UNROLL for (int q = 0; q < 4; q++) {
            const float l0 = L[q][n][0], l1 = L[q][n][1];
            auto scale = [&](Tile<N> to, unsigned x, float s0, float s1) { to.pair(token(q), channel(n)) = pack(low(x) * s0, high(x) * s1); };
            scale(At, At.pair(token(q), channel(n)), exp2_fast(l0 - lw[0][q]), exp2_fast(l1 - lw[1][q]));
            scale(Rt, Rt.pair(token(q), channel(n)), exp2_fast(l0), exp2_fast(l1));
            const float i0 = exp2_fast(-l0), i1 = exp2_fast(-l1);
            const float h0 = in(segments.last, q) ? exp2_fast(total[n][0] - l0) : 0, h1 = in(segments.last, q) ? exp2_fast(total[n][1] - l1) : 0;
            const unsigned xb = Bt.pair(token(q), channel(n)), xk = Kt.pair(token(q), channel(n));
            scale(Bh, xb, h0, h1), scale(Kh, xk, h0, h1), scale(Bt, xb, i0, i1), scale(Kt, xk, i0, i1);
        }
    }
    copies_done<0>();
    block_barrier();

    Sum UT[2] = {}, XT[2] = {}, dV[2] = {};
    UNROLL for (int x = 0; x < N; x += 16) {
        const Block s = load(state, own, x), g = load(grad, own, x);
        UNROLL for (int m = 0; m < 2; m++) {
            multiply(UT[m], s, load_right(At, 16 * m, x));
            multiply(XT[m], g, load_right(Bh, 16 * m, x));
            multiply(dV[m], load(Kh, 16 * m, x), g);
        }
    }
    UNROLL for (int m = 0; m < 2; m++) mask(UT[m], 0, 16 * m, [&](int) { return segments.first; });
    for (int task = warp; task < 9; task += WARPS) {  // three blocks of each matrix of scores, that above the diagonal is nothing
        const int matrix = task / 3, i = task % 3 > 0 ? 16 : 0, j = task % 3 > 1 ? 16 : 0;
        const Tile<N> left = matrix == 0 ? At : Rt, right = matrix == 1 ? Bt : Kt;
        Sum scores = {};
        UNROLL for (int x = 0; x < N; x += 16) multiply(scores, load(left, i, x), load_right(right, j, x));
        mask(scores, i, j, [&](int i) { return matrix == 0 ? segments.strict(i) : segments.inclusive(i); });
        store(Tile<C>{Mak.memory + matrix * SCORES}, i, j, rounded(scores));
    }
    block_barrier();

    Block vT[2], dyT[2], dVs[2];
    UNROLL for (int m = 0; m < 2; m++) vT[m] = load_transposed(V, 16 * m, own), dyT[m] = load_transposed(dY, 16 * m, own);
    UNROLL for (int i = 0; i < 2; i++) UNROLL for (int j = 0; j <= i; j++) {
        multiply(UT[i], vT[j], load_right(Mak, 16 * i, 16 * j));
        multiply(XT[j], dyT[i], load_right_transposed(Mrb, 16 * i, 16 * j));
    }
    {  // (I - Mab)^-1 times U and its transpose times X, each as two of bf16: 10% less error in da and db
        Block high[2], low[2];
        Sum u[2] = {}, x[2] = {};
        UNROLL for (int m = 0; m < 2; m++) high[m] = rounded(UT[m]), low[m] = rest(UT[m], high[m]);
        UNROLL for (int i = 0; i < 2; i++) UNROLL for (int j = 0; j <= i; j++) {
            const Block ti = load(inverse, 16 * i, 16 * j);
            multiply(u[i], ti, high[j]), multiply(u[i], ti, low[j]);
        }
        UNROLL for (int m = 0; m < 2; m++) store(U, 16 * m, own, rounded(u[m]));
        UNROLL for (int m = 0; m < 2; m++) high[m] = rounded(XT[m]), low[m] = rest(XT[m], high[m]);
        UNROLL for (int i = 0; i < 2; i++) UNROLL for (int j = 0; j <= i; j++) {
            const Block ti = load_transposed(inverse, 16 * i, 16 * j);
            multiply(x[j], ti, high[i]), multiply(x[j], ti, low[i]);
        }
        UNROLL for (int m = 0; m < 2; m++) store(X, 16 * m, own, rounded(x[m]));
    }
    warp_barrier();
    UNROLL for (int i = 0; i < 2; i++) {
        const Right xT = load_right_transposed(X, 16 * i, own);
        UNROLL for (int j = 0; j <= i; j++) {
            multiply(dV[j], load_transposed(Mak, 16 * i, 16 * j), xT);
            multiply(dV[j], load_transposed(Mrk, 16 * i, 16 * j), dyT[i]);
        }
    }
    UNROLL for (int m = 0; m < 2; m++) dVs[m] = rounded(dV[m]);
    block_barrier();

    {
        const Tile<N> left = warp < 2 ? X : dY, right = warp % 2 ? V : U;
        UNROLL for (int i = 0; i < 2; i++) UNROLL for (int j = 0; j <= i; j++) {
            Sum scores = {};
            UNROLL for (int x = 0; x < N; x += 16) multiply(scores, load(left, 16 * i, x), load_right(right, 16 * j, x));
            mask(scores, 16 * i, 16 * j, [&](int i) { return warp < 2 ? segments.strict(i) : segments.inclusive(i); });
            store(Tile<C>{dMab.memory + warp * SCORES}, 16 * i, 16 * j, rounded(scores));
        }
    }
    Sum dA[2] = {}, dR[2] = {}, dB[2] = {}, dK[2] = {};
    UNROLL for (int y = 0; y < N; y += 16) {
        const Right s = load_right_transposed(state, y, own), g = load_right_transposed(grad, y, own);
        UNROLL for (int m = 0; m < 2; m++) {
            multiply(dA[m], load(X, 16 * m, y), s), multiply(dR[m], load(dY, 16 * m, y), s);
            multiply(dB[m], load(U, 16 * m, y), g), multiply(dK[m], load(V, 16 * m, y), g);
        }
    }

    // what the decay of the whole chunk gets: from the state before it, and from what its tokens leave
    float whole[2][2];
    UNROLL for (int n = 0; n < 2; n++) {
        float x0 = 0, x1 = 0;
        UNROLL for (int q = 0; q < N / 8; q++) {
            const unsigned s = state.pair(token(q), channel(n)), g = grad.pair(token(q), channel(n));
            x0 += low(s) * low(g), x1 += high(s) * high(g);
        }
        x0 *= D[tile * N + channel(n)], x1 *= D[tile * N + channel(n) + 1];
        const float d0 = exp2_fast(total[n][0]), d1 = exp2_fast(total[n][1]);
        UNROLL for (int q = 0; q < 4; q++) {
            const unsigned b = Bt.pair(token(q), channel(n)), k = Kt.pair(token(q), channel(n));
            float(&db)[2] = dB[q / 2].x[n][q % 2], (&dk)[2] = dK[q / 2].x[n][q % 2], (&da)[2] = dA[q / 2].x[n][q % 2], (&dr)[2] = dR[q / 2].x[n][q % 2];
            const bool l = in(segments.last, q), f = in(segments.first, q);
            db[0] = l ? db[0] * d0 : 0, db[1] = l ? db[1] * d1 : 0, dk[0] = l ? dk[0] * d0 : 0, dk[1] = l ? dk[1] * d1 : 0;
            da[0] = f ? da[0] : 0, da[1] = f ? da[1] : 0, dr[0] = f ? dr[0] : 0, dr[1] = f ? dr[1] : 0;
            x0 += db[0] * low(b) + dk[0] * low(k), x1 += db[1] * high(b) + dk[1] * high(k);
        }
        UNROLL for (int m = 4; m < 32; m *= 2) x0 += from_lane_xor(x0, m), x1 += from_lane_xor(x1, m);
        whole[n][0] = x0, whole[n][1] = x1;
    }
    block_barrier();

    UNROLL for (int i = 0; i < 2; i++) UNROLL for (int j = 0; j <= i; j++) {
        const Right bt = load_right_transposed(Bt, 16 * j, own), kt = load_right_transposed(Kt, 16 * j, own);
        multiply(dA[i], load(dMab, 16 * i, 16 * j), bt), multiply(dA[i], load(dMak, 16 * i, 16 * j), kt);
        multiply(dR[i], load(dMrb, 16 * i, 16 * j), bt), multiply(dR[i], load(dMrk, 16 * i, 16 * j), kt);
        const Right at = load_right_transposed(At, 16 * i, own), rt = load_right_transposed(Rt, 16 * i, own);
        multiply(dB[j], load_transposed(dMab, 16 * i, 16 * j), at), multiply(dB[j], load_transposed(dMrb, 16 * i, 16 * j), rt);
        multiply(dK[j], load_transposed(dMak, 16 * i, 16 * j), at), multiply(dK[j], load_transposed(dMrk, 16 * i, 16 * j), rt);
    }

    // `late` and `both` gather the gradient of L as in triton_kernels.py. Gradients take the place of what they are of.
    UNROLL for (int n = 0; n < 2; n++) {
        float late[2][4], both[2][4], tail[2];
        UNROLL for (int q = 0; q < 4; q++) {
            auto pair = [&](Tile<N> t) -> unsigned& { return t.pair(token(q), channel(n)); };
            const float(&a)[2] = dA[q / 2].x[n][q % 2], (&r)[2] = dR[q / 2].x[n][q % 2], (&b)[2] = dB[q / 2].x[n][q % 2], (&k)[2] = dK[q / 2].x[n][q % 2];
            const unsigned at = pair(At), rt = pair(Rt), bt = pair(Bt), kt = pair(Kt), xw = pair(tw);
            late[0][q] = r[0] * low(rt) - b[0] * low(bt) - k[0] * low(kt), late[1][q] = r[1] * high(rt) - b[1] * high(bt) - k[1] * high(kt);
            both[0][q] = late[0][q] + a[0] * low(at), both[1][q] = late[1][q] + a[1] * high(at);
            const float l0 = L[q][n][0], l1 = L[q][n][1], e0 = exp2_fast(l0), e1 = exp2_fast(l1), i0 = exp2_fast(-l0), i1 = exp2_fast(-l1);
            pair(Rt) = pack(r[0] * e0, r[1] * e1);
            pair(Bt) = pack(b[0] * i0, b[1] * i1);
            pair(Kt) = pack(k[0] * i0, k[1] * i1);
            pair(At) = pack(a[0] * exp2_fast(l0 - log2_decay(low(xw), token(q) < live)), a[1] * exp2_fast(l1 - log2_decay(high(xw), token(q) < live)));
        }
        UNROLL for (int e = 0; e < 2; e++) {
            float sums[4] = {both[e][0], both[e][1], both[e][2], both[e][3]};
            tail[e] = whole[n][e] + sums_over_tokens(sums);
            UNROLL for (int q = 0; q < 4; q++) late[e][q] += tail[e] - sums[q];
        }
        UNROLL for (int q = 0; q < 4; q++) {
            unsigned& x = tw.pair(token(q), channel(n));
            auto d = [&](float w, float dlw) { return dlw * (LOG2_DECAY_SCALE * LN2 * sigmoid(w)) * sigmoid(-w); };
            x = pack(d(low(x), late[0][q]), d(high(x), late[1][q]));
        }
    }
    UNROLL for (int m = 0; m < 2; m++) store(V, 16 * m, own, dVs[m]);
    warp_barrier();
    UNROLL for (int m = 0; m < 2; m++) {
        const int t = lane() / 2 + 16 * m, x = own + lane() % 2 * 8;
        auto write = [&](bf16* to, Tile<N> from) { *(Sixteen*)(to + at + t * stride + x) = *(const Sixteen*)from.at(t, x); };
        if (t < live) write(dr, Rt), write(dw, tw), write(dk, Kt), write(dv, V), write(da, At), write(db, Bt);
    }
}
