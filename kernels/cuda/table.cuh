// x times a tabulated function of x (SPEC 4.3 and 4.4).
#pragma once
#include "elements.cuh"

constexpr u32 INTERVALS = 1024;
// Of the tables of the sigmoid and of the Gauss integral.
constexpr u32 SIGMOID_STEPS_LOG2 = 6;
constexpr u32 GAUSS_STEPS_LOG2 = 7;

// x * f(x), where f(-x) = 1 - f(x); the table has 2^steps_log2 steps a unit, in Q31.
__device__ inline i32 times_table(const u32 *table, u32 steps_log2, i32 x, u32 frac) {
    const u32 fine = steps_log2 + 16;
    const u64 a = magnitude(x);
    const u64 t = frac <= fine ? a << (fine - frac) : a >> (frac - fine);
    i64 f = 1LL << 31;
    if (t >> 16 < INTERVALS) {
        const u32 i = (u32)(t >> 16);
        const u64 rise = (u64)(table[i + 1] - table[i]) * (t & 0xffff);
        f = (i64)(table[i] + ((rise + 0x8000) >> 16));
    }
    if (x < 0) f = (1LL << 31) - f;
    return (i32)round_shift((i64)x * f, 31);
}

__device__ inline void gate_elements(const UnaryParams &p, u32 steps_log2, Elements of) {
    for (u64 i = of.from; i < of.end; i += of.step) p.out[i] = times_table(p.table, steps_log2, p.input[i], p.amount);
}
