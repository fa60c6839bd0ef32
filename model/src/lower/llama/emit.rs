//! The program of a lowered decoder (SPEC 27.8).

use lockstep_kernels::program::{EmbedIndex, Heads, Layer, Op, Program, Rows, TensorId, TensorKind};

use super::{AttentionPlan, Decoder, LayerPlan, Product, Rotated};
use crate::checkpoint::DecoderConfig;
use crate::lower::build::Builder;

/// Activation tensors, shared by all layers.
pub struct Tensors {
    /// Layer `l` writes `hidden[l % 2]`, because it reads the other one.
    hidden: [TensorId; 2],
    /// The layer's input where its format has fewer fractional bits.
    shifted: TensorId,
    normed: TensorId,
    pub normed_rows: TensorId,
    query: Projected,
    key: Projected,
    value: TensorId,
    context: TensorId,
    pub context_rows: TensorId,
    projected: TensorId,
    attended: TensorId,
    feed: TensorId,
    pub feed_rows: TensorId,
    gate: TensorId,
    activated: TensorId,
    up: TensorId,
    gated: TensorId,
    pub gated_rows: TensorId,
    down: TensorId,
    /// One row for each point.
    last: TensorId,
    last_normed: TensorId,
    pub last_rows: TensorId,
    logits: TensorId,
    word: TensorId,
}

/// Queries or keys on their way.
struct Projected {
    wide: TensorId,
    /// After the head norm, where the family has one.
    normed: Option<TensorId>,
    rotated: TensorId,
}

impl Tensors {
    pub fn declare(builder: &mut Builder, config: &DecoderConfig) -> Self {
        use TensorKind::{Bfp, I16, I32};
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let mut position = |name: &str, cols, kind| builder.tensor(name, Rows::Position, cols, kind);
        let mut projected = |name: &str, cols| Projected {
            wide: position(&format!("{name}.wide"), cols, I32),
            normed: config.has_head_norms().then(|| position(&format!("{name}.normed"), cols, I32)),
            rotated: position(name, cols, I16),
        };
        let (query, key) = (projected("query", queries), projected("key", keys));
        let mut position = |name: &str, cols, kind| builder.tensor(name, Rows::Position, cols, kind);
        Self {
            query,
            key,
            hidden: [position("hidden.even", d, I32), position("hidden.odd", d, I32)],
            shifted: position("hidden.shifted", d, I32),
            normed: position("hidden.normed", d, I32),
            normed_rows: position("hidden.rows", d, Bfp),
            value: position("value", keys, I16),
            context: position("context", queries, I32),
            context_rows: position("context.rows", queries, Bfp),
            projected: position("projected", d, I32),
            attended: position("attended", d, I32),
            feed: position("attended.normed", d, I32),
            feed_rows: position("attended.rows", d, Bfp),
            gate: position("gate", inner, I32),
            activated: position("activated", inner, I32),
            up: position("up", inner, I32),
            gated: position("gated", inner, I32),
            gated_rows: position("gated.rows", inner, Bfp),
            down: position("down", d, I32),
            last: builder.tensor("last", Rows::Point, d, I32),
            last_normed: builder.tensor("last.normed", Rows::Point, d, I32),
            last_rows: builder.tensor("last.rows", Rows::Point, d, Bfp),
            logits: builder.tensor("logits", Rows::Point, config.vocab_size, I32),
            word: builder.tensor("word", Rows::Point, 1, I32),
        }
    }

    /// What layer `l`, counted from 1, writes in the residual stream's format.
    pub fn stream(&self, l: usize) -> Vec<TensorId> {
        vec![self.projected, self.attended, self.down, self.hidden[l % 2]]
    }
}

/// How many fractional bits a layer drops at its beginning.
pub fn boundary(layer: &Layer) -> i32 {
    match layer.ops.first() {
        Some(Op::Shift { shift, .. }) => i32::from(*shift),
        _ => 0,
    }
}

impl Decoder {
    /// The program with the residual formats of now.
    pub fn program(&self) -> Program {
        let t = &self.tensors;
        let embed = vec![Op::Embed { tables: vec![(self.table, EmbedIndex::Token)], out: t.hidden[0] }];
        let mut layers = vec![Layer { name: "embeddings".into(), ops: embed, output: t.hidden[0] }];
        for (l, plan) in self.layers.iter().enumerate() {
            let ops = self.layer_ops(l + 1, plan);
            layers.push(Layer { name: format!("layer.{l}"), ops, output: t.hidden[(l + 1) % 2] });
        }
        layers.push(self.head_layer());
        Program {
            vocab_size: self.config.vocab_size,
            max_positions: self.config.max_positions,
            tensors: self.builder.tensors.clone(),
            params: self.builder.params.clone(),
            layers,
        }
    }

    /// The ops of layer `l`, counted from 1.
    fn layer_ops(&self, l: usize, plan: &LayerPlan) -> Vec<Op> {
        let (t, frac) = (&self.tensors, self.residual[l]);
        let mut ops = Vec::new();
        let mut input = t.hidden[(l - 1) % 2];
        if self.residual[l - 1] > frac {
            let shift = (self.residual[l - 1] - frac) as u8;
            ops.push(Op::Shift { input, shift, out: t.shifted });
            input = t.shifted;
        }
        let (plan, feed) = (&plan.attention, &plan.feed);
        ops.push(Op::RmsNorm { input, norm: plan.norm.reading(frac), groups: 1, out: t.normed });
        ops.push(Op::Quantize { input: t.normed, out: t.normed_rows });
        self.rotated(&plan.query, &t.query, &mut ops);
        self.rotated(&plan.key, &t.key, &mut ops);
        ops.push(matmul(t.normed_rows, &plan.value, t.value));
        let (q, k) = (t.query.rotated, t.key.rotated);
        ops.push(Op::Attention { q, k, v: t.value, heads: self.heads(plan), out: t.context });
        ops.push(Op::Quantize { input: t.context, out: t.context_rows });
        ops.push(matmul(t.context_rows, &plan.output, t.projected));
        ops.push(Op::Add { a: input, b: t.projected, out: t.attended });
        ops.push(Op::RmsNorm { input: t.attended, norm: feed.norm.reading(frac), groups: 1, out: t.feed });
        ops.push(Op::Quantize { input: t.feed, out: t.feed_rows });
        ops.push(matmul(t.feed_rows, &feed.gate, t.gate));
        ops.push(matmul(t.feed_rows, &feed.up, t.up));
        ops.push(Op::Silu { input: t.gate, frac: feed.gate_frac, out: t.activated });
        ops.push(Op::Multiply { a: t.activated, b: t.up, shift: feed.product_shift, out: t.gated });
        ops.push(Op::Quantize { input: t.gated, out: t.gated_rows });
        ops.push(matmul(t.gated_rows, &feed.down, t.down));
        ops.push(Op::Add { a: t.attended, b: t.down, out: t.hidden[l % 2] });
        ops
    }

    fn rotated(&self, plan: &Rotated, to: &Projected, ops: &mut Vec<Op>) {
        let heads = plan.shift.len() as u16;
        ops.push(matmul(self.tensors.normed_rows, &plan.product, to.wide));
        let mut input = to.wide;
        if let (Some(norm), Some(out)) = (plan.head_norm, to.normed) {
            ops.push(Op::RmsNorm { input, norm, groups: heads, out });
            input = out;
        }
        let (table, shift) = (self.rope, plan.shift.clone());
        ops.push(Op::Rope { input, table, heads, head_dim: self.config.head_dim as u16, shift, out: to.rotated });
    }

    fn heads(&self, plan: &AttentionPlan) -> Heads {
        Heads {
            heads: self.config.num_attention_heads as u16,
            kv_heads: self.config.num_key_value_heads as u16,
            head_dim: self.config.head_dim as u16,
            causal: true,
            score_shift: plan.score_shift.clone(),
            value_shift: plan.value_shift.clone(),
        }
    }

    fn head_layer(&self) -> Layer {
        let (t, n) = (&self.tensors, self.layers.len());
        let norm = self.head.norm.reading(self.residual[n]);
        let product = Product { weight: self.head.weight, bias: None };
        let ops = vec![
            Op::Gather { input: t.hidden[n % 2], out: t.last },
            Op::RmsNorm { input: t.last, norm, groups: 1, out: t.last_normed },
            Op::Quantize { input: t.last_normed, out: t.last_rows },
            matmul(t.last_rows, &product, t.logits),
            Op::Sample {
                logits: t.logits,
                frac: self.head.logits_frac,
                token_bytes: self.head.token_bytes,
                out: t.word,
            },
        ];
        Layer { name: "head".into(), ops, output: t.word }
    }
}

fn matmul(input: TensorId, product: &Product, out: TensorId) -> Op {
    Op::MatMul { input, weight: product.weight, bias: product.bias, out }
}
