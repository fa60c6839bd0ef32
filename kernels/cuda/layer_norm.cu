// LayerNorm (SPEC 5.5). A block for each row.
#include "normalize.cuh"

KERNEL(layer_norm, BLOCK_THREADS, NormParams) { normalize_row(p, true); }
