// What LayerNorm, RMSNorm and L2 normalisation share: rows scaled to 30 bits, and division by a root (SPEC 5.5). All
// threads of a block work on one row.
#pragma once
#include "elements.cuh"

// x * 2^scale, rounded half up, for a scale of -2 to 30.
__device__ inline i64 scale_element(i32 x, i32 scale) {
    return scale >= 0 ? (i64)x * (1LL << scale) : round_shift(x, (u32)-scale);
}

// 30 less the bits of the row's largest magnitude.
__device__ inline i32 row_scale(const i32 *row, u32 cols) {
    u32 max = 0;
    for (u32 i = thread_index(); i < cols; i += block_threads()) {
        const u32 m = magnitude(row[i]);
        max = m > max ? m : max;
    }
    return 30 - (i32)bit_length(block_max(max));
}

// The rounded mean of the scaled row.
__device__ inline i64 row_mean(const i32 *row, u32 cols, i32 scale) {
    i64 sum = 0;
    for (u32 i = thread_index(); i < cols; i += block_threads()) sum += scale_element(row[i], scale);
    return rounded_mean(block_sum_signed(sum), cols);
}

// The epsilon term at the scale of the sum of squares.
__device__ inline u64 scaled_epsilon(const NormParams &p, i32 scale) {
    const i32 left = 2 * (scale - 8) - p.epsilon_shift;
    if (p.epsilon_mantissa == 0) return 0;
    if (left > 30) return 1ULL << 62;
    if (left >= 0) return (u64)p.epsilon_mantissa << left;
    return (u64)round_shift(p.epsilon_mantissa, (u32)-left);
}

// The inverse root of the centred row's sum of squares plus epsilon, found once for the block.
__device__ inline Root row_root(const i32 *row, u32 cols, i32 scale, i64 mean, u64 epsilon) {
    __shared__ Root root;
    u64 squares = 0;
    for (u32 i = thread_index(); i < cols; i += block_threads()) {
        const i64 h = round_shift(scale_element(row[i], scale) - mean, 8);
        squares += (u64)(h * h);
    }
    squares = block_sum(squares);
    if (thread_index() == 0) root = rsqrt_of(squares + epsilon);
    __syncthreads();
    return root;
}

// One element divided by the root, in Q30.
__device__ inline i64 unit_element(i32 x, i32 scale, i64 mean, Root root) {
    return round_shift(wrapping_mul(scale_element(x, scale) - mean, root.r), (u32)(24 + root.p));
}

// LayerNorm with a mean and a bias, RMSNorm without.
__device__ inline void normalize_row(const NormParams &p, bool centred) {
    const i32 *row = p.input + (u64)blockIdx.x * p.cols;
    i32 *out = p.out + (u64)blockIdx.x * p.cols;
    const i32 scale = row_scale(row, p.cols);
    const i64 mean = centred ? row_mean(row, p.cols, scale) : 0;
    const Root root = row_root(row, p.cols, scale, mean, scaled_epsilon(p, scale));
    u32 clamped = 0;
    for (u32 i = thread_index(); i < p.cols; i += block_threads()) {
        const i64 unit = unit_element(row[i], scale, mean, root);
        const i64 gain = round_shift(wrapping_mul(unit, p.scale[i]), p.shift);
        out[i] = sat32(gain + (p.bias ? p.bias[i] : 0), clamped);
    }
    count_clamped(p.saturations, clamped);
}
