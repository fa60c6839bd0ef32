// The rows at the points of a pass (SPEC 5.16). A block for each point and 256 columns.
#include "block.cuh"
#include "params.cuh"

KERNEL(gather, BLOCK_THREADS, RowsParams) {
    const u32 i = blockIdx.y * BLOCK_THREADS + thread_index();
    if (i < p.cols) p.out[(u64)blockIdx.x * p.cols + i] = p.input[(u64)p.first[blockIdx.x] * p.cols + i];
}
