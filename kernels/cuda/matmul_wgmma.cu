// Matrix product (SPEC 5.3) on the tensor cores of compute capability 9.0, for many rows: wgmma on bytes, fed by copies that
// need no thread.
//
// A block computes tiles of 128 outputs of 128 rows, one after the other. Its first warp group only copies: digits of the
// weights and of the activations, 128 codes at a time, into a ring of stages; it runs ahead as far as stages are free, also
// into the next tile. The other two warp groups multiply, 64 outputs each. All products of digits are made in one pass over
// the weights. Weights are the left operand, activations the right one.
#include "hopper.cuh"
#include "limbs.cuh"

constexpr u32 WGMMA_THREADS = 384;
constexpr u32 WGMMA_TILE = 128;
constexpr u32 GROUP_OUTPUTS = 64; // of a warp group
constexpr u32 BOX_BYTES = WGMMA_TILE * BOX_CODES;
constexpr u32 STEP_CODES = 32; // of one instruction
constexpr u32 MULTIPLYING_WARPS = 8;

// The ring: `full` ends a phase when a stage's bytes have come, `empty` when all warps have multiplied them.
template <bool WIDE> struct Ring {
    static constexpr u32 BOXES = WIDE ? 4 : 3;
    static constexpr u32 STAGES = WIDE ? 3 : 4;
    static constexpr u32 STAGE_BYTES = BOXES * BOX_BYTES;
    u32 base;
    u32 stage = 0, parity = 0;

    __device__ explicit Ring(u32 base) : base(base) {}

    __device__ u32 full() const { return base + STAGES * STAGE_BYTES + 8 * stage; }
    __device__ u32 empty() const { return full() + 8 * STAGES; }
    // Digits in the order in which they lie: weights high, activations high and low, weights low.
    __device__ u32 box(u32 n) const { return base + stage * STAGE_BYTES + n * BOX_BYTES; }

    __device__ void next() {
        stage++;
        if (stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }

    __device__ void make() {
        for (u32 s = 0; s < STAGES; s++, next()) {
            barrier_init(full(), 1);
            barrier_init(empty(), MULTIPLYING_WARPS);
        }
        barriers_made();
    }
};

// First row and first output of a tile. Neighbouring tiles have the same weights.
struct Tile {
    u32 row, col;
    __device__ Tile(const MatMulParams &p, u32 index) {
        const u32 of_rows = (p.rows + WGMMA_TILE - 1) / WGMMA_TILE;
        row = index % of_rows * WGMMA_TILE;
        col = index / of_rows * WGMMA_TILE;
    }
};

// Of one thread: copies all stages of all tiles of the block.
template <bool WIDE> __device__ inline void copy_tiles(Ring<WIDE> ring, const WgmmaParams &p) {
    ring.parity = 1; // the stages are free at first
    for (u32 index = blockIdx.x; index < p.tiles; index += gridDim.x) {
        const Tile tile(p.product, index);
        for (u32 k = 0; k < p.product.stride; k += BOX_CODES, ring.next()) {
            barrier_wait(ring.empty(), ring.parity);
            barrier_arrive_expecting(ring.full(), Ring<WIDE>::STAGE_BYTES);
            copy_box(ring.box(0), &p.weights, ring.full(), k, 0, tile.col);
            copy_box(ring.box(1), &p.activations, ring.full(), k, 0, tile.row);
            copy_box(ring.box(2), &p.activations, ring.full(), k, 1, tile.row);
            if (WIDE) copy_box(ring.box(3), &p.weights, ring.full(), k, 1, tile.col);
        }
    }
}

template <bool WIDE> struct GroupSums {
    i32 hh[64], mid[64], ll[WIDE ? 64 : 1];

    __device__ void clear() {
#pragma unroll
        for (u32 i = 0; i < 64; i++) {
            hh[i] = mid[i] = 0;
            if (WIDE) ll[i] = 0;
        }
    }

    __device__ void stay() {
        sums_stay(hh);
        sums_stay(mid);
        if constexpr (WIDE) sums_stay(ll);
    }

    // Starts all products of digits of the stage; `offset` is that of the warp group's first output.
    __device__ void start(const Ring<WIDE> &ring, u32 offset) {
#pragma unroll
        for (u32 k = 0; k < BOX_CODES; k += STEP_CODES) {
            const u64 weights = operand(ring.box(0) + offset + k);
            const u64 high = operand(ring.box(1) + k), low = operand(ring.box(2) + k);
            wgmma_ss(hh, weights, high);
            wgmma_su(mid, weights, low);
            if constexpr (WIDE) {
                const u64 lower_weights = operand(ring.box(3) + offset + k);
                wgmma_us(mid, lower_weights, high);
                wgmma_uu(ll, lower_weights, low);
            }
        }
    }
};

// Rescales and writes the sums of a warp group. Returns how many were clamped.
template <bool WIDE>
__device__ inline u32 write_tile(const GroupSums<WIDE> &sums, const MatMulParams &p, const Tile &tile, u32 first) {
    u32 clamped = 0;
#pragma unroll
    for (u32 i = 0; i < 64; i++) {
        const u32 col = tile.col + first + warp_index() % 4 * 16 + lane_index() / 4 + i / 2 % 2 * 8;
        const u32 row = tile.row + i / 4 * 8 + lane_index() % 4 * 2 + i % 2;
        const i64 product = exact<WIDE>(sums.hh[i], sums.mid[i], sums.ll[WIDE ? i : 0]);
        if (row < p.rows && col < p.parts[0].cols) clamped += finish(p, p.parts[0], row, col, product);
    }
    return clamped;
}

// Of a warp group: multiplies the stages of all tiles as they come.
template <bool WIDE> __device__ inline void multiply_tiles(Ring<WIDE> ring, const WgmmaParams &p) {
    const u32 first = (warp_index() / 4 - 1) * GROUP_OUTPUTS;
    GroupSums<WIDE> sums;
    u32 clamped = 0;
    for (u32 index = blockIdx.x; index < p.tiles; index += gridDim.x) {
        sums.clear();
        u32 read = 0; // the stage that is free when the products under way have ended
        for (u32 k = 0; k < p.product.stride; k += BOX_CODES, ring.next()) {
            barrier_wait(ring.full(), ring.parity);
            sums.stay();
            products_begin();
            sums.start(ring, first * BOX_CODES);
            products_commit();
            products_wait<1>();
            sums.stay();
            if (k > 0 && lane_index() == 0) barrier_arrive(read);
            read = ring.empty();
        }
        products_wait<0>();
        sums.stay();
        if (lane_index() == 0) barrier_arrive(read);
        clamped += write_tile<WIDE>(sums, p.product, Tile(p.product, index), first);
    }
    count_clamped(p.product.saturations, clamped);
}

template <bool WIDE> __device__ inline void multiply_wgmma(const WgmmaParams &p, const u8 *shared) {
    Ring<WIDE> ring(shared_address(shared));
    if (thread_index() == 0) {
        Ring<WIDE> made = ring;
        made.make();
    }
    __syncthreads();
    if (warp_index() < 4) {
        give_registers<24>();
        if (thread_index() == 0) copy_tiles<WIDE>(ring, p);
    } else {
        take_registers<240>();
        multiply_tiles<WIDE>(ring, p);
    }
}

KERNEL_WITH_MAPS(matmul_wgmma_w8, WGMMA_THREADS, WgmmaParams) {
    DYNAMIC_SHARED(shared);
    multiply_wgmma<false>(p, shared);
}

KERNEL_WITH_MAPS(matmul_wgmma_w16, WGMMA_THREADS, WgmmaParams) {
    DYNAMIC_SHARED(shared);
    multiply_wgmma<true>(p, shared);
}
