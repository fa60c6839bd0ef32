// Saturating sum (SPEC 5.4).
#include "block.cuh"
#include "fixed.cuh"
#include "params.cuh"

KERNEL(add, BLOCK_THREADS, BinaryParams) {
    u32 clamped = 0;
    const u64 step = (u64)gridDim.x * BLOCK_THREADS;
    for (u64 i = (u64)blockIdx.x * BLOCK_THREADS + thread_index(); i < p.len; i += step)
        p.out[i] = sat32((i64)p.a[i] + p.b[i], clamped);
    count_clamped(p.saturations, clamped);
}
