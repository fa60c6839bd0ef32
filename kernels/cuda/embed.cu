// Sum of embedding rows (SPEC 5.1). A block for each row and 256 columns.
#include "block.cuh"
#include "fixed.cuh"
#include "limbs.cuh"
#include "params.cuh"

KERNEL(embed, BLOCK_THREADS, EmbedParams) {
    const u64 row = blockIdx.x;
    const u32 i = blockIdx.y * BLOCK_THREADS + thread_index();
    if (i >= p.cols) return;
    // Eight tables whose elements were shifted left to ±2^62 need 66 bits: two words, of which the low one carries.
    i64 high = 0;
    u64 low = 0;
    for (u32 n = 0; n < p.count; n++) {
        const EmbedTable &table = p.tables[n];
        const u32 r = table.index ? table.index[row] : table.constant;
        if (r >= table.rows) continue;
        const i64 x = rescale(code_of(table.codes + 2 * (u64)r * p.stride, p.stride, i), table.mantissa[r], table.shift[r]);
        high += x >> 32;
        low += (u32)x;
    }
    high += (i64)(low >> 32);
    // Beyond ±2^33 all sums saturate alike.
    const i64 limit = 2;
    const i64 top = high > limit ? limit : high < -limit ? -limit : high;
    u32 clamped = 0;
    p.out[row * p.cols + i] = sat32(top * (1LL << 32) + (i64)(u32)low, clamped);
    count_clamped(p.saturations, clamped);
}
