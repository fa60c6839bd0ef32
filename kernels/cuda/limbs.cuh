// Matrix products by digits of 8 bits (SPEC 5.3). A 16-bit code is 256 * high + low, with high signed and low not, which
// holds for every code there is. The exact product is a sum of digit products, each within 32 bits for reductions of
// up to 32,768: 255 * 255 * 2^14 and twice 255 * 128 * 2^14 are below 2^31.
#pragma once
#include "block.cuh"
#include "fixed.cuh"
#include "params.cuh"

// Code i of a row that is kept as digits.
__device__ inline i32 code_of(const u8 *row, u32 stride, u32 i) { return (i8)row[i] * 256 + row[stride + i]; }

// Four codes as two words of four digits each.
struct Digits {
    u32 high;
    u32 low;
};

__device__ inline Digits split(u32 first, u32 second) {
    return {__byte_perm(first, second, 0x7531), __byte_perm(first, second, 0x6420)};
}

// Sums of digit products: `ll` is of weights of 16 bits alone.
struct DigitSums {
    i32 hh, mid, ll;
};

// What four codes add to the sums, with weights of 8 bits and of 16.
__device__ inline void accumulate(DigitSums &sums, Digits x, u32 w) {
    sums.hh = dp4a_ss(x.high, w, sums.hh);
    sums.mid = dp4a_us(x.low, w, sums.mid);
}

__device__ inline void accumulate(DigitSums &sums, Digits x, Digits w) {
    sums.hh = dp4a_ss(x.high, w.high, sums.hh);
    sums.mid = dp4a_us(x.low, w.high, sums.mid);
    sums.mid = dp4a_us(w.low, x.high, sums.mid);
    sums.ll = dp4a_uu(x.low, w.low, sums.ll);
}

// The exact product. Weights of 8 bits have no low digit: their sums are one digit lower.
template <bool WIDE> __device__ inline i64 exact(i32 hh, i32 mid, i32 ll) {
    return WIDE ? (i64)hh * 65536 + (i64)mid * 256 + ll : (i64)hh * 256 + mid;
}

// One output: rescaled, with its bias, saturated at the range of i16 codes or of i32; 1 in the high word where that clamped
// it. Not inlined: a thread has many outputs, and this is long.
__device__ OUT_OF_LINE i64 output(i64 product, u32 mantissa, i64 s, i32 bias, bool narrow) {
    u32 clamped = 0;
    const i64 y = rescale(product, (u16)mantissa, s) + bias;
    const i32 value = narrow ? sat_code(y, clamped) : sat32(y, clamped);
    return (i64)clamped << 32 | (u32)value;
}

// Writes one output; returns whether it was clamped.
__device__ inline u32 finish(const MatMulParams &p, const MatMulPart &part, u32 row, u32 col, i64 product) {
    const i64 s = (i64)part.shift[col] - p.exponents[row];
    const i64 y = output(product, part.mantissa[col], s, part.bias ? part.bias[col] : 0, part.narrow);
    const u64 at = (u64)row * part.cols + col;
    if (part.narrow)
        ((i16 *)part.out)[at] = (i16)y;
    else
        ((i32 *)part.out)[at] = (i32)y;
    return (u32)(y >> 32);
}
