// What `hopper.cuh` declares, on the CPU. Layouts are decoded as the PTX manual defines them, not as the kernels make them:
// a descriptor that says something else, or a copy in another order, gives other bytes.
//
// Copies and products are asynchronous on a GPU: they take effect at any time from their start until somebody has waited for
// them. Here they take effect at once where threads run in rising order, and as late as possible, the last one first, where
// they run in falling order. So what is read too early or overwritten too early gives other bytes in one of them.
#pragma once
#include "emulate.h"

#define DYNAMIC_SHARED(name) u8 *const name = emulation::dynamic_shared()
#define KERNEL_WITH_MAPS(name, threads, Params) KERNEL(name, threads, Params)

namespace emulation {

u8 *dynamic_shared();
u32 shared_address_of(const void *p);

void make_barrier(u32 barrier, u32 arrivals);
void arrive(u32 barrier, u32 bytes);
void wait(u32 barrier, u32 parity);
void copy_box(u32 to, const void *map, u32 barrier, u32 code, u32 digit, u32 row);

// A product that a warp group has started: the types of its digits, its operands, and each thread's sums.
struct Product {
    bool a_signed, b_signed;
    u64 a, b;
    i32 *sums[128];
};
void begin_products();
void start_product(bool a_signed, bool b_signed, i32 *sums, u64 a, u64 b);
void commit_products();
void wait_for_products(u32 left);

} // namespace emulation

inline u32 shared_address(const void *p) { return emulation::shared_address_of(p); }
inline void barrier_init(u32 barrier, u32 arrivals) { emulation::make_barrier(barrier, arrivals); }
inline void barriers_made() {}
inline void barrier_arrive(u32 barrier) { emulation::arrive(barrier, 0); }
inline void barrier_arrive_expecting(u32 barrier, u32 bytes) { emulation::arrive(barrier, bytes); }
inline void barrier_wait(u32 barrier, u32 parity) { emulation::wait(barrier, parity); }
inline void copy_box(u32 to, const void *map, u32 barrier, u32 code, u32 digit, u32 row) {
    emulation::copy_box(to, map, barrier, code, digit, row);
}

template <u32 COUNT> void take_registers() { static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256); }
template <u32 COUNT> void give_registers() { static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256); }
inline void products_begin() { emulation::begin_products(); }
inline void products_commit() { emulation::commit_products(); }
template <u32 LEFT> void products_wait() { emulation::wait_for_products(LEFT); }
inline void sums_stay(i32 (&)[64]) {}

inline void wgmma_ss(i32 (&d)[64], u64 a, u64 b) { emulation::start_product(true, true, d, a, b); }
inline void wgmma_su(i32 (&d)[64], u64 a, u64 b) { emulation::start_product(true, false, d, a, b); }
inline void wgmma_us(i32 (&d)[64], u64 a, u64 b) { emulation::start_product(false, true, d, a, b); }
inline void wgmma_uu(i32 (&d)[64], u64 a, u64 b) { emulation::start_product(false, false, d, a, b); }
