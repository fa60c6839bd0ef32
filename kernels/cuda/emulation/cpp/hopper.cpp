// Copies of boxes, barriers in shared memory and products of warp groups, after the PTX manual.
#include "machine.h"

namespace emulation {

namespace {

constexpr u32 WINDOW_START = 1024; // so that no address is 0

alignas(1024) thread_local u8 window[MOST_SHARED];

u8 *at(u32 address, u32 bytes) {
    if (address < WINDOW_START || address - WINDOW_START + (u64)bytes > machine.shared_bytes)
        fail("shared memory is used beyond what the launch asked for");
    return window + (address - WINDOW_START);
}

// An mbarrier object: opaque to kernels.
struct BarrierState {
    u64 arrivals : 20; // that a phase takes
    u64 pending : 20;
    u64 bytes : 23; // that are to come, modulo 2^23: a copy may be faster than who announces it
    u64 phase : 1;
};
static_assert(sizeof(BarrierState) == 8);

template <typename Change> void change_barrier(u32 barrier, Change change) {
    if (barrier % 8 != 0) fail("a barrier is misaligned");
    BarrierState state;
    std::memcpy(&state, at(barrier, 8), 8);
    change(state);
    if (state.pending == 0 && state.bytes == 0) {
        state.phase ^= 1;
        state.pending = state.arrivals;
    }
    std::memcpy(at(barrier, 8), &state, 8);
}

constexpr u64 TENSOR_MARK = 0x6c6f636b73746570;
constexpr u32 BOX_BYTES_OF_ROW = 128;
constexpr u32 PIECE = 16; // bytes that swizzling leaves together

// Swizzling by 128 bytes: of an address, bits 4 to 6 are changed by bits 7 to 9.
u32 swizzled(u32 address) { return address ^ (address >> 7 & 7) << 4; }

void copy_now(const Copy &copy) {
    const Tensor &tensor = copy.tensor;
    if (tensor.mark != TENSOR_MARK) fail("a copy reads what is no map of a tensor");
    if (copy.to % 1024 != 0) fail("a box that is swizzled is misaligned");
    for (u32 row = 0; row < tensor.box_rows; row++) {
        for (u32 i = 0; i < BOX_BYTES_OF_ROW; i += PIECE) {
            const u64 r = (u64)copy.row + row, c = (u64)copy.code + i;
            const bool within = r < tensor.rows && copy.digit < tensor.digits && c < tensor.codes;
            u8 *to = at(swizzled(copy.to + row * BOX_BYTES_OF_ROW + i), PIECE);
            std::memset(to, 0, PIECE);
            if (within)
                std::memcpy(to, (const u8 *)tensor.address + (r * tensor.digits + copy.digit) * tensor.codes + c, PIECE);
        }
    }
    const u32 bytes = (u32)tensor.box_rows * BOX_BYTES_OF_ROW;
    change_barrier(copy.barrier, [&](BarrierState &state) { state.bytes -= bytes; });
}

// The digits of an operand of `rows` rows by 32, K-major: rows are 128 bytes apart, and groups of eight rows as far as the
// descriptor says.
template <u32 ROWS> UNCHECKED void load_operand(i16 (&digits)[ROWS][32], u64 descriptor, bool is_signed) {
    const u32 start = (u32)(descriptor & 0x3fff) << 4, group = (u32)(descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1) fail("only operands that are swizzled by 128 bytes are known here");
    if (descriptor >> 49 & 7 || start % 128 % 32 != 0 || start % 1024 >= 128) fail("an operand begins within its pattern");
    for (u32 row = 0; row < ROWS; row++) {
        for (u32 k = 0; k < 32; k++) {
            const u32 piece = start + row / 8 * group + row % 8 * 128 + k / PIECE * PIECE;
            const u8 byte = at(swizzled(piece), PIECE)[k % PIECE];
            digits[row][k] = is_signed ? (i8)byte : byte;
        }
    }
}

UNCHECKED i32 dot(const i16 (&a)[32], const i16 (&b)[32]) {
    i32 sum = 0;
    for (u32 k = 0; k < 32; k++) sum += a[k] * b[k];
    return sum;
}

void multiply(const Product &product) {
    static thread_local i16 a[64][32], b[128][32];
    load_operand(a, product.a, product.a_signed);
    load_operand(b, product.b, product.b_signed);
    for (u32 thread = 0; thread < GROUP_THREADS; thread++) {
        const u32 warp = thread / WARP_LANES, lane = thread % WARP_LANES;
        for (u32 i = 0; i < 64; i++) {
            const u32 row = 16 * warp + lane / 4 + (i % 4 < 2 ? 0 : 8);
            const u32 col = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
            product.sums[thread][i] += dot(a[row], b[col]);
        }
    }
}

WarpGroup &group_of_running() { return machine.groups[machine.running->position.thread.x / GROUP_THREADS]; }

} // namespace

u8 *dynamic_shared() { return window; }

u32 shared_address_of(const void *p) { return WINDOW_START + (u32)((const u8 *)p - window); }

void make_barrier(u32 barrier, u32 arrivals) {
    const BarrierState state = {arrivals, arrivals, 0, 0};
    std::memcpy(at(barrier, 8), &state, 8);
}

void arrive(u32 barrier, u32 bytes) {
    change_barrier(barrier, [&](BarrierState &state) {
        if (state.pending == 0) fail("more threads arrive at a barrier than a phase takes");
        state.bytes += bytes;
        state.pending--;
    });
}

bool waits_at_barrier(const Fiber &fiber) {
    if (!fiber.barrier) return false;
    BarrierState state;
    std::memcpy(&state, at(fiber.barrier, 8), 8);
    return state.phase == fiber.parity;
}

void wait(u32 barrier, u32 parity) {
    Fiber *self = machine.running;
    self->barrier = barrier;
    self->parity = parity;
    if (waits_at_barrier(*self)) yield();
    self->barrier = 0;
}

void copy_box(u32 to, const void *map, u32 barrier, u32 code, u32 digit, u32 row) {
    Copy copy = {{}, to, barrier, code, digit, row};
    std::memcpy(&copy.tensor, map, sizeof copy.tensor);
    machine.copies.push_back(copy);
    if (!machine.descending) finish_copy();
}

bool finish_copy() {
    if (machine.copies.empty()) return false;
    const Copy copy = machine.copies.back();
    machine.copies.pop_back();
    copy_now(copy);
    return true;
}

void begin_products() { machine.running->may_multiply = true; }

void start_product(bool a_signed, bool b_signed, i32 *sums, u64 a, u64 b) {
    Fiber *self = machine.running;
    if (!self->may_multiply) fail("a product begins without a fence");
    WarpGroup &group = group_of_running();
    const u32 thread = self->position.thread.x % GROUP_THREADS;
    if (group.gate.arrived == 0)
        group.next = {a_signed, b_signed, a, b, {}};
    else if (group.next.a != a || group.next.b != b || group.next.a_signed != a_signed || group.next.b_signed != b_signed)
        fail("threads of a warp group begin different products");
    group.next.sums[thread] = sums;
    pass(group.gate, [&] {
        if (machine.descending)
            group.pending.push_back({self->groups, group.next});
        else
            multiply(group.next);
    });
}

void commit_products() { machine.running->groups++; }

void wait_for_products(u32 left) {
    Fiber *self = machine.running;
    self->may_multiply = false;
    std::vector<std::pair<u64, Product>> &pending = group_of_running().pending;
    // Those of groups that are older than the last `left` ones, the last one first.
    for (size_t i = pending.size(); i-- > 0;) {
        if (pending[i].first + left >= self->groups) continue;
        multiply(pending[i].second);
        pending.erase(pending.begin() + (i64)i);
    }
}

void begin_shared() { std::memset(window, 0xcd, machine.shared_bytes); }

void end_block() {
    for (const WarpGroup &group : machine.groups)
        if (!group.pending.empty()) fail("a block ended before its products");
}

} // namespace emulation
