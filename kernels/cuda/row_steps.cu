// Several ops on rows in one launch, each reading what the one before wrote: a sum, SiLU or GELU, a product, a norm, quantising, in
// this order, any of them left out. A block for each row. A thread has the same elements in every step, so it reads what it
// wrote itself, from the nearest cache; every result is written, for whoever asks for it.
#include "normalize.cuh"
#include "table.cuh"

__device__ inline void run_steps(const RowStepsParams &p) {
    const Elements row = row_elements(p.cols);
    u32 clamped = 0;
    if (p.steps & STEP_ADD) clamped += add_elements(p.add, row);
    if (p.steps & STEP_SILU) gate_elements(p.gate, SIGMOID_STEPS_LOG2, row);
    if (p.steps & STEP_GELU) gate_elements(p.gate, GAUSS_STEPS_LOG2, row);
    if (p.steps & STEP_MULTIPLY) clamped += multiply_elements(p.multiply, row);
    count_clamped(p.saturations, clamped);
    if (p.steps & (STEP_RMS_NORM | STEP_LAYER_NORM)) normalize_row(p.norm, p.steps & STEP_LAYER_NORM);
    if (p.steps & STEP_QUANTIZE) quantize_row(p.quantize);
}

KERNEL(row_steps, BLOCK_THREADS, RowStepsParams) { run_steps(p); }
KERNEL(row_steps_long, MOST_THREADS, RowStepsParams) { run_steps(p); }
