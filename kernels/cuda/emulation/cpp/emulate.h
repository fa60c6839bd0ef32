// What CUDA gives a kernel, on the CPU: included by `device.cuh` in place of CUDA's own declarations.
//
// A block's threads are fibers of one thread of the host (`emulate.cpp`). They run one after the other, each up to its
// next barrier or exchange within its warp, in an order that the caller chooses: a kernel that lacks a barrier gives
// other bytes in another order. Signed overflow, shifts out of range and misaligned accesses stop the program, because
// this is compiled with the undefined-behaviour sanitizer.
#pragma once
#include <cstddef>
#include <cstring>

using i8 = signed char;
using u8 = unsigned char;
using i16 = short;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

struct uint2 {
    u32 x, y;
};
struct alignas(16) uint4 {
    u32 x, y, z, w;
};

#define __device__
#define __global__
#define OUT_OF_LINE __attribute__((noinline))
#define __shared__ static thread_local

namespace emulation {

struct Dim {
    u32 x, y, z;
};

// Of the fiber that runs.
extern thread_local Dim thread_dim, block_dim, grid_dim;
struct Position {
    Dim thread, block;
};
extern thread_local const Position *position;

// Waits for all threads of the block.
void sync_threads();

// What the lanes of a warp give each other in one exchange: up to eight words each, and what is made of them.
struct Exchange {
    u64 words[32][8];
};

// Gives `count` words, waits for the other lanes, and returns what all gave. The last lane to come runs `complete`, which
// may change the words, before the others go on. All 32 lanes of the warp take part.
const Exchange &exchange(const u64 *words, u32 count, void (*complete)(Exchange &));

// A kernel that can be launched by name.
struct Entry {
    Entry(const char *name, u32 threads, size_t params, void (*run)(const void *));
    const char *name;
    u32 threads;
    size_t params;
    void (*run)(const void *);
    Entry *next;
};

// Not checked for overflow, which sums of 32 products of bytes are far from: most of a test's time is spent in such loops.
#define UNCHECKED __attribute__((optimize("O3"), no_sanitize("undefined")))

// The digits of a fragment of mma.m16n8k32, see `device.cuh`.
template <typename A, typename B> UNCHECKED void multiply_fragments(Exchange &e) {
    A a[16][32];
    B b[32][8];
    for (u32 lane = 0; lane < 32; lane++) {
        const u32 g = lane / 4, t = lane % 4;
        for (u32 byte = 0; byte < 4; byte++) {
            for (u32 i = 0; i < 4; i++) a[g + i % 2 * 8][i / 2 * 16 + t * 4 + byte] = (A)(e.words[lane][i] >> 8 * byte);
            for (u32 i = 0; i < 2; i++) b[i * 16 + t * 4 + byte][g] = (B)(e.words[lane][4 + i] >> 8 * byte);
        }
    }
    i32 d[16][8] = {};
    for (u32 m = 0; m < 16; m++)
        for (u32 k = 0; k < 32; k++)
            for (u32 n = 0; n < 8; n++) d[m][n] += a[m][k] * b[k][n];
    for (u32 lane = 0; lane < 32; lane++)
        for (u32 i = 0; i < 4; i++) e.words[lane][i] = (u32)d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

template <typename A, typename B> void mma(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    const u64 words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const Exchange &e = exchange(words, 6, multiply_fragments<A, B>);
    for (u32 i = 0; i < 4; i++) d[i] += (i32)e.words[position->thread.x % 32][i];
}

template <typename A, typename B> i32 dp4a(u32 a, u32 b, i32 c) {
    for (u32 i = 0; i < 32; i += 8) c += (A)(a >> i) * (B)(b >> i);
    return c;
}

} // namespace emulation

#define threadIdx (emulation::position->thread)
#define blockIdx (emulation::position->block)
#define blockDim (emulation::block_dim)
#define gridDim (emulation::grid_dim)

#define KERNEL(name, threads, Params)                                                                                  \
    static void name(const Params p);                                                                                  \
    static emulation::Entry name##_entry(#name, threads, sizeof(Params),                                               \
                                         [](const void *params) { name(*(const Params *)params); });                   \
    static void name(const Params p)

inline uint4 load_once(const u8 *from) { return *(const uint4 *)from; }

inline void __syncthreads() { emulation::sync_threads(); }

template <typename T> T __shfl_xor_sync(u32, T value, u32 mask) {
    u64 word = 0;
    std::memcpy(&word, &value, sizeof(T));
    const emulation::Exchange &e = emulation::exchange(&word, 1, nullptr);
    std::memcpy(&value, e.words[(threadIdx.x % 32) ^ mask], sizeof(T));
    return value;
}

inline u32 __byte_perm(u32 a, u32 b, u32 selector) {
    const u64 bytes = (u64)b << 32 | a;
    u32 result = 0;
    for (u32 i = 0; i < 4; i++) result |= (u32)(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}

inline i32 __clzll(i64 v) { return v == 0 ? 64 : __builtin_clzll((u64)v); }
inline u64 __umul64hi(u64 a, u64 b) { return (u64)((unsigned __int128)a * b >> 64); }

// The fibers of a block take turns only at barriers, so these are atomic.
template <typename T> T atomicAdd(T *at, T value) {
    const T old = *at;
    *at += value;
    return old;
}
inline u32 atomicOr(u32 *at, u32 value) {
    const u32 old = *at;
    *at |= value;
    return old;
}

inline i32 dp4a_ss(u32 a, u32 b, i32 c) { return emulation::dp4a<i8, i8>(a, b, c); }
inline i32 dp4a_us(u32 a, u32 b, i32 c) { return emulation::dp4a<u8, i8>(a, b, c); }
inline i32 dp4a_uu(u32 a, u32 b, i32 c) { return emulation::dp4a<u8, u8>(a, b, c); }

inline void mma_ss(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { emulation::mma<i8, i8>(d, a, b); }
inline void mma_su(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { emulation::mma<i8, u8>(d, a, b); }
inline void mma_us(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { emulation::mma<u8, i8>(d, a, b); }
inline void mma_uu(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { emulation::mma<u8, u8>(d, a, b); }
