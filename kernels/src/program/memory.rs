//! How much memory a batch takes, known before it runs.

use super::{Heads, MAX_NORM_COLS, MAX_REDUCTION, Op, Program, Rows, TensorKind};
use crate::reference::attention::BLOCK;

/// Threads that the bound allows for. A host with more adds scratch in proportion, which matters for attention over
/// very long sequences only.
pub const BOUND_THREADS: u64 = 64;

/// Bytes to whose multiple a committed row is padded.
const ROW_PADDING: u128 = 1_024;
/// Query rows in one piece of attention, at most.
const PIECE_ROWS: u128 = 16;
/// Rows of a sequence whose softmax blocks are pieces of attention, at most.
const FEW_ROWS: u128 = 4;
/// Padding of packed operands in both directions, at most.
const PADDING: u128 = 16;
/// Bookkeeping of one piece of work.
const PIECE_BYTES: u128 = 256;

/// Sums for every value of a threshold's digit.
const THRESHOLD_BYTES: u128 = 1 << 16;
/// What is kept of a token that was seen, at most.
const SEEN_BYTES: u128 = 64;

/// Rows in one piece of a matrix product, at most.
const PRODUCT_ROWS: u128 = 12;
/// Sums, products and scratch of a few rows, for each thread, besides what grows with the sequence: the operands of a
/// piece of the longest product, 16 bits for each code, or a normalised row, 64 bits for each element.
const THREAD_BYTES: u128 = 1 << 20;
const _: () = assert!(2 * PRODUCT_ROWS * (MAX_REDUCTION as u128 + PADDING) + 8 * MAX_NORM_COLS as u128 <= THREAD_BYTES);

/// What decides how much memory a pass takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassShape {
    /// Positions that all sequences compute together.
    pub positions: u64,
    /// Sequences.
    pub sequences: u64,
    /// Points of all sequences together.
    pub points: u64,
    /// Positions of all sequences together that are in caches before the pass.
    pub cached: u64,
}

impl PassShape {
    fn rows(&self, rows: Rows) -> u128 {
        match rows {
            Rows::Position => self.positions.into(),
            Rows::Sequence => self.sequences.into(),
            Rows::Point => self.points.into(),
        }
    }

    /// Positions whose keys and values the pass reads.
    fn keys(&self) -> u128 {
        u128::from(self.positions) + u128::from(self.cached)
    }
}

impl Program {
    /// [`pass_bytes`](Self::pass_bytes) of `sequences` whole sequences with `positions` positions in all and at most one
    /// point each.
    pub fn activation_bytes(&self, positions: u64, sequences: u64) -> u128 {
        self.pass_bytes(&PassShape { positions, sequences, points: sequences, cached: 0 })
    }

    /// Upper bound of the host memory, in bytes, that a pass takes while it runs on up to [`BOUND_THREADS`] threads:
    /// every tensor with its exponents, the scratch of the op that needs most, and the copies of the layer output that
    /// is largest, once as read and once as padded rows. Parameters, caches and what a caller keeps longer (the rows of
    /// every layer, say) are not in it. Saturates.
    ///
    /// For a validated program. Whoever takes work from outside compares this with its budget before
    /// [`begin`](crate::backend::Executor::begin), and refuses or cuts what does not fit:
    /// `program.activation_bytes(tokens.len() as u64, 1) <= budget`. An executor keeps storage of up to four times what
    /// the last batch needed, plus 1 MiB for each tensor, where an earlier batch was larger.
    pub fn pass_bytes(&self, pass: &PassShape) -> u128 {
        let tensors = self.tensors.iter().fold(0_u128, |sum, t| {
            let cols = u128::from(t.cols);
            let row = match t.kind {
                TensorKind::I32 => 4 * cols,
                TensorKind::I16 => 2 * cols,
                TensorKind::Bfp => 2 * cols + 4,
            };
            sum.saturating_add(pass.rows(t.rows).saturating_mul(row))
        });
        let outputs = self.layers.iter().map(|l| {
            let tensor = self.tensor(l.output);
            let row = 4 * u128::from(tensor.cols);
            pass.rows(tensor.rows).saturating_mul(row + row.next_multiple_of(ROW_PADDING))
        });
        let scratch = self.layers.iter().flat_map(|l| &l.ops).map(|op| self.op_scratch(op, pass));
        // Token ids, and the row range of each sequence; draws and row numbers of points.
        let sequences = u128::from(pass.sequences).saturating_mul(256);
        let points = u128::from(pass.points).saturating_mul(16);
        let batch = pass.keys().saturating_mul(4).saturating_add(sequences).saturating_add(points);
        [tensors, outputs.max().unwrap_or(0), scratch.max().unwrap_or(0), batch]
            .into_iter()
            .fold(u128::from(BOUND_THREADS) * THREAD_BYTES, u128::saturating_add)
    }

    /// Upper bound of the bytes that the cache of one sequence of `positions` positions holds. Saturates.
    pub fn cache_bytes(&self, positions: u64) -> u64 {
        let pages = positions.div_ceil(BLOCK as u64);
        let page = |op: &Op| match op {
            Op::Attention { heads, .. } => page_bytes(heads),
            _ => 0,
        };
        let ops = self.layers.iter().flat_map(|l| &l.ops);
        ops.fold(0, |sum, op| sum.saturating_add(page(op).saturating_mul(pages)))
    }

    fn op_scratch(&self, op: &Op, pass: &PassShape) -> u128 {
        let (positions, sequences, points) =
            (pass.rows(Rows::Position), pass.rows(Rows::Sequence), pass.rows(Rows::Point));
        let rows = positions.saturating_add(sequences).saturating_add(points);
        match op {
            Op::Embed { tables, .. } => positions.saturating_mul(4 * tables.len() as u128),
            Op::Attention { heads, .. } => attention(heads, pass),
            Op::MeanPool { .. } | Op::FirstPool { .. } => sequences.saturating_mul(PIECE_BYTES),
            Op::Sample { logits, .. } => {
                // Adjusted logits, weights and those that a threshold still looks at, its digits, and what was seen.
                let seen = pass.keys().saturating_mul(SEEN_BYTES);
                let point = seen.saturating_add(12 * u128::from(self.tensor(*logits).cols) + THRESHOLD_BYTES);
                let running = points.min(u128::from(BOUND_THREADS)).saturating_mul(point);
                running.saturating_add(points.saturating_mul(PIECE_BYTES))
            }
            Op::MatMul { input, out, .. } => {
                // Few rows are split by columns, which go to buffers of their own first, after all of them were packed.
                let rows_of_product = pass.rows(self.tensor(*input).rows).min(PRODUCT_ROWS * u128::from(BOUND_THREADS));
                let (k, n) = (u128::from(self.tensor(*input).cols), u128::from(self.tensor(*out).cols));
                rows.saturating_mul(PIECE_BYTES).saturating_add(rows_of_product * (2 * (k + PADDING) + 4 * n))
            }
            // Pieces of at least one row.
            _ => rows.saturating_mul(PIECE_BYTES),
        }
    }
}

/// Bytes of the keys and values of one attention op over one block of positions.
pub(crate) fn page_bytes(heads: &Heads) -> u64 {
    2 * size_of::<i16>() as u64 * BLOCK as u64 * u64::from(heads.kv_heads) * u64::from(heads.head_dim)
}

/// Packed keys and values of all sequences, and the blocks of one piece for each thread.
fn attention(heads: &Heads, pass: &PassShape) -> u128 {
    let (rows, sequences, positions) = (pass.rows(Rows::Position), pass.rows(Rows::Sequence), pass.keys());
    let dim = u128::from(heads.head_dim) + PADDING;
    let block = BLOCK as u128;
    let blocks_of_all = (positions / block).saturating_add(sequences);
    // Two digits of every code, in blocks and tiles that are padded, and an i64 beside every packed column.
    let padded = positions.saturating_add(sequences.saturating_mul(PADDING));
    let keys = padded.saturating_mul(2 * dim + 8);
    let values = padded.saturating_mul(2 * dim).saturating_add(blocks_of_all.saturating_mul(8 * dim + PIECE_BYTES));
    let packed = keys.saturating_add(values).saturating_mul(u128::from(heads.kv_heads));
    // All of the positions may be one sequence. Blocks are pushed one by one, so their storage doubles as it grows, and
    // while it moves the old half is still there.
    let blocks = positions.div_ceil(block);
    // A piece is some rows of one head, or a block of the heads that share keys and values in one row: products, scores,
    // weights and digits of all of them. The sums of such blocks are kept until all are there.
    let (kv_heads, group) = (u128::from(heads.kv_heads), u128::from(heads.heads / heads.kv_heads));
    let many = blocks.saturating_mul(3 * PIECE_ROWS * 8 * (dim + 3)).saturating_add(PIECE_ROWS * block * 8);
    let piece = many.max(group * block * 24 + 2 * block * dim);
    let few = blocks_of_all.saturating_mul(FEW_ROWS * kv_heads);
    let kept = few.saturating_mul(group * 8 * (dim + 3));
    let pieces = (rows / PIECE_ROWS).saturating_add(sequences).saturating_add(few);
    let running = piece.saturating_mul(pieces.min(u128::from(BOUND_THREADS)));
    packed.saturating_add(running).saturating_add(kept).saturating_add(pieces.saturating_mul(PIECE_BYTES))
}
