// WKV-6 forward and backward in fp32, for one CPU, and WKV-5, whose decay is that of every token. `cpu.py` builds this file and
// calls the functions at its end.
//
// Matmul form in chunks of C tokens, one head at a time. With w the decays of the chunk, lw their logs, D_ti the product of
// those strictly between the tokens i and t, S0 the state before the chunk,
//
//     before_t = w_1 ... w_{t-1}    after_i = w_{i+1} ... w_C    W = w_1 ... w_C    Rs = r before    Ke = k after
//     A_ti = sum r_t k_i D_ti for i < t,   A_tt = sum r_t u k_t
//     Y = Rs S0^T + A V    S_C = S0 diag(W) + V^T Ke
//
// and backwards, with G = dL/dS_C:
//
//     dA = dY V^T    dRs = dY S0    dKe = V G    dV = Ke G^T + A^T dY    dS0 = G diag(W) + dY^T Rs
//     dr_t = dRs_t before_t + sum_{i<t} dA_ti k_i D_ti + dA_tt u k_t
//     dk_i = dKe_i after_i + sum_{t>i} dA_ti r_t D_ti + dA_ii u r_i        du = sum_t dA_tt r_t k_t
//     dlw_s = W colsum(G S0) + sum_{t>s} Rs_t dRs_t + sum_{i<s} Ke_i dKe_i + sum_{i<s<t} dA_ti r_t k_i D_ti
//
// Decays may be anything from 1 to 0, so no product of them is ever divided by another: D is formed pair by pair.
// A reset ends the chunk before it. "key-major" is S[k][v], "value-major" S[v][k].

#include "../cpu.h"

struct Inputs {
    const float *r, *w, *k, *v;
    long w_stride;  // of w from token to token: 0 where all have the same
};
struct Grads {
    float *r, *w, *k, *v;
};

template <class F, int FIXED> struct Head {
    static constexpr int L = lanes<F>, NV = L == 16 ? 4 : 2;  // NV: vectors held for a pair of tokens
    const int any_n;
    INLINE int N() const { return FIXED ? FIXED : any_n; }

    int32_t* starts;
    long chunks;
    float *R, *K, *V, *D, *Rs, *Ke, *P, *A, *W, *S0, *SC;
    float *lw, *before, *after, *dY, *Vt, *dRs, *dKe, *dR, *dK, *dlw, *dA, *h, *G, *Gk;

    Head(int n, const uint8_t* reset, long T, bool backward) : any_n(n) {
        chunks = plan(reset, T, nullptr);
        const size_t rows = (size_t)C * n, square = (size_t)n * n;
        arena.reserve((chunks + 1) * 4 + 4 * (17 * rows + 4 * square + 2 * C * C + 2 * n) + 32 * 64);
        auto take = [](size_t count) { return arena.take<float>(count); };
        starts = arena.take<int32_t>(chunks + 1);
        plan(reset, T, starts);
        R = take(rows), K = take(rows), V = take(rows), D = take(rows), Rs = take(rows), Ke = take(rows), P = take(rows);
        A = take(C * C), W = take(n), S0 = take(square), SC = take(square);
        if (!backward) return;
        lw = take(rows), before = take(rows), after = take(rows), dY = take(rows), Vt = take(rows);
        dRs = take(rows), dKe = take(rows), dR = take(rows), dK = take(rows), dlw = take(rows);
        dA = take(C * C), h = take(n), G = take(square), Gk = take(square);
    }

    // The chunk's inputs side by side, the decays folded into Rs and Ke. Returns the rows, a multiple of 8, those added zero.
    template <bool BACKWARD> INLINE int prepare(const Inputs& x, long at, const float* w, long stride, int count) {
        const int n = N(), rows = (count + 7) / 8 * 8;
        for (int j = 0; j < n; j += L) {
            F run = splat<F>(1.f), total = F{}, rests = F{};
            for (int t = 0; t < count; t++) {
                const long o = at + t * stride + j;
                const int to = t * n + j;
                F r = load<F>(x.r + o), rest, log_w = log_decay<F>(load<F>(w + t * x.w_stride + j), rest);
                F decay = exponential<F>(log_w) * (1.f + rest);
                store(R + to, r), store(K + to, load<F>(x.k + o)), store(V + to, load<F>(x.v + o));
                store(D + to, decay);
                store(Rs + to, r * run);
                if (BACKWARD) store(lw + to, log_w), store(before + to, run);
                run *= decay;
                total += log_w, rests += rest;
            }
            store(W + j, exponential<F>(total) * (1.f + rests));
            run = splat<F>(1.f);
            for (int to = (count - 1) * n + j; to >= 0; to -= n) {
                store(Ke + to, load<F>(K + to) * run);
                if (BACKWARD) store(after + to, run);
                run *= load<F>(D + to);
            }
        }
        for (float* stack : {V, Rs, Ke}) std::memset(stack + count * n, 0, sizeof(float) * (rows - count) * n);
        return rows;
    }

    // A, from NV vectors of every token at a time.
    template <int NV> INLINE void scores(const float* u, int col, int count) {
        const int n = N();
        for (int i = 0; i < count; i++) {
            F kd[NV], s = F{};
            for (int m = 0; m < NV; m++) {
                const int j = col + m * L;
                kd[m] = load<F>(K + i * n + j);
                s += load<F>(R + i * n + j) * load<F>(u + j) * kd[m];
            }
            A[i * C + i] += sum(s);
            for (int t = i + 1; t < count; t++) {
                s = F{};
                for (int m = 0; m < NV; m++) {
                    const int o = t * n + col + m * L;
                    s += load<F>(R + o) * kd[m];
                    kd[m] *= load<F>(D + o);
                }
                A[t * C + i] += sum(s);
            }
        }
    }

    // What flows through A into r, k and the decays between: dR, dK, dlw.
    template <int NV> INLINE void pairs(int col, int count) {
        const int n = N();
        for (int i = 0; i < count; i++) {
            F kd[NV], d[NV], dk[NV], inside[NV];
            for (int m = 0; m < NV; m++) {
                kd[m] = load<F>(K + i * n + col + m * L);
                d[m] = splat<F>(1.f), dk[m] = F{}, inside[m] = F{};
            }
            for (int t = i + 1; t < count; t++) {
                const float da = dA[t * C + i];
                for (int m = 0; m < NV; m++) {
                    const int o = t * n + col + m * L;
                    F r = load<F>(R + o), decay = load<F>(D + o);
                    F dr = load<F>(dR + o) + da * kd[m];
                    store(dR + o, dr);
                    dk[m] += da * (r * d[m]);
                    if (t > i + 1) inside[m] += r * dr;  // dR_t is so far that of tokens up to i: pairs around i + 1
                    kd[m] *= decay;
                    d[m] *= decay;
                }
            }
            for (int m = 0; m < NV; m++) {
                const int o = i * n + col + m * L;
                store(dK + o, dk[m]);
                if (i + 1 < count) store(dlw + o + n, inside[m]);
            }
        }
    }

    template <class Fn, class One> INLINE void columns(const Fn& wide, const One& narrow) {
        int col = 0;
        for (; col + NV * L <= N(); col += NV * L) wide(col);
        for (; col < N(); col += L) narrow(col);
    }

    INLINE void all_scores(const float* u, int count) {
        std::memset(A, 0, sizeof(float) * C * C);
        columns([&](int col) { scores<NV>(u, col, count); }, [&](int col) { scores<1>(u, col, count); });
    }

    INLINE void prefetch(const float* rows, long stride, int count) {
        for (int t = 0; t < count; t++)
            for (int j = 0; j < N(); j += 16) __builtin_prefetch(rows + t * stride + j, 0, 2);
    }
    // Rows of the next chunk: heads lie side by side in memory, so the hardware does not see them coming.
    INLINE void prefetch(const Inputs& x, long at, const float* w, long stride, int count) {
        for (const float* p : {x.r, x.k, x.v}) prefetch(p + at, stride, count);
        if (x.w_stride) prefetch(w, stride, count);
    }

    INLINE void forward_chunk(const Inputs& x, const float* u, long at, const float* w, long stride, int count, const float* S,
                              float* S_after, float* y) {
        const int n = N(), rows = prepare<false>(x, at, w, stride, count);
        all_scores(u, count);
        product<F>(rows, n, P, n, nullptr, nullptr, Pair{Rs, n, 1, S, n, n});
        for (int t = 0; t < count; t++)
            for (int j = 0; j < n; j += L) {
                F out = load<F>(P + t * n + j);
                for (int i = 0; i <= t; i++) out += A[t * C + i] * load<F>(V + i * n + j);
                store(y + at + t * stride + j, out);
            }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j += L) store(S_after + i * n + j, W[i] * load<F>(S + i * n + j));
        product<F>(n, n, S_after, n, S_after, nullptr, Pair{Ke, 1, n, V, n, count});
    }

    // saved: chunks + 1 key-major states, or null; then two scratch states take turns. state, last: value-major.
    void forward(const Inputs& x, const float* u, long at, const float* w, long stride, const uint8_t* reset, const float* state,
                 float* y, float* last, float* saved) {
        const int n = N();
        const long square = (long)n * n;
        auto S = [&](long c) { return saved ? saved + c * square : (c % 2 ? SC : S0); };
        transpose(state, n, S(0), n, n, n);
        for (long c = 0; c < chunks; c++) {
            const long t = starts[c], next = starts[c + 1];
            if (reset && reset[t]) std::memset(S(c), 0, sizeof(float) * square);
            if (c + 1 < chunks) prefetch(x, at + next * stride, w + next * x.w_stride, stride, starts[c + 2] - next);
            forward_chunk(x, u, at + t * stride, w + t * x.w_stride, stride, next - t, S(c), S(c + 1), y);
        }
        transpose(S(chunks), n, last, n, n, n);
    }

    // G: dL/dS after the chunk on entry, before it on return. S0: the state before, value-major. dw: of the chunk, or of all
    // tokens where they share one; du, and then dw, are added to.
    INLINE void backward_chunk(const Inputs& x, const float* u, const float* dy, const Grads& d, float* dw, float* du, long at,
                               const float* w, long stride, int count) {
        const int n = N(), rows = prepare<true>(x, at, w, stride, count);
        for (int t = 0; t < count; t++) std::memcpy(dY + t * n, dy + at + t * stride, sizeof(float) * n);
        std::memset(dY + count * n, 0, sizeof(float) * (rows - count) * n);
        all_scores(u, count);

        transpose(V, n, Vt, C, rows, n);
        product<F>(rows, C, dA, C, nullptr, nullptr, Pair{dY, n, 1, Vt, C, n});
        product<F>(rows, n, dRs, n, nullptr, nullptr, Pair{dY, n, 1, S0, n, n});
        product<F>(rows, n, dKe, n, nullptr, nullptr, Pair{V, n, 1, G, n, n});
        transpose(G, n, Gk, n, n, n);
        product<F>(rows, n, P, n, nullptr, nullptr, Pair{Ke, n, 1, Gk, n, n});
        for (int i = 0; i < count; i++)
            for (int j = 0; j < n; j += L) {
                F out = load<F>(P + i * n + j);
                for (int t = i; t < count; t++) out += A[t * C + i] * load<F>(dY + t * n + j);
                store(d.v + at + i * stride + j, out);
            }

        for (int j = 0; j < n; j += L) {
            F sum = F{}, decay = load<F>(W + j);
            for (int i = 0; i < n; i++) {
                F scaled = load<F>(G + i * n + j) * decay;
                sum += scaled * load<F>(S0 + i * n + j);
                store(G + i * n + j, scaled);
            }
            store(h + j, sum);
        }
        product<F>(n, n, G, n, G, nullptr, Pair{dY, 1, n, Rs, n, count});

        std::memset(dR, 0, sizeof(float) * count * n);
        std::memset(dlw, 0, sizeof(float) * n);
        columns([&](int col) { pairs<NV>(col, count); }, [&](int col) { pairs<1>(col, count); });

        for (int j = 0; j < n; j += L) {
            F earlier = F{}, later = load<F>(h + j), bonus = load<F>(u + j), sum_u = load<F>(du + j);
            F sum_w = x.w_stride ? F{} : load<F>(dw + j);
            for (int o = j; o < count * n; o += n) {
                store(dlw + o, load<F>(dlw + o) + earlier);
                earlier += load<F>(Ke + o) * load<F>(dKe + o);
            }
            for (int t = count - 1; t >= 0; t--) {
                const int o = t * n + j;
                const long to = at + t * stride + j;
                F r = load<F>(R + o), k = load<F>(K + o), dr = load<F>(dRs + o), own = splat<F>(dA[t * C + t]);
                F grad = (load<F>(dlw + o) + later) * load<F>(lw + o);
                later += load<F>(Rs + o) * dr;
                if (x.w_stride) store(dw + t * stride + j, grad);
                else sum_w += grad;
                store(d.r + to, dr * load<F>(before + o) + load<F>(dR + o) + own * bonus * k);
                store(d.k + to, load<F>(dKe + o) * load<F>(after + o) + load<F>(dK + o) + own * bonus * r);
                sum_u += own * r * k;
            }
            store(du + j, sum_u);
            if (!x.w_stride) store(dw + j, sum_w);
        }
    }

    // dlast may be null (zero). dstate: value-major. du [N], and dw [N] where all tokens share one, are overwritten.
    void backward(const Inputs& x, const float* u, long at, const float* w, long stride, const uint8_t* reset, const float* saved,
                  const float* dy, const float* dlast, const Grads& d, float* dw, float* du, float* dstate) {
        const int n = N();
        const long square = (long)n * n;
        if (dlast) std::memcpy(G, dlast, sizeof(float) * square);
        else std::memset(G, 0, sizeof(float) * square);
        std::memset(du, 0, sizeof(float) * n);
        if (!x.w_stride) std::memset(dw, 0, sizeof(float) * n);
        for (long c = chunks - 1; c >= 0; c--) {
            const long t = starts[c];
            transpose(saved + c * square, n, S0, n, n, n);
            if (c > 0) {
                const long next = starts[c - 1], count = t - next;
                prefetch(x, at + next * stride, w + next * x.w_stride, stride, count);
                prefetch(dy + at + next * stride, stride, count);
                prefetch(saved + (c - 1) * square, n, n);
            }
            backward_chunk(x, u, dy, d, dw + t * x.w_stride, du, at + t * stride, w + t * x.w_stride, stride, starts[c + 1] - t);
            if (reset && reset[t]) std::memset(G, 0, sizeof(float) * square);
        }
        std::memcpy(dstate, G, sizeof(float) * square);
    }

    // One token, state to last, both value-major.
    void step(const Inputs& x, const float* u, long at, const float* w, bool reset, const float* state, float* y, float* last) {
        const int n = N();
        const float *r = x.r + at, *k = x.k + at;
        F dot = F{};
        for (int j = 0; j < n; j += L) {
            F rest, log_w = log_decay<F>(load<F>(w + j), rest);
            store(W + j, exponential<F>(log_w) * (1.f + rest));
            dot += load<F>(r + j) * load<F>(u + j) * load<F>(k + j);
        }
        const float own = sum(dot);
        for (int i = 0; i < n; i++) {
            const float* from = state + (long)i * n;
            F out = F{};
            const float v = x.v[at + i];
            for (int j = 0; j < n; j += L) {
                F S = reset ? F{} : load<F>(from + j);
                out += S * load<F>(r + j);
                store(last + (long)i * n + j, S * load<F>(W + j) + v * load<F>(k + j));
            }
            y[at + i] = sum(out) + own * v;
        }
    }
};

// r, k, v, y, dy and their gradients [B, T, H, N]; w and dw too if `each` (a decay for each token), else w [H, N] and dw
// [B, H, N]; u [H, N]; du [B, H, N]; states [B, H, N, N] value-major; reset [B, T] or null; all contiguous.
// saved [B * H, n + 1, N, N] with n = rwkv_wkv6_chunks(...); null when no gradient is wanted.
// Both functions return 0, or 1 when memory runs out.
extern "C" {

int64_t rwkv_wkv6_chunks(const uint8_t* reset, int64_t B, int64_t T) { return most_chunks(reset, B, T); }

int rwkv_wkv6_forward(int64_t B, int64_t T, int64_t H, int64_t N, int64_t threads, int64_t each, const float* r, const float* w,
                      const float* k, const float* v, const float* u, const float* state, const uint8_t* reset, float* y,
                      float* last, float* saved, int64_t n) {
    const Inputs x{r, w, k, v, each ? H * N : 0};
    return run<Head>(reset, B, T, H, N, threads, false, [&](auto& head, const uint8_t* mine, long at, long i) {
        const long square = N * N, channel = i % H * N;
        const float* decay = w + (each ? at : channel);
        if (T == 1 && !saved) head.step(x, u + channel, at, decay, mine && mine[0], state + i * square, y, last + i * square);
        else head.forward(x, u + channel, at, decay, H * N, mine, state + i * square, y, last + i * square,
                          saved ? saved + i * (n + 1) * square : nullptr);
    });
}

int rwkv_wkv6_backward(int64_t B, int64_t T, int64_t H, int64_t N, int64_t threads, int64_t each, const float* r, const float* w,
                       const float* k, const float* v, const float* u, const uint8_t* reset, const float* saved, int64_t n,
                       const float* dy, const float* dlast, float* dr, float* dw, float* dk, float* dv, float* du, float* dstate) {
    const Inputs x{r, w, k, v, each ? H * N : 0};
    const Grads d{dr, dw, dk, dv};
    return run<Head>(reset, B, T, H, N, threads, true, [&](auto& head, const uint8_t* mine, long at, long i) {
        const long square = N * N, channel = i % H * N;
        head.backward(x, u + channel, at, w + (each ? at : channel), H * N, mine, saved + i * (n + 1) * square, dy,
                      dlast ? dlast + i * square : nullptr, d, dw + (each ? at : i * N), du + i * N, dstate + i * square);
    });
}
}
