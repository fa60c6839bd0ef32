// Scaling to unit length (SPEC 5.12). A block for each row.
#include "normalize.cuh"

KERNEL(l2_normalize, BLOCK_THREADS, NormParams) {
    const i32 *row = p.input + (u64)blockIdx.x * p.cols;
    i32 *out = p.out + (u64)blockIdx.x * p.cols;
    const i32 scale = row_scale(row, p.cols);
    const Root root = row_root(row, p.cols, scale, 0, 0);
    for (u32 i = thread_index(); i < p.cols; i += BLOCK_THREADS) out[i] = (i32)unit_element(row[i], scale, 0, root);
}
