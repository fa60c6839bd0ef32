// i32 rows to block floating point rows (SPEC 5.2). A block for each row.
#include "elements.cuh"

KERNEL(quantize, BLOCK_THREADS, QuantizeParams) { quantize_row(p); }
