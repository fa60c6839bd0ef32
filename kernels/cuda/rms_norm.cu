// RMSNorm (SPEC 5.6). A block for each part of a row.
#include "normalize.cuh"

KERNEL(rms_norm, BLOCK_THREADS, NormParams) { normalize_row(p, false); }
