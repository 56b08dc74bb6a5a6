// WKV-4 forward and backward in fp32, for one CPU. `cpu.py` builds this file and calls the functions at its end.
//
// Per channel, with m = aa / bb the mean of the values so far, bb the weight of them all with e^p taken out:
//
//     q = e^(u + k_t - p) / (bb + e^(u + k_t - p))           y_t = m + q (v_t - m)
//     p' = max(p + lw, k_t)    f = e^(p + lw - p') bb    g = e^(k_t - p')    bb' = f + g    m' = m + g / bb' (v_t - m)
//
// p is kept as a sum of two floats, for p + lw rounds the same way token after token. Backwards, with dm' and db' the gradients
// of m' and bb', e = dm' (v - m) / bb'^2:
//
//     df = db' - e g    dg = db' + e f    dv = q dy + dm' g / bb'    dm = (1 - q) dy + dm' f / bb'    dlw = f df
//     s = dy (v - m) q (1 - q)    du = s    dk = s + g dg    db = (f df - s) / bb
//
// in which no large terms cancel, unlike in those of aa and bb.

#include "../cpu.h"

constexpr float EMPTY = -1e38f;  // an exponent whose exp is 0 beside any other

// hi + lo += x, to about twice the digits of a float.
template <class F> INLINE void add(F& hi, F& lo, F x) {
    F sum = hi + x, of_x = sum - hi;
    F rest = lo + ((hi - (sum - of_x)) + (x - of_x));
    hi = sum + rest;
    lo = rest - (hi - sum);
}

// e^a and e^b over the larger of the two, from a - b = hi + lo.
template <class F> INLINE void ratios(F hi, F lo, F& of_a, F& of_b) {
    const auto first = hi > F{};
    F small = exponential<F>(first ? -hi : hi) * (1.f + (first ? -lo : lo));
    of_a = first ? splat<F>(1.f) : small;
    of_b = first ? small : splat<F>(1.f);
}

template <class F> struct State {
    F m, bb, hi, lo;

    INLINE void clear() { m = bb = lo = F{}, hi = splat<F>(EMPTY); }
    // from and to [3, channels]: aa, bb, p
    INLINE void read(const float* from, long channels) {
        bb = load<F>(from + channels);
        const auto some = bb > F{};
        m = some ? load<F>(from) / bb : F{};
        hi = some ? load<F>(from + 2 * channels) : splat<F>(EMPTY);
        lo = F{};
    }
    INLINE void write(float* to, long channels) const {
        F scaled = bb * exponential<F>(lo);
        store(to, m * scaled), store(to + channels, scaled), store(to + 2 * channels, hi);
    }
};

struct Inputs {
    const float *w, *u, *k, *v;
};

// What the channels of one vector have in common for all tokens.
template <class F> struct Channel {
    F lw, rest, u;  // lw + rest: the log of the decay
    INLINE void read(const Inputs& x, long o) { lw = log_decay<F>(load<F>(x.w + o), rest), u = load<F>(x.u + o); }
};

// What a token does to a state, kept for its backward.
template <class F> struct Token {
    F m, bb, q, rest, f, g;  // m and bb before it; rest = 1 - q

    // Advances s; returns y.
    INLINE F forward(State<F>& s, const Channel<F>& c, F k, F v) {
        m = s.m, bb = s.bb;
        F old, now, hi = s.hi, lo = s.lo;
        add<F>(hi, lo, -c.u);
        add<F>(hi, lo, -k);
        ratios<F>(hi, lo, old, now);
        old *= bb;
        F inv = 1.f / (old + now);
        q = now * inv, rest = old * inv;
        F y = m + q * (v - m);

        s.lo += c.rest;
        add<F>(s.hi, s.lo, c.lw);
        hi = s.hi, lo = s.lo;
        add<F>(hi, lo, -k);
        ratios<F>(hi, lo, f, g);
        f *= bb;
        const auto keep = hi > F{};
        s.hi = keep ? s.hi : k, s.lo = keep ? s.lo : F{};
        s.bb = f + g;
        s.m = m + g / s.bb * (v - m);
        return y;
    }

    // dm, db: gradients of the state after the token on entry, before it on return; dlw and du are added to.
    INLINE void backward(F v, F dy, F& dm, F& db, F& dk, F& dv, F& dlw, F& du) const {
        F inv = 1.f / (f + g), away = v - m, e = dm * away * inv * inv;
        F df = db - e * g, dg = db + e * f, s = dy * away * q * rest;
        dv = q * dy + dm * g * inv;
        dk = s + g * dg;
        du += s;
        dlw += f * df;
        dm = rest * dy + dm * f * inv;
        db = bb > F{} ? (f * df - s) / bb : F{};
    }
};

// NV vectors of one row's channels. stride: all channels; every pointer is at the first of these.
template <class F, int NV> struct Channels {
    static constexpr int L = lanes<F>;

    static INLINE bool fresh(const uint8_t* reset, long t) { return reset && reset[t]; }

    // saved: the state before each chunk [n, 4, channels], or null.
    static void forward(const Inputs& x, long T, long stride, const uint8_t* reset, const float* state, float* y, float* last,
                        float* saved) {
        Channel<F> c[NV];
        State<F> s[NV];
        for (int m = 0; m < NV; m++) {
            c[m].read(x, m * L);
            s[m].read(state + m * L, stride);
        }
        for (long t = 0; t < T; t++)
            for (int m = 0; m < NV; m++) {
                const long o = t * stride + m * L;
                if (fresh(reset, t)) s[m].clear();
                if (saved && t % C == 0) std::memcpy(saved + (t / C * stride + m * L) * 4, &s[m], sizeof s[m]);
                Token<F> token;
                store(y + o, token.forward(s[m], c[m], load<F>(x.k + o), load<F>(x.v + o)));
            }
        for (int m = 0; m < NV; m++) s[m].write(last + m * L, stride);
    }

    // dlast may be null (zero). dw, du [channels] of this row alone.
    static void backward(const Inputs& x, long T, long stride, const uint8_t* reset, const float* state, const float* saved,
                         const float* last, const float* dy, const float* dlast, float* dw, float* du, float* dk, float* dv,
                         float* dstate) {
        Channel<F> c[NV];
        F dm[NV], db[NV], sum_w[NV], sum_u[NV];
        for (int m = 0; m < NV; m++) {
            const long o = m * L;
            c[m].read(x, o);
            dm[m] = db[m] = sum_w[m] = sum_u[m] = F{};
            if (!dlast) continue;
            F aa = load<F>(last + o), bb = load<F>(last + stride + o), daa = load<F>(dlast + o);  // aa = m bb
            dm[m] = daa * bb;
            db[m] = load<F>(dlast + stride + o) + daa * (aa / bb);
        }
        for (long begin = (T - 1) / C * C; begin >= 0; begin -= C) {
            const int count = (int)(T - begin < C ? T - begin : C);
            Token<F> tokens[C][NV];
            State<F> s[NV];
            F dlw_here[NV], du_here[NV];
            for (int m = 0; m < NV; m++) {
                std::memcpy(&s[m], saved + (begin * stride / C + m * L) * 4, sizeof s[m]);
                dlw_here[m] = du_here[m] = F{};
            }
            for (int i = 0; i < count; i++)
                for (int m = 0; m < NV; m++) {
                    const long o = (begin + i) * stride + m * L;
                    if (fresh(reset, begin + i)) s[m].clear();
                    tokens[i][m].forward(s[m], c[m], load<F>(x.k + o), load<F>(x.v + o));
                }
            for (int i = count - 1; i >= 0; i--)
                for (int m = 0; m < NV; m++) {
                    const long o = (begin + i) * stride + m * L;
                    F dk_t, dv_t;
                    tokens[i][m].backward(load<F>(x.v + o), load<F>(dy + o), dm[m], db[m], dk_t, dv_t, dlw_here[m], du_here[m]);
                    store(dk + o, dk_t), store(dv + o, dv_t);
                }
            for (int m = 0; m < NV; m++) sum_w[m] += dlw_here[m], sum_u[m] += du_here[m];
        }
        for (int m = 0; m < NV; m++) {
            const long o = m * L;
            store(dw + o, sum_w[m] * c[m].lw), store(du + o, sum_u[m]);
            F aa = load<F>(state + o), bb = load<F>(state + stride + o);
            const auto some = bb > F{};
            F mean = some ? aa / bb : F{};
            F daa = some ? dm[m] / bb : F{}, dbb = some ? db[m] - daa * mean : F{};
            store(dstate + o, daa), store(dstate + stride + o, dbb);
            store(dstate + 2 * stride + o, aa * daa + bb * dbb);  // of p
        }
    }
};

// fn(a Channels, row, first channel) for each block of channels.
template <class F, class Fn> static void each_block(long B, long channels, long threads, const Fn& fn) {
    constexpr int L = lanes<F>, NV = 2;
    const long blocks = (channels + NV * L - 1) / (NV * L);
    (void)threads;
#pragma omp parallel for num_threads((int)threads) schedule(dynamic, 1) if (threads > 1)
    for (long i = 0; i < B * blocks; i++) {
        const long row = i / blocks, channel = i % blocks * NV * L;
        if (channel + NV * L <= channels) fn(Channels<F, NV>(), row, channel);
        else fn(Channels<F, 1>(), row, channel);
    }
}

template <class Fn> static void run(long B, long T, long channels, long threads, const Fn& fn) {
    if (B * T * channels < 2048) threads = 1;  // tens of microseconds: waking others would cost more
    if (channels % lanes<Wide> == 0) each_block<Wide>(B, channels, threads, fn);
    else each_block<Narrow>(B, channels, threads, fn);
}

// w, u [N]; k, v, y, dy and their gradients [B, T, N]; states [B, 3, N]; dw, du [B, N]; reset [B, T] or null; all contiguous.
// saved [B, ceil(T / 16), 4, N]; null when no gradient is wanted. Both functions return 0.
extern "C" {

int rwkv_wkv4_forward(int64_t B, int64_t T, int64_t N, int64_t threads, const float* w, const float* u, const float* k, const float* v,
                      const float* state, const uint8_t* reset, float* y, float* last, float* saved) {
    run(B, T, N, threads, [&](auto channels, long row, long c) {
        const long at = row * T * N + c;
        channels.forward({w + c, u + c, k + at, v + at}, T, N, reset ? reset + row * T : nullptr, state + row * 3 * N + c, y + at,
                         last + row * 3 * N + c, saved ? saved + row * ((T + C - 1) / C) * 4 * N + 4 * c : nullptr);
    });
    return 0;
}

int rwkv_wkv4_backward(int64_t B, int64_t T, int64_t N, int64_t threads, const float* w, const float* u, const float* k, const float* v,
                       const float* state, const uint8_t* reset, const float* saved, const float* last, const float* dy,
                       const float* dlast, float* dw, float* du, float* dk, float* dv, float* dstate) {
    run(B, T, N, threads, [&](auto channels, long row, long c) {
        const long at = row * T * N + c, s = row * 3 * N + c;
        channels.backward({w + c, u + c, k + at, v + at}, T, N, reset ? reset + row * T : nullptr, state + s,
                          saved + row * ((T + C - 1) / C) * 4 * N + 4 * c, last + s, dy + at, dlast ? dlast + s : nullptr, dw + row * N + c,
                          du + row * N + c, dk + at, dv + at, dstate + s);
    });
    return 0;
}
}
