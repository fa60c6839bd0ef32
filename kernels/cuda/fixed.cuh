// Scalar fixed-point arithmetic (SPEC section 3). Nothing here overflows a signed integer: what may wrap is unsigned.
#pragma once
#include "device.cuh"

constexpr i32 CODE_MAX = 32639;
constexpr u32 SCORE_FRAC = 20;

// SPEC 3.1: a / 2^s, rounded half up.
__device__ inline i64 round_shift(i64 a, u32 s) {
    if (s == 0) return a;
    return s > 62 ? 0 : (a >> s) + ((a >> (s - 1)) & 1);
}

// Clamps to the range of i32, and counts it where that changes the value.
__device__ inline i32 sat32(i64 a, u32 &clamped) {
    const i64 low = -2147483647LL - 1, high = 2147483647LL;
    const i64 y = a < low ? low : a > high ? high : a;
    clamped += y != a;
    return (i32)y;
}

// Clamps to ±CODE_MAX, and counts it where that changes the value.
__device__ inline i16 sat_code(i64 a, u32 &clamped) {
    const i64 y = a < -CODE_MAX ? -CODE_MAX : a > CODE_MAX ? CODE_MAX : a;
    clamped += y != a;
    return (i16)y;
}

__device__ inline i64 wrapping_mul(i64 a, i64 b) { return (i64)((u64)a * (u64)b); }

// SPEC 3.2, for |a| < 2^46.
__device__ inline i64 rescale(i64 a, u16 mantissa, i64 s) {
    const i64 product = a * (i64)mantissa;
    if (s >= 0) return round_shift(product, s > 63 ? 63u : (u32)s);
    const i64 limit = 1LL << 62;
    const u32 left = s < -62 ? 62u : (u32)-s;
    const i64 most = limit >> left;
    if (product >= most) return limit;
    return product <= -most ? -limit : product << left;
}

__device__ inline u32 bit_length(u64 v) { return 64u - (u32)__clzll((i64)v); }

__device__ inline u32 magnitude(i32 x) { return x < 0 ? 0u - (u32)x : (u32)x; }

// SPEC 3.3, for a largest magnitude of at most 2^31.
__device__ inline u32 row_exponent(u32 max) {
    const u32 bits = bit_length(max);
    u32 e = bits > 15 ? bits - 15 : 0;
    while (round_shift((i64)max, e) > CODE_MAX) e++;
    return e;
}

// SPEC 3.4.
__device__ inline u32 recip(u64 v) {
    if (v == 0) return 0;
    const u32 n = bit_length(v);
    const u64 x = n >= 32 ? v >> (n - 32) : v << (32 - n);
    return (u32)((1ULL << 62) / x);
}

struct Root {
    u32 r;
    i32 p;
};

// SPEC 3.5: r is the largest integer with r * r * x <= 2^92, found bit by bit; it is between 2^30 and 2^31.
__device__ inline Root rsqrt_of(u64 v) {
    if (v == 0) return {0, 0};
    const i32 n = (i32)bit_length(v);
    const i32 p = (n - 31) >> 1;
    const u64 x = p >= 0 ? v >> (2 * p) : v << (-2 * p);
    u64 r = 0;
    for (i32 bit = 31; bit >= 0; bit--) {
        const u64 candidate = r | 1ULL << bit;
        const u64 square = candidate * candidate;
        const u64 high = __umul64hi(square, x), low = square * x;
        const bool fits = high < 1ULL << 28 || (high == 1ULL << 28 && low == 0);
        if (fits) r = candidate;
    }
    return {(u32)r, p};
}

// SPEC 3.6.
__device__ inline i64 exp2_neg_fraction(u32 f) {
    i64 y = 7335765;
    y = -57148512 + round_shift(y * (i64)f, SCORE_FRAC);
    y = 257114789 + round_shift(y * (i64)f, SCORE_FRAC);
    y = -744171352 + round_shift(y * (i64)f, SCORE_FRAC);
    return 1073741824 + round_shift(y * (i64)f, SCORE_FRAC);
}

// SPEC 3.7.
__device__ inline u32 softmax_weight(u64 distance) {
    const u64 n = distance >> SCORE_FRAC;
    if (n > 30) return 0;
    const i64 w = round_shift(exp2_neg_fraction((u32)distance & ((1u << SCORE_FRAC) - 1)), 15 + (u32)n);
    return w > 32767 ? 32767u : (u32)w;
}

// floor(a / b) for b > 0.
__device__ inline i64 floor_div(i64 a, i64 b) {
    const i64 q = a / b;
    return a % b < 0 ? q - 1 : q;
}

// floor((2 * sum + n) / (2 * n)): the mean, rounded half up, for |sum| < 2^61.
__device__ inline i64 rounded_mean(i64 sum, i64 n) { return floor_div(2 * sum + n, 2 * n); }
