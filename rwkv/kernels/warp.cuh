// What the threads of a warp, and of a block, do together on an NVIDIA GPU of compute capability 8.0 or newer: the PTX behind blocks.cuh.
// Needs no header, so that NVRTC compiles it anywhere. tests/kernels/emulated/warp.cuh does the same on a CPU.
#ifndef RWKV_WARP
#define RWKV_WARP

#define DEVICE __device__ __forceinline__
#define KERNEL(threads, blocks_a_multiprocessor) extern "C" __global__ void __launch_bounds__(threads, blocks_a_multiprocessor)
#define UNROLL _Pragma("unroll")

typedef unsigned short bf16;  // its bits
typedef unsigned char byte;
struct alignas(8) Eight {
    unsigned x[2];
};
struct alignas(16) Sixteen {
    unsigned x[4];
};

DEVICE int thread() { return threadIdx.x & 1023; }  // so known not to be negative, its quotients are shifts
DEVICE unsigned block() { return blockIdx.x; }
DEVICE byte* shared_memory() {
    extern __shared__ __align__(128) byte memory[];
    return memory;
}
typedef unsigned Address;  // in shared memory
DEVICE Address address(const void* shared) { return (unsigned)__cvta_generic_to_shared(shared); }

DEVICE void block_barrier() { __syncthreads(); }
DEVICE void warp_barrier() { __syncwarp(); }

// 16 bytes from global to shared memory in the background, or zeros. copies_begun closes a group; copies_done<n> waits for all but the last n.
DEVICE void copy16(void* shared, const void* global, bool live) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address(shared)), "l"(global), "r"(live ? 16 : 0) : "memory");
}
DEVICE void copies_begun() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int n>
DEVICE void copies_done() {
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

// Four 8x8 matrices of bf16, whose 32 rows of 16 bytes lie where the 32 lanes say: lane l gets [l/4][2(l%4)] and the next of each, or of its transpose.
DEVICE void load_8x8(unsigned (&x)[4], Address row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(row) : "memory");
}
DEVICE void load_8x8_transposed(unsigned (&x)[4], Address row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(row) : "memory");
}
// An 8x8 matrix held so becomes its transpose.
DEVICE unsigned transposed_8x8(unsigned x) {
    unsigned y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// The opposite of load_8x8, on compute capability 9.0 and newer.
#if __CUDA_ARCH__ >= 900
#define STORES_8X8
DEVICE void store_8x8(Address row, const unsigned (&x)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(row), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory");
}
#endif

// d[16][8] += a[16][16] b[16][8]
DEVICE void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same of fp16.
DEVICE void mma_16x8x16_fp16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE float from_lane(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
DEVICE float from_lane_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEVICE unsigned votes(bool x) { return __ballot_sync(0xffffffffu, x); }
DEVICE float least(float x, float y) { return fminf(x, y); }
DEVICE int highest_bit(unsigned x) { return 31 - __clz(x); }

DEVICE unsigned pack(float low, float high) {  // rounded to nearest even
    unsigned x;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
    return x;
}
DEVICE unsigned pack_fp16(float low, float high) {
    unsigned x;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
    return x;
}
DEVICE float low(unsigned x) { return __uint_as_float(x << 16); }
DEVICE float high(unsigned x) { return __uint_as_float(x & 0xffff0000u); }

DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
