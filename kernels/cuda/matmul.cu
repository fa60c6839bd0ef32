// Matrix product (SPEC 5.3) with dp4a: for few rows bound by reading the weights once, for many in tiles.
#include "limbs.cuh"

// --- Few rows: a warp computes VECTOR_OUTPUTS outputs of ROWS rows, and streams their weights.

constexpr u32 VECTOR_OUTPUTS = 2;
constexpr u32 CHUNK = 16; // codes of a lane at a time

// The digits of sixteen codes.
struct Chunk {
    Digits digits[CHUNK / 4];
};

__device__ inline Chunk load_chunk(const i16 *codes) {
    const uint4 a = ((const uint4 *)codes)[0], b = ((const uint4 *)codes)[1];
    return {{split(a.x, a.y), split(a.z, a.w), split(b.x, b.y), split(b.z, b.w)}};
}

__device__ inline i32 sum_warp(i32 value) {
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(~0u, value, mask);
    return value;
}

template <bool WIDE> __device__ inline void multiply_chunk(DigitSums &sums, const Chunk &x, const void *weight, u64 at) {
    if (WIDE) {
        const Chunk w = load_chunk((const i16 *)weight + at);
        for (u32 i = 0; i < CHUNK / 4; i++) accumulate(sums, x.digits[i], w.digits[i]);
    } else {
        const uint4 w = *(const uint4 *)((const i8 *)weight + at);
        accumulate(sums, x.digits[0], w.x);
        accumulate(sums, x.digits[1], w.y);
        accumulate(sums, x.digits[2], w.z);
        accumulate(sums, x.digits[3], w.w);
    }
}

template <u32 ROWS, bool WIDE> __device__ inline void multiply_vectors(const MatMulParams &p) {
    const u32 first = (blockIdx.x * (BLOCK_THREADS / WARP) + warp_index()) * VECTOR_OUTPUTS;
    if (first >= p.cols) return;
    DigitSums sums[ROWS][VECTOR_OUTPUTS] = {};
    for (u32 k = lane_index() * CHUNK; k < p.stride; k += WARP * CHUNK) {
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            if (r >= p.rows) continue;
            const Chunk x = load_chunk(p.codes + (u64)r * p.stride + k);
#pragma unroll
            for (u32 n = 0; n < VECTOR_OUTPUTS; n++)
                if (first + n < p.cols) multiply_chunk<WIDE>(sums[r][n], x, p.weight, (u64)(first + n) * p.stride + k);
        }
    }
    u32 clamped = 0;
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
#pragma unroll
        for (u32 n = 0; n < VECTOR_OUTPUTS; n++) {
            const i32 hh = sum_warp(sums[r][n].hh), mid = sum_warp(sums[r][n].mid);
            const i32 ll = WIDE ? sum_warp(sums[r][n].ll) : 0;
            const bool mine = lane_index() == 0 && r < p.rows && first + n < p.cols;
            if (mine) clamped += finish(p, r, first + n, exact<WIDE>(hh, mid, ll));
        }
    }
    count_clamped(p.saturations, clamped);
}

KERNEL(matmul_vector_w8_1, BLOCK_THREADS, MatMulParams) { multiply_vectors<1, false>(p); }
KERNEL(matmul_vector_w8_2, BLOCK_THREADS, MatMulParams) { multiply_vectors<2, false>(p); }
KERNEL(matmul_vector_w8_4, BLOCK_THREADS, MatMulParams) { multiply_vectors<4, false>(p); }
KERNEL(matmul_vector_w8_8, BLOCK_THREADS, MatMulParams) { multiply_vectors<8, false>(p); }
KERNEL(matmul_vector_w16_1, BLOCK_THREADS, MatMulParams) { multiply_vectors<1, true>(p); }
KERNEL(matmul_vector_w16_2, BLOCK_THREADS, MatMulParams) { multiply_vectors<2, true>(p); }
KERNEL(matmul_vector_w16_4, BLOCK_THREADS, MatMulParams) { multiply_vectors<4, true>(p); }
KERNEL(matmul_vector_w16_8, BLOCK_THREADS, MatMulParams) { multiply_vectors<8, true>(p); }

// --- Many rows: a block computes a tile of 64 x 64 outputs, each thread 4 x 4 of them.

constexpr u32 TILE = 64;
constexpr u32 TILE_WORDS = 8;             // of four digits each, along the reduction
constexpr u32 TILE_PITCH = TILE_WORDS + 1; // so that neighbouring rows lie in different banks
constexpr u32 SIDE = TILE / 16;

// Puts the digits of 64 rows of 32 codes into shared memory; rows beyond the last one are zeros.
__device__ inline void stage_codes(u32 *high, u32 *low, const i16 *codes, u32 row, u32 rows, u32 stride, u32 k) {
    const u32 r = thread_index() / 4, quarter = thread_index() % 4;
    uint4 v = {0, 0, 0, 0};
    if (row + r < rows) v = *(const uint4 *)(codes + (u64)(row + r) * stride + k + quarter * 8);
    const Digits a = split(v.x, v.y), b = split(v.z, v.w);
    const u32 at = r * TILE_PITCH + quarter * 2;
    high[at] = a.high;
    high[at + 1] = b.high;
    low[at] = a.low;
    low[at + 1] = b.low;
}

// The same for rows of bytes.
__device__ inline void stage_bytes(u32 *bytes, const i8 *codes, u32 row, u32 rows, u32 stride, u32 k) {
    const u32 r = thread_index() / 4, quarter = thread_index() % 4;
    uint2 v = {0, 0};
    if (row + r < rows) v = *(const uint2 *)(codes + (u64)(row + r) * stride + k + quarter * 8);
    bytes[r * TILE_PITCH + quarter * 2] = v.x;
    bytes[r * TILE_PITCH + quarter * 2 + 1] = v.y;
}

template <bool WIDE> __device__ inline void multiply_tile(const MatMulParams &p) {
    __shared__ u32 x_high[TILE * TILE_PITCH], x_low[TILE * TILE_PITCH];
    __shared__ u32 w_high[TILE * TILE_PITCH], w_low[WIDE ? TILE * TILE_PITCH : 1];
    const u32 row = blockIdx.x * TILE, col = blockIdx.y * TILE;
    const u32 ty = thread_index() / 16, tx = thread_index() % 16;
    DigitSums sums[SIDE][SIDE] = {};
    for (u32 k = 0; k < p.stride; k += TILE_WORDS * 4) {
        stage_codes(x_high, x_low, p.codes, row, p.rows, p.stride, k);
        if (WIDE)
            stage_codes(w_high, w_low, (const i16 *)p.weight, col, p.cols, p.stride, k);
        else
            stage_bytes(w_high, (const i8 *)p.weight, col, p.cols, p.stride, k);
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
            if (t < p.rows && n < p.cols) clamped += finish(p, t, n, exact<WIDE>(s.hh, s.mid, s.ll));
        }
    }
    count_clamped(p.saturations, clamped);
}

KERNEL(matmul_dp4a_w8, BLOCK_THREADS, MatMulParams) { multiply_tile<false>(p); }
KERNEL(matmul_dp4a_w16, BLOCK_THREADS, MatMulParams) { multiply_tile<true>(p); }
