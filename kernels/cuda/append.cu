// Keys and values of a pass into the pages of caches. A block for each row.
#include "block.cuh"
#include "params.cuh"

KERNEL(append, BLOCK_THREADS, AppendParams) {
    const AppendRow row = p.rows[blockIdx.x];
    const u32 width = p.kv_heads * p.head_dim;
    for (u32 i = thread_index(); i < width; i += BLOCK_THREADS) {
        const u64 to = (u64)(i / p.head_dim) * p.head_stride + i % p.head_dim;
        row.keys[to] = p.keys[(u64)row.row * width + i];
        row.values[to] = p.values[(u64)row.row * width + i];
    }
}
