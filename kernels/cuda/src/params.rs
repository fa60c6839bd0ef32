//! Parameters of the kernels, field by field those of `params.cuh`. Addresses are of device memory; 0 is none.
#![allow(missing_docs, reason = "the fields are described in params.cuh")]

use bytemuck::{Pod, Zeroable};

/// Elements to whose multiple rows of codes are padded with zeros, so that they can be read 16 bytes at a time.
pub const ROW_PADDING: usize = 64;

/// Steps of a row, in their order: those of [`RowStepsParams::steps`].
pub const STEP_ADD: u32 = 1;
pub const STEP_SILU: u32 = 2;
pub const STEP_GELU: u32 = 4;
pub const STEP_MULTIPLY: u32 = 8;
pub const STEP_RMS_NORM: u32 = 16;
pub const STEP_LAYER_NORM: u32 = 32;
pub const STEP_QUANTIZE: u32 = 64;

/// Most matrices of one launch of a product.
pub const MAX_PARTS: usize = 4;

/// Most tables of an embedding.
pub const MAX_TABLES: usize = 8;

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct EmbedTable {
    pub codes: u64,
    pub mantissa: u64,
    pub shift: u64,
    pub index: u64,
    pub rows: u32,
    pub constant: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct EmbedParams {
    pub tables: [EmbedTable; MAX_TABLES],
    pub out: u64,
    pub saturations: u64,
    pub count: u32,
    pub cols: u32,
    pub stride: u32,
    pub unused: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct QuantizeParams {
    pub input: u64,
    pub codes: u64,
    pub exponents: u64,
    pub cols: u32,
    pub stride: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct MatMulPart {
    pub weight: u64,
    pub mantissa: u64,
    pub shift: u64,
    pub bias: u64,
    pub out: u64,
    pub cols: u32,
    pub narrow: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct MatMulParams {
    pub codes: u64,
    pub exponents: u64,
    pub saturations: u64,
    pub rows: u32,
    pub stride: u32,
    pub count: u32,
    pub unused: u32,
    pub parts: [MatMulPart; 4],
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct BinaryParams {
    pub a: u64,
    pub b: u64,
    pub out: u64,
    pub saturations: u64,
    pub len: u64,
    pub shift: u32,
    pub unused: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct NormParams {
    pub input: u64,
    pub scale: u64,
    pub bias: u64,
    pub out: u64,
    pub saturations: u64,
    pub cols: u32,
    pub shift: u32,
    pub epsilon_mantissa: u32,
    pub epsilon_shift: i32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct UnaryParams {
    pub input: u64,
    pub table: u64,
    pub out: u64,
    pub len: u64,
    pub amount: u32,
    pub unused: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct RowsParams {
    pub input: u64,
    pub first: u64,
    pub count: u64,
    pub out: u64,
    pub cols: u32,
    pub unused: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct RopeParams {
    pub input: u64,
    pub table: u64,
    pub positions: u64,
    pub shift: u64,
    pub out: u64,
    pub saturations: u64,
    pub cols: u32,
    pub head_dim: u32,
    pub rotary_dim: u32,
    pub unused: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct KeyBlock {
    pub keys: u64,
    pub values: u64,
    pub position_stride: u32,
    pub head_stride: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct AttentionTile {
    pub row: u32,
    pub rows: u32,
    pub position: u32,
    pub length: u32,
    pub block: u32,
    pub table: u32,
    pub slot: u32,
    pub row_slots: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct AttentionParams {
    pub q: u64,
    pub blocks: u64,
    pub tiles: u64,
    pub score_shift: u64,
    pub sums: u64,
    pub reference: u64,
    pub weight: u64,
    pub saturations: u64,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub causal: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct RowPartials {
    pub row: u32,
    pub slot: u32,
    pub blocks: u32,
    pub unused: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct CombineParams {
    pub rows: u64,
    pub sums: u64,
    pub reference: u64,
    pub weight: u64,
    pub value_shift: u64,
    pub out: u64,
    pub heads: u32,
    pub head_dim: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct AppendRow {
    pub keys: u64,
    pub values: u64,
    pub row: u32,
    pub unused: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct AppendParams {
    pub keys: u64,
    pub values: u64,
    pub rows: u64,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub head_stride: u32,
    pub unused: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct SamplePoint {
    pub draw: u64,
    pub history: u32,
    pub history_len: u32,
    pub prompt_tokens: u32,
    pub max_tokens: u32,
    pub temperature: u32,
    pub scale_mantissa: u32,
    pub scale_shift: i32,
    pub top_k: u32,
    pub top_p: u32,
    pub least_weight: u32,
    pub repetition_penalty: u32,
    pub presence_penalty: i32,
    pub frequency_penalty: i32,
    pub bias: u32,
    pub bias_len: u32,
    pub stop_tokens: u32,
    pub stop_tokens_len: u32,
    pub stop_strings: u32,
    pub stop_strings_len: u32,
    pub row: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct SampleParams {
    pub logits: u64,
    pub token_bytes: u64,
    pub words: u64,
    pub points: u64,
    pub seen: u64,
    pub weights: u64,
    pub out: u64,
    pub vocabulary: u32,
    pub width: u32,
    pub frac: u32,
    pub unused: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct ChunksParams {
    pub input: u64,
    pub counters: u64,
    pub values: u64,
    pub rows: u32,
    pub cols: u32,
    pub row_chunks: u32,
    pub unused: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct RowStepsParams {
    pub add: BinaryParams,
    pub gate: UnaryParams,
    pub multiply: BinaryParams,
    pub norm: NormParams,
    pub quantize: QuantizeParams,
    pub saturations: u64,
    pub steps: u32,
    pub cols: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct TensorMap {
    pub words: [u64; 16],
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct WgmmaParams {
    pub weights: TensorMap,
    pub activations: TensorMap,
    pub product: MatMulParams,
    pub tiles: u32,
    pub unused: [u32; 5],
}
