// What the compiled recurrences share: vectors, elementwise functions, small products, chunks, scratch, and threads over heads.
// Everything here is static or a template, for each .cpp is a library of its own.

#pragma once

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

constexpr int C = 16;  // tokens of a chunk

// ---- elementwise ----

// exp(x) for x <= 88, within 2 ulp; 0 below -87. With `rest`, what rounding took from it.
template <class F> INLINE F exponential(F x, F* rest = nullptr) {
    using I = typename Like<F>::Ints;
    const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
    F in = x < splat<F>(-87.f) ? splat<F>(-87.f) : x;
    F n = (in * 1.44269504088896341f + magic) - magic;
    F r = in - n * 0.693359375f + n * 2.12194440e-4f;
    F p = r * (1.f / 5040) + (1.f / 720);
    p = p * r + (1.f / 120);
    p = p * r + (1.f / 24);
    p = p * r + (1.f / 6);
    p = p * r + 0.5f;
    p = p * r + 1.f;
    F less = p;
    p = p * r + 1.f;
    I bits = (__builtin_convertvector(n, I) + 127) << 23;
    if (rest) *rest = (less * r + (1.f - p)) * (F)bits;
    return x < splat<F>(-87.f) ? F{} : p * (F)bits;
}

// The log of a decay from its raw parameter, -exp(w), for any w; a sum of two floats, for at -50 one rounds away 2e-6 of the decay.
template <class F> INLINE F log_decay(F w, F& rest) {
    F high = exponential<F>(w > splat<F>(50.f) ? splat<F>(50.f) : w, &rest);
    rest = -rest;
    return -high;
}

// sigmoid(w) and sigmoid(-w), each with all its digits.
template <class F> INLINE void sigmoids(F w, F& pos, F& neg) {
    F e = exponential<F>(w < splat<F>(0.f) ? w : -w);
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

// ---- chunks and scratch ----

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

// The most chunks that a row is cut into.
static long most_chunks(const uint8_t* reset, long B, long T) {
    if (!reset) return (T + C - 1) / C;
    long most = 0;
    for (long i = 0; i < B; i++) {
        const long n = plan(reset + i * T, T, nullptr);
        if (n > most) most = n;
    }
    return most;
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

// ---- every head ----

// fn(head, its row of reset, offset of its first token, its index) for each head; false when memory runs out.
template <template <class, int> class Head, class F, int FIXED, class Fn>
static bool each_head(const uint8_t* reset, long B, long T, long H, long N, long threads, bool backward, const Fn& fn) {
    bool ok = true;
    (void)threads;
#pragma omp parallel for num_threads((int)threads) schedule(dynamic, 1) if (threads > 1)
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

// Returns 0, or 1 when memory runs out.
template <template <class, int> class Head, class Fn>
static int run(const uint8_t* reset, long B, long T, long H, long N, long threads, bool backward, const Fn& fn) {
    bool ok;
    if (B * T * H < 32) threads = 1;  // tens of microseconds: waking others would cost more
    if (N == 64) ok = each_head<Head, Wide, 64>(reset, B, T, H, N, threads, backward, fn);
    else if (N % lanes<Wide> == 0) ok = each_head<Head, Wide, 0>(reset, B, T, H, N, threads, backward, fn);
    else ok = each_head<Head, Narrow, 0>(reset, B, T, H, N, threads, backward, fn);
    return ok ? 0 : 1;
}
