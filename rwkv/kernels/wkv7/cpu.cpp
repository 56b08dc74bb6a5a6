// WKV-7 forward and backward in fp32, for one CPU. `cpu.py` builds this file and calls the functions at its end.
//
// Matmul form in chunks of C tokens, as in chunked.py, one head at a time. With g_t the product of a chunk's decays up to
// token t, At = a g_{t-1}, Rt = r g_t, Bt = b / g_t, Kt = k / g_t, S0 the state before the chunk, Gam = g_C. Rows are stacked
// with a token's two rows side by side, so that "no later token" is a prefix of the stack:
//
//     AR = A1 R1 A2 R2 ...    BK = B1 K1 B2 K2 ...    UV = U1 V1 U2 V2 ...    XY = dX1 dY1 dX2 dY2 ...    (2C x N each)
//     M  = AR BK^T, row i kept where j < i (A rows) or j <= i (R rows)
//
//     row i of  AR S0^T + M UV  is U (A rows; it enters later rows) or y (R rows)             forward substitution
//     S_C = (S0 + UV^T BK) diag(Gam)
//
// and backwards, with G = dL/dS_C, Gt = G diag(Gam), dM masked as M:
//
//     row j of  BK Gt^T + M^T XY  is dX (B rows; it enters earlier rows) or dV (K rows)       back substitution
//     dM = XY UV^T    dAR = XY S0 + dM BK    dBK = UV Gt + dM^T AR    dS0 = Gt + XY^T AR
//     h_t = Rt dRt - Bt dBt - Kt dKt + (At dAt of t+1, or colsum(G S_C) at the chunk's end),  dlog w_t = sum of h from t on
//
// A reset ends the chunk before it. Short chunks are filled with zero rows up to a multiple of 4 tokens.
// "key-major" is S[k][v], "value-major" S[v][k]; vectors run over the second index, so no sum crosses lanes.

#include "../cpu.h"

constexpr int C2 = 2 * C;
constexpr int ROWS = 8;  // rows of the stack solved together
constexpr float LOG_DECAY_SCALE = -0.60653065971263342f;  // -exp(-1/2)

struct Mask {
    int32_t keep[C2][C2];
    Mask() {
        for (int i = 0; i < C2; i++)
            for (int j = 0; j < C2; j++) keep[i][j] = j < i || (j == i && i % 2) ? -1 : 0;
    }
};
static const Mask mask;

// ---- one head ----

struct Inputs {
    const float *r, *w, *k, *v, *a, *b;
};
struct Grads {
    float *r, *w, *k, *v, *a, *b;
};

template <class F, int FIXED> struct Head {
    static constexpr int L = lanes<F>;
    const int any_n;
    INLINE int N() const { return FIXED ? FIXED : any_n; }

    int32_t* starts;
    long chunks;
    float *AR, *BK, *UV, *BKt, *M, *Gam, *P;
    float *XY, *UVt, *dM, *dAR, *dBK, *g, *gi, *dlw_dw, *hC, *Gk, *Gv, *S0, *SC;

    Head(int n, const uint8_t* reset, long T, bool backward) : any_n(n) {
        chunks = plan(reset, T, nullptr);
        size_t rows = (size_t)C2 * n, square = (size_t)n * n;
        arena.reserve((chunks + 1) * 4 + 4 * (12 * rows + 4 * square + 2 * C2 * C2 + 2 * n) + 32 * 64);
        auto take = [](size_t count) { return arena.take<float>(count); };
        starts = arena.take<int32_t>(chunks + 1);
        plan(reset, T, starts);
        AR = take(rows), BK = take(rows), UV = take(rows), BKt = take(rows), P = take(rows);
        M = take(C2 * C2), Gam = take(n);
        S0 = take(square), SC = take(square);
        if (!backward) return;
        XY = take(rows), UVt = take(rows), dAR = take(rows), dBK = take(rows);
        g = take(rows / 2), gi = take(rows / 2), dlw_dw = take(rows / 2);
        dM = take(C2 * C2), hC = take(n);
        Gk = take(square), Gv = take(square);
    }

    // The decay folded into AR and BK, v into UV; returns the rows filled, a multiple of 8.
    template <bool BACKWARD> INLINE int prepare(const Inputs& x, long at, long stride, int count) {
        const int n = N(), rows = (2 * count + ROWS - 1) / ROWS * ROWS;
        for (int j = 0; j < n; j += L) {
            F gt = splat<F>(1.f);
            for (int t = 0; t < count; t++) {
                const long o = at + t * stride + j;
                F sig, rest;
                sigmoids<F>(load<F>(x.w + o), sig, rest);
                F lw = LOG_DECAY_SCALE * sig;
                F before = gt;
                gt *= exponential<F>(lw);
                F inv = 1.f / gt;
                float* ar = AR + 2 * t * n + j;
                float* bk = BK + 2 * t * n + j;
                store(ar, load<F>(x.a + o) * before);
                store(ar + n, load<F>(x.r + o) * gt);
                store(bk, load<F>(x.b + o) * inv);
                store(bk + n, load<F>(x.k + o) * inv);
                store(UV + (2 * t + 1) * n + j, load<F>(x.v + o));
                if (BACKWARD) {
                    store(g + t * n + j, gt);
                    store(gi + t * n + j, inv);
                    store(dlw_dw + t * n + j, lw * rest);
                }
            }
            store(Gam + j, gt);
        }
        for (float* stack : {AR, BK, UV}) std::memset(stack + 2 * count * n, 0, sizeof(float) * (rows - 2 * count) * n);
        return rows;
    }

    // out = masked (X Yt), columns up to the end of the 8 x 8 diagonal block rounded up to a vector.
    INLINE void scores(const float* X, const float* Yt, float* out, int rows) {
        const int n = N();
        for (int i = 0; i < rows; i += ROWS) {
            const int cols = (i + ROWS + L - 1) / L * L;
            product<F>(ROWS, cols, out + i * C2, C2, nullptr, nullptr, Pair{X + i * n, n, 1, Yt, C2, n});
            for (int m = i; m < i + ROWS; m++)
                for (int j = i / L * L; j < cols; j += L) {
                    using I = typename Like<F>::Ints;
                    I keep;
                    std::memcpy(&keep, &mask.keep[m][j], sizeof keep);
                    store<F>(out + m * C2 + j, (F)((I)load<F>(out + m * C2 + j) & keep));
                }
        }
    }

    INLINE void add_row(float* row, float scale, const float* x) {
        for (int j = 0; j < N(); j += L) store<F>(row + j, load<F>(row + j) + scale * load<F>(x + j));
    }
    INLINE void copy_row(float* to, const float* from) { std::memcpy(to, from, sizeof(float) * N()); }

    // Rows of the next chunk: heads lie side by side in memory, so the hardware does not see them coming.
    INLINE void prefetch(const float* rows, long stride, int count) {
        for (int t = 0; t < count; t++)
            for (int j = 0; j < N(); j += 16) __builtin_prefetch(rows + t * stride + j, 0, 2);
    }
    INLINE void prefetch(const Inputs& x, long at, long stride, int count) {
        for (const float* p : {x.r, x.w, x.k, x.v, x.a, x.b}) prefetch(p + at, stride, count);
    }

    // U, [T, N] from this chunk on, is written if not null.
    INLINE void forward_chunk(const Inputs& x, long at, long stride, int count, const float* S, float* S_after, float* y,
                              float* U) {
        const int n = N(), rows = prepare<false>(x, at, stride, count);
        transpose(BK, n, BKt, C2, rows, n);
        scores(AR, BKt, M, rows);
        for (int i0 = 0; i0 < rows; i0 += ROWS) {
            product<F>(ROWS, n, P, n, nullptr, nullptr, Pair{AR + i0 * n, n, 1, S, n, n}, Pair{M + i0 * C2, C2, 1, UV, n, i0});
            for (int i = i0; i < i0 + ROWS && i < 2 * count; i++) {
                float* row = P + (i - i0) * n;
                const int last = i % 2 ? i : i - 1;
                for (int j = i0; j <= last; j++) add_row(row, M[i * C2 + j], UV + j * n);
                if (i % 2) copy_row(y + at + i / 2 * stride, row);
                else {
                    copy_row(UV + i * n, row);
                    if (U) copy_row(U + i / 2 * n, row);
                }
            }
        }
        product<F>(n, n, S_after, n, S, Gam, Pair{BKt, C2, 1, UV, n, rows});
    }

    // saved: chunks + 1 key-major states, or null; then two scratch states take turns. state, last: value-major.
    void forward(const Inputs& x, long at, long stride, const uint8_t* reset, const float* state, float* y, float* last,
                 float* saved, float* U) {
        const int n = N();
        const long square = (long)n * n;
        auto S = [&](long c) { return saved ? saved + c * square : (c % 2 ? SC : S0); };
        transpose(state, n, S(0), n, n, n);
        for (long c = 0; c < chunks; c++) {
            const long t = starts[c];
            if (reset && reset[t]) std::memset(S(c), 0, sizeof(float) * square);
            if (c + 1 < chunks) prefetch(x, at + starts[c + 1] * stride, stride, starts[c + 2] - starts[c + 1]);
            forward_chunk(x, at + t * stride, stride, starts[c + 1] - t, S(c), S(c + 1), y, U ? U + t * n : nullptr);
        }
        transpose(S(chunks), n, last, n, n, n);
    }

    // Gv: dL/dS after the chunk on entry, before it on return. SC, S0: the states after and before, value-major.
    INLINE void backward_chunk(const Inputs& x, const float* dy, const Grads& d, long at, long stride, int count,
                               const float* U) {
        const int n = N(), rows = prepare<true>(x, at, stride, count);
        for (int t = 0; t < count; t++) {
            copy_row(UV + 2 * t * n, U + t * n);
            copy_row(XY + (2 * t + 1) * n, dy + at + t * stride);
        }
        std::memset(XY + 2 * count * n, 0, sizeof(float) * (rows - 2 * count) * n);
        transpose(BK, n, BKt, C2, rows, n);
        scores(AR, BKt, M, rows);

        for (int j = 0; j < n; j += L) {
            F sum = F{}, gam = load<F>(Gam + j);
            for (int i = 0; i < n; i++) {
                F G = load<F>(Gv + i * n + j);
                sum += G * load<F>(SC + i * n + j);
                store<F>(Gv + i * n + j, G * gam);
            }
            store<F>(hC + j, sum);
        }
        transpose(Gv, n, Gk, n, n, n);

        for (int j0 = rows - ROWS; j0 >= 0; j0 -= ROWS) {
            const int next = j0 + ROWS;
            product<F>(ROWS, n, P, n, nullptr, nullptr, Pair{BK + j0 * n, n, 1, Gk, n, n},
                       Pair{M + next * C2 + j0, 1, C2, XY + next * n, n, rows - next});
            for (int j = (next < 2 * count ? next : 2 * count) - 1; j >= j0; j--) {
                float* row = P + (j - j0) * n;
                for (int i = j % 2 ? j : j + 1; i < next; i++) add_row(row, M[i * C2 + j], XY + i * n);
                copy_row(j % 2 ? d.v + at + j / 2 * stride : XY + j * n, row);
            }
        }

        transpose(UV, n, UVt, C2, rows, n);
        scores(XY, UVt, dM, rows);
        for (int i = 0; i < rows; i += ROWS) {
            product<F>(ROWS, n, dAR + i * n, n, nullptr, nullptr, Pair{XY + i * n, n, 1, S0, n, n},
                       Pair{dM + i * C2, C2, 1, BK, n, i + ROWS});
            product<F>(ROWS, n, dBK + i * n, n, nullptr, nullptr, Pair{UV + i * n, n, 1, Gv, n, n},
                       Pair{dM + i * C2 + i, 1, C2, AR + i * n, n, rows - i});
        }
        product<F>(n, n, Gv, n, Gv, nullptr, Pair{XY, 1, n, AR, n, rows});

        for (int j = 0; j < n; j += L) {
            F h = load<F>(hC + j);
            for (int t = count - 1; t >= 0; t--) {
                const long o = at + t * stride + j;
                const int even = 2 * t * n + j, odd = even + n;
                F da = load<F>(dAR + even), dr = load<F>(dAR + odd), db = load<F>(dBK + even), dk = load<F>(dBK + odd);
                F inv = load<F>(gi + t * n + j);
                h += load<F>(AR + odd) * dr - load<F>(BK + even) * db - load<F>(BK + odd) * dk;
                store<F>(d.w + o, h * load<F>(dlw_dw + t * n + j));
                h += load<F>(AR + even) * da;
                store<F>(d.r + o, dr * load<F>(g + t * n + j));
                store<F>(d.a + o, t ? da * load<F>(g + (t - 1) * n + j) : da);
                store<F>(d.b + o, db * inv);
                store<F>(d.k + o, dk * inv);
            }
        }
    }

    // dlast may be null (zero). dstate: value-major.
    void backward(const Inputs& x, long at, long stride, const uint8_t* reset, const float* saved, const float* U,
                  const float* dy, const float* dlast, const Grads& d, float* dstate) {
        const int n = N();
        const long square = (long)n * n;
        if (dlast) std::memcpy(Gv, dlast, sizeof(float) * square);
        else std::memset(Gv, 0, sizeof(float) * square);
        transpose(saved + chunks * square, n, S0, n, n, n);
        for (long c = chunks - 1; c >= 0; c--) {
            const long t = starts[c];
            float* after = S0;
            S0 = SC, SC = after;
            transpose(saved + c * square, n, S0, n, n, n);
            if (c > 0) {
                const long next = starts[c - 1], count = t - next;
                prefetch(x, at + next * stride, stride, count);
                prefetch(dy + at + next * stride, stride, count);
                prefetch(U + next * n, n, count);
                prefetch(saved + (c - 1) * square, n, n);
            }
            backward_chunk(x, dy, d, at + t * stride, stride, starts[c + 1] - t, U + t * n);
            if (reset && reset[t]) std::memset(Gv, 0, sizeof(float) * square);
        }
        std::memcpy(dstate, Gv, sizeof(float) * square);
    }

    // One token, state to last, both value-major.
    void step(const Inputs& x, long at, bool reset, const float* state, float* y, float* last) {
        const int n = N();
        for (int j = 0; j < n; j += L) {
            F sig, rest;
            sigmoids<F>(load<F>(x.w + at + j), sig, rest);
            store<F>(Gam + j, exponential<F>(LOG_DECAY_SCALE * sig));
        }
        const float *r = x.r + at, *k = x.k + at, *a = x.a + at, *b = x.b + at;
        for (int i = 0; i < n; i++) {
            const float* from = state + (long)i * n;
            F sa = F{}, out = F{};
            const float v = x.v[at + i];
            if (!reset)
                for (int j = 0; j < n; j += L) sa += load<F>(from + j) * load<F>(a + j);
            const float scale = sum(sa);
            for (int j = 0; j < n; j += L) {
                F S = scale * load<F>(b + j) + v * load<F>(k + j);
                if (!reset) S += load<F>(from + j) * load<F>(Gam + j);
                store<F>(last + (long)i * n + j, S);
                out += S * load<F>(r + j);
            }
            y[at + i] = sum(out);
        }
    }
};

// x, y, dy and their gradients [B, T, H, N]; states [B, H, N, N] value-major; reset [B, T] or null; all contiguous.
// saved [B * H, n + 1, N, N] with n = rwkv_wkv7_chunks(...), U [B * H, T, N]; both null when no gradient is wanted.
// Both functions return 0, or 1 when memory runs out.
extern "C" {

int64_t rwkv_wkv7_chunks(const uint8_t* reset, int64_t B, int64_t T) { return most_chunks(reset, B, T); }

int rwkv_wkv7_forward(int64_t B, int64_t T, int64_t H, int64_t N, int64_t threads, const float* r, const float* w, const float* k,
                      const float* v, const float* a, const float* b, const float* state, const uint8_t* reset, float* y,
                      float* last, float* saved, int64_t n, float* U) {
    const Inputs x{r, w, k, v, a, b};
    return run<Head>(reset, B, T, H, N, threads, false, [&](auto& head, const uint8_t* mine, long at, long i) {
        const long square = N * N;
        if (T == 1 && !saved) head.step(x, at, mine && mine[0], state + i * square, y, last + i * square);
        else head.forward(x, at, H * N, mine, state + i * square, y, last + i * square,
                          saved ? saved + i * (n + 1) * square : nullptr, U ? U + i * T * N : nullptr);
    });
}

int rwkv_wkv7_backward(int64_t B, int64_t T, int64_t H, int64_t N, int64_t threads, const float* r, const float* w, const float* k,
                       const float* v, const float* a, const float* b, const uint8_t* reset, const float* saved, int64_t n,
                       const float* U, const float* dy, const float* dlast, float* dr, float* dw, float* dk, float* dv,
                       float* da, float* db, float* dstate) {
    const Inputs x{r, w, k, v, a, b};
    const Grads d{dr, dw, dk, dv, da, db};
    return run<Head>(reset, B, T, H, N, threads, true, [&](auto& head, const uint8_t* mine, long at, long i) {
        const long square = N * N;
        head.backward(x, at, H * N, mine, saved + i * (n + 1) * square, U + i * T * N, dy, dlast ? dlast + i * square : nullptr,
                      d, dstate + i * square);
    });
}
}
