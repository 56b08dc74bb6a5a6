// WKV-7: the gradients of the six inputs in bf16, as `gradients` in triton_kernels.py, whose names these are. One block for each chunk of each head.
//
// Four warps, each the owner of 16 channels: of values while U, X and dV are made, of keys while the other gradients are. What one makes
// of all tokens of its channels stays in its registers; what all need (factors of tokens, U, X, scores) goes through shared memory.
#include "chunk.cuh"

// late += sums over later tokens of x, which are products with triangles of ones of x as two of bf16.
DEVICE void sum_later(Sum (&late)[2], const Sum (&x)[2]) {
    const int i = row_of_lane(), j = column_of_lane();
    const unsigned one = 0x3f80, ones = one | one << 16, above = (i < j ? one : 0) | (i < j + 1 ? one << 16 : 0);
    const Block all = {{ones, ones, ones, ones}}, later = {{above, 0, ones, above}};
    UNROLL for (int m = 0; m < 2; m++) {
        const Block high_part = rounded(x[m]);
        const Right parts[2] = {transposed(high_part), transposed(rest(x[m], high_part))};
        UNROLL for (int p = 0; p < 2; p++) {
            multiply(late[m], later, parts[p]);
            if (m == 1) multiply(late[0], all, parts[p]);
        }
    }
}

KERNEL(WARPS * 32, 3)
gradients(
    const bf16* r, const bf16* w, const bf16* k, const bf16* v, const bf16* a, const bf16* b, const byte* reset, const bf16* dy, const float* D,
    const bf16* S, const bf16* Ti, const bf16* Gr, bf16* dr, bf16* dw, bf16* dk, bf16* dv, bf16* da, bf16* db, int n, int G, int H, int T) {
    const Tile<N> tw{0}, At{SLAB}, Rt{2 * SLAB}, Bt{3 * SLAB}, Kt{4 * SLAB}, V{5 * SLAB}, dY{6 * SLAB}, U{7 * SLAB}, X{8 * SLAB}, Bh{9 * SLAB}, Kh{10 * SLAB},
        state{11 * SLAB}, grad{11 * SLAB + SQUARE};
    const Tile<C> inverse{11 * SLAB + 2 * SQUARE}, Mak{inverse.start + SCORES}, Mrb{inverse.start + 2 * SCORES}, Mrk{inverse.start + 3 * SCORES};
    const Tile<C> dMab{Bh.start}, dMak{Bh.start + SCORES}, dMrb{Bh.start + 2 * SCORES}, dMrk{Bh.start + 3 * SCORES};  // once Bh and Kh are used
    const Tile<N> At_rest{U.start}, Bh_rest{X.start};  // what rounding takes away, before U and X are made: a tenth to a half less error in da and db

    const Place place(n, G, H, T);
    const long long tile = place.tile, stride = place.stride, at = place.at;
    const int live = place.live, warp = thread() / 32, own = warp * 16;

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

    const Segments segments(reset ? reset + place.token : nullptr, live);

    // At, Rt, Bt, Kt in the place of a, r, b, k
    copies_done<1>();
    block_barrier();
    Sum L[2];
    float decay[2][2];  // of the whole chunk
    {
        Sum before[2];
        sum_decays(tw, own, live, before, L);
        UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 2; e++) decay[n][e] = exp2_fast(from_lane(L[1].x[n][1][e], 28 + lane() % 4));
        UNROLL for (int m = 0; m < 2; m++) {
            Block a = load(At, 16 * m, own), r = load(Rt, 16 * m, own), b = load(Bt, 16 * m, own), k = load(Kt, 16 * m, own), bh, kh, a_rest, bh_rest;
            UNROLL for (int n = 0; n < 2; n++) UNROLL for (int q = 0; q < 2; q++) {
                const int i = 2 * n + q;
                const bool last = segments.last & 1u << (16 * m + 8 * q + row_of_lane());
                const float(&l)[2] = L[m].x[n][q], (&p)[2] = before[m].x[n][q];
                const float i0 = exp2_fast(-l[0]), i1 = exp2_fast(-l[1]), h0 = last ? i0 * decay[n][0] : 0, h1 = last ? i1 * decay[n][1] : 0;
                const float a0 = low(a.x[i]) * exp2_fast(p[0]), a1 = high(a.x[i]) * exp2_fast(p[1]), b0 = low(b.x[i]) * h0, b1 = high(b.x[i]) * h1;
                a.x[i] = pack(a0, a1), a_rest.x[i] = rest(a0, a1, a.x[i]), r.x[i] = scaled(r.x[i], exp2_fast(l[0]), exp2_fast(l[1]));
                bh.x[i] = pack(b0, b1), bh_rest.x[i] = rest(b0, b1, bh.x[i]), kh.x[i] = scaled(k.x[i], h0, h1);
                b.x[i] = scaled(b.x[i], i0, i1), k.x[i] = scaled(k.x[i], i0, i1);
            }
            store(At, 16 * m, own, a), store(Rt, 16 * m, own, r), store(Bt, 16 * m, own, b), store(Kt, 16 * m, own, k);
            store(Bh, 16 * m, own, bh), store(Kh, 16 * m, own, kh), store(At_rest, 16 * m, own, a_rest), store(Bh_rest, 16 * m, own, bh_rest);
        }
    }
    copies_done<0>();
    block_barrier();

    Sum UT[2] = {}, XT[2] = {}, dV[2] = {};
    UNROLL for (int x = 0; x < N; x += 16) {
        const Block s = load(state, own, x), g = load(grad, own, x);
        UNROLL for (int m = 0; m < 2; m++) {
            multiply(UT[m], s, load_right(At, 16 * m, x)), multiply(UT[m], s, load_right(At_rest, 16 * m, x));
            multiply(XT[m], g, load_right(Bh, 16 * m, x)), multiply(XT[m], g, load_right(Bh_rest, 16 * m, x));
            multiply(dV[m], load(Kh, 16 * m, x), g);
        }
    }
    UNROLL for (int m = 0; m < 2; m++) mask(UT[m], 0, 16 * m, [&](int) { return segments.first; });
    const int task = (warp + block()) % WARPS;  // of several blocks, nothing to do falls to different warps
    if (task < 3) Scores(task == 0 ? At : Rt, task == 1 ? Bt : Kt, segments, task == 0).store_to({Mak.start + task * SCORES});
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
        const Right xT = load_right_transposed(X, 16 * i, own), yT = load_right_transposed(dY, 16 * i, own);
        UNROLL for (int j = 0; j <= i; j++) {
            multiply(dV[j], load_transposed(Mak, 16 * i, 16 * j), xT);
            multiply(dV[j], load_transposed(Mrk, 16 * i, 16 * j), yT);
        }
    }
    UNROLL for (int m = 0; m < 2; m++) dVs[m] = rounded(dV[m]);
    block_barrier();

    Scores(warp < 2 ? X : dY, warp % 2 ? V : U, segments, warp < 2).store_to({dMab.start + warp * SCORES});
    Sum dA[2] = {}, dR[2] = {}, dB[2] = {}, dK[2] = {}, both = {};
    UNROLL for (int y = 0; y < N; y += 16) {
        const Right s = load_right_transposed(state, y, own), g = load_right_transposed(grad, y, own);
        UNROLL for (int m = 0; m < 2; m++) {
            multiply(dA[m], load(X, 16 * m, y), s), multiply(dR[m], load(dY, 16 * m, y), s);
            multiply(dB[m], load(U, 16 * m, y), g), multiply(dK[m], load(V, 16 * m, y), g);
        }
        multiply(both, s.left(), g);
    }
    if (segments.starts) {
        auto kept = [&](int t) { return segments.first & 1u << t ? -1u : 0; };
        UNROLL for (int m = 0; m < 2; m++) mask(dA[m], 16 * m, 0, kept), mask(dR[m], 16 * m, 0, kept);
    }

    // what the decay of the whole chunk gets: from the state before it, of which a diagonal is wanted, and from what its tokens leave
    float whole[2][2];
    UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 2; e++) {
        const int x = column_of_lane() + e;
        whole[n][e] = row_of_lane() == x ? both.x[n][n][e] * D[tile * N + own + 8 * n + x] : 0;
    }
    UNROLL for (int m = 0; m < 2; m++) {
        const Block b = load(Bt, 16 * m, own), k = load(Kt, 16 * m, own);
        UNROLL for (int q = 0; q < 2; q++) UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 2; e++) {
            const float d = segments.last & 1u << (16 * m + 8 * q + row_of_lane()) ? decay[n][e] : 0;
            const unsigned xb = b.x[2 * n + q], xk = k.x[2 * n + q];
            float &db = dB[m].x[n][q][e], &dk = dK[m].x[n][q][e];
            db *= d, dk *= d;
            whole[n][e] += db * (e ? high(xb) : low(xb)) + dk * (e ? high(xk) : low(xk));
        }
    }
    UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 2; e++) UNROLL for (int m = 4; m < 32; m *= 2) whole[n][e] += from_lane_xor(whole[n][e], m);
    block_barrier();

    UNROLL for (int i = 0; i < 2; i++) {
        const Right at = load_right_transposed(At, 16 * i, own), rt = load_right_transposed(Rt, 16 * i, own);
        UNROLL for (int j = 0; j <= i; j++) {
            const Right bt = load_right_transposed(Bt, 16 * j, own), kt = load_right_transposed(Kt, 16 * j, own);
            multiply(dA[i], load(dMab, 16 * i, 16 * j), bt), multiply(dA[i], load(dMak, 16 * i, 16 * j), kt);
            multiply(dR[i], load(dMrb, 16 * i, 16 * j), bt), multiply(dR[i], load(dMrk, 16 * i, 16 * j), kt);
            multiply(dB[j], load_transposed(dMab, 16 * i, 16 * j), at), multiply(dB[j], load_transposed(dMrb, 16 * i, 16 * j), rt);
            multiply(dK[j], load_transposed(dMak, 16 * i, 16 * j), at), multiply(dK[j], load_transposed(dMrk, 16 * i, 16 * j), rt);
        }
    }

    // `late` and `all` gather the gradient of L as `late` and `both` in triton_kernels.py. Gradients take the place of what they are of.
    Sum late[2], all[2], of_w[2];
    UNROLL for (int m = 0; m < 2; m++) {
        const Block w = load(tw, 16 * m, own);
        Block a = load(At, 16 * m, own), r = load(Rt, 16 * m, own), b = load(Bt, 16 * m, own), k = load(Kt, 16 * m, own);
        UNROLL for (int n = 0; n < 2; n++) UNROLL for (int q = 0; q < 2; q++) {
            const int i = 2 * n + q;
            const float(&da)[2] = dA[m].x[n][q], (&dr)[2] = dR[m].x[n][q], (&db)[2] = dB[m].x[n][q], (&dk)[2] = dK[m].x[n][q], (&l)[2] = L[m].x[n][q];
            float(&lt)[2] = late[m].x[n][q], (&al)[2] = all[m].x[n][q];
            lt[0] = dr[0] * low(r.x[i]) - db[0] * low(b.x[i]) - dk[0] * low(k.x[i]), al[0] = lt[0] + da[0] * low(a.x[i]);
            lt[1] = dr[1] * high(r.x[i]) - db[1] * high(b.x[i]) - dk[1] * high(k.x[i]), al[1] = lt[1] + da[1] * high(a.x[i]);
            const bool lives = 16 * m + 8 * q + row_of_lane() < live;
            float lw[2];
            UNROLL for (int e = 0; e < 2; e++) {  // sigmoid(-w) = e^-w sigmoid(w), of which the first must not be infinite
                const float wx = e ? high(w.x[i]) : low(w.x[i]), ew = exp2_fast(least(wx * -1.4426950408889634f, 126)), s = reciprocal(1 + ew);
                lw[e] = (lives ? LOG2_DECAY_SCALE : 0) * s, of_w[m].x[n][q][e] = LOG2_DECAY_SCALE * LN2 * s * (ew * s);
            }
            const float i0 = exp2_fast(-l[0]), i1 = exp2_fast(-l[1]);
            a.x[i] = pack(da[0] * exp2_fast(l[0] - lw[0]), da[1] * exp2_fast(l[1] - lw[1]));
            r.x[i] = pack(dr[0] * exp2_fast(l[0]), dr[1] * exp2_fast(l[1])), b.x[i] = pack(db[0] * i0, db[1] * i1), k.x[i] = pack(dk[0] * i0, dk[1] * i1);
        }
        store(At, 16 * m, own, a), store(Rt, 16 * m, own, r), store(Bt, 16 * m, own, b), store(Kt, 16 * m, own, k), store(V, 16 * m, own, dVs[m]);
    }
    sum_later(late, all);
    UNROLL for (int m = 0; m < 2; m++) {
        Block dw;
        UNROLL for (int n = 0; n < 2; n++) UNROLL for (int q = 0; q < 2; q++) {
            const float(&lt)[2] = late[m].x[n][q], (&f)[2] = of_w[m].x[n][q];
            dw.x[2 * n + q] = pack((lt[0] + whole[n][0]) * f[0], (lt[1] + whole[n][1]) * f[1]);
        }
        store(tw, 16 * m, own, dw);
    }
    warp_barrier();
    UNROLL for (int m = 0; m < 2; m++) {
        // of 4 rows that are read at a time, no two use a bank
        const int row = lane() / 2, t = 16 * m + row / 8 * 8 + row % 4 * 2 + row / 4 % 2, x = own + lane() % 2 * 8;
        auto write = [&](bf16* to, Tile<N> from) { *(Sixteen*)(to + at + t * stride + x) = *(const Sixteen*)from.at(t, x); };
        if (t < live) write(dr, Rt), write(dw, tw), write(dk, Kt), write(dv, V), write(da, At), write(db, Bt);
    }
}
