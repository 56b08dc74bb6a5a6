// WKV-7: the factors of a chunk in bf16, P in fp16, as `chunk_factors` in triton_kernels.py, whose names these are. One block for each chunk of each head.
//
// Four warps, each the owner of 16 channels: of keys in W and Rw, of values in U0 and Y0, of rows of P and Q. These a warp makes in its registers,
// W and U0 transposed; what all need (factors of tokens, scores, the inverse) goes through shared memory.
#include "chunk.cuh"

// I + M, of which only what is in diagonal blocks of 2 x 2.
DEVICE Sum pairs(const Block& M) {
    Sum s;
    UNROLL for (int n = 0; n < 2; n++) UNROLL for (int m = 0; m < 2; m++) UNROLL for (int e = 0; e < 2; e++) {
        const int i = 8 * m + row_of_lane(), j = 8 * n + column_of_lane() + e;
        const unsigned x = M.x[2 * n + m];
        s.x[n][m][e] = i == j ? 1 : i / 2 == j / 2 ? e ? high(x) : low(x) : 0;
    }
    return s;
}

// (I - M)^-1 of a strictly lower triangular block, and its transpose: inverses of diagonal blocks merged as in triton_kernels.py.
DEVICE void invert(Sum& inverse, Sum& inverseT, const Block& M) {
    const Block MT = transposed(M);
    inverse = pairs(M), inverseT = pairs(MT);
    UNROLL for (int e = 1; e < 4; e++) {
        Block E = M, ET = MT;
        UNROLL for (int n = 0; n < 2; n++) UNROLL for (int m = 0; m < 2; m++) {
            const int i = 8 * m + row_of_lane(), j = 8 * n + column_of_lane();
            if (i >> (e + 1) != j >> (e + 1) || i >> e == j >> e) E.x[2 * n + m] = ET.x[2 * n + m] = 0;
        }
        const Block x = rounded(inverse), xT = rounded(inverseT);
        Sum y = {}, yT = {};
        multiply(y, x, ET), multiply(yT, xT, E);
        multiply(inverse, rounded(y), xT), multiply(inverseT, rounded(yT), x);
    }
}

KERNEL(WARPS * 32, 4)
chunk_factors(
    const bf16* r, const bf16* w, const bf16* k, const bf16* v, const bf16* a, const bf16* b, const byte* reset, bf16* P, bf16* Q, float* D,
    bf16* Rw, bf16* Y0, bf16* Ti, int n, int G, int H, int T) {
    const Tile<N> tw{0}, At{SLAB}, Rt{2 * SLAB}, Bt{3 * SLAB}, Kt{4 * SLAB}, V{5 * SLAB}, Bh{6 * SLAB}, Kh{7 * SLAB}, Bh_fp16{8 * SLAB}, Kh_rest{9 * SLAB};
    const Tile<C> inverse{10 * SLAB}, Mak{inverse.start + SCORES}, Mrb{inverse.start + 2 * SCORES}, Mrk{inverse.start + 3 * SCORES};

    const Place place(n, G, H, T);
    const long long tile = place.tile, stride = place.stride, at = place.at;
    const int live = place.live, warp = thread() / 32, own = warp * 16;

    copy_rows<C>(tw, w + at, stride, live);
    copy_rows<C>(At, a + at, stride, live);
    copy_rows<C>(Rt, r + at, stride, live);
    copy_rows<C>(Bt, b + at, stride, live);
    copy_rows<C>(Kt, k + at, stride, live);
    copies_begun();
    copy_rows<C>(V, v + at, stride, live);
    copies_begun();
    const Segments segments(reset ? reset + place.token : nullptr, live);

    // At, Rt, Bt, Kt in the place of a, r, b, k
    copies_done<1>();
    block_barrier();
    Sum before[2], L[2], rw[2], y0[2] = {};
    float decay[2][2];
    sum_decays(tw, own, live, before, L);
    UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 2; e++) {
        decay[n][e] = exp2_fast(from_lane(L[1].x[n][1][e], 28 + lane() % 4));
        if (row_of_lane() == 0) D[tile * N + own + column_of_lane() + 8 * n + e] = segments.starts ? 0 : decay[n][e];
    }
    UNROLL for (int m = 0; m < 2; m++) {
        Block a = load(At, 16 * m, own), r = load(Rt, 16 * m, own), b = load(Bt, 16 * m, own), k = load(Kt, 16 * m, own);
        UNROLL for (int q = 0; q < 2; q++) {
            const int t = 16 * m + 8 * q + row_of_lane();
            const bool first = segments.first & 1u << t, last = segments.last & 1u << t;
            Eight bh, kh, bh_fp16, kh_rest;
            UNROLL for (int n = 0; n < 2; n++) {
                const int i = 2 * n + q;
                const float(&l)[2] = L[m].x[n][q], (&p)[2] = before[m].x[n][q];
                const float r0 = low(r.x[i]) * exp2_fast(l[0]), r1 = high(r.x[i]) * exp2_fast(l[1]), i0 = exp2_fast(-l[0]), i1 = exp2_fast(-l[1]);
                const float h0 = last ? i0 * decay[n][0] : 0, h1 = last ? i1 * decay[n][1] : 0;
                rw[m].x[n][q][0] = first ? r0 : 0, rw[m].x[n][q][1] = first ? r1 : 0;
                a.x[i] = scaled(a.x[i], exp2_fast(p[0]), exp2_fast(p[1])), r.x[i] = pack(r0, r1);
                const float b0 = low(b.x[i]) * h0, b1 = high(b.x[i]) * h1, k0 = low(k.x[i]) * h0, k1 = high(k.x[i]) * h1;
                bh.x[n] = pack(b0, b1), bh_fp16.x[n] = pack_fp16(b0, b1), kh.x[n] = pack(k0, k1), kh_rest.x[n] = rest(k0, k1, kh.x[n]);
                b.x[i] = scaled(b.x[i], i0, i1), k.x[i] = scaled(k.x[i], i0, i1);
            }
            // of each 32 channels, 8 j + 2 i + e is at 8 i + 2 j + e: in a product's sums, 8 successive channels are then of one lane
            const int at = warp / 2 * 32 + lane() % 4 * 8 + warp % 2 * 4;
            *(Eight*)Bh.at(t, at) = bh, *(Eight*)Bh_fp16.at(t, at) = bh_fp16, *(Eight*)Kh.at(t, at) = kh, *(Eight*)Kh_rest.at(t, at) = kh_rest;
        }
        store(At, 16 * m, own, a), store(Rt, 16 * m, own, r), store(Bt, 16 * m, own, b), store(Kt, 16 * m, own, k);
    }
    copies_done<0>();
    block_barrier();

    const int task = (warp + block()) % WARPS;  // the first is the longest: of several blocks it falls to different warps
    Scores M(task < 2 ? At : Rt, task % 2 ? Kt : Bt, segments, task < 2);
    if (task == 0) {
        Sum x0, x1, x0T, x1T, product = {}, lower = {};
        invert(x0, x0T, M.x00), invert(x1, x1T, M.x11);
        M.x00 = rounded(x0), M.x11 = rounded(x1);
        multiply(product, M.x11, transposed(M.x10)), multiply(lower, rounded(product), rounded(x0T));
        M.x10 = rounded(lower);
        store(inverse, 0, 16, {});
    }
    M.store_to({inverse.start + task * SCORES});
    block_barrier();

    Block W[2], W_fp16[2], U0[2], vT[2];  // transposed
    {
        Sum w[2] = {}, u[2] = {}, x[2] = {};
        Block aT[2], xT[2];
        UNROLL for (int m = 0; m < 2; m++) vT[m] = load_transposed(V, 16 * m, own), aT[m] = load_transposed(At, 16 * m, own);
        UNROLL for (int i = 0; i < 2; i++) UNROLL for (int j = 0; j <= i; j++) multiply(x[i], vT[j], load_right(Mak, 16 * i, 16 * j));
        UNROLL for (int m = 0; m < 2; m++) xT[m] = rounded(x[m]);
        UNROLL for (int i = 0; i < 2; i++) UNROLL for (int j = 0; j <= i; j++) {
            const Right ti = load_right(inverse, 16 * i, 16 * j);
            multiply(w[i], aT[j], ti), multiply(u[i], xT[j], ti);
        }
        UNROLL for (int m = 0; m < 2; m++) {
            mask(w[m], 0, 16 * m, [&](int) { return segments.first; });
            W[m] = rounded(w[m]), W_fp16[m] = rounded_fp16(w[m]), U0[m] = rounded(u[m]);
        }
    }
    UNROLL for (int i = 0; i < 2; i++) {
        UNROLL for (int j = 0; j <= i; j++) {
            const Block rb = load(Mrb, 16 * i, 16 * j);
            multiply(rw[i], rb, W[j]), multiply(y0[i], rb, U0[j]), multiply(y0[i], load(Mrk, 16 * i, 16 * j), vT[j]);
        }
        store(Rt, 16 * i, own, rounded(rw[i])), store(Kt, 16 * i, own, rounded(y0[i]));
    }

    UNROLL for (int x = 0; x < N; x += 32) {
        Sum p[2] = {}, q[2] = {};
        UNROLL for (int n = 0; n < 2; n++) UNROLL for (int m = 0; m < 2; m++) {
            multiply_fp16(p[n], W_fp16[m], load_right_transposed(Bh_fp16, 16 * m, x + 16 * n));
            multiply(q[n], U0[m], load_right_transposed(Bh, 16 * m, x + 16 * n));
            multiply(q[n], vT[m], load_right_transposed(Kh, 16 * m, x + 16 * n));
            multiply(q[n], vT[m], load_right_transposed(Kh_rest, 16 * m, x + 16 * n));
        }
        const Block ps[2] = {rounded_fp16(p[0]), rounded_fp16(p[1])}, qs[2] = {rounded(q[0]), rounded(q[1])};
        UNROLL for (int m = 0; m < 2; m++) {
            const long long to = tile * SQUARE + (own + 8 * m + row_of_lane()) * N + x + lane() % 4 * 8;
            *(Sixteen*)(P + to) = {{ps[0].x[m], ps[0].x[2 + m], ps[1].x[m], ps[1].x[2 + m]}};
            *(Sixteen*)(Q + to) = {{qs[0].x[m], qs[0].x[2 + m], qs[1].x[m], qs[1].x[2 + m]}};
        }
    }
    block_barrier();

    if (Ti) *(Sixteen*)(Ti + tile * SCORES + thread() * 8) = *(const Sixteen*)inverse.at(thread() / 4, thread() % 4 * 8);
    UNROLL for (int part = thread(); part < SLAB / 8; part += WARPS * 32) {
        *(Sixteen*)(Rw + tile * SLAB + part * 8) = *(const Sixteen*)Rt.at(part / 8, part % 8 * 8);
        *(Sixteen*)(Y0 + tile * SLAB + part * 8) = *(const Sixteen*)Kt.at(part / 8, part % 8 * 8);
    }
}
