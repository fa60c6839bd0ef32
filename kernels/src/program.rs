//! A model as a program: layers of straight-line ops over named tensors (SPEC section 6).
//!
//! A program is data. It lies in the package's manifest, so a new architecture is a new lowering and touches neither
//! backend nor referee. [`Program::validate`] checks everything that does not need the weights themselves; the proof
//! of accumulator bounds, which does, is the model crate's.

mod memory;
mod validate;

pub(crate) use memory::page_bytes;
pub use memory::{BOUND_THREADS, PassShape};
pub use validate::{
    MAX_COLS, MAX_HEAD_DIM, MAX_NORM_COLS, MAX_OUTPUT_COLS, MAX_POSITIONS, MAX_REDUCTION, MAX_ROPE_SHIFT,
    MAX_TOKEN_BYTES, ProgramError,
};

/// Index of an activation tensor in [`Program::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorId(pub u16);

/// Index of a parameter in [`Program::params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub u16);

/// A whole model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Tokens are below this.
    pub vocab_size: u32,
    /// Longest sequence.
    pub max_positions: u32,
    /// Activation tensors.
    pub tensors: Vec<Tensor>,
    /// Parameters, in package order.
    pub params: Vec<Param>,
    /// Layer 0 is the embedding, the last one makes the output.
    pub layers: Vec<Layer>,
}

/// What one row of a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// One row for each position of each sequence.
    Position,
    /// One row for each sequence.
    Sequence,
    /// One row for each point of a pass: a position after which a word is sampled. In the last layer of decoders only.
    Point,
}

/// How the elements of an activation tensor are held; see [`crate::value::Value`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    /// `i32`.
    I32,
    /// 16-bit codes without exponents.
    I16,
    /// 16-bit codes with one exponent per row.
    Bfp,
}

/// Declaration of an activation tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Unique name, for people.
    pub name: String,
    /// What its rows are.
    pub rows: Rows,
    /// Elements in a row.
    pub cols: u32,
    /// How elements are held.
    pub kind: TensorKind,
}

/// Element type of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// Signed 8 bits.
    I8,
    /// Signed 16 bits.
    I16,
    /// Unsigned 16 bits.
    U16,
    /// Signed 32 bits.
    I32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::I8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 => 4,
        }
    }
}

/// Declaration of a parameter: `[rows, cols]`, row-major, little-endian, without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Unique name, for people.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Rows; 1 for a vector.
    pub rows: u32,
    /// Elements in a row.
    pub cols: u32,
}

impl Param {
    /// Number of elements; validation proves that it fits.
    pub fn len(&self) -> usize {
        self.rows as usize * self.cols as usize
    }

    /// Bytes of all elements, the length of its blob; none where that is beyond 64 bits. For any declaration,
    /// validated or not.
    pub fn bytes(&self) -> Option<u64> {
        let size = self.dtype.size() as u64;
        u64::from(self.rows).checked_mul(u64::from(self.cols))?.checked_mul(size)
    }

    /// Whether there is no element; a valid program has no such parameter.
    pub fn is_empty(&self) -> bool {
        self.rows == 0 || self.cols == 0
    }
}

/// A layer: the unit that is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Name, for people.
    pub name: String,
    /// Ops in order; each writes one tensor that no earlier op of the layer wrote or read.
    pub ops: Vec<Op>,
    /// The tensor whose rows are committed; an `I32` tensor.
    pub output: TensorId,
}

/// Row codes with their scales: `w[n,k] = codes[n,k] * mantissa[n] * 2^-shift[n]`, where the shift already holds the
/// difference between the Q formats of input and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaledRows {
    /// `I8` or `I16`, `[rows, cols]`.
    pub codes: ParamId,
    /// `U16`, `[1, rows]`.
    pub mantissa: ParamId,
    /// `I16`, `[1, rows]`.
    pub shift: ParamId,
}

/// Which row of an embedding table a position reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbedIndex {
    /// The token id.
    Token,
    /// The position in the sequence.
    Position,
    /// Always the same row (a token type).
    Constant(u32),
}

/// One op. The field names are the names that SPEC section 5 uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sum of rows of embedding tables (SPEC 5.1).
    Embed {
        /// Tables and what indexes them.
        tables: Vec<(ScaledRows, EmbedIndex)>,
        /// `I32`, one row per position.
        out: TensorId,
    },
    /// `I32` rows to block floating point rows (SPEC 5.2).
    Quantize {
        /// `I32`.
        input: TensorId,
        /// `Bfp` of the same shape.
        out: TensorId,
    },
    /// `out[t,n] = rescale(sum_k input[t,k] * weight[n,k]) + bias[n]` (SPEC 5.3).
    MatMul {
        /// `Bfp`, `[rows, k]`.
        input: TensorId,
        /// `[n, k]`.
        weight: ScaledRows,
        /// `I32`, `[1, n]`.
        bias: Option<ParamId>,
        /// `I32`, or `I16` saturating at ±32,639; `[rows, n]`.
        out: TensorId,
    },
    /// Saturating sum of two `I32` tensors in the same Q format (SPEC 5.4).
    Add {
        /// `I32`.
        a: TensorId,
        /// `I32` of the same shape.
        b: TensorId,
        /// `I32` of the same shape.
        out: TensorId,
    },
    /// LayerNorm over each row (SPEC 5.5).
    LayerNorm {
        /// `I32`.
        input: TensorId,
        /// Scale, epsilon and output format.
        norm: Norm,
        /// `I32`, `[1, cols]`, in the output's Q format.
        bias: ParamId,
        /// `I32` of the same shape.
        out: TensorId,
    },
    /// RMSNorm over each of the equal parts of each row (SPEC 5.6).
    RmsNorm {
        /// `I32`.
        input: TensorId,
        /// Scale, epsilon and output format; the scale is that of a part.
        norm: Norm,
        /// Parts of a row, at least 1; divides the columns.
        groups: u16,
        /// `I32` of the same shape.
        out: TensorId,
    },
    /// Scaled dot-product attention inside each sequence, with block-wise exact softmax (SPEC 5.7).
    Attention {
        /// `I16`, `[rows, heads * head_dim]`; carries the factor `log2(e) / sqrt(head_dim)`.
        q: TensorId,
        /// `I16`, `[rows, kv_heads * head_dim]`.
        k: TensorId,
        /// `I16`, `[rows, kv_heads * head_dim]`.
        v: TensorId,
        /// Head counts, size and shifts.
        heads: Heads,
        /// `I32`, `[rows, heads * head_dim]`.
        out: TensorId,
    },
    /// `x * Φ(x)` (SPEC 5.8).
    Gelu {
        /// `I32`.
        input: TensorId,
        /// Fractional bits of input and output, at most 31.
        frac: u8,
        /// `I32` of the same shape.
        out: TensorId,
    },
    /// `x * σ(x)` (SPEC 5.9).
    Silu {
        /// `I32`.
        input: TensorId,
        /// Fractional bits of input and output, at most 31.
        frac: u8,
        /// `I32` of the same shape.
        out: TensorId,
    },
    /// Mean over the positions of each sequence (SPEC 5.10).
    MeanPool {
        /// `I32`, one row per position.
        input: TensorId,
        /// `I32`, one row per sequence.
        out: TensorId,
    },
    /// The first position of each sequence (SPEC 5.11).
    FirstPool {
        /// `I32`, one row per position.
        input: TensorId,
        /// `I32`, one row per sequence.
        out: TensorId,
    },
    /// Scales each row to unit Euclidean length, in Q1.30 (SPEC 5.12).
    L2Normalize {
        /// `I32`.
        input: TensorId,
        /// `I32` of the same shape.
        out: TensorId,
    },
    /// Rotates pairs of elements of each head by an angle of the position (SPEC 5.13).
    Rope {
        /// `I32`, one row per position, `heads * head_dim` wide.
        input: TensorId,
        /// `I32`, `[max_positions, rotary_dim]` in Q1.30: `cos_0, sin_0, cos_1, sin_1, ...`. The pairs are elements `j`
        /// and `j + rotary_dim/2` of a head; elements from `rotary_dim` on are not rotated.
        table: ParamId,
        /// Heads in a row.
        heads: u16,
        /// Elements of one head.
        head_dim: u16,
        /// Right shift of each head's result into the output's Q format, at most [`MAX_ROPE_SHIFT`].
        shift: Vec<u8>,
        /// `I16` of the same shape, saturating at ±32,639.
        out: TensorId,
    },
    /// Product of two `I32` tensors, element by element (SPEC 5.14).
    Multiply {
        /// `I32`.
        a: TensorId,
        /// `I32` of the same shape.
        b: TensorId,
        /// Right shift of the product, at most 62.
        shift: u8,
        /// `I32` of the same shape.
        out: TensorId,
    },
    /// Drops fractional bits (SPEC 5.15).
    Shift {
        /// `I32`.
        input: TensorId,
        /// How many, at most 31.
        shift: u8,
        /// `I32` of the same shape.
        out: TensorId,
    },
    /// The rows at the points of a pass (SPEC 5.16).
    Gather {
        /// `I32`, one row per position.
        input: TensorId,
        /// `I32`, one row per point.
        out: TensorId,
    },
    /// Draws the word of each point (SPEC 5.17).
    Sample {
        /// `I32`, one row per point; at most as wide as the vocabulary.
        logits: TensorId,
        /// Fractional bits of the logits, at most 31.
        frac: u8,
        /// `I8`, a row for each column of the logits: 2 bytes for a length `n`, little-endian, then `n` bytes of text.
        token_bytes: ParamId,
        /// `I32`, one column.
        out: TensorId,
    },
}

/// What LayerNorm and RMSNorm share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Norm {
    /// `I32`, `[1, cols]`: the model's scale times `sqrt(cols)`, with `shift` more fractional bits than fit the
    /// output's Q format when multiplied by a Q1.30 value.
    pub scale: ParamId,
    /// Right shift of `normalised (Q1.30) * scale`, 1 to 62.
    pub shift: u8,
    /// `cols * epsilon` at the scale of the squared input: `epsilon_mantissa * 2^-epsilon_shift`; mantissa 0 or in
    /// `[2^31, 2^32)`.
    pub epsilon_mantissa: u32,
    /// See `epsilon_mantissa`.
    pub epsilon_shift: i16,
}

/// Shape of an attention op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: u16,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u16,
    /// Elements of one head.
    pub head_dim: u16,
    /// Whether position `t` sees only positions up to `t`.
    pub causal: bool,
    /// Right shift of each query head's dot products into Q20 log2 units, 0 to 62.
    pub score_shift: Vec<u8>,
    /// Extra right shift of each query head's output into the common Q format, 0 to 31.
    pub value_shift: Vec<u8>,
}

impl Op {
    /// Basename of the op: the same in every backend, in the vectors, and in SPEC.md.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Embed { .. } => "embed",
            Self::Quantize { .. } => "quantize",
            Self::MatMul { .. } => "matmul",
            Self::Add { .. } => "add",
            Self::LayerNorm { .. } => "layer_norm",
            Self::RmsNorm { .. } => "rms_norm",
            Self::Attention { .. } => "attention",
            Self::Gelu { .. } => "gelu",
            Self::Silu { .. } => "silu",
            Self::MeanPool { .. } => "mean_pool",
            Self::FirstPool { .. } => "first_pool",
            Self::L2Normalize { .. } => "l2_normalize",
            Self::Rope { .. } => "rope",
            Self::Multiply { .. } => "multiply",
            Self::Shift { .. } => "shift",
            Self::Gather { .. } => "gather",
            Self::Sample { .. } => "sample",
        }
    }

    /// The tensor that the op writes.
    pub const fn out(&self) -> TensorId {
        match self {
            Self::Embed { out, .. }
            | Self::Quantize { out, .. }
            | Self::MatMul { out, .. }
            | Self::Add { out, .. }
            | Self::LayerNorm { out, .. }
            | Self::RmsNorm { out, .. }
            | Self::Attention { out, .. }
            | Self::Gelu { out, .. }
            | Self::Silu { out, .. }
            | Self::MeanPool { out, .. }
            | Self::FirstPool { out, .. }
            | Self::L2Normalize { out, .. }
            | Self::Rope { out, .. }
            | Self::Multiply { out, .. }
            | Self::Shift { out, .. }
            | Self::Gather { out, .. }
            | Self::Sample { out, .. } => *out,
        }
    }

    /// The tensors that the op reads, in the order of its fields.
    pub fn inputs(&self) -> Vec<TensorId> {
        match self {
            Self::Embed { .. } => vec![],
            Self::Sample { logits, .. } => vec![*logits],
            Self::Add { a, b, .. } | Self::Multiply { a, b, .. } => vec![*a, *b],
            Self::Attention { q, k, v, .. } => vec![*q, *k, *v],
            Self::Quantize { input, .. }
            | Self::MatMul { input, .. }
            | Self::LayerNorm { input, .. }
            | Self::RmsNorm { input, .. }
            | Self::Gelu { input, .. }
            | Self::Silu { input, .. }
            | Self::MeanPool { input, .. }
            | Self::FirstPool { input, .. }
            | Self::L2Normalize { input, .. }
            | Self::Rope { input, .. }
            | Self::Shift { input, .. }
            | Self::Gather { input, .. } => vec![*input],
        }
    }
}

/// Basenames of all ops, in the order of SPEC section 5.
pub const OP_NAMES: [&str; 17] = [
    "embed",
    "quantize",
    "matmul",
    "add",
    "layer_norm",
    "rms_norm",
    "attention",
    "gelu",
    "silu",
    "mean_pool",
    "first_pool",
    "l2_normalize",
    "rope",
    "multiply",
    "shift",
    "gather",
    "sample",
];

impl Program {
    /// Declaration of a tensor of a validated program.
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[usize::from(id.0)]
    }

    /// Declaration of a parameter of a validated program.
    pub fn param(&self, id: ParamId) -> &Param {
        &self.params[usize::from(id.0)]
    }

    /// Whether the program samples words at points of a sequence, rather than making one row for each sequence. Only
    /// then may a batch use caches and samplers. For any program, validated or not.
    pub fn is_decoder(&self) -> bool {
        let output = self.layers.last().and_then(|l| self.tensors.get(usize::from(l.output.0)));
        output.is_some_and(|t| t.rows == Rows::Point)
    }

    /// Multiply-accumulates of one sequence of `positions` tokens, at `points` of which a word is sampled (0 for
    /// encoders): matrix products and both attention products. The unit of work in leases and receipts, however the
    /// sequence was cut into passes. Saturates.
    pub fn macs(&self, positions: u64, points: u64) -> u64 {
        let op_macs = |op: &Op| match op {
            Op::MatMul { input, weight, .. } => {
                let codes = self.param(weight.codes);
                let rows = if self.tensor(*input).rows == Rows::Point { points } else { positions };
                rows.saturating_mul(u64::from(codes.rows)).saturating_mul(u64::from(codes.cols))
            }
            Op::Attention { heads, .. } => {
                let width = 2 * u64::from(heads.heads) * u64::from(heads.head_dim);
                let pairs = positions.saturating_mul(positions);
                let pairs = if heads.causal { pairs.saturating_add(positions) / 2 } else { pairs };
                pairs.saturating_mul(width)
            }
            _ => 0,
        };
        self.layers.iter().flat_map(|l| &l.ops).fold(0, |sum, op| sum.saturating_add(op_macs(op)))
    }
}
