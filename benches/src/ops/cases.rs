//! A program for each op that runs it several times over, so that what it takes is nothing but that op.

use std::fmt;
use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use lockstep_kernels::conformance::{
    Builder, OwnedParams, ParamValue, Pattern, SplitMix, TOKEN_BYTES_WIDTH, random_token_bytes,
};
use lockstep_kernels::fixed::CODE_MAX;
use lockstep_kernels::program::{
    EmbedIndex, Heads, Norm, OP_NAMES, Op, Program, Rows, ScaledRows, TensorId, TensorKind,
};
use lockstep_kernels::sampling::Sampling;
use lockstep_kernels::value::{Batch, CacheId, Sampler, Sequence, Value};

/// Largest product of the numbers in a shape.
const MAX_ELEMENTS: usize = 1 << 34;

/// Largest number in a shape.
const MAX_AXIS: usize = 1 << 18;

/// What of an op is measured, where it has variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// It has none.
    Plain,
    /// 8-bit weights.
    W8,
    /// 16-bit weights.
    W16,
    /// Each position sees those up to it.
    Causal,
    /// Each position sees all.
    Full,
    /// One position sees all those before it, which are in a cache.
    Decode,
}

impl Variant {
    /// Name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::W8 => "w8",
            Self::W16 => "w16",
            Self::Causal => "causal",
            Self::Full => "full",
            Self::Decode => "decode",
        }
    }

    /// Those of an op.
    pub(super) fn of(op: &str) -> &'static [Self] {
        match op {
            "matmul" => &[Self::W8, Self::W16],
            "attention" => &[Self::Causal, Self::Full, Self::Decode],
            _ => &[Self::Plain],
        }
    }
}

/// An op at a shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Basename.
    pub op: &'static str,
    /// The numbers that [`axes`] names.
    pub shape: Vec<usize>,
    /// Which variant.
    pub variant: Variant,
}

/// Names of the numbers in a shape.
pub fn axes(op: &str) -> &'static [&'static str] {
    match op {
        "matmul" => &["rows", "reduction", "columns"],
        "attention" => &["positions", "heads", "kv_heads", "head_dim"],
        "rope" => &["rows", "heads", "head_dim"],
        "sample" => &["points", "vocabulary"],
        _ => &["rows", "columns"],
    }
}

impl Spec {
    /// Checks an op by name.
    ///
    /// # Errors
    /// There is no such op, or its shape has other numbers.
    pub fn new(op: &str, shape: &[usize], variant: Variant) -> Result<Self> {
        let name = OP_NAMES.into_iter().find(|name| *name == op);
        let op = name.ok_or_else(|| anyhow!("no op is called {op:?}; there are {}", OP_NAMES.join(", ")))?;
        let axes = axes(op);
        ensure!(shape.len() == axes.len(), "a shape of {op} is {}", axes.join("x"));
        for (axis, n) in axes.iter().zip(shape) {
            ensure!(*n > 0, "{axis} of {op} are 1 or more");
            ensure!(*n <= MAX_AXIS, "{n} {axis} are too many: a shape has at most {MAX_AXIS} of each");
        }
        let elements = shape.iter().fold(1_usize, |product, n| product.saturating_mul(*n));
        ensure!(elements <= MAX_ELEMENTS, "that is too large: at most {MAX_ELEMENTS} elements or products");
        Ok(Self { op, shape: shape.to_vec(), variant })
    }

    /// All variants of an op at a shape.
    ///
    /// # Errors
    /// As of [`Spec::new`].
    pub fn all(op: &str, shape: &[usize]) -> Result<Vec<Self>> {
        Variant::of(op).iter().map(|variant| Self::new(op, shape, *variant)).collect()
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        f.write_str(&numbers.join("x"))
    }
}

/// A program with copies of an op in one layer.
pub struct OpCase {
    /// The program.
    pub program: Arc<Program>,
    /// Its parameters; every copy has its own.
    pub params: Arc<OwnedParams>,
    /// Its batch.
    pub batch: Batch,
    /// What the layer starts from; none where it is the first one.
    pub input: Option<Value>,
    /// What leaves in caches what the batch reads there, and what the layer starts from then.
    pub before: Option<(Batch, Value)>,
    /// The layer with the copies.
    pub layer: usize,
}

impl OpCase {
    /// The last copy.
    pub fn op(&self) -> &Op {
        self.program.layers[self.layer].ops.last().expect("a layer has ops")
    }
}

struct Maker<'a> {
    b: Builder,
    rng: SplitMix,
    spec: &'a Spec,
    copies: usize,
}

/// Builds a case with so many copies.
///
/// # Errors
/// No valid program has that shape.
pub fn build(spec: &Spec, copies: usize) -> Result<OpCase> {
    let rng = SplitMix::named(&format!("{} {spec}", spec.op));
    let rows = spec.shape[0];
    let (b, ops, input, layer) = match spec.op {
        "embed" => {
            let mut maker = Maker { b: Builder::new(1_000, rows), rng, spec, copies };
            let ops = maker.embed();
            (maker.b, ops, None, 0)
        }
        _ => {
            let (b, x) = input(spec, rows);
            let mut maker = Maker { b, rng, spec, copies };
            let ops = maker.ops(x);
            let width = input_width(spec);
            let input = Pattern::Small.i32s(&mut maker.rng, rows, width);
            (maker.b, ops, Some(input), 1)
        }
    };
    let case = finish(b, ops, input, layer, spec)?;
    Ok(if spec.variant == Variant::Decode { with_cache(case, input_width(spec)) } else { case })
}

/// Of a case over some positions one over the last of them alone: those before it are in a cache.
fn with_cache(mut case: OpCase, width: usize) -> OpCase {
    let Some(Value::I32(input)) = case.input.take() else { unreachable!("attention starts from rows") };
    let tokens = case.batch.sequences[0].tokens.clone();
    let last = tokens.len() - 1;
    let of = |tokens: &[u32], start| {
        let sequence = Sequence { tokens: tokens.to_vec(), start, cache: Some(CacheId(0)), sampler: None };
        Batch { sequences: vec![sequence] }
    };
    case.batch = of(&tokens, last);
    case.input = Some(Value::I32(input[last * width..].to_vec()));
    case.before = (last > 0).then(|| (of(&tokens[..last], 0), Value::I32(input[..last * width].to_vec())));
    case
}

/// A first layer that stands for whatever came before.
fn input(spec: &Spec, rows: usize) -> (Builder, TensorId) {
    if spec.op != "sample" {
        return Builder::with_input(rows, input_width(spec));
    }
    let vocab = spec.shape[1];
    let mut b = Builder::new(vocab as u32, rows);
    let table = b.scaled("table", ParamValue::I16(vec![0; vocab]), 1, vocab, vec![0], vec![0]);
    let x = b.rows("x", vocab, TensorKind::I32);
    b.layer(vec![Op::Embed { tables: vec![(table, EmbedIndex::Constant(0))], out: x }], x);
    (b, x)
}

fn input_width(spec: &Spec) -> usize {
    match spec.op {
        // What queries, keys and values are made of: narrow, so that making them takes no time beside attention.
        "attention" => 16,
        "rope" => spec.shape[1] * spec.shape[2],
        _ => spec.shape[1],
    }
}

fn finish(mut b: Builder, ops: Vec<Op>, input: Option<Vec<i32>>, layer: usize, spec: &Spec) -> Result<OpCase> {
    let rows = spec.shape[0];
    let last = ops.last().expect("a layer has ops").out();
    // A layer puts out an i32 tensor; where the op makes none, one more op does, before those that are counted.
    let is_rows = matches!(spec.op, "quantize" | "rope");
    let output = if is_rows {
        let Some(Op::Shift { out, .. }) = ops.first() else { unreachable!("made first") };
        *out
    } else {
        last
    };
    b.layer(ops, output);
    if layer == 0 {
        // A program has two layers at the least.
        let y = b.rows("after", spec.shape[1], TensorKind::I32);
        b.layer(vec![Op::Add { a: output, b: output, out: y }], y);
    }
    if spec.variant == Variant::Decode {
        // Only what puts out rows of points has caches.
        let cols = spec.shape[1] * spec.shape[3];
        let y = b.tensor("after", Rows::Point, cols, TensorKind::I32);
        b.layer(vec![Op::Gather { input: output, out: y }], y);
    }
    let mut case = b.case(spec.op, spec.to_string(), &[rows], input);
    if matches!(spec.op, "gather" | "sample") {
        let sampling = Sampling { max_tokens: u32::MAX, temperature: 7_000, ..Sampling::greedy(1, u32::MAX) };
        let draws = (0..rows as u64).map(|row| row.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        case.batch.sequences[0].sampler = Some(Sampler { sampling: Arc::new(sampling), draws });
    }
    case.program.validate().map_err(|e| anyhow!("{} at {spec}: {e}", spec.op))?;
    Ok(OpCase { program: case.program, params: case.params, batch: case.batch, input: case.input, before: None, layer })
}

impl Maker<'_> {
    fn embed(&mut self) -> Vec<Op> {
        let cols = self.spec.shape[1];
        let codes = self.codes(1_000 * cols, true);
        let table = self.scaled("table", codes, 1_000, 15);
        let copy = |m: &mut Self, i: usize| {
            let out = m.b.rows(&format!("x{i}"), cols, TensorKind::I32);
            Op::Embed { tables: vec![(table, EmbedIndex::Token)], out }
        };
        (0..self.copies).map(|i| copy(self, i)).collect()
    }

    fn ops(&mut self, x: TensorId) -> Vec<Op> {
        let shape = self.spec.shape.clone();
        let cols = input_width(self.spec);
        let mut ops = Vec::new();
        match self.spec.op {
            "matmul" => {
                let codes = self.b.rows("codes", cols, TensorKind::Bfp);
                ops.push(Op::Quantize { input: x, out: codes });
                let weights = self.codes(shape[2] * cols, self.spec.variant == Variant::W16);
                for i in 0..self.copies {
                    let weight = self.scaled(&format!("weight{i}"), weights.clone(), shape[2], 22);
                    let out = self.b.rows(&format!("y{i}"), shape[2], TensorKind::I32);
                    ops.push(Op::MatMul { input: codes, weight, bias: None, out });
                }
            }
            "attention" => self.attention(x, &mut ops),
            "rope" | "quantize" => {
                let out = self.b.rows("first", cols, TensorKind::I32);
                ops.push(Op::Shift { input: x, shift: 0, out });
                self.repeat(x, cols, &mut ops);
            }
            "sample" => {
                let logits = self.b.tensor("logits", Rows::Point, cols, TensorKind::I32);
                ops.push(Op::Gather { input: x, out: logits });
                self.repeat(logits, cols, &mut ops);
            }
            _ => self.repeat(x, cols, &mut ops),
        }
        ops
    }

    /// Copies of an op whose parameters are small.
    fn repeat(&mut self, input: TensorId, cols: usize, ops: &mut Vec<Op>) {
        let (rows, kind) = match self.spec.op {
            "quantize" => (Rows::Position, TensorKind::Bfp),
            "rope" => (Rows::Position, TensorKind::I16),
            "mean_pool" | "first_pool" => (Rows::Sequence, TensorKind::I32),
            "gather" | "sample" => (Rows::Point, TensorKind::I32),
            _ => (Rows::Position, TensorKind::I32),
        };
        let width = if self.spec.op == "sample" { 1 } else { cols };
        let outs: Vec<TensorId> =
            (0..self.copies).map(|i| self.b.tensor(&format!("y{i}"), rows, width, kind)).collect();
        let scale = |m: &mut Self| {
            let scale = Pattern::Small.i32s(&mut m.rng, 1, cols);
            let scale = m.b.vector("scale", scale);
            Norm { scale, shift: 30, epsilon_mantissa: 1 << 31, epsilon_shift: 31 }
        };
        let one: Box<dyn Fn(TensorId) -> Op> = match self.spec.op {
            "quantize" => Box::new(move |out| Op::Quantize { input, out }),
            "add" => Box::new(move |out| Op::Add { a: input, b: input, out }),
            "multiply" => Box::new(move |out| Op::Multiply { a: input, b: input, shift: 16, out }),
            "shift" => Box::new(move |out| Op::Shift { input, shift: 3, out }),
            "gelu" => Box::new(move |out| Op::Gelu { input, frac: 10, out }),
            "silu" => Box::new(move |out| Op::Silu { input, frac: 10, out }),
            "mean_pool" => Box::new(move |out| Op::MeanPool { input, out }),
            "first_pool" => Box::new(move |out| Op::FirstPool { input, out }),
            "l2_normalize" => Box::new(move |out| Op::L2Normalize { input, out }),
            "gather" => Box::new(move |out| Op::Gather { input, out }),
            "layer_norm" => {
                let norm = scale(self);
                let bias = self.b.vector("bias", vec![1; cols]);
                Box::new(move |out| Op::LayerNorm { input, norm, bias, out })
            }
            "rms_norm" => {
                let norm = scale(self);
                Box::new(move |out| Op::RmsNorm { input, norm, groups: 1, out })
            }
            "rope" => {
                let [rows, heads, dim] = [0, 1, 2].map(|i| self.spec.shape[i]);
                let rotary = dim / 2 * 2;
                let angles = Pattern::Full.fill(&mut self.rng, rows, rotary, -1 << 30, 1 << 30);
                let angles = ParamValue::I32(angles.into_iter().map(|v| v as i32).collect());
                let table = self.b.param("table", angles, rows, rotary);
                let (heads, head_dim, shift) = (heads as u16, dim as u16, vec![16; heads]);
                Box::new(move |out| Op::Rope { input, table, heads, head_dim, shift: shift.clone(), out })
            }
            _ => {
                let bytes = ParamValue::I8(random_token_bytes(&mut self.rng, cols));
                let token_bytes = self.b.param("token bytes", bytes, cols, TOKEN_BYTES_WIDTH);
                Box::new(move |out| Op::Sample { logits: input, frac: 8, token_bytes, out })
            }
        };
        ops.extend(outs.into_iter().map(one));
    }

    fn attention(&mut self, x: TensorId, ops: &mut Vec<Op>) {
        let [_, heads, kv_heads, dim] = [0, 1, 2, 3].map(|i| self.spec.shape[i]);
        let width = input_width(self.spec);
        let codes = self.b.rows("codes", width, TensorKind::Bfp);
        ops.push(Op::Quantize { input: x, out: codes });
        let mut product = |m: &mut Self, name: &str, cols: usize| {
            let weights = m.codes(cols * width, false);
            let weight = m.scaled(&format!("{name}.weight"), weights, cols, 22);
            let out = m.b.rows(name, cols, TensorKind::I16);
            ops.push(Op::MatMul { input: codes, weight, bias: None, out });
            out
        };
        let q = product(self, "q", heads * dim);
        let (k, v) = (product(self, "k", kv_heads * dim), product(self, "v", kv_heads * dim));
        let heads = Heads {
            heads: heads as u16,
            kv_heads: kv_heads as u16,
            head_dim: dim as u16,
            causal: self.spec.variant != Variant::Full,
            score_shift: vec![8; heads],
            value_shift: vec![0; heads],
        };
        for i in 0..self.copies {
            let out = self.b.rows(&format!("y{i}"), usize::from(heads.heads) * dim, TensorKind::I32);
            ops.push(Op::Attention { q, k, v, heads: heads.clone(), out });
        }
    }

    fn codes(&mut self, count: usize, is_wide: bool) -> ParamValue {
        let limit = if is_wide { i64::from(CODE_MAX) } else { 127 };
        let codes = Pattern::Full.fill(&mut self.rng, 1, count, -limit, limit).into_iter();
        if is_wide {
            ParamValue::I16(codes.map(|code| code as i16).collect())
        } else {
            ParamValue::I8(codes.map(|code| code as i8).collect())
        }
    }

    fn scaled(&mut self, name: &str, codes: ParamValue, rows: usize, shift: i16) -> ScaledRows {
        let count = match &codes {
            ParamValue::I8(codes) => codes.len(),
            ParamValue::I16(codes) => codes.len(),
            _ => unreachable!("codes have 8 or 16 bits"),
        };
        self.b.scaled(name, codes, rows, count / rows, vec![1 << 15; rows], vec![shift; rows])
    }
}
