// Matrix product (SPEC 5.3) on tensor cores, for many rows: mma.sync m16n8k32 on bytes, from sm_80 on.
//
// A block of four warps computes 64 x 64 outputs, each warp 32 x 32 of them. All products of digits are made in one pass
// over the weights. The next tile is on its way from memory into registers while this one is multiplied.
#define LOCKSTEP_TENSOR_CORES
#include "limbs.cuh"

constexpr u32 MMA_THREADS = 128;
constexpr u32 MMA_TILE = 64;
constexpr u32 MMA_K = 64;                // codes along the reduction at a time
constexpr u32 MMA_PITCH = MMA_K / 4 + 4; // in words: the eight rows that a fragment spans lie in different banks
constexpr u32 MMA_M_TILES = 2;           // of 16 rows, per warp
constexpr u32 MMA_N_TILES = 4;           // of 8 outputs, per warp
constexpr u32 PER_ROW = MMA_K / 16;      // loads of 16 bytes
constexpr u32 LOADS = MMA_TILE * PER_ROW / MMA_THREADS;

// One digit of an operand's tile on its way: 64 rows of 64 bytes. Rows beyond the last one are zeros.
struct Plane {
    uint4 words[LOADS];

    // `digits` are those of row 0, `pitch` is the bytes from one row to the next.
    __device__ void load(const u8 *digits, u64 pitch, u32 row, u32 rows, u32 k) {
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            const u32 piece = thread_index() + i * MMA_THREADS;
            const u32 r = row + piece / PER_ROW;
            words[i] = uint4{0, 0, 0, 0};
            if (r < rows) words[i] = *(const uint4 *)(digits + r * pitch + k + piece % PER_ROW * 16);
        }
    }

    __device__ void store(u32 *staged) const {
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            const u32 piece = thread_index() + i * MMA_THREADS;
            const u32 at = piece / PER_ROW * MMA_PITCH + piece % PER_ROW * 4;
            staged[at] = words[i].x;
            staged[at + 1] = words[i].y;
            staged[at + 2] = words[i].z;
            staged[at + 3] = words[i].w;
        }
    }
};

// The digits of an operand's tile on their way.
template <bool WIDE> struct InFlight {
    Plane high, low;

    __device__ void load(const u8 *codes, u32 row, u32 rows, u32 stride, u32 k) {
        const u64 pitch = (u64)stride * (WIDE ? 2 : 1);
        high.load(codes, pitch, row, rows, k);
        if (WIDE) low.load(codes + stride, pitch, row, rows, k);
    }

    __device__ void store(u32 *of_high, u32 *of_low) const {
        high.store(of_high);
        if (WIDE) low.store(of_low);
    }
};

struct FragmentA {
    u32 words[4];
    // Of 16 rows from `tile` on, 32 digits.
    __device__ void load(const u32 *tile) {
        const u32 *at = tile + lane_index() / 4 * MMA_PITCH + lane_index() % 4;
        words[0] = at[0];
        words[1] = at[8 * MMA_PITCH];
        words[2] = at[4];
        words[3] = at[8 * MMA_PITCH + 4];
    }
};

struct FragmentB {
    u32 words[2];
    // Of 8 outputs from `tile` on, 32 digits.
    __device__ void load(const u32 *tile) {
        const u32 *at = tile + lane_index() / 4 * MMA_PITCH + lane_index() % 4;
        words[0] = at[0];
        words[1] = at[4];
    }
};

template <bool WIDE> struct Accumulators {
    i32 hh[MMA_M_TILES][MMA_N_TILES][4];
    i32 mid[MMA_M_TILES][MMA_N_TILES][4];
    i32 ll[WIDE ? MMA_M_TILES : 1][WIDE ? MMA_N_TILES : 1][4];
};

// All products of digits of one staged tile, for the warp's quarter of it.
template <bool WIDE>
__device__ inline void multiply_staged(Accumulators<WIDE> &sums, const u32 *x_high, const u32 *x_low, const u32 *w_high,
                                       const u32 *w_low) {
#pragma unroll
    for (u32 step = 0; step < MMA_K / 4; step += 8) {
        FragmentA high[MMA_M_TILES], low[MMA_M_TILES];
#pragma unroll
        for (u32 m = 0; m < MMA_M_TILES; m++) {
            high[m].load(x_high + m * 16 * MMA_PITCH + step);
            low[m].load(x_low + m * 16 * MMA_PITCH + step);
        }
#pragma unroll
        for (u32 n = 0; n < MMA_N_TILES; n++) {
            FragmentB w, w_lower;
            w.load(w_high + n * 8 * MMA_PITCH + step);
            if (WIDE) w_lower.load(w_low + n * 8 * MMA_PITCH + step);
#pragma unroll
            for (u32 m = 0; m < MMA_M_TILES; m++) {
                mma_ss(sums.hh[m][n], high[m].words, w.words);
                mma_us(sums.mid[m][n], low[m].words, w.words);
                if (WIDE) {
                    mma_su(sums.mid[m][n], high[m].words, w_lower.words);
                    mma_uu(sums.ll[m][n], low[m].words, w_lower.words);
                }
            }
        }
    }
}

template <bool WIDE> __device__ inline void multiply_mma(const MatMulParams &p) {
    __shared__ u32 x_high[MMA_TILE * MMA_PITCH], x_low[MMA_TILE * MMA_PITCH];
    __shared__ u32 w_high[MMA_TILE * MMA_PITCH], w_low[WIDE ? MMA_TILE * MMA_PITCH : 1];
    const MatMulPart &part = p.parts[blockIdx.z];
    const u32 row = blockIdx.x * MMA_TILE, col = blockIdx.y * MMA_TILE;
    if (col >= part.cols) return;
    const u32 warp_row = warp_index() / 2 * 32, warp_col = warp_index() % 2 * 32;
    const u32 *w_low_of_warp = WIDE ? w_low + warp_col * MMA_PITCH : w_low;
    Accumulators<WIDE> sums = {};
    InFlight<true> x;
    InFlight<WIDE> w;
    x.load(p.codes, row, p.rows, p.stride, 0);
    w.load(part.weight, col, part.cols, p.stride, 0);
    for (u32 k = 0; k < p.stride; k += MMA_K) {
        x.store(x_high, x_low);
        w.store(w_high, w_low);
        __syncthreads();
        if (k + MMA_K < p.stride) {
            x.load(p.codes, row, p.rows, p.stride, k + MMA_K);
            w.load(part.weight, col, part.cols, p.stride, k + MMA_K);
        }
        multiply_staged<WIDE>(sums, x_high + warp_row * MMA_PITCH, x_low + warp_row * MMA_PITCH,
                              w_high + warp_col * MMA_PITCH, w_low_of_warp);
        __syncthreads();
    }
    u32 clamped = 0;
#pragma unroll
    for (u32 m = 0; m < MMA_M_TILES; m++) {
#pragma unroll
        for (u32 n = 0; n < MMA_N_TILES; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 t = row + warp_row + m * 16 + lane_index() / 4 + i / 2 * 8;
                const u32 c = col + warp_col + n * 8 + lane_index() % 4 * 2 + i % 2;
                const i32 ll = WIDE ? sums.ll[WIDE ? m : 0][WIDE ? n : 0][i] : 0;
                const i64 product = exact<WIDE>(sums.hh[m][n][i], sums.mid[m][n][i], ll);
                if (t < p.rows && c < part.cols) clamped += finish(p, part, t, c, product);
            }
        }
    }
    count_clamped(p.saturations, clamped);
}

KERNEL(matmul_mma_w8, MMA_THREADS, MatMulParams) { multiply_mma<false>(p); }
KERNEL(matmul_mma_w16, MMA_THREADS, MatMulParams) { multiply_mma<true>(p); }
