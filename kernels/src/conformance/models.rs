//! Whole small models: layer after layer, batches, and one backend taking over from another.

use std::sync::Arc;

use super::case::{Builder, Case, ParamValue};
use super::data::{Pattern, SplitMix};
use super::{Difference, Divergence, Level, compare};
use crate::backend::{Backend, BackendError, Executor};
use crate::program::{EmbedIndex, Heads, Norm, Op, Rows, ScaledRows, TensorId, TensorKind};
use crate::reference::Reference;
use crate::value::{Batch, Params, Value};

/// Shape of a BERT-style encoder with made-up weights.
#[derive(Clone, Copy, Debug)]
struct Shape {
    width: usize,
    heads: usize,
    inner: usize,
    layers: usize,
    wide: bool,
}

/// Models over batches with very different lengths.
pub(super) fn visit(level: Level, visit: &mut dyn FnMut(Case) -> Result<(), Divergence>) -> Result<(), Divergence> {
    let small = |wide| Shape { width: 48, heads: 3, inner: 80, layers: 2, wide };
    visit(case(small(false), &[9, 1, 17]))?;
    visit(case(small(true), &[5]))?;
    if level == Level::Full {
        visit(case(Shape { width: 96, heads: 4, inner: 272, layers: 3, wide: false }, &[300, 1, 33]))?;
        visit(case(Shape { width: 65, heads: 5, inner: 129, layers: 1, wide: true }, &[17, 256]))?;
    }
    Ok(())
}

/// A BERT-style encoder of `layers` layers with made-up weights in `w8` (or `w16` where `wide`), over sequences of
/// the given lengths: all ops of a real one, at real scales.
pub fn encoder(width: usize, heads: usize, inner: usize, layers: usize, wide: bool, lengths: &[usize]) -> Case {
    case(Shape { width, heads, inner, layers, wide }, lengths)
}

fn case(shape: Shape, lengths: &[usize]) -> Case {
    let Shape { width, heads, inner, layers, wide } = shape;
    let weights = if wide { "w16" } else { "w8" };
    let name = format!("encoder {width} wide, {heads} heads, {inner} inner, {layers} layers, {weights}, {lengths:?}");
    let mut m = Model::new(shape, lengths.iter().copied().max().unwrap_or(1), &name);
    let mut x = m.embedding();
    for layer in 0..layers {
        x = m.layer(x, layer);
    }
    m.output(x);
    m.b.case("model", name, lengths, None)
}

/// Fractional bits of the residual stream and of everything else that is `i32`.
const FRAC: i64 = 16;

struct Model {
    b: Builder,
    rng: SplitMix,
    shape: Shape,
}

impl Model {
    fn new(shape: Shape, max_positions: usize, name: &str) -> Self {
        Self { b: Builder::new(29, max_positions), rng: SplitMix::named(name), shape }
    }

    /// Codes of the whole range with row scales that bring products of `cols` terms to the magnitude of their input.
    fn weight(&mut self, name: &str, rows: usize, cols: usize, extra_shift: i64) -> ScaledRows {
        let code_bits = if self.shape.wide { 15 } else { 7 };
        let limit = (1 << code_bits) - 1 - i64::from(self.shape.wide) * 128;
        let codes = Pattern::Full.fill(&mut self.rng, rows, cols, -limit, limit);
        let codes = if self.shape.wide {
            ParamValue::I16(codes.into_iter().map(|c| c as i16).collect())
        } else {
            ParamValue::I8(codes.into_iter().map(|c| c as i8).collect())
        };
        // A sum of `cols` random products grows with its root; uniform codes have a deviation of limit / sqrt(3).
        let growth = i64::from(cols.ilog2() / 2);
        let shift = 16 + code_bits - 1 + growth + extra_shift;
        let mantissa = (0..rows).map(|_| self.rng.range(1 << 15, (1 << 16) - 1) as u16).collect();
        self.b.scaled(name, codes, rows, cols, mantissa, vec![shift as i16; rows])
    }

    fn table(&mut self, name: &str, rows: usize) -> ScaledRows {
        let cols = self.shape.width;
        let codes = Pattern::Full.fill(&mut self.rng, rows, cols, -32_639, 32_639);
        let codes = ParamValue::I16(codes.into_iter().map(|c| c as i16).collect());
        let mantissa = (0..rows).map(|_| self.rng.range(1 << 15, (1 << 16) - 1) as u16).collect();
        self.b.scaled(name, codes, rows, cols, mantissa, vec![15; rows])
    }

    fn bias(&mut self, cols: usize) -> crate::program::ParamId {
        let bias = Pattern::Full.fill(&mut self.rng, 1, cols, -1 << 12, 1 << 12);
        self.b.vector("bias", bias.into_iter().map(|v| v as i32).collect())
    }

    fn layer_norm(&mut self, input: TensorId, name: &str) -> (Op, TensorId) {
        let cols = self.shape.width;
        // Scales of about 1, times sqrt(cols), with the shift that turns Q1.30 into the stream's format.
        let root = 1_i64 << (cols.ilog2() / 2);
        let scale = Pattern::Full.fill(&mut self.rng, 1, cols, root << 11, root << 13);
        let scale = self.b.vector("scale", scale.into_iter().map(|v| v as i32).collect());
        let norm = Norm { scale, shift: (30 + 12 - FRAC) as u8, epsilon_mantissa: 0x8000_0001, epsilon_shift: 31 };
        let bias = self.bias(cols);
        let out = self.b.rows(name, cols, TensorKind::I32);
        (Op::LayerNorm { input, norm, bias, out }, out)
    }

    fn embedding(&mut self) -> TensorId {
        let max_positions = self.b.max_positions();
        let tables = vec![
            (self.table("tokens", 29), EmbedIndex::Token),
            (self.table("positions", max_positions), EmbedIndex::Position),
            (self.table("types", 2), EmbedIndex::Constant(0)),
        ];
        let sum = self.b.rows("embedded", self.shape.width, TensorKind::I32);
        let (norm, out) = self.layer_norm(sum, "residual 0");
        self.b.layer(vec![Op::Embed { tables, out: sum }, norm], out);
        out
    }

    /// A product of `input` with a fresh weight and bias.
    fn project(&mut self, input: TensorId, name: &str, [n, k]: [usize; 2], kind: TensorKind) -> (Op, TensorId) {
        let extra = if kind == TensorKind::I16 { 4 } else { 0 };
        let weight = self.weight(name, n, k, extra);
        let bias = Some(self.bias(n));
        let out = self.b.rows(name, n, kind);
        (Op::MatMul { input, weight, bias, out }, out)
    }

    fn quantized(&mut self, input: TensorId, name: &str, cols: usize) -> (Op, TensorId) {
        let out = self.b.rows(name, cols, TensorKind::Bfp);
        (Op::Quantize { input, out }, out)
    }

    fn layer(&mut self, x: TensorId, layer: usize) -> TensorId {
        let Shape { width, heads, inner, .. } = self.shape;
        let dim = width / heads;
        let n = |name: &str| format!("{name} {layer}");
        let (quantize_x, xq) = self.quantized(x, &n("x codes"), width);
        let (q_op, q) = self.project(xq, &n("query"), [heads * dim, width], TensorKind::I16);
        let (k_op, k) = self.project(xq, &n("key"), [heads * dim, width], TensorKind::I16);
        let (v_op, v) = self.project(xq, &n("value"), [heads * dim, width], TensorKind::I16);
        let shape = Heads {
            heads: heads as u16,
            kv_heads: heads as u16,
            head_dim: dim as u16,
            causal: false,
            score_shift: vec![7; heads],
            // Values have 12 fractional bits and the mean has 15 more; the stream has 16.
            value_shift: vec![11; heads],
        };
        let mixed = self.b.rows(&n("mixed"), heads * dim, TensorKind::I32);
        let attention = Op::Attention { q, k, v, heads: shape, out: mixed };
        let (quantize_mixed, mq) = self.quantized(mixed, &n("mixed codes"), heads * dim);
        let (o_op, o) = self.project(mq, &n("attention output"), [width, heads * dim], TensorKind::I32);
        let a = self.b.rows(&n("attention sum"), width, TensorKind::I32);
        let (norm_a, h) = self.layer_norm(a, &n("attention norm"));
        let (quantize_h, hq) = self.quantized(h, &n("norm codes"), width);
        let (up_op, up) = self.project(hq, &n("up"), [inner, width], TensorKind::I32);
        let act = self.b.rows(&n("activated"), inner, TensorKind::I32);
        let (quantize_act, aq) = self.quantized(act, &n("activated codes"), inner);
        let (down_op, down) = self.project(aq, &n("down"), [width, inner], TensorKind::I32);
        let y = self.b.rows(&n("sum"), width, TensorKind::I32);
        let (norm_y, out) = self.layer_norm(y, &n("residual"));
        let gelu = Op::Gelu { input: up, frac: FRAC as u8, out: act };
        let (add_a, add_y) = (Op::Add { a: o, b: x, out: a }, Op::Add { a: down, b: h, out: y });
        let attention_ops = vec![quantize_x, q_op, k_op, v_op, attention, quantize_mixed, o_op, add_a, norm_a];
        let rest = vec![quantize_h, up_op, gelu, quantize_act, down_op, add_y, norm_y];
        self.b.layer(attention_ops.into_iter().chain(rest).collect(), out);
        out
    }

    fn output(&mut self, x: TensorId) {
        let pooled = self.b.tensor("pooled", Rows::Sequence, self.shape.width, TensorKind::I32);
        let unit = self.b.tensor("unit", Rows::Sequence, self.shape.width, TensorKind::I32);
        let ops = vec![Op::MeanPool { input: x, out: pooled }, Op::L2Normalize { input: pooled, out: unit }];
        self.b.layer(ops, unit);
    }
}

/// Results must not depend on who shares a batch, nor on which backend ran the layers before.
pub(super) fn invariance(backend: &dyn Backend) -> Result<u64, Divergence> {
    let case = case(Shape { width: 32, heads: 2, inner: 64, layers: 2, wide: false }, &[3, 18, 1]);
    let last = case.program.layers.len() - 1;
    let tensor = case.program.tensor(case.program.layers[last].output);
    let expected = output(&case, &[&Reference], &case.batch, backend)?;
    let verdict = |name: &str, got: Value| {
        compare(&tensor.name, tensor.cols as usize, &expected, &got).map_err(|difference| Divergence {
            backend: backend.name(),
            op: "model",
            case: name.into(),
            difference,
        })
    };
    let mut elements = 0;
    let mut alone = Vec::new();
    for sequence in &case.batch.sequences {
        let single = Batch::single(sequence.tokens.clone());
        if let Value::I32(row) = output(&case, &[backend], &single, backend)? {
            alone.extend(row);
        }
    }
    elements += verdict("each sequence alone", Value::I32(alone))?;
    let (taken, given): ([&dyn Backend; 2], [&dyn Backend; 2]) = ([&Reference, backend], [backend, &Reference]);
    elements += verdict("taken over from the oracle at every layer", output(&case, &taken, &case.batch, backend)?)?;
    elements += verdict("handed to the oracle at every layer", output(&case, &given, &case.batch, backend)?)?;
    elements += reuse(backend, &case)?;
    Ok(elements)
}

/// One executor over a large batch, a small one, and the large one again: nothing of one shows in the next.
fn reuse(backend: &dyn Backend, case: &Case) -> Result<u64, Divergence> {
    let fail = |difference| Divergence {
        backend: backend.name(),
        op: "model",
        case: "one executor for one batch after the other".into(),
        difference,
    };
    let failed = |e: BackendError| fail(Difference::Failed { error: e.to_string() });
    let small = Batch::single(case.batch.sequences[0].tokens[..2].to_vec());
    let params: Arc<dyn Params> = Arc::<super::OwnedParams>::clone(&case.params);
    let mut executor = backend.load(Arc::clone(&case.program), params).map_err(failed)?;
    let mut elements = 0;
    for batch in [&case.batch, &small, &case.batch] {
        let again = Case { batch: batch.clone(), ..case.clone() };
        let expected = again.run(&Reference).map_err(failed)?;
        let got = again.run_on(executor.as_mut()).map_err(failed)?;
        for ((_, id, expected), (_, _, got)) in expected.tensors.iter().zip(&got.tensors) {
            let tensor = case.program.tensor(*id);
            elements += compare(&tensor.name, tensor.cols as usize, expected, got).map_err(fail)?;
        }
        for (layer, (expected, got)) in expected.saturations.iter().zip(&got.saturations).enumerate() {
            if expected != got {
                return Err(fail(Difference::Saturations { layer, expected: *expected, got: *got }));
            }
        }
    }
    Ok(elements)
}

/// The last layer's output, with the layers dealt out to the backends in turn.
fn output(case: &Case, backends: &[&dyn Backend], batch: &Batch, on: &dyn Backend) -> Result<Value, Divergence> {
    let run = || -> Result<Value, BackendError> {
        let mut executors = Vec::<Box<dyn Executor>>::new();
        for backend in backends {
            let params: Arc<dyn Params> = Arc::<super::OwnedParams>::clone(&case.params);
            let mut executor = backend.load(Arc::clone(&case.program), params)?;
            executor.begin(batch)?;
            executors.push(executor);
        }
        let mut value: Option<(TensorId, Value)> = None;
        for (l, layer) in case.program.layers.iter().enumerate() {
            let executor = &mut executors[l % backends.len()];
            if let Some((tensor, value)) = value {
                executor.write(tensor, value)?;
            }
            executor.run_layer(l)?;
            value = Some((layer.output, executor.read(layer.output)?));
        }
        Ok(value.expect("a program has layers").1)
    };
    run().map_err(|e| Divergence {
        backend: on.name(),
        op: "model",
        case: case.name.clone(),
        difference: Difference::Failed { error: e.to_string() },
    })
}
