//! The dispute view of a layer: what two parties commit to when they disagree about one row, and how a referee
//! recomputes a single element (SPEC section 24).
//!
//! An op whose outputs read too much is lowered to several **steps**: block partials first, then what they make. A step
//! is one tensor; every element of it follows from at most 64 KiB of earlier steps, of the layer's input, of the tokens
//! and of the parameters. [`Plan::new`] lowers a layer for one row, [`Plan::reads`] names what an element reads, and
//! [`Plan::evaluate`] recomputes it with the arithmetic of [`reference`](crate::reference). The folder reads like this:
//!
//! - `lower`: which ops matter for the row, for how many rows each, and the list of steps.
//! - `view`: where an element of a tensor lies, and typed access to what was read.
//! - `check`: the proof that no element of a program reads too much.
//! - `maxima`, `normalize`, `ids`, `threshold`: parts that ops share or consist of; and one file per op.
//! - `logprobs`: what a run reports beside its words, which is no op but follows from the same logits.
//!
//! Evaluation is total. Parties may agree on nonsense, maxima that no row has for example, so the bytes that were read
//! may be anything: sums, products and left shifts keep their low 64 bits, counts of right shifts are clamped, and the
//! result is cut to the step's width.

use std::ops::Range;
use std::sync::Arc;

use crate::program::{ParamId, Program};
use crate::sampling::Sampling;

mod add;
mod attention;
mod check;
mod embed;
mod first_pool;
mod gather;
mod gelu;
mod ids;
mod l2_normalize;
mod layer_norm;
mod logprobs;
mod lower;
mod matmul;
mod maxima;
mod mean_pool;
mod multiply;
mod normalize;
mod quantize;
mod rms_norm;
mod rope;
mod sample;
mod shift;
mod silu;
mod threshold;
mod view;

pub use check::check_reads;
use view::Data;

/// Bytes of a chunk, the unit of openings; every row of a step starts at a multiple.
pub const CHUNK_BYTES: u64 = 1_024;
/// Most bytes that one element may read, counted in whole chunks.
pub const MAX_READ_BYTES: u64 = 65_536;
/// Longest tensor of a dispute view, that is, the longest that can be opened.
pub const MAX_TENSOR_BYTES: u64 = 1 << 40;
/// Columns in one block of maxima, sums and squares.
pub const BLOCK_COLS: u64 = 8_192;
/// Rows in one block of a mean over positions.
pub const BLOCK_ROWS: u64 = 56;

/// What an element reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// An earlier step of the same plan, by its index.
    Step(u16),
    /// Output of the layer before: rows of `i32`, each padded to whole chunks. A plan for layer 1 has no such source.
    Input,
    /// The token ids of the job's input as `u32`, one after the other; of a generation, those of the prompt.
    Tokens,
    /// The words that a generation made before the point, as `u32`, one after the other; of log-probabilities also the
    /// point's own.
    Words,
    /// A parameter as the package holds it, without padding.
    Param(ParamId),
}

/// A range of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Of what.
    pub source: Source,
    /// Exactly these bytes; never empty.
    pub bytes: Range<u64>,
}

/// Element type of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// `i16`.
    I16,
    /// `i32`.
    I32,
    /// `i64`.
    I64,
}

impl Width {
    /// Bytes of one element: 2, 4 or 8.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::I16 => 2,
            Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// The value that the low bits of `v` stand for.
    const fn cut(self, v: i64) -> i64 {
        match self {
            Self::I16 => v as i16 as i64,
            Self::I32 => v as i32 as i64,
            Self::I64 => v,
        }
    }
}

/// What a step is of its op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The op's output, where that has no exponents.
    Out,
    /// Codes of a block floating point output.
    Codes,
    /// Row exponents of a block floating point output.
    Exponent,
    /// Largest magnitudes of column blocks; of attention, the integer references of key blocks.
    Maxima,
    /// Sums of column blocks, or of row blocks.
    Sums,
    /// Sums of squares of column blocks.
    Squares,
    /// Values of attention by key block, head and channel.
    Values,
    /// Scores of attention.
    Scores,
    /// Sums of the softmax weights of key blocks.
    Weights,
    /// Sums of weighted values of key blocks.
    Partials,
    /// How often blocks of a sequence have each token.
    Counts,
    /// Logits with biases and penalties.
    Adjusted,
    /// Sums of the weights that top-k keeps, by blocks.
    Kept,
    /// Measures of the values of a threshold's digit, by blocks of weights.
    Histogram(Filter, u8),
    /// A threshold with its digits so far.
    Digit(Filter, u8),
    /// The token that was drawn.
    Token,
    /// The bytes before those of the token.
    Tail,
    /// The likeliest tokens of blocks of logits.
    BlockLikeliest,
    /// The likeliest tokens.
    Likeliest,
}

/// A setting that keeps the likeliest tokens, by a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filter {
    /// A number of tokens.
    TopK,
    /// A share of the weight.
    TopP,
}

impl Part {
    /// Name, as in the specification.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::Codes => "codes",
            Self::Exponent => "exponent",
            Self::Maxima => "maxima",
            Self::Sums => "sums",
            Self::Squares => "squares",
            Self::Values => "values",
            Self::Scores => "scores",
            Self::Weights => "weights",
            Self::Partials => "partials",
            Self::Counts => "counts",
            Self::Adjusted => "adjusted",
            Self::Kept => "kept",
            Self::Histogram(Filter::TopK, _) => "top_k_histogram",
            Self::Histogram(Filter::TopP, _) => "top_p_histogram",
            Self::Digit(Filter::TopK, _) => "top_k_digit",
            Self::Digit(Filter::TopP, _) => "top_p_digit",
            Self::Token => "token",
            Self::Tail => "tail",
            Self::BlockLikeliest => "block_likeliest",
            Self::Likeliest => "likeliest",
        }
    }
}

/// One tensor of the dispute view: `rows x cols`, row-major, little-endian, each row padded with zeros to whole chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Layer of the op: the plan's, or 0 in a plan for layer 1.
    pub layer: usize,
    /// Index of the op in its layer.
    pub op: usize,
    /// Whether it belongs to the log-probabilities that follow from the op's input, and not to the op.
    pub of_logprobs: bool,
    /// What the step is of the op, or of these.
    pub part: Part,
    /// Whether the rows are the positions `0..rows`; otherwise all of them belong to the disputed row.
    pub all_rows: bool,
    /// Rows, at least 1.
    pub rows: u64,
    /// Elements in a row, without padding; at least 1.
    pub cols: u64,
    /// Element type.
    pub width: Width,
}

impl Step {
    /// Bytes of one row with its padding.
    pub const fn row_bytes(&self) -> u64 {
        (self.cols * self.width.bytes()).next_multiple_of(CHUNK_BYTES)
    }

    /// Bytes of the tensor, at most [`MAX_TENSOR_BYTES`].
    pub const fn bytes(&self) -> u64 {
        self.rows * self.row_bytes()
    }

    /// Name for people, as in `layer_norm.squares` or `logprobs.likeliest`.
    pub fn name(&self, program: &Program) -> String {
        let op = if self.of_logprobs { "logprobs" } else { program.layers[self.layer].ops[self.op].name() };
        format!("{op}.{}", self.part.name())
    }
}

/// Why a layer has no dispute view.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is no such row.
    #[error("a program of {layers} layers has no row {row} of layer {layer} over {positions} positions to dispute")]
    Place {
        /// Layers of the program.
        layers: usize,
        /// The layer asked for.
        layer: usize,
        /// Length of the sequence.
        positions: u32,
        /// The row asked for.
        row: u32,
    },
    /// Scores of all rows would be a tensor of quadratic size.
    #[error("layer {layer} op {op} (attention): its output is needed for all rows, which a dispute can't hold")]
    Attention {
        /// The layer.
        layer: usize,
        /// Index of the op.
        op: usize,
    },
    /// The settings that an op samples by are missing or not well formed.
    #[error("layer {layer}: {reason}")]
    Sampling {
        /// The layer.
        layer: usize,
        /// What is wrong.
        reason: String,
    },
    /// A tensor is too long to be opened.
    #[error("layer {layer} op {op} ({step}): a tensor of {bytes} bytes, the limit is {MAX_TENSOR_BYTES}")]
    Tensor {
        /// The layer.
        layer: usize,
        /// Index of the op.
        op: usize,
        /// Name of the step.
        step: String,
        /// Its length.
        bytes: u128,
    },
    /// An element reads too much.
    #[error("layer {layer} op {op} ({step}): an element can read {bytes} bytes, the limit is {MAX_READ_BYTES}")]
    Reads {
        /// The layer.
        layer: usize,
        /// Index of the op.
        op: usize,
        /// Name of the step.
        step: String,
        /// What it can read, in bytes of whole chunks.
        bytes: u64,
    },
}

/// An element of a step. The row is a position where the step belongs to one position or to all of them.
#[derive(Clone, Copy, Debug)]
struct At {
    row: u64,
    col: u64,
}

/// An op as a referee sees it. `part` is always one that the op was lowered to, and `at` inside of it.
trait Lowered: std::fmt::Debug + Send + Sync {
    /// What the element reads, as far as that depends on nothing that is read.
    fn reads(&self, part: Part, at: At) -> Vec<Read>;

    /// What it reads besides, given the bytes of [`reads`](Self::reads).
    fn follow(&self, _: Part, _: At, _: Data<'_>) -> Vec<Read> {
        Vec::new()
    }

    /// The element, from the bytes of all reads in order. Total; the caller cuts the result to the step's width.
    fn evaluate(&self, part: Part, at: At, data: Data<'_>) -> i64;

    /// Most chunks that any element of the part reads, for the shapes that the op was lowered with.
    fn chunks(&self, part: Part) -> u64;
}

/// The steps of one layer for one disputed row, or of the log-probabilities of a point.
#[derive(Clone, Debug)]
pub struct Plan {
    steps: Vec<Step>,
    /// For each step its op, and the number of its first row.
    ops: Vec<(Arc<dyn Lowered>, u64)>,
}

impl Plan {
    /// Lowers `layer` of a validated program, for row `row` of its output over a sequence of `positions` tokens. Layer 0
    /// is never committed, so a plan for layer 1 has the ops of layer 0 before its own. Ops that the row does not depend
    /// on are left out.
    ///
    /// Of a generation, the sequence is the prompt and what was generated before a point, which is the last position.
    /// `sampling` has its settings and the point's draw; the words of the last layer have one row, 0.
    ///
    /// # Errors
    /// There is no such row, the settings are missing or not well formed, or [`check_reads`] would refuse the program.
    pub fn new(
        program: &Program,
        layer: usize,
        positions: u32,
        row: u32,
        sampling: Option<(&Sampling, u64)>,
    ) -> Result<Self, PlanError> {
        lower::plan(program, layer, positions, row, sampling)
    }

    /// Lowers the log-probabilities of a point: those of the word that was drawn there, and of the `likeliest` likeliest
    /// tokens. The last layer is lowered as far as its logits; then come steps of their own, of which the last one is the
    /// row as a run signs it.
    ///
    /// # Errors
    /// As [`Plan::new`]; or the program samples nothing.
    pub fn logprobs(
        program: &Program,
        positions: u32,
        sampling: (&Sampling, u64),
        likeliest: u8,
    ) -> Result<Self, PlanError> {
        lower::logprobs_plan(program, positions, sampling, likeliest)
    }

    /// The steps, each of which reads earlier ones only. The last one is the row itself.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// What an element reads, in order. `element` is a flat index in the padded tensor: its byte offset divided by its
    /// width. Padding reads nothing.
    pub fn reads(&self, step: usize, element: u64) -> Vec<Read> {
        self.locate(step, element).map(|(op, part, at)| op.reads(part, at)).unwrap_or_default()
    }

    /// What an element reads besides, given the bytes of [`reads`](Self::reads): the row of a table that a token
    /// names. Empty for all other elements, and wherever `reads` is.
    pub fn follow(&self, step: usize, element: u64, data: &[&[u8]]) -> Vec<Read> {
        self.locate(step, element).map(|(op, part, at)| op.follow(part, at, Data(data))).unwrap_or_default()
    }

    /// Recomputes an element from the bytes of [`reads`](Self::reads) and then of [`follow`](Self::follow), in order.
    /// Total: any bytes give a defined value, and bytes that are missing count as zeros. Padding is 0.
    pub fn evaluate(&self, step: usize, element: u64, data: &[&[u8]]) -> i64 {
        let Some((op, part, at)) = self.locate(step, element) else { return 0 };
        self.steps[step].width.cut(op.evaluate(part, at, Data(data)))
    }

    /// The op, part and place of an element; none for padding and for what is outside.
    fn locate(&self, step: usize, element: u64) -> Option<(&dyn Lowered, Part, At)> {
        let (shape, (op, first)) = (self.steps.get(step)?, self.ops.get(step)?);
        let stride = shape.row_bytes() / shape.width.bytes();
        let (row, col) = (element / stride, element % stride);
        (row < shape.rows && col < shape.cols).then(|| (op.as_ref(), shape.part, At { row: first + row, col }))
    }
}

#[cfg(test)]
mod tests;
