//! BERT encoders: post-norm transformer layers over learned positions (SPEC section 21).

use std::f64::consts::LOG2_E;
use std::num::NonZeroUsize;

use lockstep_kernels::fixed::SCORE_FRAC;
use lockstep_kernels::program::{EmbedIndex, Heads, Op, Program, Rows, ScaledRows, TensorId, TensorKind};

use super::build::{Builder, width};
use super::formats::{self, NormRow, gelu_peaks, largest, largest_sum, product_within, read_vector};
use super::matrix::RealMatrix;
use super::{Lowered, MatrixSite};
use crate::checkpoint::{BertConfig, Checkpoint, Pooling, Postprocessing};
use crate::error::ModelError;
use crate::package::WeightMode;
use crate::quantize::Width;

/// Most fractional bits of GELU's input.
const GELU_FRAC_CAP: i32 = 31;
/// Fractional bits of a row of unit length.
const UNIT_FRAC: u8 = 30;
/// Attention's output has so many fractional bits more than its values.
const VALUE_GAIN: i32 = 15;
/// Most bits that query and key of a head give up together.
const MAX_BORROWED: i32 = 4;

/// Fractional bits of what a layer computes.
#[derive(Debug)]
struct LayerFormats {
    query: Vec<i32>,
    key: Vec<i32>,
    value: Vec<i32>,
    /// The attention block's sum: the layer's input, the projection, their sum.
    attended: i32,
    inner: i32,
    /// The feed-forward block's sum: the norm before it, the down projection, their sum.
    output: i32,
}

/// Activation tensors, shared by all layers.
struct Tensors {
    /// Layer `l` writes `hidden[l % 2]`, because it reads the other one.
    hidden: [TensorId; 2],
    hidden_rows: TensorId,
    query: TensorId,
    key: TensorId,
    value: TensorId,
    context: TensorId,
    context_rows: TensorId,
    projected: TensorId,
    attended_sum: TensorId,
    attended: TensorId,
    attended_rows: TensorId,
    inner: TensorId,
    activated: TensorId,
    activated_rows: TensorId,
    output: TensorId,
    output_sum: TensorId,
}

struct Lowering<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a BertConfig,
    postprocessing: Postprocessing,
    weights: WeightMode,
    threads: NonZeroUsize,
    builder: Builder,
    matrices: Vec<MatrixSite>,
}

/// Lowers a BERT encoder. All codes are nearest; see [`Lowered`].
///
/// # Errors
/// Tensors that are missing, unknown, ill-shaped or not finite, and models that can't be bounded.
pub fn lower_bert(
    checkpoint: &Checkpoint,
    config: &BertConfig,
    postprocessing: Postprocessing,
    weights: WeightMode,
    threads: NonZeroUsize,
) -> Result<Lowered, ModelError> {
    let unused = check_names(checkpoint, config)?;
    let (builder, matrices) = (Builder::default(), Vec::new());
    let mut lowering = Lowering { checkpoint, config, postprocessing, weights, threads, builder, matrices };
    let mut layers = Vec::new();
    let mut input = lowering.norm(EMBEDDING_NORM)?;
    for l in 0..config.num_hidden_layers {
        layers.push(lowering.formats(l, &input)?);
        input = lowering.norm(&format!("{}.output.LayerNorm", layer_prefix(l)))?;
    }
    let peak = largest(&input.peaks());
    let last = formats::wide_row("the last layer's output", peak, peak, i32::MAX)?;
    let output_frac = lowering.emit(&layers, last)?;
    let Builder { tensors, params, values, layers, .. } = lowering.builder;
    let program = Program {
        vocab_size: config.vocab_size,
        max_positions: config.max_position_embeddings,
        tensors,
        params,
        layers,
    };
    program.validate()?;
    Ok(Lowered { program, params: values, matrices: lowering.matrices, output_frac, unused, weights })
}

const EMBEDDING_NORM: &str = "embeddings.LayerNorm";

fn layer_prefix(l: u32) -> String {
    format!("encoder.layer.{l}")
}

/// Names of the parts of a layer that have a weight and a bias.
const LAYER_PARTS: [&str; 8] = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
];

/// Refuses tensors that BertModel does not have; returns those that it has and sentence encoders do not use.
fn check_names(checkpoint: &Checkpoint, config: &BertConfig) -> Result<Vec<String>, ModelError> {
    let known = |name: &str| {
        if let Some(rest) = name.strip_prefix("encoder.layer.") {
            let Some((l, part)) = rest.split_once('.') else { return false };
            let part = part.strip_suffix(".weight").or(part.strip_suffix(".bias")).unwrap_or_default();
            // `+0` and `00` parse too, and nobody would read such a tensor.
            let exists = |n: u32| n < config.num_hidden_layers && n.to_string() == l;
            return l.parse().is_ok_and(exists) && LAYER_PARTS.contains(&part);
        }
        matches!(
            name,
            "embeddings.word_embeddings.weight"
                | "embeddings.position_embeddings.weight"
                | "embeddings.token_type_embeddings.weight"
                | "embeddings.LayerNorm.weight"
                | "embeddings.LayerNorm.bias"
        )
    };
    let idle = ["pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"];
    let (unused, rest): (Vec<&str>, Vec<&str>) = checkpoint.weights.names().partition(|n| idle.contains(n));
    match rest.into_iter().find(|n| !known(n)) {
        Some(name) => Err(ModelError::tensor(name, "is not part of the BertModel that config.json describes")),
        None => Ok(unused.into_iter().map(String::from).collect()),
    }
}

impl Lowering<'_> {
    /// A layer's matrix; the factor `log2(e) / sqrt(head_dim)` of the scores goes into the query's.
    fn matrix(&self, l: u32, part: &str) -> Result<RealMatrix, ModelError> {
        let (d, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let shape = match part {
            "intermediate.dense" => [inner, d],
            "output.dense" => [d, inner],
            _ => [d, d],
        };
        let tensor = format!("{}.{part}.weight", layer_prefix(l));
        let width = if part == "output.dense" { Width::W16 } else { width(self.weights) };
        RealMatrix::read(&self.checkpoint.weights, &tensor, shape, self.factor(part), width, self.threads)
    }

    fn norm(&self, prefix: &str) -> Result<NormRow, ModelError> {
        NormRow::read(&self.checkpoint.weights, prefix, self.config.hidden_size)
    }

    fn bias(&self, l: u32, part: &str) -> Result<Vec<f64>, ModelError> {
        let len = if part == "intermediate.dense" { self.config.intermediate_size } else { self.config.hidden_size };
        let factor = self.factor(part);
        let mut bias = read_vector(&self.checkpoint.weights, &format!("{}.{part}.bias", layer_prefix(l)), len)?;
        bias.iter_mut().for_each(|b| *b *= factor);
        Ok(bias)
    }

    fn factor(&self, part: &str) -> f64 {
        if part == "attention.self.query" { LOG2_E / f64::from(self.config.head_dim()).sqrt() } else { 1.0 }
    }

    /// Proves the Q formats of layer `l`, whose input is the given norm's output.
    fn formats(&self, l: u32, input: &NormRow) -> Result<LayerFormats, ModelError> {
        let place = |what: &str| format!("{} {what}", layer_prefix(l));
        let head_dim = self.config.head_dim() as usize;
        let product = |part: &str| Ok::<_, ModelError>(input.product(&self.matrix(l, part)?, &self.bias(l, part)?));
        let (query, key) = (product("attention.self.query")?, product("attention.self.key")?);
        // A weighted mean of values stays within the values' bounds.
        let context = product("attention.self.value")?;
        let [query, key, value] = [("query", &query), ("key", &key), ("value", &context)]
            .map(|(name, bounds)| formats::heads(&place(name), bounds, head_dim));
        let (query, key) = formats::reach_scores(&place("scores"), query?, key?, MAX_BORROWED)?;
        let out = self.matrix(l, "attention.output.dense")?;
        let projected = product_within(&context, &out, &self.bias(l, "attention.output.dense")?);
        let input_peaks = input.peaks();
        let sum = largest_sum(&input_peaks, &projected);
        let attended = formats::wide_row(&place("attention sum"), sum, largest(&input_peaks), i32::MAX)?;

        let norm = self.norm(&format!("{}.attention.output.LayerNorm", layer_prefix(l)))?;
        let inner = norm.product(&self.matrix(l, "intermediate.dense")?, &self.bias(l, "intermediate.dense")?);
        let peak = largest(&inner);
        let inner_frac = formats::wide_row(&place("feed-forward"), peak, peak, GELU_FRAC_CAP)?;
        let down = self.matrix(l, "output.dense")?;
        let output = product_within(&gelu_peaks(&inner), &down, &self.bias(l, "output.dense")?);
        let norm_peaks = norm.peaks();
        let sum = largest_sum(&norm_peaks, &output);
        let output = formats::wide_row(&place("feed-forward sum"), sum, largest(&norm_peaks), i32::MAX)?;
        Ok(LayerFormats { query, key, value: value?, attended, inner: inner_frac, output })
    }

    /// Writes the whole program; returns the fractional bits of its output.
    fn emit(&mut self, layers: &[LayerFormats], last: i32) -> Result<u8, ModelError> {
        let tensors = self.tensors();
        let input_frac = |l: usize| layers.get(l).map_or(last, |f| f.attended);
        self.emit_embedding(&tensors, input_frac(0))?;
        for (l, formats) in layers.iter().enumerate() {
            self.emit_layer(l as u32, formats, &tensors, input_frac(l + 1))?;
        }
        self.emit_pooling(tensors.hidden[layers.len() % 2], last)
    }

    fn tensors(&mut self) -> Tensors {
        let (d, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let mut declare = |name, cols, kind| self.builder.tensor(name, Rows::Position, cols, kind);
        use TensorKind::{Bfp, I16, I32};
        Tensors {
            hidden: [declare("hidden.even", d, I32), declare("hidden.odd", d, I32)],
            hidden_rows: declare("hidden.rows", d, Bfp),
            query: declare("query", d, I16),
            key: declare("key", d, I16),
            value: declare("value", d, I16),
            context: declare("context", d, I32),
            context_rows: declare("context.rows", d, Bfp),
            projected: declare("projected", d, I32),
            attended_sum: declare("attended.sum", d, I32),
            attended: declare("attended", d, I32),
            attended_rows: declare("attended.rows", d, Bfp),
            inner: declare("inner", inner, I32),
            activated: declare("activated", inner, I32),
            activated_rows: declare("activated.rows", inner, Bfp),
            output: declare("output", d, I32),
            output_sum: declare("output.sum", d, I32),
        }
    }

    fn emit_embedding(&mut self, tensors: &Tensors, frac_out: i32) -> Result<(), ModelError> {
        let config = self.config;
        let tables = [
            ("embeddings.word_embeddings.weight", config.vocab_size, EmbedIndex::Token),
            ("embeddings.position_embeddings.weight", config.max_position_embeddings, EmbedIndex::Position),
            ("embeddings.token_type_embeddings.weight", config.type_vocab_size, EmbedIndex::Constant(0)),
        ];
        let mut read = Vec::new();
        for (tensor, rows, index) in tables {
            let shape = [rows, config.hidden_size];
            let table = RealMatrix::read(&self.checkpoint.weights, tensor, shape, 1.0, Width::W16, self.threads)?;
            read.push((tensor, table, index));
        }
        let peak = |table: &RealMatrix| table.values.iter().fold(0.0_f64, |max, w| max.max(w.abs()));
        let bound: f64 = read.iter().map(|(_, table, _)| peak(table)).sum();
        let frac = formats::wide("embeddings", bound * (1.0 + 1.0 / 256.0), i32::MAX)?;
        let mut rows: Vec<(ScaledRows, EmbedIndex)> = Vec::new();
        for (tensor, table, index) in &read {
            rows.push((self.builder.scaled_rows(tensor, table, 0, |_| frac, self.threads)?, *index));
        }
        let norm = self.norm(EMBEDDING_NORM)?;
        let epsilon = config.layer_norm_eps;
        let (norm, bias) = self.builder.layer_norm(EMBEDDING_NORM, &norm, epsilon, [frac, frac_out])?;
        let (sum, out) = (tensors.output_sum, tensors.hidden[0]);
        let ops = vec![Op::Embed { tables: rows, out: sum }, Op::LayerNorm { input: sum, norm, bias, out }];
        self.builder.layer("embeddings".into(), ops, out);
        Ok(())
    }

    fn emit_layer(&mut self, l: u32, f: &LayerFormats, t: &Tensors, frac_out: i32) -> Result<(), ModelError> {
        let head_dim = self.config.head_dim() as usize;
        let input = t.hidden[l as usize % 2];
        let out = t.hidden[(l as usize + 1) % 2];
        let mut ops = vec![Op::Quantize { input, out: t.hidden_rows }];
        for (part, frac, out) in [
            ("attention.self.query", &f.query, t.query),
            ("attention.self.key", &f.key, t.key),
            ("attention.self.value", &f.value, t.value),
        ] {
            ops.push(self.matmul(l, part, t.hidden_rows, f.attended, |n| frac[n / head_dim], out)?);
        }
        let (heads, context_frac) = self.heads(l, f)?;
        ops.push(Op::Attention { q: t.query, k: t.key, v: t.value, heads, out: t.context });
        ops.push(Op::Quantize { input: t.context, out: t.context_rows });
        let attended = |_| f.attended;
        ops.push(self.matmul(l, "attention.output.dense", t.context_rows, context_frac, attended, t.projected)?);
        ops.push(Op::Add { a: input, b: t.projected, out: t.attended_sum });
        let part = "attention.output.LayerNorm";
        ops.push(self.layer_norm(l, part, t.attended_sum, t.attended, [f.attended, f.output])?);

        ops.push(Op::Quantize { input: t.attended, out: t.attended_rows });
        ops.push(self.matmul(l, "intermediate.dense", t.attended_rows, f.output, |_| f.inner, t.inner)?);
        ops.push(Op::Gelu { input: t.inner, frac: f.inner as u8, out: t.activated });
        ops.push(Op::Quantize { input: t.activated, out: t.activated_rows });
        ops.push(self.matmul(l, "output.dense", t.activated_rows, f.inner, |_| f.output, t.output)?);
        ops.push(Op::Add { a: t.attended, b: t.output, out: t.output_sum });
        ops.push(self.layer_norm(l, "output.LayerNorm", t.output_sum, out, [f.output, frac_out])?);
        self.builder.layer(format!("layer.{l}"), ops, out);
        Ok(())
    }

    fn matmul(
        &mut self,
        l: u32,
        part: &str,
        input: TensorId,
        frac_in: i32,
        frac_out: impl Fn(usize) -> i32,
        out: TensorId,
    ) -> Result<Op, ModelError> {
        let (matrix, bias) = (self.matrix(l, part)?, self.bias(l, part)?);
        let tensor = format!("{}.{part}.weight", layer_prefix(l));
        let weight = self.builder.scaled_rows(&tensor, &matrix, frac_in, &frac_out, self.threads)?;
        let bias = self.builder.bias(&format!("{}.{part}.bias", layer_prefix(l)), &bias, &frac_out)?;
        let (factor, layer) = (self.factor(part), self.builder.layers.len());
        self.matrices.push(MatrixSite { codes: weight.codes, tensor, factor, layer, input });
        Ok(Op::MatMul { input, weight, bias: Some(bias), out })
    }

    fn layer_norm(
        &mut self,
        l: u32,
        part: &str,
        input: TensorId,
        out: TensorId,
        fracs: [i32; 2],
    ) -> Result<Op, ModelError> {
        let prefix = format!("{}.{part}", layer_prefix(l));
        let row = self.norm(&prefix)?;
        let (norm, bias) = self.builder.layer_norm(&prefix, &row, self.config.layer_norm_eps, fracs)?;
        Ok(Op::LayerNorm { input, norm, bias, out })
    }

    /// Shifts of each head, and the fractional bits that all heads' outputs share.
    fn heads(&self, l: u32, f: &LayerFormats) -> Result<(Heads, i32), ModelError> {
        let place = format!("{} attention", layer_prefix(l));
        let score = |(h, (q, k)): (usize, (&i32, &i32))| {
            u8::try_from(q + k - SCORE_FRAC as i32).ok().filter(|s| *s <= 62).ok_or_else(|| {
                ModelError::bounds(&place, format!("head {h}: {q} + {k} fractional bits do not give scores of 20"))
            })
        };
        let score_shift = f.query.iter().zip(&f.key).enumerate().map(score).collect::<Result<Vec<_>, _>>()?;
        let common = f.value.iter().min().expect("a model has heads") + VALUE_GAIN;
        let value = |v: &i32| {
            u8::try_from(v + VALUE_GAIN - common)
                .ok()
                .filter(|s| *s <= 31)
                .ok_or_else(|| ModelError::bounds(&place, "heads' values differ by more than 2^31"))
        };
        let heads = Heads {
            heads: self.config.num_attention_heads as u16,
            kv_heads: self.config.num_attention_heads as u16,
            head_dim: self.config.head_dim() as u16,
            causal: false,
            score_shift,
            value_shift: f.value.iter().map(value).collect::<Result<Vec<_>, _>>()?,
        };
        Ok((heads, common))
    }

    fn emit_pooling(&mut self, input: TensorId, frac: i32) -> Result<u8, ModelError> {
        let d = self.config.hidden_size;
        let post = self.postprocessing;
        let pooled = self.builder.tensor("pooled", Rows::Sequence, d, TensorKind::I32);
        let mut ops = vec![match post.pooling {
            Pooling::Mean => Op::MeanPool { input, out: pooled },
            Pooling::Cls => Op::FirstPool { input, out: pooled },
        }];
        let (mut output, mut output_frac) = (pooled, frac as u8);
        if post.normalize {
            output = self.builder.tensor("embedding", Rows::Sequence, d, TensorKind::I32);
            ops.push(Op::L2Normalize { input: pooled, out: output });
            output_frac = UNIT_FRAC;
        }
        self.builder.layer("pooling".into(), ops, output);
        Ok(output_frac)
    }
}
