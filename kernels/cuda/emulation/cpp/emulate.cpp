// Runs the blocks of a launch one after the other, and the threads of a block as fibers.
#include "machine.h"

#include <cstdio>
#include <cstdlib>

namespace emulation {

thread_local Dim thread_dim, block_dim, grid_dim;
thread_local const Position *position;

static Entry *entries;

Entry::Entry(const char *name, u32 threads, size_t params, void (*run)(const void *))
    : name(name), threads(threads), params(params), run(run), next(entries) {
    entries = this;
}

thread_local Machine machine;

void fail(const char *what) {
    std::fprintf(stderr, "emulation: %s\n", what);
    std::abort();
}

void yield() {
    Fiber *self = machine.running;
    if (_setjmp(self->at) == 0) _longjmp(machine.scheduler, 1);
}

namespace {

constexpr size_t STACK = 128 << 10;

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
        if (fiber.done || (fiber.gate && fiber.gate->generation == fiber.generation) || waits_at_barrier(fiber)) continue;
        resume(fiber);
        progress = true;
    }
    return progress;
}

void run_block(Dim block, u32 threads, bool descending) {
    machine.block = Gate{threads};
    begin_shared();
    for (Warp &warp : machine.warps) warp.gate = Gate{WARP_LANES};
    for (WarpGroup &group : machine.groups) group.gate = Gate{GROUP_THREADS};
    for (u32 i = 0; i < threads; i++) {
        Fiber &fiber = *machine.fibers[i];
        fiber.position = {{i, 0, 0}, block};
        fiber.gate = nullptr;
        fiber.barrier = 0;
        fiber.groups = 0;
        fiber.may_multiply = false;
        fiber.done = false;
    }
    // Copies that are under way come when nothing else can go on.
    while (run_round(threads, descending) || finish_copy()) {
    }
    for (u32 i = 0; i < threads; i++)
        if (!machine.fibers[i]->done) fail("threads wait for others that are not to come: a barrier is not reached by all");
    end_block();
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

// Runs a kernel over a grid, with so many bytes of dynamic shared memory. 0, or: 1 there is no such kernel, 2 it has another
// number of threads, 3 it has parameters of another size, 4 no block has so much shared memory.
extern "C" int lockstep_emulate(const char *name, const void *params, size_t params_len, const u32 *grid, u32 threads,
                                u32 shared, bool descending) {
    using namespace emulation;
    const Entry *entry = entries;
    while (entry && std::strcmp(entry->name, name) != 0) entry = entry->next;
    if (!entry) return 1;
    if (entry->threads != threads || threads % WARP_LANES != 0) return 2;
    if (entry->params != params_len || params_len > MOST_PARAMS) return 3;
    if (shared > MOST_SHARED) return 4;
    while (machine.fibers.size() < threads) add_fiber();
    machine.warps.resize(threads / WARP_LANES);
    machine.groups.resize(threads / GROUP_THREADS);
    machine.shared_bytes = shared;
    machine.descending = descending;
    machine.kernel = entry->run;
    // As the driver does, which puts them where kernels find them, aligned.
    alignas(64) static thread_local char copy[MOST_PARAMS];
    std::memcpy(copy, params, params_len);
    machine.params = copy;
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
