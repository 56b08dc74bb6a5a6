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

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <new>

#define INLINE inline __attribute__((always_inline))

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef float f16 __attribute__((vector_size(64)));
typedef int32_t i16 __attribute__((vector_size(64)));

template <class F> struct Like;  // the vector of integers of as many lanes, that of floats of half as many
template <> struct Like<f4> { using Ints = i4; };
template <> struct Like<f8> { using Ints = i8; using Half = f4; };
template <> struct Like<f16> { using Ints = i16; using Half = f8; };
template <class F> constexpr int lanes = sizeof(F) / sizeof(float);

template <class F> INLINE F load(const float* p) { F x; std::memcpy(&x, p, sizeof x); return x; }
template <class F> INLINE void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
template <class F> INLINE F splat(float x) { return F{} + x; }

constexpr int C = 16, C2 = 2 * C;
constexpr int ROWS = 8;  // rows of the stack solved together
constexpr float LOG_DECAY_SCALE = -0.60653065971263342f;  // -exp(-1/2)

// ---- elementwise ----

// exp(x) for x <= 0, within 2 ulp; below -87 it stays at exp(-87).
template <class F> INLINE F exp_neg(F x) {
    using I = typename Like<F>::Ints;
    x = x < splat<F>(-87.f) ? splat<F>(-87.f) : x;
    const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
    F n = (x * 1.44269504088896341f + magic) - magic;
    F r = x - n * 0.693359375f + n * 2.12194440e-4f;
    F p = r * (1.f / 5040) + (1.f / 720);
    p = p * r + (1.f / 120);
    p = p * r + (1.f / 24);
    p = p * r + (1.f / 6);
    p = p * r + 0.5f;
    p = p * r + 1.f;
    p = p * r + 1.f;
    I bits = (__builtin_convertvector(n, I) + 127) << 23;
    return p * (F)bits;
}

// sigmoid(w) and sigmoid(-w), each with all its digits.
template <class F> INLINE void sigmoids(F w, F& pos, F& neg) {
    F e = exp_neg<F>(w < splat<F>(0.f) ? w : -w);
    F big = 1.f / (1.f + e), small = e * big;
    pos = w < splat<F>(0.f) ? small : big;
    neg = w < splat<F>(0.f) ? big : small;
}

template <class F> INLINE float sum(F x) {
    if constexpr (lanes<F> == 4) {
        return (x[0] + x[2]) + (x[1] + x[3]);
    } else {
        typename Like<F>::Half halves[2];
        std::memcpy(halves, &x, sizeof x);
        return sum(halves[0] + halves[1]);
    }
}

#ifdef __clang__
#define SHUFFLE(I, x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(I, x, y, ...) __builtin_shuffle(x, y, I{__VA_ARGS__})
#endif

// x[c][r] = x[r][c] of 4 x 4 or 8 x 8 numbers.
INLINE void transpose_block(f4 (&x)[4]) {
    f4 y[4];
    for (int i = 0; i < 4; i += 2) {
        y[i] = SHUFFLE(i4, x[i], x[i + 1], 0, 4, 2, 6);
        y[i + 1] = SHUFFLE(i4, x[i], x[i + 1], 1, 5, 3, 7);
    }
    for (int i = 0; i < 2; i++) {
        x[i] = SHUFFLE(i4, y[i], y[i + 2], 0, 1, 4, 5);
        x[i + 2] = SHUFFLE(i4, y[i], y[i + 2], 2, 3, 6, 7);
    }
}

INLINE void transpose_block(f8 (&x)[8]) {
    f8 y[8];
    for (int i = 0; i < 8; i += 2) {
        y[i] = SHUFFLE(i8, x[i], x[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        y[i + 1] = SHUFFLE(i8, x[i], x[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = i; j < i + 2; j++) {
            x[j] = SHUFFLE(i8, y[j], y[j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            x[j + 2] = SHUFFLE(i8, y[j], y[j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        y[i] = SHUFFLE(i8, x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        x[i + 4] = SHUFFLE(i8, x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
        x[i] = y[i];
    }
}

// A vector that the CPU lacks would live in memory, far slower than the PyTorch form.
#ifdef __AVX__
using Narrow = f8;
#else
using Narrow = f4;
#endif
#ifdef __AVX512F__
using Wide = f16;
#else
using Wide = Narrow;
#endif

// out[c][r] = in[r][c] for rows and cols multiples of 8.
INLINE void transpose(const float* in, long ldi, float* out, long ldo, int rows, int cols) {
    constexpr int L = lanes<Narrow>;
    for (int r = 0; r < rows; r += L)
        for (int c = 0; c < cols; c += L) {
            Narrow x[L];
            for (int i = 0; i < L; i++) x[i] = load<Narrow>(in + (r + i) * ldi + c);
            transpose_block(x);
            for (int i = 0; i < L; i++) store<Narrow>(out + (c + i) * ldo + r, x[i]);
        }
}

// ---- products ----

// One factor pair of a product: A's element (m, k) is a[m * am + k * ak], B's row k starts at b + k * ldb.
struct Pair {
    const float* a;
    long am, ak;
    const float* b;
    long ldb;
    int depth;
};

template <class F, int MR, int NV> INLINE void accumulate(F (&acc)[MR][NV], const Pair& p, int row, int col) {
    const float* a = p.a + row * p.am;
    const float* b = p.b + col;
    for (int k = 0; k < p.depth; k++, a += p.ak, b += p.ldb) {
        F x[NV];
        for (int n = 0; n < NV; n++) x[n] = load<F>(b + n * lanes<F>);
        for (int m = 0; m < MR; m++)
            for (int n = 0; n < NV; n++) acc[m][n] += a[m * p.am] * x[n];
    }
}

template <class F, int MR, int NV, class... Pairs>
INLINE void tile(float* out, long ldo, int row, int col, const float* init, const float* scale, const Pairs&... pairs) {
    F acc[MR][NV];
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NV; n++) acc[m][n] = init ? load<F>(init + (row + m) * ldo + col + n * lanes<F>) : F{};
    (accumulate(acc, pairs, row, col), ...);
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NV; n++)
            store<F>(out + (row + m) * ldo + col + n * lanes<F>, scale ? acc[m][n] * scale[row + m] : acc[m][n]);
}

// out = diag(scale) (init + sum of the pairs' products); init has the layout of out; rows a multiple of 8, cols of lanes.
template <class F, class... Pairs>
INLINE void product(int rows, int cols, float* out, long ldo, const float* init, const float* scale, const Pairs&... pairs) {
    constexpr int MR = lanes<F> == 16 ? 8 : 4, L = lanes<F>;
    for (int row = 0; row < rows; row += MR) {
        int col = 0;
        for (; col + 2 * L <= cols; col += 2 * L) tile<F, MR, 2>(out, ldo, row, col, init, scale, pairs...);
        if (col < cols) tile<F, MR, 1>(out, ldo, row, col, init, scale, pairs...);
    }
}

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

// Where chunk after chunk of a row starts; a reset starts one. Returns the number of chunks; starts may be null.
static long plan(const uint8_t* reset, long T, int32_t* starts) {
    long n = 0, begin = 0;
    for (long t = 0; t <= T; t++)
        if (t == T || t - begin == C || (reset && reset[t] && t > begin)) {
            if (starts) starts[n] = (int32_t)begin;
            n++, begin = t;
        }
    if (starts) starts[n] = (int32_t)T;
    return n;
}

// Scratch of one thread, kept for its next calls: a fresh one would cost page faults each time.
struct Arena {
    char* base = nullptr;
    size_t size = 0, used = 0;
    ~Arena() { std::free(base); }
    void reserve(size_t bytes) {
        used = 0;
        if (bytes <= size) return;
        std::free(base);
        size = (bytes + 4095) / 4096 * 4096;
        base = (char*)std::aligned_alloc(4096, size);
        if (!base) { size = 0; throw std::bad_alloc(); }
    }
    template <class X> X* take(size_t count) {
        X* p = (X*)(base + used);
        used += (count * sizeof(X) + 63) / 64 * 64;
        return p;
    }
};
static thread_local Arena arena;

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
                gt *= exp_neg<F>(lw);
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
            store<F>(Gam + j, exp_neg<F>(LOG_DECAY_SCALE * sig));
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

// ---- every head ----

// fn(head, row of the batch, offset of the head's first token, its index) for each head; false when memory runs out.
template <class F, int FIXED, class Fn>
static bool each_head(const uint8_t* reset, long B, long T, long H, long N, int threads, bool backward, const Fn& fn) {
    bool ok = true;
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (long i = 0; i < B * H; i++) {
        const uint8_t* mine = reset ? reset + i / H * T : nullptr;
        try {
            Head<F, FIXED> head((int)N, mine, T, backward);
            fn(head, mine, i / H * T * H * N + i % H * N, i);
        } catch (const std::bad_alloc&) {
            ok = false;
        }
    }
    return ok;
}

template <class Fn>
static int run(const uint8_t* reset, long B, long T, long H, long N, int threads, bool backward, const Fn& fn) {
    bool ok;
    if (B * T * H < 32) threads = 1;  // tens of microseconds: waking others would cost more
    if (N == 64) ok = each_head<Wide, 64>(reset, B, T, H, N, threads, backward, fn);
    else if (N % lanes<Wide> == 0) ok = each_head<Wide, 0>(reset, B, T, H, N, threads, backward, fn);
    else ok = each_head<Narrow, 0>(reset, B, T, H, N, threads, backward, fn);
    return ok ? 0 : 1;
}

// x, y, dy and their gradients [B, T, H, N]; states [B, H, N, N] value-major; reset [B, T] or null; all contiguous.
// saved [B * H, n + 1, N, N] with n = rwkv_wkv7_chunks(...), U [B * H, T, N]; both null when no gradient is wanted.
// Both functions return 0, or 1 when memory runs out.
extern "C" {

// The most chunks that a row is cut into.
int64_t rwkv_wkv7_chunks(const uint8_t* reset, int64_t B, int64_t T) {
    if (!reset) return (T + C - 1) / C;
    long most = 0;
    for (long i = 0; i < B; i++) {
        const long n = plan(reset + i * T, T, nullptr);
        if (n > most) most = n;
    }
    return most;
}

int rwkv_wkv7_forward(int64_t B, int64_t T, int64_t H, int64_t N, int threads, const float* r, const float* w, const float* k,
                      const float* v, const float* a, const float* b, const float* state, const uint8_t* reset, float* y,
                      float* last, float* saved, int64_t n, float* U) {
    const Inputs x{r, w, k, v, a, b};
    return run(reset, B, T, H, N, threads, false, [&](auto& head, const uint8_t* mine, long at, long i) {
        const long square = N * N;
        if (T == 1 && !saved) head.step(x, at, mine && mine[0], state + i * square, y, last + i * square);
        else head.forward(x, at, H * N, mine, state + i * square, y, last + i * square,
                          saved ? saved + i * (n + 1) * square : nullptr, U ? U + i * T * N : nullptr);
    });
}

int rwkv_wkv7_backward(int64_t B, int64_t T, int64_t H, int64_t N, int threads, const float* r, const float* w, const float* k,
                       const float* v, const float* a, const float* b, const uint8_t* reset, const float* saved, int64_t n,
                       const float* U, const float* dy, const float* dlast, float* dr, float* dw, float* dk, float* dv,
                       float* da, float* db, float* dstate) {
    const Inputs x{r, w, k, v, a, b};
    const Grads d{dr, dw, dk, dv, da, db};
    return run(reset, B, T, H, N, threads, true, [&](auto& head, const uint8_t* mine, long at, long i) {
        const long square = N * N;
        head.backward(x, at, H * N, mine, saved + i * (n + 1) * square, U + i * T * N, dy, dlast ? dlast + i * square : nullptr,
                      d, dstate + i * square);
    });
}
}
