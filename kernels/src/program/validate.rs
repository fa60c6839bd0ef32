//! Structural check of a program: ids, types, shapes, data flow and the limits that keep every sum exact.

use super::{
    DType, EmbedIndex, Heads, Norm, Op, Param, ParamId, Program, Rows, ScaledRows, Tensor, TensorId, TensorKind,
};
use crate::sampling::WORD_TOKEN_BITS;

/// Longest sequence of any program.
pub const MAX_POSITIONS: u32 = 1 << 17;
/// Longest reduction of a matrix product; 16-bit codes then keep the sum within 2^44 (SPEC 5.3). One of 16-bit weights
/// that is near it reads too much to be disputed, see [`crate::steps::check_reads`].
pub const MAX_REDUCTION: u32 = 16_384;
/// Widest normalised row; sums of squares then stay below 2^61 (SPEC 5.5).
pub const MAX_NORM_COLS: u32 = 1 << 15;
/// Largest attention head.
pub const MAX_HEAD_DIM: u16 = 512;
/// Widest activation row.
pub const MAX_COLS: u32 = 1 << 18;
/// Widest committed row, that is, the widest output of a layer: 256 KiB.
pub const MAX_OUTPUT_COLS: u32 = 1 << 16;
/// Largest right shift of a rotated head, besides the 30 bits of the table.
pub const MAX_ROPE_SHIFT: u8 = 32;
/// Widest row of token bytes, the two bytes of the length among them.
pub const MAX_TOKEN_BYTES: u32 = 1_024;
const MAX_ITEMS: usize = u16::MAX as usize;
const MAX_LAYERS: usize = 512;
const MAX_OPS: usize = 256;

/// What is wrong with a program, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("program is invalid at {place}: {reason}")]
pub struct ProgramError {
    /// Layer and op, tensor or parameter.
    pub place: String,
    /// What is wrong.
    pub reason: String,
}

type Check = Result<(), String>;

fn ensure(ok: bool, reason: impl FnOnce() -> String) -> Check {
    if ok { Ok(()) } else { Err(reason()) }
}

impl Program {
    /// Checks everything about the program that does not need its weights.
    ///
    /// # Errors
    /// The first offending place, in program order.
    pub fn validate(&self) -> Result<(), ProgramError> {
        let at = |place: String| move |reason: String| ProgramError { place, reason };
        self.check_header().map_err(at("header".into()))?;
        for t in &self.tensors {
            check_tensor(t).map_err(at(format!("tensor {:?}", t.name)))?;
        }
        for p in &self.params {
            check_param(p).map_err(at(format!("parameter {:?}", p.name)))?;
        }
        let mut previous = None;
        for (l, layer) in self.layers.iter().enumerate() {
            ensure(!layer.ops.is_empty() && layer.ops.len() <= MAX_OPS, || format!("1 to {MAX_OPS} ops expected"))
                .map_err(at(format!("layer {l}")))?;
            let mut live: Vec<TensorId> = previous.into_iter().collect();
            for (i, op) in layer.ops.iter().enumerate() {
                let place = format!("layer {l} op {i} ({})", op.name());
                self.check_flow(op, l, &live).and_then(|()| self.check_op(op)).map_err(at(place))?;
                live.push(op.out());
            }
            let made_here = layer.ops.iter().any(|op| op.out() == layer.output);
            let last = l + 1 == self.layers.len();
            ensure(made_here, || "the output is not written by the layer".into())
                .and_then(|()| {
                    let t = self.tensor(layer.output);
                    ensure(t.kind == TensorKind::I32 && (last || t.rows == Rows::Position), || {
                        "the output must be an i32 tensor with a row per position".into()
                    })?;
                    ensure(t.cols <= MAX_OUTPUT_COLS, || format!("an output row is at most {MAX_OUTPUT_COLS} wide"))
                })
                .map_err(at(format!("layer {l}")))?;
            previous = Some(layer.output);
        }
        Ok(())
    }

    fn check_header(&self) -> Check {
        ensure(self.vocab_size > 0, || "vocabulary is empty".into())?;
        ensure((1..=MAX_POSITIONS).contains(&self.max_positions), || {
            format!("max_positions must be 1 to {MAX_POSITIONS}")
        })?;
        ensure(self.tensors.len() <= MAX_ITEMS && self.params.len() <= MAX_ITEMS, || {
            "too many tensors or parameters".into()
        })?;
        ensure((2..=MAX_LAYERS).contains(&self.layers.len()), || format!("2 to {MAX_LAYERS} layers expected"))
    }

    /// An op reads what its own layer wrote or the previous layer's output, and writes a fresh tensor.
    fn check_flow(&self, op: &Op, layer: usize, live: &[TensorId]) -> Check {
        for id in op.inputs().into_iter().chain([op.out()]) {
            ensure(usize::from(id.0) < self.tensors.len(), || format!("tensor {} does not exist", id.0))?;
        }
        for id in op.inputs() {
            ensure(live.contains(&id), || format!("{:?} is read before it is written", self.tensor(id).name))?;
        }
        ensure(!live.contains(&op.out()), || format!("{:?} is written twice", self.tensor(op.out()).name))?;
        ensure((layer == 0) == matches!(op, Op::Embed { .. }) || layer == 0, || "embed belongs to layer 0".into())?;
        let rows = self.tensor(op.out()).rows;
        if !self.is_decoder() {
            return ensure(rows != Rows::Point, || "only a program whose output has a row per point has points".into());
        }
        let last = layer + 1 == self.layers.len();
        ensure(rows == Rows::Position || last && rows == Rows::Point, || {
            "a decoder has rows per position, and in its last layer rows per point".into()
        })?;
        let all = matches!(op, Op::Attention { heads, .. } if !heads.causal);
        ensure(!all, || "the attention of a decoder is causal".into())
    }

    fn check_op(&self, op: &Op) -> Check {
        match op {
            Op::Embed { tables, out } => self.check_embed(tables, *out),
            Op::Quantize { input, out } => {
                self.kind(*input, TensorKind::I32)?;
                self.kind(*out, TensorKind::Bfp)?;
                self.same_shape(*input, *out)
            }
            Op::MatMul { input, weight, bias, out } => self.check_matmul(*input, weight, *bias, *out),
            Op::Add { a, b, out } => {
                self.unary(*a, *out)?;
                self.unary(*b, *out)
            }
            Op::LayerNorm { input, norm, bias, out } => {
                self.vector(*bias, DType::I32, self.tensor(*input).cols)?;
                self.check_norm(*input, self.tensor(*input).cols, norm, *out)
            }
            Op::RmsNorm { input, norm, groups, out } => {
                let cols = self.tensor(*input).cols;
                ensure(*groups > 0 && cols.is_multiple_of(u32::from(*groups)), || {
                    "groups must divide the columns".into()
                })?;
                self.check_norm(*input, cols / u32::from(*groups), norm, *out)
            }
            Op::Attention { q, k, v, heads, out } => self.check_attention([*q, *k, *v, *out], heads),
            Op::Gelu { input, frac, out } | Op::Silu { input, frac, out } => {
                ensure(*frac <= 31, || "frac must be at most 31".into())?;
                self.unary(*input, *out)
            }
            Op::MeanPool { input, out } | Op::FirstPool { input, out } => {
                self.change_rows(*input, *out, Rows::Sequence, "pooling goes from positions to sequences")
            }
            Op::L2Normalize { input, out } => {
                norm_width(self.tensor(*input).cols)?;
                self.unary(*input, *out)
            }
            Op::Rope { input, table, heads, head_dim, shift, out } => {
                self.check_rope([*input, *out], *table, [*heads, *head_dim], shift)
            }
            Op::Multiply { a, b, shift, out } => {
                ensure(*shift <= 62, || "shift must be at most 62".into())?;
                self.unary(*a, *out)?;
                self.unary(*b, *out)
            }
            Op::Shift { input, shift, out } => {
                ensure(*shift <= 31, || "shift must be at most 31".into())?;
                self.unary(*input, *out)
            }
            Op::Gather { input, out } => {
                self.change_rows(*input, *out, Rows::Point, "gathering goes from positions to points")
            }
            Op::Sample { logits, frac, token_bytes, out } => {
                ensure(*frac <= 31, || "frac must be at most 31".into())?;
                self.check_sample(*logits, *token_bytes, *out)
            }
        }
    }

    fn check_embed(&self, tables: &[(ScaledRows, EmbedIndex)], out: TensorId) -> Check {
        ensure((1..=8).contains(&tables.len()), || "1 to 8 tables expected".into())?;
        self.kind(out, TensorKind::I32)?;
        ensure(self.tensor(out).rows == Rows::Position, || "the output needs a row per position".into())?;
        for (rows, index) in tables {
            let codes = self.scaled_rows(rows)?;
            ensure(codes.dtype == DType::I16, || "embedding tables are w16".into())?;
            ensure(codes.cols == self.tensor(out).cols, || "table and output differ in width".into())?;
            let needed = match index {
                EmbedIndex::Token => self.vocab_size,
                EmbedIndex::Position => self.max_positions,
                EmbedIndex::Constant(row) => row.saturating_add(1),
            };
            ensure(codes.rows >= needed, || {
                format!("table {:?} has {} rows, {needed} needed", codes.name, codes.rows)
            })?;
        }
        Ok(())
    }

    fn check_matmul(&self, input: TensorId, weight: &ScaledRows, bias: Option<ParamId>, out: TensorId) -> Check {
        self.kind(input, TensorKind::Bfp)?;
        ensure(self.tensor(out).kind != TensorKind::Bfp, || "the output must be i32 or i16".into())?;
        let codes = self.scaled_rows(weight)?;
        ensure(codes.cols == self.tensor(input).cols, || "input width and weight columns differ".into())?;
        ensure(codes.rows == self.tensor(out).cols, || "output width and weight rows differ".into())?;
        ensure(codes.cols <= MAX_REDUCTION, || format!("a reduction is at most {MAX_REDUCTION} long"))?;
        ensure(self.tensor(input).rows == self.tensor(out).rows, || "row kinds differ".into())?;
        bias.map_or(Ok(()), |b| self.vector(b, DType::I32, codes.rows))
    }

    /// `cols` is what is normalised as one.
    fn check_norm(&self, input: TensorId, cols: u32, norm: &Norm, out: TensorId) -> Check {
        norm_width(cols)?;
        self.unary(input, out)?;
        self.vector(norm.scale, DType::I32, cols)?;
        ensure((1..=62).contains(&norm.shift), || "shift must be 1 to 62".into())?;
        ensure(norm.epsilon_mantissa == 0 || norm.epsilon_mantissa >> 31 == 1, || "epsilon is not normalised".into())
    }

    fn check_attention(&self, [q, k, v, out]: [TensorId; 4], heads: &Heads) -> Check {
        let Heads { heads: h, kv_heads, head_dim, .. } = *heads;
        ensure(h > 0 && kv_heads > 0 && h % kv_heads == 0, || "kv_heads must divide heads".into())?;
        ensure((1..=MAX_HEAD_DIM).contains(&head_dim), || format!("head_dim must be 1 to {MAX_HEAD_DIM}"))?;
        let width = |n: u16| u32::from(n) * u32::from(head_dim);
        for (id, kind, cols) in [
            (q, TensorKind::I16, width(h)),
            (k, TensorKind::I16, width(kv_heads)),
            (v, TensorKind::I16, width(kv_heads)),
            (out, TensorKind::I32, width(h)),
        ] {
            self.kind(id, kind)?;
            let t = self.tensor(id);
            ensure(t.cols == cols && t.rows == Rows::Position, || format!("{:?} must be [positions, {cols}]", t.name))?;
        }
        let (n, score, value) = (usize::from(h), &heads.score_shift, &heads.value_shift);
        ensure(score.len() == n && value.len() == n, || "one score and one value shift per head expected".into())?;
        ensure(score.iter().all(|s| *s <= 62), || "a score shift is at most 62".into())?;
        ensure(value.iter().all(|s| *s <= 31), || "a value shift is at most 31".into())
    }

    fn check_rope(&self, [input, out]: [TensorId; 2], table: ParamId, [h, dim]: [u16; 2], shift: &[u8]) -> Check {
        ensure(h > 0 && (1..=MAX_HEAD_DIM).contains(&dim), || format!("head_dim must be 1 to {MAX_HEAD_DIM}"))?;
        self.kind(input, TensorKind::I32)?;
        self.kind(out, TensorKind::I16)?;
        self.same_shape(input, out)?;
        let (t, cols) = (self.tensor(input), u32::from(h) * u32::from(dim));
        ensure(t.rows == Rows::Position && t.cols == cols, || format!("{:?} must be [positions, {cols}]", t.name))?;
        let table = self.declared(table)?;
        ensure(table.dtype == DType::I32 && table.rows >= self.max_positions, || {
            format!("{:?} must be i32 with a row for each of {} positions", table.name, self.max_positions)
        })?;
        ensure(table.cols.is_multiple_of(2) && table.cols <= u32::from(dim), || {
            format!("{:?} must have an even number of columns, at most {dim}", table.name)
        })?;
        ensure(shift.len() == usize::from(h), || "one shift per head expected".into())?;
        ensure(shift.iter().all(|s| *s <= MAX_ROPE_SHIFT), || format!("a shift is at most {MAX_ROPE_SHIFT}"))
    }

    fn check_sample(&self, logits: TensorId, token_bytes: ParamId, out: TensorId) -> Check {
        self.kind(logits, TensorKind::I32)?;
        self.kind(out, TensorKind::I32)?;
        let (z, word, table) = (self.tensor(logits), self.tensor(out), self.declared(token_bytes)?);
        ensure(z.rows == Rows::Point && word.rows == Rows::Point && word.cols == 1, || {
            "sampling goes from points to words".into()
        })?;
        ensure(z.cols <= self.vocab_size.min(1 << WORD_TOKEN_BITS), || {
            format!("{:?} is wider than the vocabulary", z.name)
        })?;
        ensure(table.dtype == DType::I8 && table.rows == z.cols && (2..=MAX_TOKEN_BYTES).contains(&table.cols), || {
            format!("{:?} must be i8, {} rows of 2 to {MAX_TOKEN_BYTES} bytes", table.name, z.cols)
        })
    }

    /// An op that keeps the columns and goes from positions to other rows.
    fn change_rows(&self, input: TensorId, out: TensorId, rows: Rows, what: &str) -> Check {
        self.kind(input, TensorKind::I32)?;
        self.kind(out, TensorKind::I32)?;
        let (i, o) = (self.tensor(input), self.tensor(out));
        ensure(i.rows == Rows::Position && o.rows == rows, || what.into())?;
        ensure(i.cols == o.cols, || "input and output differ in width".into())
    }

    fn unary(&self, input: TensorId, out: TensorId) -> Check {
        self.kind(input, TensorKind::I32)?;
        self.kind(out, TensorKind::I32)?;
        self.same_shape(input, out)
    }

    fn kind(&self, id: TensorId, kind: TensorKind) -> Check {
        let t = self.tensor(id);
        ensure(t.kind == kind, || format!("{:?} must be {kind:?}", t.name))
    }

    fn same_shape(&self, a: TensorId, b: TensorId) -> Check {
        let (a, b) = (self.tensor(a), self.tensor(b));
        ensure(a.rows == b.rows && a.cols == b.cols, || format!("{:?} and {:?} differ in shape", a.name, b.name))
    }

    fn declared(&self, id: ParamId) -> Result<&Param, String> {
        self.params.get(usize::from(id.0)).ok_or_else(|| format!("parameter {} does not exist", id.0))
    }

    fn vector(&self, id: ParamId, dtype: DType, len: u32) -> Check {
        let p = self.declared(id)?;
        ensure(p.dtype == dtype && p.rows == 1 && p.cols == len, || {
            format!("{:?} must be {dtype:?} [1, {len}]", p.name)
        })
    }

    fn scaled_rows(&self, rows: &ScaledRows) -> Result<&Param, String> {
        let codes = self.declared(rows.codes)?;
        ensure(matches!(codes.dtype, DType::I8 | DType::I16), || format!("{:?} must be i8 or i16", codes.name))?;
        self.vector(rows.mantissa, DType::U16, codes.rows)?;
        self.vector(rows.shift, DType::I16, codes.rows)?;
        Ok(codes)
    }
}

fn norm_width(cols: u32) -> Check {
    ensure(cols <= MAX_NORM_COLS, || format!("a normalised row is at most {MAX_NORM_COLS} wide"))
}

fn check_tensor(t: &Tensor) -> Check {
    ensure((1..=MAX_COLS).contains(&t.cols), || format!("a row is 1 to {MAX_COLS} wide"))
}

fn check_param(p: &Param) -> Check {
    ensure(!p.is_empty(), || "it has no elements".into())?;
    ensure(p.bytes().is_some_and(|bytes| bytes <= 1 << 40), || "it is larger than 1 TiB".into())
}
