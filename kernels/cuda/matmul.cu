// Matrix product (SPEC 5.3) with dp4a: for few rows bound by reading the weights once, for many in tiles.
#include "limbs.cuh"

// --- Few rows: a warp computes VECTOR_OUTPUTS outputs of ROWS rows, and streams their weights.

constexpr u32 VECTOR_OUTPUTS = 2;
constexpr u32 CHUNK = 16; // codes of a lane at a time

// The digits of sixteen codes. Weights of 8 bits have no low ones.
template <bool WIDE> struct Chunk {
    uint4 high, low;

    // Of an activation.
    __device__ void load(const u8 *row, u32 k, u32 stride) {
        high = *(const uint4 *)(row + k);
        low = *(const uint4 *)(row + stride + k);
    }

    __device__ void load_weight(const u8 *row, u32 k, u32 stride) {
        high = load_once(row + k);
        if (WIDE) low = load_once(row + stride + k);
    }
};

template <bool WIDE>
__device__ inline void multiply_word(DigitSums &sums, u32 x_high, u32 x_low, u32 w_high, u32 w_low) {
    if (WIDE)
        accumulate(sums, Digits{x_high, x_low}, Digits{w_high, w_low});
    else
        accumulate(sums, Digits{x_high, x_low}, w_high);
}

template <bool WIDE> __device__ inline void multiply_chunk(DigitSums &sums, const Chunk<true> &x, const Chunk<WIDE> &w) {
    const uint4 low = WIDE ? w.low : uint4{0, 0, 0, 0};
    multiply_word<WIDE>(sums, x.high.x, x.low.x, w.high.x, low.x);
    multiply_word<WIDE>(sums, x.high.y, x.low.y, w.high.y, low.y);
    multiply_word<WIDE>(sums, x.high.z, x.low.z, w.high.z, low.z);
    multiply_word<WIDE>(sums, x.high.w, x.low.w, w.high.w, low.w);
}

__device__ inline i32 sum_warp(i32 value) {
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(~0u, value, mask);
    return value;
}

template <u32 ROWS> struct VectorSums {
    DigitSums of[ROWS][VECTOR_OUTPUTS];
};

// STEPS chunks of a lane, from k on. Weights are asked for before any of them is used: what is under way hides how long
// memory takes.
template <u32 ROWS, u32 STEPS, bool WIDE>
__device__ inline void multiply_steps(VectorSums<ROWS> &sums, const MatMulParams &p, const u8 *const (&weights)[VECTOR_OUTPUTS],
                                      u32 k) {
    Chunk<WIDE> w[STEPS][VECTOR_OUTPUTS];
#pragma unroll
    for (u32 s = 0; s < STEPS; s++)
#pragma unroll
        for (u32 n = 0; n < VECTOR_OUTPUTS; n++) w[s][n].load_weight(weights[n], k + s * WARP * CHUNK, p.stride);
#pragma unroll
    for (u32 s = 0; s < STEPS; s++) {
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            if (ROWS > 1 && r >= p.rows) continue;
            Chunk<true> x;
            x.load(p.codes + 2 * (u64)r * p.stride, k + s * WARP * CHUNK, p.stride);
#pragma unroll
            for (u32 n = 0; n < VECTOR_OUTPUTS; n++) multiply_chunk<WIDE>(sums.of[r][n], x, w[s][n]);
        }
    }
}

template <u32 ROWS, u32 STEPS, bool WIDE> __device__ inline void multiply_vectors(const MatMulParams &p) {
    constexpr u32 AT_A_TIME = WARP * CHUNK; // codes of a warp
    const MatMulPart &part = p.parts[blockIdx.z];
    const u32 first = (blockIdx.x * (BLOCK_THREADS / WARP) + warp_index()) * VECTOR_OUTPUTS;
    if (first >= part.cols) return;
    const u8 *weights[VECTOR_OUTPUTS];
#pragma unroll
    for (u32 n = 0; n < VECTOR_OUTPUTS; n++) {
        // Beyond the last output the last one is computed again, and not written.
        const u32 col = first + n < part.cols ? first + n : part.cols - 1;
        weights[n] = part.weight + (u64)col * p.stride * (WIDE ? 2 : 1);
    }
    VectorSums<ROWS> sums = {};
    u32 k = 0;
    for (; k + STEPS * AT_A_TIME <= p.stride; k += STEPS * AT_A_TIME)
        multiply_steps<ROWS, STEPS, WIDE>(sums, p, weights, k + lane_index() * CHUNK);
    for (k += lane_index() * CHUNK; k < p.stride; k += AT_A_TIME) multiply_steps<ROWS, 1, WIDE>(sums, p, weights, k);
    u32 clamped = 0;
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
#pragma unroll
        for (u32 n = 0; n < VECTOR_OUTPUTS; n++) {
            const i32 hh = sum_warp(sums.of[r][n].hh), mid = sum_warp(sums.of[r][n].mid);
            const i32 ll = WIDE ? sum_warp(sums.of[r][n].ll) : 0;
            const bool mine = lane_index() == 0 && r < p.rows && first + n < part.cols;
            if (mine) clamped += finish(p, part, r, first + n, exact<WIDE>(hh, mid, ll));
        }
    }
    count_clamped(p.saturations, clamped);
}

KERNEL(matmul_vector_w8_1, BLOCK_THREADS, MatMulParams) { multiply_vectors<1, 4, false>(p); }
KERNEL(matmul_vector_w8_2, BLOCK_THREADS, MatMulParams) { multiply_vectors<2, 4, false>(p); }
KERNEL(matmul_vector_w8_4, BLOCK_THREADS, MatMulParams) { multiply_vectors<4, 2, false>(p); }
KERNEL(matmul_vector_w8_8, BLOCK_THREADS, MatMulParams) { multiply_vectors<8, 2, false>(p); }
KERNEL(matmul_vector_w16_1, BLOCK_THREADS, MatMulParams) { multiply_vectors<1, 2, true>(p); }
KERNEL(matmul_vector_w16_2, BLOCK_THREADS, MatMulParams) { multiply_vectors<2, 2, true>(p); }
KERNEL(matmul_vector_w16_4, BLOCK_THREADS, MatMulParams) { multiply_vectors<4, 1, true>(p); }
KERNEL(matmul_vector_w16_8, BLOCK_THREADS, MatMulParams) { multiply_vectors<8, 1, true>(p); }

// --- Many rows: a block computes a tile of 64 x 64 outputs, each thread 4 x 4 of them.

constexpr u32 TILE = 64;
constexpr u32 TILE_WORDS = 8;             // of four digits each, along the reduction
constexpr u32 TILE_PITCH = TILE_WORDS + 1; // so that neighbouring rows lie in different banks
constexpr u32 SIDE = TILE / 16;

// Puts 32 digits of each of 64 rows into shared memory; rows beyond the last one are zeros. `digits` are those of row 0,
// `pitch` is the bytes from one row to the next.
__device__ inline void stage(u32 *staged, const u8 *digits, u64 pitch, u32 row, u32 rows, u32 k) {
    const u32 r = thread_index() / 4, quarter = thread_index() % 4;
    uint2 v = {0, 0};
    if (row + r < rows) v = *(const uint2 *)(digits + (row + r) * pitch + k + quarter * 8);
    staged[r * TILE_PITCH + quarter * 2] = v.x;
    staged[r * TILE_PITCH + quarter * 2 + 1] = v.y;
}

template <bool WIDE> __device__ inline void multiply_tile(const MatMulParams &p) {
    __shared__ u32 x_high[TILE * TILE_PITCH], x_low[TILE * TILE_PITCH];
    __shared__ u32 w_high[TILE * TILE_PITCH], w_low[WIDE ? TILE * TILE_PITCH : 1];
    const MatMulPart &part = p.parts[blockIdx.z];
    const u32 row = blockIdx.x * TILE, col = blockIdx.y * TILE;
    if (col >= part.cols) return;
    const u32 ty = thread_index() / 16, tx = thread_index() % 16;
    DigitSums sums[SIDE][SIDE] = {};
    for (u32 k = 0; k < p.stride; k += TILE_WORDS * 4) {
        stage(x_high, p.codes, 2 * p.stride, row, p.rows, k);
        stage(x_low, p.codes + p.stride, 2 * p.stride, row, p.rows, k);
        stage(w_high, part.weight, (WIDE ? 2 : 1) * p.stride, col, part.cols, k);
        if (WIDE) stage(w_low, part.weight + p.stride, 2 * p.stride, col, part.cols, k);
        __syncthreads();
        // One word at a time: with two in flight, registers are spilled.
#pragma unroll 1
        for (u32 i = 0; i < TILE_WORDS; i++) {
            Digits x[SIDE];
#pragma unroll
            for (u32 a = 0; a < SIDE; a++) {
                const u32 at = (ty + 16 * a) * TILE_PITCH + i;
                x[a] = {x_high[at], x_low[at]};
            }
#pragma unroll
            for (u32 b = 0; b < SIDE; b++) {
                const u32 at = (tx + 16 * b) * TILE_PITCH + i;
#pragma unroll
                for (u32 a = 0; a < SIDE; a++) {
                    if (WIDE)
                        accumulate(sums[a][b], x[a], Digits{w_high[at], w_low[at]});
                    else
                        accumulate(sums[a][b], x[a], w_high[at]);
                }
            }
        }
        __syncthreads();
    }
    u32 clamped = 0;
#pragma unroll
    for (u32 a = 0; a < SIDE; a++) {
#pragma unroll
        for (u32 b = 0; b < SIDE; b++) {
            const u32 t = row + ty + 16 * a, n = col + tx + 16 * b;
            const DigitSums &s = sums[a][b];
            if (t < p.rows && n < part.cols) clamped += finish(p, part, t, n, exact<WIDE>(s.hh, s.mid, s.ll));
        }
    }
    count_clamped(p.saturations, clamped);
}

KERNEL(matmul_dp4a_w8, BLOCK_THREADS, MatMulParams) { multiply_tile<false>(p); }
KERNEL(matmul_dp4a_w16, BLOCK_THREADS, MatMulParams) { multiply_tile<true>(p); }
