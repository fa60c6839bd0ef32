// Rotary position embedding (SPEC 5.13). A block for each row and 256 columns.
#include "block.cuh"
#include "fixed.cuh"
#include "params.cuh"

constexpr u32 ROPE_FRAC = 30;

// a + b, where only the largest sum of two products leaves 64 bits.
__device__ inline i64 saturating_add(i64 a, i64 b) {
    const i64 most = 0x7fffffffffffffffLL;
    return a > 0 && b > most - a ? most : a + b;
}

__device__ inline i64 rotated(const i32 *head, const i32 *angles, u32 c, u32 rotary_dim, u32 shift) {
    const u32 half = rotary_dim / 2;
    if (c >= rotary_dim) return round_shift(head[c], shift);
    const u32 j = c < half ? c : c - half;
    const i64 a = head[j], b = head[j + half], cosine = angles[2 * j], sine = angles[2 * j + 1];
    const i64 sum = c < half ? a * cosine - b * sine : saturating_add(a * sine, b * cosine);
    return round_shift(sum, ROPE_FRAC + shift);
}

KERNEL(rope, BLOCK_THREADS, RopeParams) {
    const u64 row = blockIdx.x;
    const u32 i = blockIdx.y * BLOCK_THREADS + thread_index();
    if (i >= p.cols) return;
    const u32 head = i / p.head_dim;
    const i32 *input = p.input + row * p.cols + head * p.head_dim;
    const i32 *angles = p.table + (u64)p.positions[row] * p.rotary_dim;
    u32 clamped = 0;
    const i64 value = rotated(input, angles, i - head * p.head_dim, p.rotary_dim, p.shift[head]);
    p.out[row * p.cols + i] = sat_code(value, clamped);
    count_clamped(p.saturations, clamped);
}
