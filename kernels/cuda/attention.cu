// Scaled dot-product attention with block-wise exact softmax (SPEC 5.7) on integer units: for decode, and for prefill where
// there are no tensor cores for bytes.
//
// `attention_block` makes the partials of a few rows of one sequence against one block of 256 positions: each thread
// scores one position, each warp weighs one row, and then threads share the columns of the values. `attention_combine`
// brings the partials of a row to their largest reference and divides once. Nothing depends on the order of blocks.
#include "attention.cuh"

constexpr u32 ATTENTION_ROWS = 8;
constexpr u32 GUARD = 8;
constexpr u32 SLICE = 8; // elements of a head that a thread multiplies at a time

static_assert(ATTENTION_ROWS == BLOCK_THREADS / WARP, "a warp for each row");

// Eight elements from `c` on as digits, zeros beyond the end of the head.
struct Eight {
    Digits first, second;
};

__device__ inline Eight load_eight(const i16 *head, u32 c, u32 head_dim) {
    if (head_dim % SLICE == 0) {
        const uint4 v = *(const uint4 *)(head + c);
        return {split(v.x, v.y), split(v.z, v.w)};
    }
    u32 words[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 at = c + 2 * i;
        const u32 low = at < head_dim ? (u16)head[at] : 0, high = at + 1 < head_dim ? (u16)head[at + 1] : 0;
        words[i] = low | high << 16;
    }
    return {split(words[0], words[1]), split(words[2], words[3])};
}

struct AttentionShared {
    Eight q[ATTENTION_ROWS][MAX_HEAD_DIM / SLICE];
    i32 scores[ATTENTION_ROWS][SOFTMAX_BLOCK]; // then weights
    i64 sums[ATTENTION_ROWS][SOFTMAX_BLOCK];
};

__device__ inline void stage_queries(AttentionShared &shared, const AttentionParams &p, const AttentionTile &tile, u32 h) {
    const u32 slices = (p.head_dim + SLICE - 1) / SLICE;
    for (u32 i = thread_index(); i < tile.rows * slices; i += BLOCK_THREADS) {
        const u32 r = i / slices, s = i % slices;
        const i16 *q = p.q + ((u64)(tile.row + r) * p.heads + h) * p.head_dim;
        shared.q[r][s] = load_eight(q, s * SLICE, p.head_dim);
    }
}

// The scores of this thread's position for all rows of the tile.
__device__ inline void score_position(AttentionShared &shared, const AttentionParams &p, const AttentionTile &tile,
                                      const KeyBlock &block, u32 h, u32 &clamped) {
    const u32 j = thread_index();
    // The last row sees most.
    if (j >= seen_of_block(p, tile, tile.rows - 1)) return;
    const i16 *key = block.keys + of_head(p, block, h) + (u64)j * block.position_stride;
    DigitSums sums[ATTENTION_ROWS] = {};
    for (u32 s = 0; s * SLICE < p.head_dim; s++) {
        const Eight k = load_eight(key, s * SLICE, p.head_dim);
#pragma unroll
        for (u32 r = 0; r < ATTENTION_ROWS; r++) {
            if (r >= tile.rows) continue;
            accumulate(sums[r], shared.q[r][s].first, k.first);
            accumulate(sums[r], shared.q[r][s].second, k.second);
        }
    }
#pragma unroll
    for (u32 r = 0; r < ATTENTION_ROWS; r++) {
        if (r >= tile.rows || j >= seen_of_block(p, tile, r)) continue;
        const i64 dot = exact<true>(sums[r].hh, sums[r].mid, sums[r].ll);
        shared.scores[r][j] = sat32(round_shift(dot, p.score_shift[h]), clamped);
    }
}

// Weighted sums of the values: each thread has a column and every `shares`th position, then shares are added.
__device__ inline void sum_values(AttentionShared &shared, const AttentionParams &p, const AttentionTile &tile,
                                  const KeyBlock &block, u32 h) {
    const i16 *values = block.values + of_head(p, block, h);
    const u32 seen = seen_of_block(p, tile, tile.rows - 1);
    u32 width = 1;
    while (width < p.head_dim && width < BLOCK_THREADS) width *= 2;
    const u32 shares = BLOCK_THREADS / width, share = thread_index() / width;
    for (u32 first = 0; first < p.head_dim; first += width) {
        const u32 c = first + thread_index() % width;
        i64 sums[ATTENTION_ROWS] = {};
        if (c < p.head_dim) {
            for (u32 j = share; j < seen; j += shares) {
                const i32 v = values[(u64)j * block.position_stride + c];
#pragma unroll
                for (u32 r = 0; r < ATTENTION_ROWS; r++) sums[r] += shared.scores[r][j] * v;
            }
        }
#pragma unroll
        for (u32 r = 0; r < ATTENTION_ROWS; r++) shared.sums[r][thread_index()] = sums[r];
        __syncthreads();
        for (u32 i = thread_index(); i < tile.rows * width; i += BLOCK_THREADS) {
            const u32 r = i / width, column = first + i % width;
            if (column >= p.head_dim) continue;
            i64 sum = 0;
            for (u32 s = 0; s < shares; s++) sum += shared.sums[r][s * width + i % width];
            p.sums[slot_of(p, tile, r, h) * p.head_dim + column] = sum;
        }
        __syncthreads();
    }
}

KERNEL(attention_block, BLOCK_THREADS, AttentionParams) {
    __shared__ AttentionShared shared;
    const AttentionTile tile = p.tiles[blockIdx.x];
    const u32 h = blockIdx.y;
    const KeyBlock block = p.blocks[tile.table];
    stage_queries(shared, p, tile, h);
    __syncthreads();
    u32 clamped = 0;
    score_position(shared, p, tile, block, h, clamped);
    count_clamped(p.saturations, clamped);
    __syncthreads();
    i32 *scores = shared.scores[warp_index()];
    weigh_row(scores, p, tile, warp_index(), h, [&](u32 j, u32 w) { scores[j] = (i32)w; });
    __syncthreads();
    sum_values(shared, p, tile, block, h);
}

// A block's sum with guard bits, brought to a reference that is `distance` above its own.
__device__ inline i64 aligned(i64 sum, i32 distance) { return round_shift(sum * (1 << GUARD), (u32)distance); }

KERNEL(attention_combine, BLOCK_THREADS, CombineParams) {
    const RowPartials row = p.rows[blockIdx.x];
    const u32 h = blockIdx.y;
    i32 reference = -2147483647 - 1;
    for (u32 b = 0; b < row.blocks; b++) {
        const i32 m = p.reference[row.slot + (u64)b * p.heads + h];
        reference = m > reference ? m : reference;
    }
    u64 weight = 0;
    for (u32 b = 0; b < row.blocks; b++) {
        const u64 slot = row.slot + (u64)b * p.heads + h;
        weight += (u64)aligned(p.weight[slot], reference - p.reference[slot]);
    }
    // The largest score of its block weighs more than 2^14, so there are at least 23 bits.
    const u32 bits = bit_length(weight);
    const u32 r = recip(weight);
    for (u32 c = thread_index(); c < p.head_dim; c += BLOCK_THREADS) {
        i64 sum = 0;
        for (u32 b = 0; b < row.blocks; b++) {
            const u64 slot = row.slot + (u64)b * p.heads + h;
            sum += aligned(p.sums[slot * p.head_dim + c], reference - p.reference[slot]);
        }
        const i64 quotient = wrapping_mul(round_shift(sum, bits > 16 ? bits - 16 : 0), r);
        u32 clamped = 0;
        p.out[((u64)row.row * p.heads + h) * p.head_dim + c] = sat32(round_shift(quotient, 31 + p.value_shift[h]), clamped);
    }
}
