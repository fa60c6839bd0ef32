// The first position of each sequence (SPEC 5.11). A block for each sequence and 256 columns.
#include "block.cuh"
#include "params.cuh"

KERNEL(first_pool, BLOCK_THREADS, RowsParams) {
    const u32 i = blockIdx.y * BLOCK_THREADS + thread_index();
    if (i < p.cols) p.out[(u64)blockIdx.x * p.cols + i] = p.input[(u64)p.first[blockIdx.x] * p.cols + i];
}
