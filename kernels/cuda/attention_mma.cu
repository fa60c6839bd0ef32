// Attention of many rows on tensor cores (SPEC 5.7): the partials of 16 rows of one sequence against one block of 256 positions,
// from which `attention_combine` goes on as from those of `attention_block`.
//
// Scores are products of digits, each warp those of 32 positions; then each warp weighs two rows; then weights, as digits of
// at most 15 bits, multiply the digits of the values, each warp for every eighth group of eight columns. All are exact.
#define LOCKSTEP_TENSOR_CORES
#include "attention.cuh"

constexpr u32 TILE_ROWS = 16;
constexpr u32 TILE_WARPS = BLOCK_THREADS / WARP;
constexpr u32 WARP_POSITIONS = SOFTMAX_BLOCK / TILE_WARPS;
constexpr u32 K_CODES = 32;                  // of one instruction
constexpr u32 N_COLUMNS = 8;                 // of one instruction
constexpr u32 N_TILES = WARP_POSITIONS / N_COLUMNS;
constexpr u32 QUERY_PITCH = MAX_HEAD_DIM / 4 + 4; // in words: rows of a fragment lie in different banks
constexpr u32 WEIGHT_PITCH = SOFTMAX_BLOCK / 4 + 4;

struct TensorShared {
    u32 q_high[TILE_ROWS * QUERY_PITCH], q_low[TILE_ROWS * QUERY_PITCH];
    u32 w_high[TILE_ROWS * WEIGHT_PITCH], w_low[TILE_ROWS * WEIGHT_PITCH];
    i32 scores[TILE_ROWS][SOFTMAX_BLOCK];
};

// Sums of the products of digits of 16 rows and 8 columns.
struct TensorSums {
    i32 hh[4], mid[4], ll[4];

    __device__ i64 exact_sum(u32 i) const { return exact<true>(hh[i], mid[i], ll[i]); }
};

// Row and column, of 16 and 8, of a thread's sum i.
__device__ inline u32 sum_row(u32 i) { return lane_index() / 4 + i / 2 * 8; }
__device__ inline u32 sum_column(u32 i) { return lane_index() % 4 * 2 + i % 2; }

// Four codes of a head from c on as digits, zeros beyond its end.
__device__ inline Digits load_four(const i16 *head, u32 c, u32 head_dim) {
    if (head_dim % 4 == 0) {
        if (c >= head_dim) return {0, 0};
        const uint2 v = *(const uint2 *)(head + c);
        return split(v.x, v.y);
    }
    u32 codes[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) codes[i] = c + i < head_dim ? (u16)head[c + i] : 0;
    return split(codes[0] | codes[1] << 16, codes[2] | codes[3] << 16);
}

// 16 rows of 32 digits, from a row of words on.
__device__ inline void load_rows(u32 (&a)[4], const u32 *words, u32 pitch) {
    const u32 *at = words + lane_index() / 4 * pitch + lane_index() % 4;
    a[0] = at[0];
    a[1] = at[8 * pitch];
    a[2] = at[4];
    a[3] = at[8 * pitch + 4];
}

__device__ inline void stage_query_digits(TensorShared &shared, const AttentionParams &p, const AttentionTile &tile, u32 h) {
    const u32 words = round_up(p.head_dim, K_CODES) / 4;
    for (u32 i = thread_index(); i < TILE_ROWS * words; i += BLOCK_THREADS) {
        const u32 r = i / words, w = i % words;
        Digits q = {0, 0};
        if (r < tile.rows) q = load_four(p.q + ((u64)(tile.row + r) * p.heads + h) * p.head_dim, 4 * w, p.head_dim);
        shared.q_high[r * QUERY_PITCH + w] = q.high;
        shared.q_low[r * QUERY_PITCH + w] = q.low;
    }
}

// The scores of this warp's positions for all rows of the tile. Returns how many were clamped.
__device__ inline u32 score_positions(TensorShared &shared, const AttentionParams &p, const AttentionTile &tile,
                                      const KeyBlock &block, u32 h) {
    const u32 first = warp_index() * WARP_POSITIONS;
    const u32 most = seen_of_block(p, tile, tile.rows - 1); // the last row sees most
    const i16 *keys = block.keys + of_head(p, block, h);
    TensorSums sums[N_TILES] = {};
    for (u32 k = 0; k < p.head_dim; k += K_CODES) {
        u32 q_high[4], q_low[4];
        load_rows(q_high, shared.q_high + k / 4, QUERY_PITCH);
        load_rows(q_low, shared.q_low + k / 4, QUERY_PITCH);
#pragma unroll
        for (u32 n = 0; n < N_TILES; n++) {
            const u32 j = first + n * N_COLUMNS + lane_index() / 4, c = k + lane_index() % 4 * 4;
            Digits a = {0, 0}, b = {0, 0};
            if (j < most) {
                a = load_four(keys + (u64)j * block.position_stride, c, p.head_dim);
                b = load_four(keys + (u64)j * block.position_stride, c + K_CODES / 2, p.head_dim);
            }
            const u32 k_high[2] = {a.high, b.high}, k_low[2] = {a.low, b.low};
            mma_ss(sums[n].hh, q_high, k_high);
            mma_us(sums[n].mid, q_low, k_high);
            mma_su(sums[n].mid, q_high, k_low);
            mma_uu(sums[n].ll, q_low, k_low);
        }
    }
    u32 clamped = 0;
#pragma unroll
    for (u32 n = 0; n < N_TILES; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 r = sum_row(i), j = first + n * N_COLUMNS + sum_column(i);
            if (r >= tile.rows || j >= seen_of_block(p, tile, r)) continue;
            shared.scores[r][j] = sat32(round_shift(sums[n].exact_sum(i), p.score_shift[h]), clamped);
        }
    }
    return clamped;
}

// Digits of the values of column c at four positions from j on, zeros from `seen` on.
__device__ inline Digits load_column(const i16 *values, u32 stride, u32 c, u32 j, u32 seen, u32 head_dim) {
    u32 codes[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) codes[i] = j + i < seen && c < head_dim ? (u16)values[(u64)(j + i) * stride + c] : 0;
    return split(codes[0] | codes[1] << 16, codes[2] | codes[3] << 16);
}

// Weighted sums of the values, for this warp's columns.
__device__ inline void sum_columns(const TensorShared &shared, const AttentionParams &p, const AttentionTile &tile,
                                   const KeyBlock &block, u32 h) {
    const i16 *values = block.values + of_head(p, block, h);
    const u32 most = seen_of_block(p, tile, tile.rows - 1);
    for (u32 first = warp_index() * N_COLUMNS; first < p.head_dim; first += TILE_WARPS * N_COLUMNS) {
        TensorSums sums = {};
        for (u32 k = 0; k < most; k += K_CODES) {
            u32 w_high[4], w_low[4];
            load_rows(w_high, shared.w_high + k / 4, WEIGHT_PITCH);
            load_rows(w_low, shared.w_low + k / 4, WEIGHT_PITCH);
            const u32 c = first + lane_index() / 4, j = k + lane_index() % 4 * 4;
            const Digits a = load_column(values, block.position_stride, c, j, most, p.head_dim);
            const Digits b = load_column(values, block.position_stride, c, j + K_CODES / 2, most, p.head_dim);
            const u32 v_high[2] = {a.high, b.high}, v_low[2] = {a.low, b.low};
            mma_us(sums.hh, w_high, v_high);
            mma_uu(sums.mid, w_high, v_low);
            mma_us(sums.mid, w_low, v_high);
            mma_uu(sums.ll, w_low, v_low);
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 r = sum_row(i), c = first + sum_column(i);
            if (r < tile.rows && c < p.head_dim) p.sums[slot_of(p, tile, r, h) * p.head_dim + c] = sums.exact_sum(i);
        }
    }
}

KERNEL(attention_block_mma, BLOCK_THREADS, AttentionParams) {
    __shared__ TensorShared shared;
    const AttentionTile tile = p.tiles[blockIdx.x];
    const u32 h = blockIdx.y;
    const KeyBlock block = p.blocks[tile.table];
    stage_query_digits(shared, p, tile, h);
    __syncthreads();
    count_clamped(p.saturations, score_positions(shared, p, tile, block, h));
    __syncthreads();
    for (u32 r = warp_index(); r < TILE_ROWS; r += TILE_WARPS) {
        u8 *high = (u8 *)(shared.w_high + r * WEIGHT_PITCH), *low = (u8 *)(shared.w_low + r * WEIGHT_PITCH);
        weigh_row(shared.scores[r], p, tile, r, h, [&](u32 j, u32 w) {
            high[j] = (u8)(w >> 8);
            low[j] = (u8)w;
        });
    }
    __syncthreads();
    sum_columns(shared, p, tile, block, h);
}
