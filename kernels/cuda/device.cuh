// What every kernel builds on: integer types, kernel declarations and the few instructions that C++ has no words for.
//
// The same sources are compiled twice: by NVRTC for a GPU, and by a C++ compiler with LOCKSTEP_EMULATION, where
// `emulation/cpp/emulate.h` supplies threads, barriers, shuffles and these instructions as they are documented.
#pragma once

#ifdef LOCKSTEP_EMULATION
#include "emulate.h"
#else

using i8 = signed char;
using u8 = unsigned char;
using i16 = short;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

#define OUT_OF_LINE __noinline__

// A kernel takes one struct of parameters (params.cuh) and runs in blocks of exactly `threads`.
#define KERNEL(name, threads, Params) extern "C" __global__ void __launch_bounds__(threads) name(const Params p)

// Sixteen bytes that are read once. Loads are started in the order in which they are written.
__device__ inline uint4 load_once(const u8 *from) {
    uint4 v;
    asm volatile("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

// Sum of four products of bytes and c. A digit is signed (s) or not (u).
__device__ inline i32 dp4a_ss(u32 a, u32 b, i32 c) {
    i32 d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

__device__ inline i32 dp4a_us(u32 a, u32 b, i32 c) {
    i32 d;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

__device__ inline i32 dp4a_uu(u32 a, u32 b, i32 c) {
    u32 d;
    asm("dp4a.u32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return (i32)d;
}

// Tensor core products of bytes, d += a * b: a is 16 x 32, b is 32 x 8. Fragments as in the PTX manual, "Matrix
// fragments for mma.m16n8k32": with g = lane / 4 and t = lane % 4, a[0..4] hold columns 4t.. of rows g and g + 8, then
// columns 16 + 4t.. of them; b[0..2] rows 4t.. and 16 + 4t.. of column g; d columns 2t, 2t + 1 of rows g and g + 8.
#define LOCKSTEP_MMA(name, types)                                                                                      \
    __device__ inline void name(i32(&d)[4], const u32(&a)[4], const u32(&b)[2]) {                                      \
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." types ".s32 "                                            \
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                           \
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                              \
    }

#if defined(LOCKSTEP_TENSOR_CORES)
LOCKSTEP_MMA(mma_ss, "s8.s8")
LOCKSTEP_MMA(mma_su, "s8.u8")
LOCKSTEP_MMA(mma_us, "u8.s8")
LOCKSTEP_MMA(mma_uu, "u8.u8")
#endif

#endif

constexpr u32 WARP = 32;

// Smallest multiple of `of` that is not below n.
__device__ constexpr u32 round_up(u32 n, u32 of) { return (n + of - 1) / of * of; }

__device__ inline u32 thread_index() { return threadIdx.x; }
__device__ inline u32 lane_index() { return threadIdx.x % WARP; }
__device__ inline u32 warp_index() { return threadIdx.x / WARP; }
