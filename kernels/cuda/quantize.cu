// i32 rows to block floating point rows (SPEC 5.2). A block for each row.
#include "block.cuh"
#include "fixed.cuh"
#include "params.cuh"

KERNEL(quantize, BLOCK_THREADS, QuantizeParams) {
    const u64 row = blockIdx.x;
    const i32 *input = p.input + row * p.cols;
    u8 *high = p.codes + 2 * row * p.stride, *low = high + p.stride;
    u32 max = 0;
    for (u32 i = thread_index(); i < p.cols; i += BLOCK_THREADS) {
        const u32 m = magnitude(input[i]);
        max = m > max ? m : max;
    }
    const u32 e = row_exponent((u32)block_max(max));
    for (u32 i = thread_index(); i < p.stride; i += BLOCK_THREADS) {
        const u32 code = i < p.cols ? (u32)round_shift(input[i], e) : 0;
        high[i] = (u8)(code >> 8);
        low[i] = (u8)code;
    }
    if (thread_index() == 0) p.exponents[row] = (i32)e;
}
