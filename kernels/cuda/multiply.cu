// Product, element by element (SPEC 5.14).
#include "elements.cuh"

KERNEL(multiply, BLOCK_THREADS, BinaryParams) { count_clamped(p.saturations, multiply_elements(p, all_elements(p.len))); }
