// The machine that runs a block: what `emulate.cpp` and `hopper.cpp` share.
#pragma once
#include "hopper.h"

#include <csetjmp>
#include <memory>
#include <ucontext.h>
#include <vector>

namespace emulation {

constexpr size_t MOST_PARAMS = 4096; // bytes that a launch may have
constexpr u32 WARP_LANES = 32;
constexpr u32 GROUP_THREADS = 128;       // of a warp group
constexpr u32 MOST_SHARED = 227 << 10; // bytes of shared memory that a block may have

// A barrier, or an exchange within a warp: waits until `expected` have come, again and again.
struct Gate {
    u32 expected = 0, arrived = 0;
    u64 generation = 0;
};

struct Fiber {
    jmp_buf at;
    ucontext_t start;
    std::unique_ptr<char[]> stack;
    Position position;
    const Gate *gate = nullptr; // that it waits at
    u64 generation = 0;         // that it waits to end
    u32 barrier = 0;            // in shared memory, that it waits at; 0 is none
    u32 parity = 0;             // of the phase that it waits to end
    u64 groups = 0;             // of products that it has committed
    bool may_multiply = false;  // since its last fence
    bool done = true;
};

struct Warp {
    Gate gate;
    Exchange exchanges[2]; // by turns: a lane may give its next words while another still reads the last ones
};

// Products of a warp group that have not taken effect yet, each with its group.
struct WarpGroup {
    Gate gate;
    Product next;
    std::vector<std::pair<u64, Product>> pending;
};

// What the host wrote of a tensor (`tensor_map` in lib.rs): bytes [rows][digits][codes].
struct Tensor {
    u64 mark, address, codes, digits, rows, box_rows;
};

struct Copy {
    Tensor tensor;
    u32 to;
    u32 barrier;
    u32 code, digit, row;
};

// The fibers of one thread of the host. They live as long as it does, and run kernel after kernel.
struct Machine {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    std::vector<WarpGroup> groups;
    std::vector<Copy> copies; // that are under way
    Gate block;
    jmp_buf scheduler;
    ucontext_t home;
    Fiber *running = nullptr;
    void (*kernel)(const void *) = nullptr;
    const void *params = nullptr;
    u32 shared_bytes = 0;
    bool descending = false;
};

extern thread_local Machine machine;

[[noreturn]] void fail(const char *what);

// Lets other threads run.
void yield();

// Comes to a gate. The last one opens it, after `complete`; the others wait.
template <typename Complete> void pass(Gate &gate, Complete complete) {
    Fiber *self = machine.running;
    if (++gate.arrived == gate.expected) {
        complete();
        gate.arrived = 0;
        gate.generation++;
        return;
    }
    self->gate = &gate;
    self->generation = gate.generation;
    yield();
    self->gate = nullptr;
}

// Fills dynamic shared memory with garbage.
void begin_shared();
// Fails where something is still under way.
void end_block();

// Whether the thread waits at a barrier in shared memory whose phase has not ended.
bool waits_at_barrier(const Fiber &fiber);

// One copy that is under way takes effect. Whether there was one.
bool finish_copy();

} // namespace emulation
