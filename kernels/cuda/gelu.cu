// GELU (SPEC 5.8).
#include "table.cuh"

KERNEL(gelu, BLOCK_THREADS, UnaryParams) { gate_elements(p, GAUSS_STEPS_LOG2, all_elements(p.len)); }
