// Fewer fractional bits (SPEC 5.15).
#include "block.cuh"
#include "fixed.cuh"
#include "params.cuh"

KERNEL(shift, BLOCK_THREADS, UnaryParams) {
    const u64 step = (u64)gridDim.x * BLOCK_THREADS;
    for (u64 i = (u64)blockIdx.x * BLOCK_THREADS + thread_index(); i < p.len; i += step)
        p.out[i] = (i32)round_shift(p.input[i], p.amount);
}
