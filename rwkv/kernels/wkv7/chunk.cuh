// What the CUDA kernels of WKV-7 share: a chunk's tokens, its segments and its decays, in a block of four warps of which each owns 16 channels.
#pragma once
#include "../blocks.cuh"

constexpr int C = 32, N = 64, WARPS = 4, SLAB = C * N, SQUARE = N * N, SCORES = C * C;
constexpr float LOG2_DECAY_SCALE = -0.6065306597126334f * 1.4426950408889634f, LN2 = 0.6931471805599453f;

DEVICE float sigmoid(float x) { return reciprocal(1 + exp2_fast(x * -1.4426950408889634f)); }

// Filling tokens get 0: their decay is 1.
DEVICE float log2_decay(float w, bool live) { return (live ? LOG2_DECAY_SCALE : 0) * sigmoid(w); }

// Which chunk of which head is this block's.
struct Place {
    long long tile, stride, token, at;  // of what is kept by chunk and head; from token to token; its first token, and that one's first channel
    int live;  // tokens that are there
    DEVICE Place(int n, int G, int H, int T) {
        const unsigned g = block() % G, c = block() / G;
        tile = (long long)g * n + c, stride = (long long)H * N, token = (long long)(g / H) * T + c * C, at = token * stride + g % H * N;
        live = T - c * C < C ? T - c * C : C;
    }
};

template <int ROWS>
DEVICE void copy_rows(Tile<N> tile, const bf16* from, long long stride, int live) {
    const int row = thread() / 8, column = thread() % 8 * 8;
    from += row * stride + column;
    UNROLL for (int i = 0; i < ROWS; i += 16) copy16(tile.at(row + i, column), from + i * stride, row + i < live);
}

// Of the tokens and this warp's channels: sums of log2 decays, `before` without the token's own. Products with triangles of ones,
// exact but for w, which is two of bf16: its last digit is 2^-17.
DEVICE void sum_decays(Tile<N> w, int own, int live, Sum (&before)[2], Sum (&L)[2]) {
    const int i = row_of_lane(), j = column_of_lane();
    const unsigned one = 0x3f80, ones = one | one << 16, up_to = (i >= j ? one : 0) | (i > j ? one << 16 : 0), below = (i > j ? one : 0) | (i > j + 1 ? one << 16 : 0);
    const Block all = {{ones, ones, ones, ones}}, inclusive = {{up_to, ones, 0, up_to}}, strict = {{below, ones, 0, below}};
    Block high_part[2], low_part[2];
    UNROLL for (int m = 0; m < 2; m++) {
        const Block x = load_transposed(w, 16 * m, own);
        Sum lw;
        UNROLL for (int n = 0; n < 2; n++) UNROLL for (int q = 0; q < 2; q++) {
            const int t = 16 * m + 8 * n + column_of_lane();
            lw.x[n][q][0] = log2_decay(low(x.x[2 * n + q]), t < live), lw.x[n][q][1] = log2_decay(high(x.x[2 * n + q]), t + 1 < live);
        }
        high_part[m] = rounded(lw), low_part[m] = rest(lw, high_part[m]);
    }
    L[0] = before[0] = L[1] = {};
    multiply(L[1], all, high_part[0]), multiply(L[1], all, low_part[0]);
    before[1] = L[1];
    UNROLL for (int m = 0; m < 2; m++) {
        multiply(L[m], inclusive, high_part[m]), multiply(L[m], inclusive, low_part[m]);
        multiply(before[m], strict, high_part[m]), multiply(before[m], strict, low_part[m]);
    }
}

DEVICE unsigned scaled(unsigned x, float s0, float s1) { return pack(low(x) * s0, high(x) * s1); }

DEVICE unsigned until(int t) { return (2u << t) - 1; }  // bits 0 to t

// The segments between resets, as sets of tokens: bit t is token t.
struct Segments {
    unsigned starts, first, last;  // tokens that begin one, those before any, those of the last
    DEVICE Segments(const byte* reset, int live) {
        starts = votes(reset && lane() < live && reset[lane()]);
        first = (starts & -starts) - 1, last = of(C - 1);
    }
    DEVICE unsigned of(int t) const {
        const unsigned later = starts & ~until(t);
        return ((later & -later) - 1) & -1u << highest_bit(starts & until(t) | 1);
    }
    DEVICE unsigned inclusive(int t) const { return of(t) & until(t); }
    DEVICE unsigned strict(int t) const { return of(t) & until(t) >> 1; }
};

// left right^T of tokens in one segment, of which the first comes no earlier than the second, or later if `strict`: what is above the diagonal is nothing.
struct Scores {
    Block x00, x10, x11;  // rows, columns by 16
    DEVICE Scores(Tile<N> left, Tile<N> right, const Segments& segments, bool strict) {
        Sum s00 = {}, s10 = {}, s11 = {};
        UNROLL for (int x = 0; x < N; x += 16) {
            const Block l0 = load(left, 0, x), l1 = load(left, 16, x);
            const Right r0 = load_right(right, 0, x), r1 = load_right(right, 16, x);
            multiply(s00, l0, r0), multiply(s10, l1, r0), multiply(s11, l1, r1);
        }
        auto kept = [&](int t) { return strict ? segments.strict(t) : segments.inclusive(t); };
        mask(s00, 0, 0, kept), mask(s10, 16, 0, kept), mask(s11, 16, 16, kept);
        x00 = rounded(s00), x10 = rounded(s10), x11 = rounded(s11);
    }
    DEVICE void store_to(Tile<C> tile) const { store(tile, 0, 0, x00), store(tile, 16, 0, x10), store(tile, 16, 16, x11); }
};
