// Reductions over the threads of a block. Every operation is exact and order-free.
#pragma once
#include "device.cuh"

// Threads of every kernel that works on rows, but for those that take several steps of a long row.
constexpr u32 BLOCK_THREADS = 256;
constexpr u32 MOST_THREADS = 1024;

struct Sum {
    __device__ u64 operator()(u64 a, u64 b) const { return a + b; }
};
struct Max {
    __device__ u64 operator()(u64 a, u64 b) const { return a > b ? a : b; }
};

__device__ inline u32 block_threads() { return blockDim.x; }

// The reduction of all threads' values, in every thread. The scratch may be used again at once: it is read before the last
// barrier.
template <typename Combine> __device__ inline u64 reduce_block(u64 value, Combine combine) {
    __shared__ u64 of_warps[MOST_THREADS / WARP];
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) value = combine(value, __shfl_xor_sync(~0u, value, mask));
    if (lane_index() == 0) of_warps[warp_index()] = value;
    __syncthreads();
    u64 all = of_warps[0];
    for (u32 i = 1; i < block_threads() / WARP; i++) all = combine(all, of_warps[i]);
    __syncthreads();
    return all;
}

__device__ inline u64 block_sum(u64 value) { return reduce_block(value, Sum{}); }
__device__ inline i64 block_sum_signed(i64 value) { return (i64)reduce_block((u64)value, Sum{}); }
__device__ inline u64 block_max(u64 value) { return reduce_block(value, Max{}); }

// Adds what a thread clamped to the layer's count. Clamping is rare, so this costs nothing as a rule.
__device__ inline void count_clamped(u64 *saturations, u32 clamped) {
    if (clamped) atomicAdd(saturations, (u64)clamped);
}
