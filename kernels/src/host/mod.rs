//! The executor that the host backends share: it owns the activations and hands slices to one function per op.

use std::ops::Range;
use std::sync::Arc;

mod activations;
mod args;
mod cache;

use activations::{Activations, Extent};
pub use args::{
    AttentionArgs, AttentionRows, BfpRows, HeadBlock, KeyValues, MatMul, MatMulOut, NormArgs, RopeArgs, SampleArgs,
    Scaled,
};
use cache::HostStore;
pub use cache::{Caches, HostPage, Page, PageShape, PageStore};

use crate::backend::{BackendError, Executor, LayerReport};
use crate::pass::{self, Pass};
use crate::program::{Norm, Op, ParamId, Program, ScaledRows, TensorId};
use crate::sampling::TokenBytes;
use crate::value::{Batch, CacheId, ParamData, Params, Value};

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
    /// Whether [`products`](Self::products) of the same rows are asked for at once, ahead of the ops that lie between them.
    fn joins_products(&self) -> bool {
        false
    }

    /// Several products of the same rows.
    fn products(&self, x: BfpRows<'_>, parts: Vec<MatMul<'_, Self::Matrix>>) -> u64 {
        parts.into_iter().map(|p| self.matmul(x, p.weight, p.prepared, p.bias, p.out)).sum()
    }

    /// SPEC 5.4.
    fn add(&self, a: &[i32], b: &[i32], out: &mut [i32]) -> u64;
    /// SPEC 5.5.
    fn layer_norm(&self, input: &[i32], args: NormArgs<'_>, bias: &[i32], out: &mut [i32]) -> u64;
    /// SPEC 5.6. A row is one or several parts as wide as the scale.
    fn rms_norm(&self, input: &[i32], args: NormArgs<'_>, out: &mut [i32]) -> u64;
    /// SPEC 5.7.
    fn attention(&self, args: AttentionArgs<'_>, out: &mut [i32]) -> u64;
    /// SPEC 5.8.
    fn gelu(&self, input: &[i32], frac: u32, out: &mut [i32]);
    /// SPEC 5.9.
    fn silu(&self, input: &[i32], frac: u32, out: &mut [i32]);
    /// SPEC 5.10.
    fn mean_pool(&self, input: &[i32], cols: usize, spans: &[Range<usize>], out: &mut [i32]);
    /// SPEC 5.11.
    fn first_pool(&self, input: &[i32], cols: usize, spans: &[Range<usize>], out: &mut [i32]);
    /// SPEC 5.12.
    fn l2_normalize(&self, input: &[i32], cols: usize, out: &mut [i32]);
    /// SPEC 5.13. `positions[row]` is the position of each row, within the table.
    fn rope(&self, input: &[i32], args: RopeArgs<'_>, positions: &[u32], out: &mut [i16]) -> u64;
    /// SPEC 5.14.
    fn multiply(&self, a: &[i32], b: &[i32], shift: u32, out: &mut [i32]) -> u64;
    /// SPEC 5.15.
    fn shift(&self, input: &[i32], shift: u32, out: &mut [i32]);
    /// SPEC 5.16. `rows[point]` is the input's row.
    fn gather(&self, input: &[i32], cols: usize, rows: &[usize], out: &mut [i32]);
    /// SPEC 5.17: the word of each point.
    fn sample(&self, points: &[SampleArgs<'_>], out: &mut [i32]);
}

/// A program loaded on the host.
pub struct HostExecutor<K: HostOps> {
    kernels: K,
    program: Arc<Program>,
    params: Arc<dyn Params>,
    /// Prepared codes by parameter, for those that a matrix product reads.
    matrices: Vec<Option<K::Matrix>>,
    /// Which ops of each layer run together, in order.
    groups: Arc<[Vec<Group>]>,
    values: Activations,
    caches: Caches<HostStore>,
    pass: Pass,
}

impl<K: HostOps> HostExecutor<K> {
    /// Validates the program and prepares its matrices.
    pub fn new(kernels: K, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Self, BackendError> {
        program.validate()?;
        let mut matrices: Vec<Option<K::Matrix>> = program.params.iter().map(|_| None).collect();
        for op in program.layers.iter().flat_map(|l| &l.ops) {
            if let Op::MatMul { weight, .. } = op {
                let cols = program.param(weight.codes).cols as usize;
                matrices[usize::from(weight.codes.0)].get_or_insert_with(|| {
                    let matrix = kernels.prepare(params.param(weight.codes), cols);
                    if size_of::<K::Matrix>() > 0 {
                        params.release(weight.codes);
                    }
                    matrix
                });
            }
        }
        let values = Activations::new(Arc::clone(&program));
        let caches = Caches::new(&program, HostStore);
        let groups = program.layers.iter().map(|layer| groups(&layer.ops, kernels.joins_products())).collect();
        Ok(Self { kernels, program, params, matrices, groups, values, caches, pass: Pass::default() })
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

    /// Attention over the keys and values of this pass, and those of earlier ones where there are caches.
    fn run_attention(&self, op: &Op, line: usize, out: &mut [i32]) -> u64 {
        let Op::Attention { q, k, v, heads, .. } = op else { unreachable!("only called for attention") };
        let (k, v) = (self.i16s(*k), self.i16s(*v));
        let sequences =
            self.pass.batch.sequences.iter().zip(&self.pass.spans).map(|(sequence, span)| match sequence.cache {
                None => AttentionRows::whole(span.clone(), k, v, heads),
                Some(id) => {
                    let keys = KeyValues::Pages(self.caches.pages(id, line));
                    AttentionRows { rows: span.clone(), start: sequence.start, keys }
                }
            });
        let sequences: Vec<_> = sequences.collect();
        self.kernels.attention(AttentionArgs { q: self.i16s(*q), heads, sequences: &sequences }, out)
    }

    /// Keeps the keys and values that an attention is about to read, for later passes.
    fn keep(&mut self, op: &Op, line: usize) -> Result<(), BackendError> {
        let Op::Attention { k, v, heads, .. } = op else { return Ok(()) };
        let width = usize::from(heads.kv_heads) * usize::from(heads.head_dim);
        let (Value::I16(k), Value::I16(v)) = (self.values.slot(*k), self.values.slot(*v)) else {
            unreachable!("validation fixed the kind of every tensor")
        };
        for (sequence, span) in self.pass.batch.sequences.iter().zip(&self.pass.spans) {
            let Some(id) = sequence.cache else { continue };
            self.caches.append(id, line, sequence.start, span.len(), |page, shape, position, row| {
                let own = (span.start + row) * width..(span.start + row + 1) * width;
                page.set(shape, position, &k[own.clone()], &v[own]);
            })?;
        }
        Ok(())
    }

    fn product<'a>(&'a self, op: &Op, out: &'a mut Value) -> MatMul<'a, K::Matrix> {
        let Op::MatMul { weight, bias, .. } = op else { unreachable!("only called for products") };
        let out = match out {
            Value::I32(v) => MatMulOut::I32(v),
            Value::I16(v) => MatMulOut::I16(v),
            Value::Bfp { .. } => unreachable!("validation fixed the kind of every tensor"),
        };
        let prepared = self.matrices[usize::from(weight.codes.0)].as_ref().expect("prepared at load");
        MatMul { weight: self.scaled(weight), prepared, bias: bias.map(|b| self.vector(b)), out }
    }

    /// Ops that run together. `line` is that of attention in the caches.
    fn run_group(&self, ops: &[&Op], line: usize, outs: &mut [Value]) -> u64 {
        match (ops, outs) {
            ([op], [out]) => self.run_op(op, line, out),
            (ops, outs) => {
                let parts = ops.iter().zip(outs).map(|(op, out)| self.product(op, out)).collect();
                self.kernels.products(self.bfp(ops[0].inputs()[0]), parts)
            }
        }
    }

    /// `line` is that of attention in the caches.
    fn run_op(&self, op: &Op, line: usize, out: &mut Value) -> u64 {
        let k = &self.kernels;
        let cols = self.program.tensor(op.out()).cols as usize;
        match (op, out) {
            (Op::Embed { tables, .. }, Value::I32(out)) => {
                let index: Vec<_> = tables.iter().map(|(_, i)| self.pass.embed_index(*i)).collect();
                let tables: Vec<_> = tables.iter().map(|(rows, _)| self.scaled(rows)).collect();
                k.embed(&tables, &index, out)
            }
            (Op::Quantize { input, .. }, Value::Bfp { codes, exponents }) => {
                k.quantize(self.i32s(*input), cols, codes, exponents);
                0
            }
            (Op::MatMul { input, .. }, out) => {
                let MatMul { weight, prepared, bias, out } = self.product(op, out);
                k.matmul(self.bfp(*input), weight, prepared, bias, out)
            }
            (Op::Add { a, b, .. }, Value::I32(out)) => k.add(self.i32s(*a), self.i32s(*b), out),
            (Op::LayerNorm { input, norm, bias, .. }, Value::I32(out)) => {
                k.layer_norm(self.i32s(*input), self.norm_args(norm), self.vector(*bias), out)
            }
            (Op::RmsNorm { input, norm, .. }, Value::I32(out)) => {
                k.rms_norm(self.i32s(*input), self.norm_args(norm), out)
            }
            (Op::Attention { .. }, Value::I32(out)) => self.run_attention(op, line, out),
            (Op::Gelu { input, frac, .. }, Value::I32(out)) => {
                k.gelu(self.i32s(*input), u32::from(*frac), out);
                0
            }
            (Op::Silu { input, frac, .. }, Value::I32(out)) => {
                k.silu(self.i32s(*input), u32::from(*frac), out);
                0
            }
            (Op::MeanPool { input, .. }, Value::I32(out)) => {
                k.mean_pool(self.i32s(*input), cols, &self.pass.spans, out);
                0
            }
            (Op::FirstPool { input, .. }, Value::I32(out)) => {
                k.first_pool(self.i32s(*input), cols, &self.pass.spans, out);
                0
            }
            (Op::L2Normalize { input, .. }, Value::I32(out)) => {
                k.l2_normalize(self.i32s(*input), cols, out);
                0
            }
            (Op::Rope { input, table, head_dim, shift, .. }, Value::I16(out)) => {
                let rotary_dim = self.program.param(*table).cols as usize;
                let (table, head_dim) = (self.vector(*table), usize::from(*head_dim));
                let args = RopeArgs { table, rotary_dim, head_dim, shift };
                k.rope(self.i32s(*input), args, &self.pass.positions, out)
            }
            (Op::Multiply { a, b, shift, .. }, Value::I32(out)) => {
                k.multiply(self.i32s(*a), self.i32s(*b), u32::from(*shift), out)
            }
            (Op::Shift { input, shift, .. }, Value::I32(out)) => {
                k.shift(self.i32s(*input), u32::from(*shift), out);
                0
            }
            (Op::Gather { input, .. }, Value::I32(out)) => {
                k.gather(self.i32s(*input), cols, &self.pass.points, out);
                0
            }
            (Op::Sample { logits, frac, token_bytes, .. }, Value::I32(out)) => {
                let rows =
                    self.params.param(*token_bytes).as_i8().expect("validation fixed the type of every parameter");
                let token_bytes = TokenBytes { rows, width: self.program.param(*token_bytes).cols as usize };
                let cols = self.program.tensor(*logits).cols as usize;
                k.sample(&self.pass.sample_args(self.i32s(*logits), cols, u32::from(*frac), token_bytes), out);
                0
            }
            _ => unreachable!("validation fixed the kind of every tensor"),
        }
    }
}

/// Ops of a layer that run together.
struct Group {
    /// Their places in the layer.
    ops: Vec<usize>,
    /// What they read.
    inputs: Vec<TensorId>,
}

/// The ops of a layer in the order in which they run: products of the same rows together where that is asked for, as early as the
/// first of them. No op before them reads or writes what they write, for each op of a layer writes a tensor that no earlier one
/// wrote or read.
fn groups(ops: &[Op], joins_products: bool) -> Vec<Group> {
    let rows = |i: usize| match &ops[i] {
        Op::MatMul { input, .. } if joins_products => Some(*input),
        _ => None,
    };
    let mut left: Vec<usize> = (0..ops.len()).collect();
    let mut groups = Vec::new();
    while let Some(&first) = left.first() {
        let joins = |i: usize| i == first || rows(i).is_some() && rows(i) == rows(first);
        let together: Vec<usize> = left.iter().copied().filter(|i| joins(*i)).collect();
        left.retain(|i| !joins(*i));
        groups.push(Group { inputs: together.iter().flat_map(|i| ops[*i].inputs()).collect(), ops: together });
    }
    groups
}

impl<K: HostOps> Executor for HostExecutor<K> {
    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        // A batch that is refused leaves nothing behind either.
        let checked = pass::check(&self.program, batch, |id, start| self.caches.check(id, start));
        self.pass = if checked.is_ok() { Pass::new(batch.clone()) } else { Pass::default() };
        self.values.begin(Extent {
            positions: self.pass.positions.len(),
            sequences: self.pass.batch.sequences.len(),
            points: self.pass.points.len(),
        });
        for sequence in &self.pass.batch.sequences {
            if let Some(id) = sequence.cache {
                self.caches.begin(id, sequence.start);
            }
        }
        checked
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        let program = Arc::clone(&self.program);
        let mut report = LayerReport::default();
        let mut line = self.caches.line(layer);
        for group in &Arc::clone(&self.groups)[layer] {
            let ops: Vec<&Op> = group.ops.iter().map(|i| &program.layers[layer].ops[*i]).collect();
            for input in &group.inputs {
                self.values.get(*input)?;
            }
            self.keep(ops[0], line)?;
            let mut outs: Vec<Value> = ops.iter().map(|op| self.values.take(op.out())).collect();
            // Without points there is nothing to do in the last layer.
            if !outs[0].is_empty() {
                report.saturations += self.run_group(&ops, line, &mut outs);
            }
            ops.iter().zip(outs).for_each(|(op, out)| self.values.put(op.out(), out));
            line += usize::from(matches!(ops[0], Op::Attention { .. }));
        }
        Ok(report)
    }

    fn read(&mut self, tensor: TensorId) -> Result<Value, BackendError> {
        self.values.get(tensor).cloned()
    }

    /// What lies on the host is hashed there, many chunks at a time, by whoever asks.
    fn chunk_values(&mut self, _: TensorId, _: &[u64]) -> Result<Option<Vec<[u8; 32]>>, BackendError> {
        Ok(None)
    }

    fn write(&mut self, tensor: TensorId, value: Value) -> Result<(), BackendError> {
        self.values.set(tensor, value)
    }

    fn fork_cache(&mut self, from: CacheId, to: CacheId, positions: usize) -> Result<(), BackendError> {
        self.caches.fork(from, to, positions)
    }

    fn truncate_cache(&mut self, id: CacheId, positions: usize) -> Result<(), BackendError> {
        self.caches.truncate(id, positions)
    }

    fn drop_cache(&mut self, id: CacheId) {
        self.caches.drop(id);
    }

    fn cache_bytes(&self) -> u64 {
        self.caches.bytes()
    }
}
