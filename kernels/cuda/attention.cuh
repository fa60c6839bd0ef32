// What attention has in common on integer units and on tensor cores (SPEC 5.7).
#pragma once
#include "block.cuh"
#include "fixed.cuh"
#include "limbs.cuh"
#include "params.cuh"

constexpr u32 SOFTMAX_BLOCK = 256;
constexpr u32 MAX_HEAD_DIM = 512;

static_assert(SOFTMAX_BLOCK == BLOCK_THREADS, "a thread for each position");

// Positions of the tile's block that row r sees.
__device__ inline u32 seen_of_block(const AttentionParams &p, const AttentionTile &tile, u32 r) {
    const u32 visible = p.causal ? tile.position + r + 1 : tile.length;
    const u32 start = tile.block * SOFTMAX_BLOCK;
    const u32 left = visible > start ? visible - start : 0;
    return left < SOFTMAX_BLOCK ? left : SOFTMAX_BLOCK;
}

// First element of the key and value head that query head h reads.
__device__ inline u64 of_head(const AttentionParams &p, const KeyBlock &block, u32 h) {
    return (u64)(h / (p.heads / p.kv_heads)) * block.head_stride;
}

// Place of the partial of row r of the tile.
__device__ inline u64 slot_of(const AttentionParams &p, const AttentionTile &tile, u32 r, u32 h) {
    return tile.slot + (u64)r * tile.row_slots + (u64)tile.block * p.heads + h;
}

// A warp turns the scores of row r into weights, which it gives to `put`, zeros beyond what the row sees, and writes reference
// and sum of weights.
template <typename Put>
__device__ inline void weigh_row(const i32 *scores, const AttentionParams &p, const AttentionTile &tile, u32 r, u32 h, Put put) {
    const u32 seen = r < tile.rows ? seen_of_block(p, tile, r) : 0;
    i32 max = -2147483647 - 1;
    for (u32 j = lane_index(); j < seen; j += WARP) max = scores[j] > max ? scores[j] : max;
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        const i32 other = __shfl_xor_sync(~0u, max, mask);
        max = other > max ? other : max;
    }
    const i32 reference = (i32)(((i64)max + (1 << SCORE_FRAC) - 1) >> SCORE_FRAC);
    u32 total = 0;
    for (u32 j = lane_index(); j < SOFTMAX_BLOCK; j += WARP) {
        u32 w = 0;
        if (j < seen) w = softmax_weight((u64)((i64)reference * (1 << SCORE_FRAC) - scores[j]));
        put(j, w);
        total += w;
    }
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) total += __shfl_xor_sync(~0u, total, mask);
    if (lane_index() == 0 && seen > 0) {
        p.reference[slot_of(p, tile, r, h)] = reference;
        p.weight[slot_of(p, tile, r, h)] = total;
    }
}
