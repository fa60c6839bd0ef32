//! A small decoder with made-up weights, and what it says by the plainest means.

use std::sync::Arc;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::conformance::{Builder, ParamValue, SplitMix};
use lockstep_kernels::program::{
    EmbedIndex, Heads, Norm, Op, ParamId, Program, Rows, ScaledRows, TensorId, TensorKind,
};
use lockstep_kernels::sampling::split_word;
use lockstep_kernels::value::{Batch, Params, Sampler, Sequence};
use lockstep_protocol::ids::Root;
use lockstep_protocol::trace::root_of_rows;

use super::super::{Request, draw};
use crate::embed::read_i32;

pub const VOCAB: usize = 61;
const WIDTH: usize = 32;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 8;
const INNER: usize = 40;
const LAYERS: usize = 2;
/// Fractional bits of everything that is `i32`.
const FRAC: u8 = 16;

/// A program with its parameters.
#[derive(Clone)]
pub struct Model {
    pub program: Arc<Program>,
    pub params: Arc<dyn Params>,
}

struct Maker {
    b: Builder,
    rng: SplitMix,
    /// How far rotated queries and keys are shifted into 16 bits: too little, and they clamp.
    rope_shift: u8,
}

/// A decoder for up to `max_positions` positions; a loud one clamps now and then.
pub fn decoder(max_positions: usize, is_loud: bool) -> Model {
    let rope_shift = if is_loud { 2 } else { 4 };
    let mut m = Maker { b: Builder::new(VOCAB as u32, max_positions), rng: SplitMix::named("decoder"), rope_shift };
    let mut x = m.rows("residual 0", WIDTH);
    let table = m.table("tokens");
    m.b.layer(vec![Op::Embed { tables: vec![(table, EmbedIndex::Token)], out: x }], x);
    let rope = m.rope_table(max_positions);
    for layer in 0..LAYERS {
        x = m.layer(x, layer, rope);
    }
    m.output(x);
    let case = m.b.case("model", "decoder".into(), &[1], None);
    Model { program: case.program, params: case.params }
}

impl Maker {
    fn rows(&mut self, name: &str, cols: usize) -> TensorId {
        self.b.rows(name, cols, TensorKind::I32)
    }

    /// Numbers of about 1.
    fn table(&mut self, name: &str) -> ScaledRows {
        let codes = (0..VOCAB * WIDTH).map(|_| self.rng.range(-32_639, 32_639) as i16).collect();
        self.scaled(name, ParamValue::I16(codes), VOCAB, WIDTH, 15)
    }

    /// Products of about the size of their input: a sum of random terms grows with the root of their number.
    fn weight(&mut self, name: &str, rows: usize, cols: usize, extra_shift: i16) -> ScaledRows {
        let codes = (0..rows * cols).map(|_| self.rng.range(-127, 127) as i8).collect();
        self.scaled(name, ParamValue::I8(codes), rows, cols, 16 + 6 + (cols.ilog2() / 2) as i16 + extra_shift)
    }

    fn scaled(&mut self, name: &str, codes: ParamValue, rows: usize, cols: usize, shift: i16) -> ScaledRows {
        let mantissa = (0..rows).map(|_| self.rng.range(1 << 15, (1 << 16) - 1) as u16).collect();
        self.b.scaled(name, codes, rows, cols, mantissa, vec![shift; rows])
    }

    fn rope_table(&mut self, positions: usize) -> ParamId {
        let entry = |position: usize, pair: usize| {
            let (sin, cos) = (position as f64 * 100_f64.powf(-2.0 * pair as f64 / DIM as f64)).sin_cos();
            [cos, sin].map(|value| (value * f64::from(1 << 30)) as i32)
        };
        let table = (0..positions).flat_map(|t| (0..DIM / 2).flat_map(move |pair| entry(t, pair))).collect();
        self.b.param("rope", ParamValue::I32(table), positions, DIM)
    }

    fn norm(&mut self, input: TensorId, name: &str, rows: Rows) -> (Op, TensorId) {
        let scale: Vec<i32> = (0..WIDTH).map(|_| self.rng.range(3 << 12, 9 << 12) as i32).collect();
        let scale = self.b.vector(&format!("{name} scale"), scale);
        let norm = Norm { scale, shift: 30 + 12 - FRAC, epsilon_mantissa: 0x8000_0001, epsilon_shift: 31 };
        let out = self.b.tensor(name, rows, WIDTH, TensorKind::I32);
        (Op::RmsNorm { input, norm, groups: 1, out }, out)
    }

    fn codes(&mut self, input: TensorId, name: &str, rows: Rows, cols: usize) -> (Op, TensorId) {
        let out = self.b.tensor(&format!("{name} codes"), rows, cols, TensorKind::Bfp);
        (Op::Quantize { input, out }, out)
    }

    fn project(&mut self, input: TensorId, name: &str, [n, k]: [usize; 2], kind: TensorKind) -> (Op, TensorId) {
        let weight = self.weight(name, n, k, if kind == TensorKind::I16 { 4 } else { 0 });
        let out = self.b.rows(&format!("{name} out"), n, kind);
        (Op::MatMul { input, weight, bias: None, out }, out)
    }

    fn rope(&mut self, input: TensorId, name: &str, heads: usize, table: ParamId) -> (Op, TensorId) {
        let out = self.b.rows(name, heads * DIM, TensorKind::I16);
        let shift = vec![self.rope_shift; heads];
        (Op::Rope { input, table, heads: heads as u16, head_dim: DIM as u16, shift, out }, out)
    }

    fn layer(&mut self, x: TensorId, layer: usize, table: ParamId) -> TensorId {
        let n = |name: &str| format!("{name} {layer}");
        let (norm_x, normed) = self.norm(x, &n("x norm"), Rows::Position);
        let (quantize_x, xq) = self.codes(normed, &n("x"), Rows::Position, WIDTH);
        let (q_op, q) = self.project(xq, &n("query"), [HEADS * DIM, WIDTH], TensorKind::I32);
        let (k_op, k) = self.project(xq, &n("key"), [KV_HEADS * DIM, WIDTH], TensorKind::I32);
        let (v_op, v) = self.project(xq, &n("value"), [KV_HEADS * DIM, WIDTH], TensorKind::I16);
        let (q_rope, q) = self.rope(q, &n("rotated query"), HEADS, table);
        let (k_rope, k) = self.rope(k, &n("rotated key"), KV_HEADS, table);
        let heads = Heads {
            heads: HEADS as u16,
            kv_heads: KV_HEADS as u16,
            head_dim: DIM as u16,
            causal: true,
            score_shift: vec![6; HEADS],
            // Values have 12 fractional bits and the mean has 15 more.
            value_shift: vec![11; HEADS],
        };
        let mixed = self.rows(&n("mixed"), HEADS * DIM);
        let attention = Op::Attention { q, k, v, heads, out: mixed };
        let (quantize_mixed, mq) = self.codes(mixed, &n("mixed"), Rows::Position, HEADS * DIM);
        let (o_op, o) = self.project(mq, &n("attention output"), [WIDTH, HEADS * DIM], TensorKind::I32);
        let a = self.rows(&n("attention sum"), WIDTH);
        let (norm_a, normed) = self.norm(a, &n("a norm"), Rows::Position);
        let (quantize_a, aq) = self.codes(normed, &n("a"), Rows::Position, WIDTH);
        let (gate_op, gate) = self.project(aq, &n("gate"), [INNER, WIDTH], TensorKind::I32);
        let (up_op, up) = self.project(aq, &n("up"), [INNER, WIDTH], TensorKind::I32);
        let (act, gated) = (self.rows(&n("activated"), INNER), self.rows(&n("gated"), INNER));
        let silu = Op::Silu { input: gate, frac: FRAC, out: act };
        let multiply = Op::Multiply { a: act, b: up, shift: FRAC, out: gated };
        let (quantize_gated, gq) = self.codes(gated, &n("gated"), Rows::Position, INNER);
        let (down_op, down) = self.project(gq, &n("down"), [WIDTH, INNER], TensorKind::I32);
        let y = self.rows(&n("residual"), WIDTH);
        let (add_a, add_y) = (Op::Add { a: o, b: x, out: a }, Op::Add { a: down, b: a, out: y });
        let attention_ops =
            vec![norm_x, quantize_x, q_op, k_op, v_op, q_rope, k_rope, attention, quantize_mixed, o_op, add_a];
        let rest = vec![norm_a, quantize_a, gate_op, up_op, silu, multiply, quantize_gated, down_op, add_y];
        self.b.layer(attention_ops.into_iter().chain(rest).collect(), y);
        y
    }

    fn output(&mut self, x: TensorId) {
        let last = self.b.tensor("last", Rows::Point, WIDTH, TensorKind::I32);
        let gather = Op::Gather { input: x, out: last };
        let (norm, normed) = self.norm(last, "last norm", Rows::Point);
        let (quantize, codes) = self.codes(normed, "last", Rows::Point, WIDTH);
        let weight = self.weight("unembedding", VOCAB, WIDTH, 0);
        let logits = self.b.tensor("logits", Rows::Point, VOCAB, TensorKind::I32);
        let product = Op::MatMul { input: codes, weight, bias: None, out: logits };
        // One letter each, in rows of 2 bytes of length and 2 of text.
        let letters = (0..VOCAB).flat_map(|token| [1, 0, (b'A' + token as u8) as i8, 0]).collect();
        let token_bytes = self.b.param("token bytes", ParamValue::I8(letters), VOCAB, 4);
        let word = self.b.tensor("word", Rows::Point, 1, TensorKind::I32);
        let sample = Op::Sample { logits, frac: FRAC, token_bytes, out: word };
        self.b.layer(vec![gather, norm, quantize, product, sample], word);
    }
}

/// What a generation comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    pub words: Vec<u32>,
    pub roots: Vec<Root>,
    pub saturations: u64,
}

/// Computes every point from the first token on, in a pass of its own, without caches and without hashing in steps.
pub fn expected(model: &Model, backend: &dyn Backend, request: &Request) -> Expected {
    let program = &model.program;
    let mut executor = backend.load(Arc::clone(program), Arc::clone(&model.params)).unwrap();
    let mut tokens = request.prompt.clone();
    let mut out = Expected { words: Vec::new(), roots: Vec::new(), saturations: 0 };
    loop {
        let points = request.prompt.len() - 1..tokens.len();
        let draws = points.map(|point| draw(&request.seed, point as u32)).collect();
        let sampler = Some(Sampler { sampling: Arc::new(request.sampling.clone()), draws });
        let sequence = Sequence { tokens: tokens.clone(), start: 0, cache: None, sampler };
        executor.begin(&Batch { sequences: vec![sequence] }).unwrap();
        // Those of the longest pass are those of the run.
        out.saturations = 0;
        for (index, layer) in program.layers.iter().enumerate() {
            out.saturations += executor.run_layer(index).unwrap().saturations;
            let rows = read_i32(&mut *executor, layer.output).unwrap();
            if index + 1 == program.layers.len() {
                out.words.push(rows.last().unwrap().cast_unsigned());
                out.roots.push(root_of_rows(&rows[rows.len() - 1..], 1));
            } else if index > 0 {
                out.roots.push(root_of_rows(&rows, program.tensor(layer.output).cols as usize));
            }
        }
        let (token, finish) = split_word(*out.words.last().unwrap());
        if finish != 0 {
            return out;
        }
        tokens.push(token);
    }
}
