//! Whole small decoders: made-up weights, all ops of a real one, at real scales.

use super::case::{Builder, Case, ParamValue};
use super::data::{Pattern, SplitMix};
use super::sampling::{TOKEN_BYTES_WIDTH, random_token_bytes};
use crate::program::{EmbedIndex, Heads, Norm, Op, ParamId, Rows, ScaledRows, TensorId, TensorKind};

/// Shape of a decoder with made-up weights.
#[derive(Clone, Copy, Debug)]
pub struct DecoderShape {
    /// Tokens are below this.
    pub vocab: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head; even.
    pub head_dim: usize,
    /// Elements of a head that are rotated; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Width between the two products of the second half of a layer.
    pub inner: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Whether the heads of queries and keys are normalised.
    pub head_norms: bool,
}

impl DecoderShape {
    /// Small enough for the oracle.
    pub const SMALL: Self = Self {
        vocab: 61,
        max_positions: 700,
        width: 24,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        rotary_dim: 6,
        inner: 40,
        layers: 2,
        head_norms: false,
    };
}

/// Fractional bits of the residual stream and of everything else that is `i32`.
const FRAC: i64 = 16;

/// A decoder with made-up weights in `w8`, over sequences of the given lengths. Its last layer writes the tensors `logits`
/// and `word`.
pub fn decoder(shape: DecoderShape, lengths: &[usize]) -> Case {
    let name = format!("decoder, {shape:?}, {lengths:?}");
    let b = Builder::new(shape.vocab as u32, shape.max_positions);
    let mut m = Model { b, rng: SplitMix::named(&name), shape };
    let tokens = m.table("tokens", shape.vocab);
    let mut x = m.b.rows("residual 0", shape.width, TensorKind::I32);
    m.b.layer(vec![Op::Embed { tables: vec![(tokens, EmbedIndex::Token)], out: x }], x);
    let table = m.rope_table();
    for layer in 0..shape.layers {
        x = m.layer(x, layer, table);
    }
    m.output(x);
    m.b.case("model", name, lengths, None)
}

struct Model {
    b: Builder,
    rng: SplitMix,
    shape: DecoderShape,
}

impl Model {
    fn mantissas(&mut self, rows: usize) -> Vec<u16> {
        (0..rows).map(|_| self.rng.range(1 << 15, (1 << 16) - 1) as u16).collect()
    }

    fn table(&mut self, name: &str, rows: usize) -> ScaledRows {
        let cols = self.shape.width;
        let codes = Pattern::Full.fill(&mut self.rng, rows, cols, -32_639, 32_639);
        let codes = ParamValue::I16(codes.into_iter().map(|c| c as i16).collect());
        let mantissa = self.mantissas(rows);
        self.b.scaled(name, codes, rows, cols, mantissa, vec![15; rows])
    }

    /// Made-up cosines and sines: nothing here depends on their being any angle's.
    fn rope_table(&mut self) -> ParamId {
        let (rows, cols) = (self.shape.max_positions, self.shape.rotary_dim);
        let limit = 3 << 28;
        let table = Pattern::Full.fill(&mut self.rng, rows, cols, -limit, limit);
        self.b.param("rope", ParamValue::I32(table.into_iter().map(|v| v as i32).collect()), rows, cols)
    }

    fn norm(&mut self, cols: usize) -> Norm {
        // Scales of about 1, times sqrt(cols), with the shift that turns Q1.30 into the stream's format.
        let root = 1_i64 << (cols.ilog2() / 2);
        let scale = Pattern::Full.fill(&mut self.rng, 1, cols, root << 11, root << 13);
        let scale = self.b.vector("scale", scale.into_iter().map(|v| v as i32).collect());
        Norm { scale, shift: (30 + 12 - FRAC) as u8, epsilon_mantissa: 0x8000_0001, epsilon_shift: 31 }
    }

    /// The normalised codes of `input`, with the ops that make them.
    fn normed(&mut self, input: TensorId, name: &str, rows: Rows) -> (Vec<Op>, TensorId) {
        let cols = self.shape.width;
        let norm = self.norm(cols);
        let normed = self.b.tensor(name, rows, cols, TensorKind::I32);
        let codes = self.b.tensor(&format!("{name} codes"), rows, cols, TensorKind::Bfp);
        let rms = Op::RmsNorm { input, norm, groups: 1, out: normed };
        (vec![rms, Op::Quantize { input: normed, out: codes }], codes)
    }

    /// A product of `input` with a fresh weight.
    fn project(&mut self, input: TensorId, out: TensorId, [n, k]: [usize; 2], kind: TensorKind) -> Op {
        let codes = Pattern::Full.fill(&mut self.rng, n, k, -127, 127);
        let codes = ParamValue::I8(codes.into_iter().map(|c| c as i8).collect());
        // A sum of k random products grows with its root; codes of 12 bits have four fractional bits less.
        let extra = if kind == TensorKind::I16 { 4 } else { 0 };
        let shift = 22 + (k.ilog2() / 2) as i16 + extra;
        let mantissa = self.mantissas(n);
        let weight = self.b.scaled("weight", codes, n, k, mantissa, vec![shift; n]);
        Op::MatMul { input, weight, bias: None, out }
    }

    /// Rotated queries or keys of `heads` heads.
    fn rotated(&mut self, codes: TensorId, name: &str, heads: usize, table: ParamId) -> (Vec<Op>, TensorId) {
        let DecoderShape { width, head_dim, head_norms, .. } = self.shape;
        let cols = heads * head_dim;
        let mut x = self.b.rows(name, cols, TensorKind::I32);
        let mut ops = vec![self.project(codes, x, [cols, width], TensorKind::I32)];
        if head_norms {
            let (norm, out) = (self.norm(head_dim), self.b.rows(&format!("{name} norm"), cols, TensorKind::I32));
            ops.push(Op::RmsNorm { input: x, norm, groups: heads as u16, out });
            x = out;
        }
        let out = self.b.rows(&format!("{name} rotated"), cols, TensorKind::I16);
        let (heads, head_dim, shift) = (heads as u16, head_dim as u16, vec![4; heads]);
        ops.push(Op::Rope { input: x, table, heads, head_dim, shift, out });
        (ops, out)
    }

    fn attention(&mut self, x: TensorId, n: &dyn Fn(&str) -> String, table: ParamId) -> (Vec<Op>, TensorId) {
        let DecoderShape { width, heads, kv_heads, head_dim, .. } = self.shape;
        let (mut ops, codes) = self.normed(x, &n("attention norm"), Rows::Position);
        let (q_ops, q) = self.rotated(codes, &n("query"), heads, table);
        let (k_ops, k) = self.rotated(codes, &n("key"), kv_heads, table);
        let v = self.b.rows(&n("value"), kv_heads * head_dim, TensorKind::I16);
        ops.extend(q_ops.into_iter().chain(k_ops));
        ops.push(self.project(codes, v, [kv_heads * head_dim, width], TensorKind::I16));
        let shape = Heads {
            heads: heads as u16,
            kv_heads: kv_heads as u16,
            head_dim: head_dim as u16,
            causal: true,
            score_shift: vec![7; heads],
            // Values have 12 fractional bits and the mean has 15 more; the stream has 16.
            value_shift: vec![11; heads],
        };
        let mixed = self.b.rows(&n("mixed"), heads * head_dim, TensorKind::I32);
        let mixed_codes = self.b.rows(&n("mixed codes"), heads * head_dim, TensorKind::Bfp);
        let o = self.b.rows(&n("attention output"), width, TensorKind::I32);
        let sum = self.b.rows(&n("attention sum"), width, TensorKind::I32);
        ops.push(Op::Attention { q, k, v, heads: shape, out: mixed });
        ops.push(Op::Quantize { input: mixed, out: mixed_codes });
        ops.push(self.project(mixed_codes, o, [width, heads * head_dim], TensorKind::I32));
        ops.push(Op::Add { a: o, b: x, out: sum });
        (ops, sum)
    }

    fn layer(&mut self, x: TensorId, layer: usize, table: ParamId) -> TensorId {
        let DecoderShape { width, inner, .. } = self.shape;
        let n = |name: &str| format!("{name} {layer}");
        let (mut ops, h) = self.attention(x, &n, table);
        let (norm_ops, codes) = self.normed(h, &n("inner norm"), Rows::Position);
        ops.extend(norm_ops);
        let [gate, up, act, product] =
            ["gate", "up", "activated", "gated"].map(|name| self.b.rows(&n(name), inner, TensorKind::I32));
        let product_codes = self.b.rows(&n("gated codes"), inner, TensorKind::Bfp);
        let [down, sum, out] = ["down", "sum", "residual"].map(|name| self.b.rows(&n(name), width, TensorKind::I32));
        ops.push(self.project(codes, gate, [inner, width], TensorKind::I32));
        ops.push(self.project(codes, up, [inner, width], TensorKind::I32));
        ops.push(Op::Silu { input: gate, frac: FRAC as u8, out: act });
        ops.push(Op::Multiply { a: act, b: up, shift: FRAC as u8, out: product });
        ops.push(Op::Quantize { input: product, out: product_codes });
        ops.push(self.project(product_codes, down, [width, inner], TensorKind::I32));
        ops.push(Op::Add { a: down, b: h, out: sum });
        // A residual stream may lose fractional bits between layers; here it loses none, or one.
        ops.push(Op::Shift { input: sum, shift: (layer % 2) as u8, out });
        self.b.layer(ops, out);
        out
    }

    fn output(&mut self, x: TensorId) {
        let DecoderShape { width, vocab, .. } = self.shape;
        let gathered = self.b.tensor("gathered", Rows::Point, width, TensorKind::I32);
        let logits = self.b.tensor("logits", Rows::Point, vocab, TensorKind::I32);
        let mut ops = vec![Op::Gather { input: x, out: gathered }];
        let (norm_ops, codes) = self.normed(gathered, "output norm", Rows::Point);
        ops.extend(norm_ops);
        ops.push(self.project(codes, logits, [vocab, width], TensorKind::I32));
        let token_bytes = ParamValue::I8(random_token_bytes(&mut self.rng, vocab));
        let token_bytes = self.b.param("token bytes", token_bytes, vocab, TOKEN_BYTES_WIDTH);
        let word = self.b.tensor("word", Rows::Point, 1, TensorKind::I32);
        ops.push(Op::Sample { logits, frac: FRAC as u8, token_bytes, out: word });
        self.b.layer(ops, word);
    }
}
