// What compute capability 9.0 adds: copies of boxes of a tensor that need no thread, barriers that count bytes, and tensor
// core products of a whole warp group (four warps) whose operands lie in shared memory.
//
// As with `device.cuh` there is another version for the CPU, `emulation/cpp/hopper.h`.
#pragma once
#include "device.cuh"

// Codes of a row that one copy brings, and rows of a group of 1 KiB that lies swizzled in shared memory: of each eight rows
// of 128 bytes, row r has its pieces of 16 bytes in the order of (piece ^ r). Copies write it so, and products read it so.
constexpr u32 BOX_CODES = 128;
constexpr u32 SWIZZLE_BYTES = 1024;

#ifdef LOCKSTEP_EMULATION
#include "hopper.h"
#else

// Shared memory whose size the launch says, at an address that swizzling needs.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) u8 name[]

// A kernel whose parameters begin with maps of tensors, which copies read where they are.
#define KERNEL_WITH_MAPS(name, threads, Params)                                                                        \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Params p)

__device__ inline u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// --- Barriers in shared memory. A phase ends when as many threads have arrived as `barrier_init` was told, and all bytes
// that were announced have come.

__device__ inline void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Before copies use barriers that this thread made. A barrier of the block has to follow.
__device__ inline void barriers_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and announces so many bytes for this phase.
__device__ inline void barrier_arrive_expecting(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits until the phase of that parity has ended; phases count from 0.
__device__ inline void barrier_wait(u32 barrier, u32 parity) {
    asm volatile("{\n.reg .pred ended;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
                 "@!ended bra AGAIN;\n}" ::"r"(barrier), "r"(parity)
                 : "memory");
}

// Starts the copy of a box from the tensor that the map describes: 128 codes from `code` on, of digit `digit`, of as many
// rows from `row` on as the map says. Where it reaches beyond the tensor it has zeros. Its bytes count for the barrier.
__device__ inline void copy_box(u32 to, const void *map, u32 barrier, u32 code, u32 digit, u32 row) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
                 ::"r"(to), "l"(map), "r"(barrier), "r"(code), "r"(digit), "r"(row)
                 : "memory");
}

// --- Products of a warp group.

// How many registers each thread of the calling warp group has from here on.
template <u32 COUNT> __device__ inline void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <u32 COUNT> __device__ inline void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// Before products that use registers which something else has changed.
__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// What was started since the last call is a group.
__device__ inline void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most LEFT groups are under way.
template <u32 LEFT> __device__ inline void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
// The sums are not to be read, moved or kept elsewhere by the compiler beyond this point while products are under way.
__device__ inline void sums_stay(i32 (&d)[64]) {
#pragma unroll
    for (u32 i = 0; i < 64; i++) asm volatile("" : "+r"(d[i])::"memory");
}

// Starts d += a * b for 64 rows of a, 128 rows of b, and 32 bytes of each; see `operand`. Of the sums, with g = lane / 4 and
// t = lane % 4, thread `lane` of warp w has in d[4 * j ..] those of rows 16 w + g, columns 8 j + 2 t and the next, then of
// rows 16 w + g + 8, the same columns.
#define LOCKSTEP_EIGHT(d, i)                                                                                           \
    "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), "+r"(d[i + 6]),        \
        "+r"(d[i + 7])

#define LOCKSTEP_WGMMA(name, types)                                                                                    \
    __device__ inline void name(i32(&d)[64], u64 a, u64 b) {                                                           \
        asm volatile("{\n.reg .pred more;\nsetp.ne.b32 more, %66, 0;\n"                                                \
                     "wgmma.mma_async.sync.aligned.m64n128k32.s32." types " {"                                         \
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "\
                     "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "\
                     "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "\
                     "%62, %63 "                                                                                       \
                     "}, %64, %65, more;\n}"                                                                           \
                     : LOCKSTEP_EIGHT(d, 0), LOCKSTEP_EIGHT(d, 8), LOCKSTEP_EIGHT(d, 16), LOCKSTEP_EIGHT(d, 24),       \
                       LOCKSTEP_EIGHT(d, 32), LOCKSTEP_EIGHT(d, 40), LOCKSTEP_EIGHT(d, 48), LOCKSTEP_EIGHT(d, 56)      \
                     : "l"(a), "l"(b), "r"(1));                                                                        \
    }

LOCKSTEP_WGMMA(wgmma_ss, "s8.s8")
LOCKSTEP_WGMMA(wgmma_su, "s8.u8")
LOCKSTEP_WGMMA(wgmma_us, "u8.s8")
LOCKSTEP_WGMMA(wgmma_uu, "u8.u8")

#endif

// Describes an operand that begins at `address` in shared memory, in rows of 128 bytes swizzled as above: the address and
// the distance of groups of eight rows in units of 16 bytes, and in the upper two bits that 128 bytes are swizzled. The
// address may be 32, 64 or 96 bytes within a group's first row. (PTX manual, "Matrix descriptor".)
__device__ inline u64 operand(u32 address) {
    return (u64)(address >> 4 & 0x3fff) | (u64)1 << 16 | (u64)(SWIZZLE_BYTES >> 4) << 32 | (u64)1 << 62;
}
