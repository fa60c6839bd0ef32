// Mean over positions (SPEC 5.10). A block for each sequence and 32 columns; each warp takes every eighth row.
#include "block.cuh"
#include "fixed.cuh"
#include "params.cuh"

KERNEL(mean_pool, BLOCK_THREADS, RowsParams) {
    __shared__ i64 sums[BLOCK_THREADS];
    const u32 col = blockIdx.y * WARP + lane_index();
    const u32 first = p.first[blockIdx.x], count = p.count[blockIdx.x];
    i64 sum = 0;
    if (col < p.cols)
        for (u32 t = warp_index(); t < count; t += BLOCK_THREADS / WARP) sum += p.input[(u64)(first + t) * p.cols + col];
    sums[thread_index()] = sum;
    __syncthreads();
    if (warp_index() == 0 && col < p.cols) {
        for (u32 w = 1; w < BLOCK_THREADS / WARP; w++) sum += sums[w * WARP + lane_index()];
        p.out[(u64)blockIdx.x * p.cols + col] = (i32)rounded_mean(sum, count);
    }
}
