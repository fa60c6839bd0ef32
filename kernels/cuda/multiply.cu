// Product, element by element (SPEC 5.14).
#include "block.cuh"
#include "fixed.cuh"
#include "params.cuh"

KERNEL(multiply, BLOCK_THREADS, BinaryParams) {
    u32 clamped = 0;
    const u64 step = (u64)gridDim.x * BLOCK_THREADS;
    for (u64 i = (u64)blockIdx.x * BLOCK_THREADS + thread_index(); i < p.len; i += step)
        p.out[i] = sat32(round_shift((i64)p.a[i] * p.b[i], p.shift), clamped);
    count_clamped(p.saturations, clamped);
}
