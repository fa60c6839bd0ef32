// Parameters of every kernel, as the host passes them: `src/params.rs` has the same structs, and a test compares them field
// by field.
// Pointers are to device memory. Rows of block floating point codes and of weight codes are padded with zeros to whole
// multiples of 64 elements; `stride` is that length. They are kept as digits: of each row of 16-bit codes first all high
// bytes, then all low ones (limbs.cuh); 8-bit codes are high digits alone.
#pragma once
#include "device.cuh"

struct EmbedTable {
    const u8 *codes;
    const u16 *mantissa;
    const i16 *shift;
    const u32 *index;  // of each output row; none where every row reads `constant`
    u32 rows;
    u32 constant;
};

struct EmbedParams {
    EmbedTable tables[8];
    i32 *out;
    u64 *saturations;
    u32 count;
    u32 cols;
    u32 stride;
    u32 unused;
};

struct QuantizeParams {
    const i32 *input;
    u8 *codes;
    i32 *exponents;
    u32 cols;
    u32 stride;
};

// One of the matrices that the same rows are multiplied by.
struct MatMulPart {
    const u8 *weight; // of 16-bit codes or of 8-bit ones
    const u16 *mantissa;
    const i16 *shift;
    const i32 *bias; // or none
    void *out;       // i32 or i16
    u32 cols;
    u32 narrow; // whether out is i16
};

struct MatMulParams {
    const u8 *codes;
    const i32 *exponents;
    u64 *saturations;
    u32 rows;
    u32 stride;
    u32 count; // of parts; a block is of part blockIdx.z
    u32 unused;
    MatMulPart parts[4];
};

struct BinaryParams {
    const i32 *a;
    const i32 *b;
    i32 *out;
    u64 *saturations;
    u64 len;
    u32 shift;
    u32 unused;
};

struct NormParams {
    const i32 *input;
    const i32 *scale;
    const i32 *bias;
    i32 *out;
    u64 *saturations;
    u32 cols;
    u32 shift;
    u32 epsilon_mantissa;
    i32 epsilon_shift;
};

struct UnaryParams {
    const i32 *input;
    const u32 *table;
    i32 *out;
    u64 len;
    u32 amount;  // fractional bits, or a shift
    u32 unused;
};

struct RowsParams {
    const i32 *input;
    const u32 *first;  // input row of each output row
    const u32 *count;  // how many rows are pooled
    i32 *out;
    u32 cols;
    u32 unused;
};

struct RopeParams {
    const i32 *input;
    const i32 *table;
    const u32 *positions;
    const u8 *shift;
    i16 *out;
    u64 *saturations;
    u32 cols;
    u32 head_dim;
    u32 rotary_dim;
    u32 unused;
};

// Keys and values of one softmax block of one sequence.
struct KeyBlock {
    const i16 *keys;
    const i16 *values;
    u32 position_stride; // elements from one position of a head to the next
    u32 head_stride;     // elements from one head to the next
};

// Rows of one sequence that are computed together, against one softmax block.
struct AttentionTile {
    u32 row;       // first
    u32 rows;      // 1 to 8, or to 16 on tensor cores
    u32 position;  // of the first row
    u32 length;    // positions of the sequence
    u32 block;     // softmax block
    u32 table;     // its entry among the key blocks
    u32 slot;      // partial of the first row and head 0
    u32 row_slots; // partials from one row to the next
};

struct AttentionParams {
    const i16 *q;
    const KeyBlock *blocks;
    const AttentionTile *tiles;
    const u8 *score_shift;
    i64 *sums;      // [slots][head_dim]
    i32 *reference; // [slots]
    u32 *weight;    // [slots]
    u64 *saturations;
    u32 heads;
    u32 kv_heads;
    u32 head_dim;
    u32 causal;
};

// Where the partials of one row are.
struct RowPartials {
    u32 row;
    u32 slot; // of block 0 and head 0; those of the next block are `heads` further
    u32 blocks;
    u32 unused;
};

struct CombineParams {
    const RowPartials *rows;
    const i64 *sums;
    const i32 *reference;
    const u32 *weight;
    const u8 *value_shift;
    i32 *out;
    u32 heads;
    u32 head_dim;
};

// Rows of keys and values on their way into the pages of a cache.
struct AppendRow {
    i16 *keys; // of head 0
    i16 *values;
    u32 row;
    u32 unused;
};

struct AppendParams {
    const i16 *keys;
    const i16 *values;
    const AppendRow *rows;
    u32 kv_heads;
    u32 head_dim;
    u32 head_stride;
    u32 unused;
};

// Settings and history of one point. Lists are offsets into `SampleParams::words`.
struct SamplePoint {
    u64 draw;
    u32 history;
    u32 history_len;
    u32 prompt_tokens;
    u32 max_tokens;
    u32 temperature;
    u32 scale_mantissa;
    i32 scale_shift;
    u32 top_k;
    u32 top_p;
    u32 least_weight;
    u32 repetition_penalty;
    i32 presence_penalty;
    i32 frequency_penalty;
    u32 bias; // pairs of token and bias
    u32 bias_len;
    u32 stop_tokens;
    u32 stop_tokens_len;
    u32 stop_strings; // each a length, then its bytes, a word for each
    u32 stop_strings_len;
    u32 row; // of the logits
};

struct SampleParams {
    const i32 *logits;
    const i8 *token_bytes;
    const u32 *words;
    const SamplePoint *points;
    u32 *seen;    // scratch, [points][vocabulary]
    u32 *weights; // scratch, [points][vocabulary]
    i32 *out;
    u32 vocabulary;
    u32 width;
    u32 frac;
    u32 unused;
};

// Rows of a tensor, each padded with zeros to whole chunks; one chaining value for each chunk.
struct ChunksParams {
    const i32 *input;
    const u64 *counters; // chunk number of each row's first chunk
    u32 *values;         // [rows][row_chunks][8]
    u32 rows;
    u32 cols;
    u32 row_chunks;
    u32 unused;
};

// Steps of a row, in their order.
constexpr u32 STEP_ADD = 1;
constexpr u32 STEP_SILU = 2;
constexpr u32 STEP_GELU = 4;
constexpr u32 STEP_MULTIPLY = 8;
constexpr u32 STEP_RMS_NORM = 16;
constexpr u32 STEP_LAYER_NORM = 32;
constexpr u32 STEP_QUANTIZE = 64;

struct RowStepsParams {
    BinaryParams add;
    UnaryParams gate;
    BinaryParams multiply;
    NormParams norm;
    QuantizeParams quantize;
    u64 *saturations;
    u32 steps;
    u32 cols;
};

// What copies read of a tensor: opaque, the device's own description.
struct TensorMap {
    alignas(64) u64 words[16];
};

struct WgmmaParams {
    TensorMap weights;
    TensorMap activations;
    MatMulParams product;
    u32 tiles;
    u32 unused[5]; // up to a whole 64 bytes
};
