// SiLU (SPEC 5.9).
#include "table.cuh"

KERNEL(silu, BLOCK_THREADS, UnaryParams) { gate_all(p, 6); }
