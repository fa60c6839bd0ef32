// Saturating sum (SPEC 5.4).
#include "elements.cuh"

KERNEL(add, BLOCK_THREADS, BinaryParams) { count_clamped(p.saturations, add_elements(p, all_elements(p.len))); }
