// SiLU (SPEC 5.9).
#include "table.cuh"

KERNEL(silu, BLOCK_THREADS, UnaryParams) { gate_elements(p, SIGMOID_STEPS_LOG2, all_elements(p.len)); }
