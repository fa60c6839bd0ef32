//! The executor that the host backends share: it owns the activations and hands slices to one function per op.

use std::sync::Arc;

mod activations;

use activations::Activations;

use crate::backend::{BackendError, Executor, LayerReport};
use crate::program::{EmbedIndex, Heads, Norm, Op, ParamId, Program, ScaledRows, TensorId};
use crate::value::{Batch, ParamData, Params, Value};

/// Row codes with their scales, resolved.
#[derive(Clone, Copy, Debug)]
pub struct Scaled<'a> {
    /// `[rows, cols]`, `I8` or `I16`.
    pub codes: ParamData<'a>,
    /// `[rows]`.
    pub mantissa: &'a [u16],
    /// `[rows]`.
    pub shift: &'a [i16],
    /// Elements in a row.
    pub cols: usize,
}

/// Block floating point rows: codes `[rows, cols]` and exponents `[rows]`.
#[derive(Clone, Copy, Debug)]
pub struct BfpRows<'a> {
    /// Codes.
    pub codes: &'a [i16],
    /// Exponents.
    pub exponents: &'a [i32],
}

/// Where a matrix product goes.
#[derive(Debug)]
pub enum MatMulOut<'a> {
    /// Saturates at the range of `i32`.
    I32(&'a mut [i32]),
    /// Saturates at ±32,639.
    I16(&'a mut [i16]),
}

/// Constants of a norm, resolved.
#[derive(Clone, Copy, Debug)]
pub struct NormArgs<'a> {
    /// `[cols]`.
    pub scale: &'a [i32],
    /// See [`Norm`].
    pub norm: Norm,
}

/// Inputs of attention, `[rows, heads * head_dim]` and `[rows, kv_heads * head_dim]`.
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// Queries.
    pub q: &'a [i16],
    /// Keys.
    pub k: &'a [i16],
    /// Values.
    pub v: &'a [i16],
    /// Shape and shifts.
    pub heads: &'a Heads,
    /// Row range of each sequence.
    pub spans: &'a [std::ops::Range<usize>],
}

/// One function per op, over host slices. Each returns how many elements it clamped, where it can clamp at all.
///
/// `cols` is the row width wherever the slices alone do not tell it.
pub trait HostOps: Send + Sync {
    /// Whatever the backend prepares from a matrix's codes at load.
    type Matrix: Send + Sync;

    /// Prepares the codes of one matrix, `[rows, cols]`.
    fn prepare(&self, codes: ParamData<'_>, cols: usize) -> Self::Matrix;

    /// SPEC 5.1. `index[table][row]` is the table row that each output row reads.
    fn embed(&self, tables: &[Scaled<'_>], index: &[Vec<u32>], out: &mut [i32]) -> u64;
    /// SPEC 5.2.
    fn quantize(&self, input: &[i32], cols: usize, codes: &mut [i16], exponents: &mut [i32]);
    /// SPEC 5.3.
    fn matmul(
        &self,
        x: BfpRows<'_>,
        w: Scaled<'_>,
        prepared: &Self::Matrix,
        bias: Option<&[i32]>,
        out: MatMulOut<'_>,
    ) -> u64;
    /// SPEC 5.4.
    fn add(&self, a: &[i32], b: &[i32], out: &mut [i32]) -> u64;
    /// SPEC 5.5.
    fn layer_norm(&self, input: &[i32], args: NormArgs<'_>, bias: &[i32], out: &mut [i32]) -> u64;
    /// SPEC 5.6.
    fn rms_norm(&self, input: &[i32], args: NormArgs<'_>, out: &mut [i32]) -> u64;
    /// SPEC 5.7.
    fn attention(&self, args: AttentionArgs<'_>, out: &mut [i32]) -> u64;
    /// SPEC 5.8.
    fn gelu(&self, input: &[i32], frac: u32, out: &mut [i32]);
    /// SPEC 5.9.
    fn silu(&self, input: &[i32], frac: u32, out: &mut [i32]);
    /// SPEC 5.10.
    fn mean_pool(&self, input: &[i32], cols: usize, spans: &[std::ops::Range<usize>], out: &mut [i32]);
    /// SPEC 5.11.
    fn first_pool(&self, input: &[i32], cols: usize, spans: &[std::ops::Range<usize>], out: &mut [i32]);
    /// SPEC 5.12.
    fn l2_normalize(&self, input: &[i32], cols: usize, out: &mut [i32]);
}

/// Most memory that the activations of one batch may need. A failed allocation would end the whole process, so a batch
/// that might get there is refused before it begins.
pub const MAX_ACTIVATION_BYTES: u128 = 4 << 30;

/// A program loaded on the host.
pub struct HostExecutor<K: HostOps> {
    kernels: K,
    program: Arc<Program>,
    params: Arc<dyn Params>,
    /// Prepared codes by parameter, for those that a matrix product reads.
    matrices: Vec<Option<K::Matrix>>,
    values: Activations,
    batch: Batch,
    spans: Vec<std::ops::Range<usize>>,
}

impl<K: HostOps> HostExecutor<K> {
    /// Validates the program and prepares its matrices.
    pub fn new(kernels: K, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Self, BackendError> {
        program.validate()?;
        let mut matrices: Vec<Option<K::Matrix>> = program.params.iter().map(|_| None).collect();
        for op in program.layers.iter().flat_map(|l| &l.ops) {
            if let Op::MatMul { weight, .. } = op {
                let cols = program.param(weight.codes).cols as usize;
                matrices[usize::from(weight.codes.0)]
                    .get_or_insert_with(|| kernels.prepare(params.param(weight.codes), cols));
            }
        }
        let values = Activations::new(Arc::clone(&program));
        Ok(Self { kernels, program, params, matrices, values, batch: Batch::default(), spans: Vec::new() })
    }

    fn i32s(&self, id: TensorId) -> &[i32] {
        match self.values.slot(id) {
            Value::I32(v) => v,
            _ => unreachable!("validation fixed the kind of every tensor"),
        }
    }

    fn i16s(&self, id: TensorId) -> &[i16] {
        match self.values.slot(id) {
            Value::I16(v) => v,
            _ => unreachable!("validation fixed the kind of every tensor"),
        }
    }

    fn bfp(&self, id: TensorId) -> BfpRows<'_> {
        match self.values.slot(id) {
            Value::Bfp { codes, exponents } => BfpRows { codes, exponents },
            _ => unreachable!("validation fixed the kind of every tensor"),
        }
    }

    fn vector(&self, id: ParamId) -> &[i32] {
        self.params.param(id).as_i32().expect("validation fixed the type of every parameter")
    }

    fn scaled(&self, rows: &ScaledRows) -> Scaled<'_> {
        let typed = "validation fixed the type of every parameter";
        Scaled {
            codes: self.params.param(rows.codes),
            mantissa: self.params.param(rows.mantissa).as_u16().expect(typed),
            shift: self.params.param(rows.shift).as_i16().expect(typed),
            cols: self.program.param(rows.codes).cols as usize,
        }
    }

    fn norm_args(&self, norm: &Norm) -> NormArgs<'_> {
        NormArgs { scale: self.vector(norm.scale), norm: *norm }
    }

    fn embed_index(&self, index: EmbedIndex) -> Vec<u32> {
        let mut rows = Vec::with_capacity(self.batch.rows());
        for sequence in &self.batch.sequences {
            match index {
                EmbedIndex::Token => rows.extend_from_slice(sequence),
                EmbedIndex::Position => rows.extend(0..sequence.len() as u32),
                EmbedIndex::Constant(row) => rows.extend(std::iter::repeat_n(row, sequence.len())),
            }
        }
        rows
    }

    fn run_op(&self, op: &Op, out: &mut Value) -> u64 {
        let k = &self.kernels;
        let cols = self.program.tensor(op.out()).cols as usize;
        match (op, out) {
            (Op::Embed { tables, .. }, Value::I32(out)) => {
                let index: Vec<_> = tables.iter().map(|(_, i)| self.embed_index(*i)).collect();
                let tables: Vec<_> = tables.iter().map(|(rows, _)| self.scaled(rows)).collect();
                k.embed(&tables, &index, out)
            }
            (Op::Quantize { input, .. }, Value::Bfp { codes, exponents }) => {
                k.quantize(self.i32s(*input), cols, codes, exponents);
                0
            }
            (Op::MatMul { input, weight, bias, .. }, out) => {
                let out = match out {
                    Value::I32(v) => MatMulOut::I32(v),
                    Value::I16(v) => MatMulOut::I16(v),
                    Value::Bfp { .. } => unreachable!("validation fixed the kind of every tensor"),
                };
                let prepared = self.matrices[usize::from(weight.codes.0)].as_ref().expect("prepared at load");
                k.matmul(self.bfp(*input), self.scaled(weight), prepared, bias.map(|b| self.vector(b)), out)
            }
            (Op::Add { a, b, .. }, Value::I32(out)) => k.add(self.i32s(*a), self.i32s(*b), out),
            (Op::LayerNorm { input, norm, bias, .. }, Value::I32(out)) => {
                k.layer_norm(self.i32s(*input), self.norm_args(norm), self.vector(*bias), out)
            }
            (Op::RmsNorm { input, norm, .. }, Value::I32(out)) => {
                k.rms_norm(self.i32s(*input), self.norm_args(norm), out)
            }
            (Op::Attention { q, k: keys, v, heads, .. }, Value::I32(out)) => {
                let (q, keys, v) = (self.i16s(*q), self.i16s(*keys), self.i16s(*v));
                k.attention(AttentionArgs { q, k: keys, v, heads, spans: &self.spans }, out)
            }
            (Op::Gelu { input, frac, .. }, Value::I32(out)) => {
                k.gelu(self.i32s(*input), u32::from(*frac), out);
                0
            }
            (Op::Silu { input, frac, .. }, Value::I32(out)) => {
                k.silu(self.i32s(*input), u32::from(*frac), out);
                0
            }
            (Op::MeanPool { input, .. }, Value::I32(out)) => {
                k.mean_pool(self.i32s(*input), cols, &self.spans, out);
                0
            }
            (Op::FirstPool { input, .. }, Value::I32(out)) => {
                k.first_pool(self.i32s(*input), cols, &self.spans, out);
                0
            }
            (Op::L2Normalize { input, .. }, Value::I32(out)) => {
                k.l2_normalize(self.i32s(*input), cols, out);
                0
            }
            _ => unreachable!("validation fixed the kind of every tensor"),
        }
    }

    fn check_batch(&self, batch: &Batch) -> Result<(), BackendError> {
        let bytes = self.program.activation_bytes(batch.rows() as u64, batch.sequences.len() as u64);
        if bytes > MAX_ACTIVATION_BYTES {
            let reason =
                format!("the batch may need {bytes} bytes of memory; at most {MAX_ACTIVATION_BYTES} are allowed");
            return Err(BackendError::Batch { sequence: 0, reason });
        }
        for (sequence, tokens) in batch.sequences.iter().enumerate() {
            let bad = |reason| Err(BackendError::Batch { sequence, reason });
            if tokens.is_empty() || tokens.len() > self.program.max_positions as usize {
                return bad(format!("{} tokens; 1 to {} are allowed", tokens.len(), self.program.max_positions));
            }
            if let Some(t) = tokens.iter().find(|t| **t >= self.program.vocab_size) {
                return bad(format!("token {t} is outside the vocabulary of {}", self.program.vocab_size));
            }
        }
        Ok(())
    }
}

impl<K: HostOps> Executor for HostExecutor<K> {
    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        // A batch that is refused leaves nothing behind either.
        let checked = self.check_batch(batch);
        self.batch = if checked.is_ok() { batch.clone() } else { Batch::default() };
        self.spans = self.batch.spans();
        self.values.begin(self.batch.rows(), self.batch.sequences.len());
        checked
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        let program = Arc::clone(&self.program);
        let mut report = LayerReport::default();
        for op in &program.layers[layer].ops {
            for input in op.inputs() {
                self.values.get(input)?;
            }
            let mut out = self.values.take(op.out());
            report.saturations += self.run_op(op, &mut out);
            self.values.put(op.out(), out);
        }
        Ok(report)
    }

    fn read(&mut self, tensor: TensorId) -> Result<Value, BackendError> {
        self.values.get(tensor).cloned()
    }

    fn write(&mut self, tensor: TensorId, value: Value) -> Result<(), BackendError> {
        self.values.set(tensor, value)
    }
}
