// Ops on elements alone, and quantising, over a range of elements or a row: what single ops and several steps at once share.
#pragma once
#include "block.cuh"
#include "fixed.cuh"
#include "params.cuh"

// Every `step`th element from `from` on, up to `end`.
struct Elements {
    u64 from, end, step;
};

// Of a launch over `len` elements, those of this thread.
__device__ inline Elements all_elements(u64 len) {
    return {(u64)blockIdx.x * block_threads() + thread_index(), len, (u64)gridDim.x * block_threads()};
}

// Of this block's row, those of this thread.
__device__ inline Elements row_elements(u32 cols) {
    const u64 first = (u64)blockIdx.x * cols;
    return {first + thread_index(), first + cols, block_threads()};
}

__device__ inline u32 add_elements(const BinaryParams &p, Elements of) {
    u32 clamped = 0;
    for (u64 i = of.from; i < of.end; i += of.step) p.out[i] = sat32((i64)p.a[i] + p.b[i], clamped);
    return clamped;
}

__device__ inline u32 multiply_elements(const BinaryParams &p, Elements of) {
    u32 clamped = 0;
    for (u64 i = of.from; i < of.end; i += of.step) p.out[i] = sat32(round_shift((i64)p.a[i] * p.b[i], p.shift), clamped);
    return clamped;
}

// Quantises this block's row, whose elements each thread may have written itself.
__device__ inline void quantize_row(const QuantizeParams &p) {
    const u64 row = blockIdx.x;
    const i32 *input = p.input + row * p.cols;
    u8 *high = p.codes + 2 * row * p.stride, *low = high + p.stride;
    u32 max = 0;
    for (u32 i = thread_index(); i < p.cols; i += block_threads()) {
        const u32 m = magnitude(input[i]);
        max = m > max ? m : max;
    }
    const u32 e = row_exponent((u32)block_max(max));
    for (u32 i = thread_index(); i < p.stride; i += block_threads()) {
        const u32 code = i < p.cols ? (u32)round_shift(input[i], e) : 0;
        high[i] = (u8)(code >> 8);
        low[i] = (u8)code;
    }
    if (thread_index() == 0) p.exponents[row] = (i32)e;
}
