// rwkv/kernels/warp.cuh on a CPU: each thread of a block is a fiber, and what threads do together waits for all of them.
// Compile a .cu file with g++ -include this; EMULATED(kernel), which the test adds, makes kernel_emulated(blocks, threads, shared, arguments).
// A block's shared memory holds NaN before it starts, and must beyond `shared` bytes when it ends; copies in the background land as late as they may.
#define RWKV_WARP

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define DEVICE inline
#define KERNEL(threads, blocks_a_multiprocessor) extern "C" void
#define UNROLL

typedef unsigned short bf16;
typedef unsigned char byte;
struct alignas(8) Eight {
    unsigned x[2];
};
struct alignas(16) Sixteen {
    unsigned x[4];
};

namespace emulated {

constexpr int MOST = 1024, SHARED = 228 * 1024;

struct Meeting {
    int arrived = 0, number = 0;
};
struct Copy {
    void* to;
    const void* from;
    bool live;
};
struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done;
    std::vector<std::vector<Copy>> copies;
};

inline Fiber fibers[MOST];
inline ucontext_t scheduler;
inline int now, threads, shared_bytes, events;
inline long long block_now;
inline Meeting warps[MOST / 32], whole;
inline uint64_t board[MOST][8];  // what a thread shows to its warp
alignas(128) inline byte memory[SHARED];
inline std::function<void()> body;

inline void meet(Meeting& meeting, int size) {
    const int number = meeting.number;
    events++;
    if (++meeting.arrived == size) meeting.arrived = 0, meeting.number++;
    while (meeting.number == number) swapcontext(&fibers[now].context, &scheduler);
}
inline void meet_warp() { meet(warps[now / 32], 32); }
inline uint64_t* of_lane(int lane) { return board[now / 32 * 32 + lane]; }

// Shows x to the warp, reads what `read` wants of the others', and lets nobody go on before all have read.
template <class T, class Read>
auto shown(const T& x, Read read) {
    static_assert(sizeof(T) <= sizeof(board[0]), "");
    std::memcpy(board[now], &x, sizeof(T));
    meet_warp();
    auto result = read();
    meet_warp();
    return result;
}
template <class T>
T shown_by(int lane) {
    T x;
    std::memcpy(&x, of_lane(lane), sizeof(T));
    return x;
}

inline void enter() {
    body();
    fibers[now].done = true;
    events++;
    swapcontext(&fibers[now].context, &scheduler);
}

inline void run_block() {
    std::memset(memory, 0xff, SHARED);
    for (int i = 0; i < threads; i++) {
        Fiber& f = fibers[i];
        f.stack.resize(1 << 16), f.done = false, f.copies.assign(1, {});
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data(), f.context.uc_stack.ss_size = f.stack.size(), f.context.uc_link = nullptr;
        makecontext(&f.context, enter, 0);
    }
    // one warp goes as far as it can before the next may: where a barrier is missing, it meets what the others have not done
    for (int left = threads, warps = (threads + 31) / 32; left;) {
        const int before = events;
        for (int i = 0; i < warps; i++) {
            const int first = (block_now % 2 ? warps - 1 - i : i) * 32;
            for (int seen = -1; seen != events;) {
                seen = events;
                for (now = first; now < std::min(first + 32, threads); now++) {
                    if (fibers[now].done) continue;
                    swapcontext(&scheduler, &fibers[now].context);
                    left -= fibers[now].done;
                }
            }
        }
        if (left && events == before) std::fprintf(stderr, "block %lld: threads wait for others that never come\n", block_now), std::abort();
    }
    if (std::any_of(memory + shared_bytes, memory + SHARED, [](byte x) { return x != 0xff; }))
        std::fprintf(stderr, "block %lld: writes beyond its %d bytes of shared memory\n", block_now, shared_bytes), std::abort();
}

template <class... A, size_t... i>
void run(void (*kernel)(A...), long long blocks, int size, int shared, void** arguments, std::index_sequence<i...>) {
    threads = size, shared_bytes = shared;
    body = [=] { kernel(*(A*)arguments[i]...); };
    for (block_now = 0; block_now < blocks; block_now++) run_block();
}
template <class... A>
void run(void (*kernel)(A...), long long blocks, int size, int shared, void** arguments) {
    run(kernel, blocks, size, shared, arguments, std::index_sequence_for<A...>());
}

inline float of_bits(uint32_t x) {
    float y;
    std::memcpy(&y, &x, 4);
    return y;
}
inline uint32_t bits_of(float y) {
    uint32_t x;
    std::memcpy(&x, &y, 4);
    return x;
}
inline unsigned rounded(float y) {
    const uint32_t x = bits_of(y);
    return std::isnan(y) ? 0x7fff : (x + 0x7fff + (x >> 16 & 1)) >> 16;
}

// fp16 by hand, for a compiler need not know it: subnormal below 2^-14, infinite from 65520.
inline float of_fp16(unsigned x) {
    const int exponent = x >> 10 & 31, digits = x & 1023;
    const float size = exponent == 31 ? (digits ? NAN : INFINITY) : exponent ? std::ldexp(1024 + digits, exponent - 25) : std::ldexp(digits, -24);
    return x & 0x8000 ? -size : size;
}
inline unsigned rounded_fp16(float y) {
    const unsigned sign = bits_of(y) >> 16 & 0x8000;
    const float size = std::fabs(y);
    if (std::isnan(y)) return 0x7fff;
    if (size >= 65520) return sign | 0x7c00;
    const int exponent = size < 6.103515625e-05f ? -14 : std::ilogb(size);
    const unsigned units = std::nearbyint(std::ldexp(size, 10 - exponent));  // to even; 2048 is the next exponent's 1024
    return sign | (units + (exponent + 14) * 1024);
}

}  // namespace emulated

#define EMULATED(kernel) \
    extern "C" void kernel##_emulated(long long blocks, int threads, int shared, void** arguments) { emulated::run(kernel, blocks, threads, shared, arguments); }

DEVICE int thread() { return emulated::now; }
DEVICE unsigned block() { return emulated::block_now; }
DEVICE byte* shared_memory() { return emulated::memory; }
typedef uintptr_t Address;
DEVICE Address address(const void* shared) { return (Address)shared; }
DEVICE void block_barrier() { emulated::meet(emulated::whole, emulated::threads); }
DEVICE void warp_barrier() { emulated::meet_warp(); }

DEVICE void copy16(void* shared, const void* global, bool live) { emulated::fibers[emulated::now].copies.back().push_back({shared, global, live}); }
DEVICE void copies_begun() { emulated::fibers[emulated::now].copies.emplace_back(); }
template <int n>
DEVICE void copies_done() {
    auto& groups = emulated::fibers[emulated::now].copies;
    while ((int)groups.size() - 1 > n) {
        for (auto& c : groups.front()) c.live ? std::memcpy(c.to, c.from, 16) : std::memset(c.to, 0, 16);
        groups.erase(groups.begin());
    }
}

DEVICE void load_8x8(unsigned (&x)[4], Address row) {
    const int lane = thread() % 32;
    emulated::shown(row, [&] {
        for (int i = 0; i < 4; i++) std::memcpy(&x[i], (const bf16*)emulated::shown_by<Address>(8 * i + lane / 4) + lane % 4 * 2, 4);
        return 0;
    });
}
DEVICE void load_8x8_transposed(unsigned (&x)[4], Address row) {
    const int lane = thread() % 32;
    emulated::shown(row, [&] {
        for (int i = 0; i < 4; i++) {
            auto at = [&](int j) -> unsigned { return ((const bf16*)emulated::shown_by<Address>(8 * i + lane % 4 * 2 + j))[lane / 4]; };
            x[i] = at(0) | at(1) << 16;
        }
        return 0;
    });
}
DEVICE unsigned transposed_8x8(unsigned x) {
    const int lane = thread() % 32;
    return emulated::shown(x, [&] {
        auto at = [&](int j) { return emulated::shown_by<unsigned>((lane % 4 * 2 + j) * 4 + lane / 8) >> lane / 4 % 2 * 16 & 0xffff; };
        return at(0) | at(1) << 16;
    });
}
#ifdef STORES_8X8
DEVICE void store_8x8(Address row, const unsigned (&x)[4]) {
    const int lane = thread() % 32;
    emulated::shown(row, [&] {
        for (int i = 0; i < 4; i++) std::memcpy((bf16*)emulated::shown_by<Address>(8 * i + lane / 4) + lane % 4 * 2, &x[i], 4);
        return 0;
    });
}
#endif

template <class Half>
void mma_of(Half of_half, float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    struct Shown {
        unsigned a[4], b[2];
    } mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
    const int lane = thread() % 32;
    emulated::shown(mine, [&] {
        auto part = [&](unsigned x, int k) { return of_half(k % 2 ? x >> 16 : x & 0xffff); };
        for (int e = 0; e < 4; e++) {
            const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
            float sum = 0;
            for (int k = 0; k < 16; k++) {
                const unsigned left = emulated::shown_by<Shown>(row % 8 * 4 + k % 8 / 2).a[row / 8 + k / 8 * 2];
                const unsigned right = emulated::shown_by<Shown>(column * 4 + k % 8 / 2).b[k / 8];
                sum += part(left, k) * part(right, k);
            }
            d[e] += sum;
        }
        return 0;
    });
}

DEVICE void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    mma_of([](unsigned x) { return emulated::of_bits(x << 16); }, d, a, b0, b1);
}
DEVICE void mma_16x8x16_fp16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) { mma_of(emulated::of_fp16, d, a, b0, b1); }

DEVICE float from_lane(float x, int lane) {
    return emulated::shown(x, [&] { return emulated::shown_by<float>(lane); });
}
DEVICE float from_lane_xor(float x, int mask) {
    const int lane = thread() % 32;
    return emulated::shown(x, [&] { return emulated::shown_by<float>(lane ^ mask); });
}
DEVICE unsigned votes(bool x) {
    return emulated::shown(x, [&] {
        unsigned all = 0;
        for (int i = 0; i < 32; i++) all |= (unsigned)emulated::shown_by<bool>(i) << i;
        return all;
    });
}
DEVICE float least(float x, float y) { return std::min(x, y); }
DEVICE int highest_bit(unsigned x) { return 31 - __builtin_clz(x); }
DEVICE unsigned pack(float low, float high) { return emulated::rounded(low) | emulated::rounded(high) << 16; }
DEVICE unsigned pack_fp16(float low, float high) { return emulated::rounded_fp16(low) | emulated::rounded_fp16(high) << 16; }
DEVICE float low(unsigned x) { return emulated::of_bits(x << 16); }
DEVICE float high(unsigned x) { return emulated::of_bits(x & 0xffff0000u); }
DEVICE float exp2_fast(float x) { return std::exp2(x); }
DEVICE float reciprocal(float x) { return 1 / x; }
