// Runs the blocks of a launch one after the other, and the threads of a block as fibers.
#include "emulate.h"

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <ucontext.h>
#include <vector>

namespace emulation {

thread_local Dim thread_dim, block_dim, grid_dim;
thread_local const Position *position;

static Entry *entries;

Entry::Entry(const char *name, u32 threads, size_t params, void (*run)(const void *))
    : name(name), threads(threads), params(params), run(run), next(entries) {
    entries = this;
}

namespace {

constexpr size_t STACK = 128 << 10;
constexpr u32 WARP_LANES = 32;

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
    bool done = true;
};

struct Warp {
    Gate gate;
    Exchange exchanges[2]; // by turns: a lane may give its next words while another still reads the last ones
};

// The fibers of one thread of the host. They live as long as it does, and run kernel after kernel.
struct Machine {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    Gate block;
    jmp_buf scheduler;
    ucontext_t home;
    Fiber *running = nullptr;
    void (*kernel)(const void *) = nullptr;
    const void *params = nullptr;
};

thread_local Machine machine;

[[noreturn]] void fail(const char *what) {
    std::fprintf(stderr, "emulation: %s\n", what);
    std::abort();
}

void yield() {
    Fiber *self = machine.running;
    if (_setjmp(self->at) == 0) _longjmp(machine.scheduler, 1);
}

// Runs kernels for ever; the first call only leaves the place where to go on.
void fiber_main() {
    Fiber *self = machine.running;
    if (_setjmp(self->at) == 0) swapcontext(&self->start, &machine.home);
    for (;;) {
        machine.kernel(machine.params);
        machine.running->done = true;
        yield();
    }
}

void add_fiber() {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = std::make_unique<char[]>(STACK);
    getcontext(&fiber->start);
    fiber->start.uc_stack.ss_sp = fiber->stack.get();
    fiber->start.uc_stack.ss_size = STACK;
    fiber->start.uc_link = nullptr;
    makecontext(&fiber->start, fiber_main, 0);
    machine.running = fiber.get();
    swapcontext(&machine.home, &fiber->start);
    machine.fibers.push_back(std::move(fiber));
}

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

void resume(Fiber &fiber) {
    machine.running = &fiber;
    position = &fiber.position;
    if (_setjmp(machine.scheduler) == 0) _longjmp(fiber.at, 1);
}

// One round over all threads, each as far as it gets. Whether any could run.
bool run_round(u32 threads, bool descending) {
    bool progress = false;
    for (u32 n = 0; n < threads; n++) {
        Fiber &fiber = *machine.fibers[descending ? threads - 1 - n : n];
        if (fiber.done || (fiber.gate && fiber.gate->generation == fiber.generation)) continue;
        resume(fiber);
        progress = true;
    }
    return progress;
}

void run_block(Dim block, u32 threads, bool descending) {
    machine.block = Gate{threads};
    for (Warp &warp : machine.warps) warp.gate = Gate{WARP_LANES};
    for (u32 i = 0; i < threads; i++) {
        Fiber &fiber = *machine.fibers[i];
        fiber.position = {{i, 0, 0}, block};
        fiber.gate = nullptr;
        fiber.done = false;
    }
    while (run_round(threads, descending)) {
    }
    for (u32 i = 0; i < threads; i++)
        if (!machine.fibers[i]->done) fail("threads wait for others that are not to come: a barrier is not reached by all");
}

} // namespace

void sync_threads() {
    pass(machine.block, [] {});
}

const Exchange &exchange(const u64 *words, u32 count, void (*complete)(Exchange &)) {
    const u32 thread = machine.running->position.thread.x;
    Warp &warp = machine.warps[thread / WARP_LANES];
    Exchange &e = warp.exchanges[warp.gate.generation % 2];
    std::memcpy(e.words[thread % WARP_LANES], words, count * sizeof(u64));
    pass(warp.gate, [&] {
        if (complete) complete(e);
    });
    return e;
}

} // namespace emulation

// Runs a kernel over a grid. 0, or: 1 there is no such kernel, 2 it has another number of threads, 3 it has parameters of
// another size.
extern "C" int lockstep_emulate(const char *name, const void *params, size_t params_len, const u32 *grid, u32 threads,
                                bool descending) {
    using namespace emulation;
    const Entry *entry = entries;
    while (entry && std::strcmp(entry->name, name) != 0) entry = entry->next;
    if (!entry) return 1;
    if (entry->threads != threads || threads % WARP_LANES != 0) return 2;
    if (entry->params != params_len) return 3;
    while (machine.fibers.size() < threads) add_fiber();
    machine.warps.resize(threads / WARP_LANES);
    machine.kernel = entry->run;
    machine.params = params;
    block_dim = {threads, 1, 1};
    grid_dim = {grid[0], grid[1], grid[2]};
    const u64 blocks = (u64)grid[0] * grid[1] * grid[2];
    for (u64 n = 0; n < blocks; n++) {
        const u64 b = descending ? blocks - 1 - n : n;
        run_block({(u32)(b % grid[0]), (u32)(b / grid[0] % grid[1]), (u32)(b / grid[0] / grid[1])}, threads, descending);
    }
    return 0;
}

// Names of all kernels, one after the other; none after the last one.
extern "C" const char *lockstep_emulated_kernel(u32 index) {
    const emulation::Entry *entry = emulation::entries;
    while (entry && index-- > 0) entry = entry->next;
    return entry ? entry->name : nullptr;
}
