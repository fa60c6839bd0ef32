// GELU (SPEC 5.8).
#include "table.cuh"

KERNEL(gelu, BLOCK_THREADS, UnaryParams) { gate_all(p, 7); }
