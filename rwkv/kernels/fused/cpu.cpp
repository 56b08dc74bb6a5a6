// What a model computes around its recurrence, in fp32 and in few passes over memory. `cpu.py` builds this file and calls the
// functions at its end.

#include <cmath>

#include "../cpu.h"

// fn(begin, end) for pieces of 0 .. n.
template <class Fn> static void in_pieces(long n, long piece, long threads, const Fn& fn) {
    (void)threads;
#pragma omp parallel for num_threads((int)threads) schedule(static) if (threads > 1 && n > piece)
    for (long begin = 0; begin < n; begin += piece) fn(begin, begin + piece < n ? begin + piece : n);
}

// fn(a vector of x or of what is left, its place, how many numbers) for all n numbers of x; the rest of a last vector is `fill`.
template <class F, class Fn> INLINE void each_vector(const float* x, long n, float fill, const Fn& fn) {
    constexpr int L = lanes<F>;
    long j = 0;
    for (; j + L <= n; j += L) fn(load<F>(x + j), j, L);
    if (j == n) return;
    float rest[L];
    for (int i = 0; i < L; i++) rest[i] = j + i < n ? x[j + i] : fill;
    fn(load<F>(rest), j, (int)(n - j));
}

template <class F> INLINE void store_some(float* p, F x, int count) {
    if (count == lanes<F>) store(p, x);
    else std::memcpy(p, &x, sizeof(float) * count);
}

// Returns -log softmax(x)[target]. With `gradient`, x becomes scale * its gradient, plus `wrap` times the largest where that is.
template <class F> static float cross_entropy_row(float* x, long V, long target, float scale, float wrap, bool gradient) {
    constexpr int L = lanes<F>, BLOCK = 64 * L;  // numbers added up before they join the sum, which rounds
    F tops[4];
    for (F& top : tops) top = splat<F>(-INFINITY);
    each_vector<F>(x, V, -INFINITY, [&](F y, long j, int) {
        F& top = tops[j / L % 4];
        top = y > top ? y : top;
    });
    float top = -INFINITY;
    for (F& of : tops)
        for (int i = 0; i < L; i++) top = of[i] > top ? of[i] : top;
    const float logit = x[target];
    long where = 0;
    if (wrap != 0)
        while (where < V - 1 && x[where] != top) where++;

    float total = 0;
    for (long begin = 0; begin < V; begin += BLOCK) {
        F part = F{};
        const long n = V - begin < BLOCK ? V - begin : BLOCK;
        each_vector<F>(x + begin, n, -INFINITY, [&](F y, long j, int count) {
            F e = exponential<F>(y - top);
            part += e;
            if (gradient) store_some(x + begin + j, e, count);
        });
        total += sum(part);
    }
    if (gradient) {
        const float factor = scale / total;
        each_vector<F>(x, V, 0, [&](F e, long j, int count) { store_some(x + j, e * factor, count); });
        x[target] -= scale;
        if (wrap != 0) x[where] += wrap * top;
    }
    return (float)((double)top - logit + std::log((double)total));
}

extern "C" {

// logits [n, V]; targets, scale, losses [n]; wrap [n] or null; contiguous. Returns 2 where a target is none of the V.
int rwkv_cross_entropy(int64_t n, int64_t V, int64_t threads, float* logits, const int64_t* targets, const float* scale, const float* wrap,
                       int64_t gradient, float* losses) {
    for (long i = 0; i < n; i++)
        if (targets[i] < 0 || targets[i] >= V) return 2;
    in_pieces(n, 8, threads, [&](long begin, long end) {
        for (long i = begin; i < end; i++)
            losses[i] = cross_entropy_row<Wide>(logits + i * V, V, targets[i], scale[i], wrap ? wrap[i] : 0.f, gradient);
    });
    return 0;
}

// y = max(x, 0)^2 of n numbers
int rwkv_relu_squared_forward(int64_t n, int64_t threads, const float* x, float* y) {
    in_pieces(n, 1 << 15, threads, [&](long begin, long end) {
        each_vector<Wide>(x + begin, end - begin, 0, [&](Wide a, long j, int count) {
            Wide positive = a < Wide{} ? Wide{} : a;
            store_some(y + begin + j, positive * positive, count);
        });
    });
    return 0;
}

// dx = 2 max(x, 0) dy
int rwkv_relu_squared_backward(int64_t n, int64_t threads, const float* x, const float* dy, float* dx) {
    in_pieces(n, 1 << 15, threads, [&](long begin, long end) {
        each_vector<Wide>(x + begin, end - begin, 0, [&](Wide a, long j, int count) {
            Wide g;
            if (count == lanes<Wide>) g = load<Wide>(dy + begin + j);
            else std::memcpy(&g, dy + begin + j, sizeof(float) * count);
            store_some(dx + begin + j, (a < Wide{} ? Wide{} : 2.f * a) * g, count);
        });
    });
    return 0;
}
}
