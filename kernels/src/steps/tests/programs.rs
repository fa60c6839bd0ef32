//! Random valid programs that use every op, and values for their parameters.

use std::sync::Arc;

use crate::conformance::{OwnedParams, ParamValue, Pattern, SplitMix, TOKEN_BYTES_WIDTH, random_token_bytes};
use crate::fixed::CODE_MAX;
use crate::program::{
    DType, EmbedIndex, Heads, Layer, Norm, Op, Param, ParamId, Program, Rows, ScaledRows, Tensor, TensorId, TensorKind,
};

/// What shapes a program has.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub max_positions: u32,
    /// Widths of rows are drawn from these.
    pub widths: &'static [u32],
    /// Sizes of heads are drawn from these.
    pub head_dims: &'static [u16],
}

pub const SMALL: Sizes = Sizes { max_positions: 12, widths: &[1, 3, 16, 40], head_dims: &[1, 3, 8] };
/// Several blocks of keys and of pooled rows.
pub const LONG: Sizes = Sizes { max_positions: 600, widths: &[2, 5], head_dims: &[1, 4] };
/// Several blocks of columns.
pub const WIDE: Sizes = Sizes { max_positions: 3, widths: &[5, 8_191, 8_193, 20_000], head_dims: &[2] };
/// The limits of section 6 of the specification.
pub const LARGEST: Sizes =
    Sizes { max_positions: 1 << 17, widths: &[384, 1_000, 8_191, 8_192, 32_768], head_dims: &[64, 65, 511, 512] };

pub struct Maker {
    pub rng: SplitMix,
    pub program: Program,
    sizes: Sizes,
    /// Whether attention must be causal.
    decoder: bool,
}

impl Maker {
    pub fn new(name: &str, sizes: Sizes) -> Self {
        let program = Program {
            vocab_size: 11,
            max_positions: sizes.max_positions,
            tensors: vec![],
            params: vec![],
            layers: vec![],
        };
        Self { rng: SplitMix::named(name), program, sizes, decoder: false }
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.range(0, of.len() as i64 - 1) as usize]
    }

    pub fn tensor(&mut self, rows: Rows, cols: u32, kind: TensorKind) -> TensorId {
        let id = TensorId(self.program.tensors.len() as u16);
        self.program.tensors.push(Tensor { name: format!("t{}", id.0), rows, cols, kind });
        id
    }

    pub fn row(&mut self, cols: u32) -> TensorId {
        self.tensor(Rows::Position, cols, TensorKind::I32)
    }

    fn cols(&self, id: TensorId) -> u32 {
        self.program.tensor(id).cols
    }

    fn param(&mut self, name: &str, dtype: DType, rows: u32, cols: u32) -> ParamId {
        let id = ParamId(self.program.params.len() as u16);
        self.program.params.push(Param { name: name.into(), dtype, rows, cols });
        id
    }

    pub fn scaled(&mut self, dtype: DType, rows: u32, cols: u32) -> ScaledRows {
        ScaledRows {
            codes: self.param("codes", dtype, rows, cols),
            mantissa: self.param("mantissa", DType::U16, 1, rows),
            shift: self.param("shift", DType::I16, 1, rows),
        }
    }

    pub fn embed(&mut self, cols: u32) -> (Op, TensorId) {
        let out = self.row(cols);
        let (vocab, positions) = (self.program.vocab_size, self.sizes.max_positions);
        let mut tables = vec![
            (self.scaled(DType::I16, positions, cols), EmbedIndex::Position),
            (self.scaled(DType::I16, vocab, cols), EmbedIndex::Token),
            (self.scaled(DType::I16, 3, cols), EmbedIndex::Constant(2)),
            (self.scaled(DType::I16, vocab + 1, cols), EmbedIndex::Token),
        ];
        let first = self.rng.range(0, 3) as usize;
        tables.rotate_left(first);
        tables.truncate(self.rng.range(1, 4) as usize);
        (Op::Embed { tables, out }, out)
    }

    fn norm(&mut self, cols: u32) -> Norm {
        Norm {
            scale: self.param("scale", DType::I32, 1, cols),
            shift: self.rng.range(1, 62) as u8,
            epsilon_mantissa: self.pick(&[0, 1 << 31, u32::MAX]),
            epsilon_shift: self.pick(&[-30, 0, 20, 60, i16::MIN]),
        }
    }

    /// A product, with the quantize before it.
    pub fn product(&mut self, ops: &mut Vec<Op>, x: TensorId, cols: u32, kind: TensorKind) -> TensorId {
        let k = self.cols(x);
        let codes = self.tensor(Rows::Position, k, TensorKind::Bfp);
        ops.push(Op::Quantize { input: x, out: codes });
        let dtype = self.pick(&[DType::I8, DType::I16]);
        let weight = self.scaled(dtype, cols, k);
        let bias = (self.rng.range(0, 1) == 0).then(|| self.param("bias", DType::I32, 1, cols));
        let out = self.tensor(Rows::Position, cols, kind);
        ops.push(Op::MatMul { input: codes, weight, bias, out });
        out
    }

    pub fn attention(&mut self, ops: &mut Vec<Op>, x: TensorId) -> TensorId {
        let (kv_heads, dim) = (self.pick(&[1_u16, 2]), self.pick(self.sizes.head_dims));
        let heads = kv_heads * self.pick(&[1, 3]);
        let width = |n: u16| u32::from(n) * u32::from(dim);
        let rotate = dim > 1 && self.rng.range(0, 1) == 0;
        let [q, k] = [heads, kv_heads].map(|heads| {
            if !rotate {
                return self.product(ops, x, width(heads), TensorKind::I16);
            }
            let input = self.product(ops, x, width(heads), TensorKind::I32);
            self.rope(ops, input, heads, dim)
        });
        let v = self.product(ops, x, width(kv_heads), TensorKind::I16);
        let heads = Heads {
            heads,
            kv_heads,
            head_dim: dim,
            causal: self.decoder || self.rng.range(0, 1) == 0,
            score_shift: (0..heads).map(|_| self.pick(&[0, 5, 9, 62])).collect(),
            value_shift: (0..heads).map(|_| self.pick(&[0, 12, 31])).collect(),
        };
        let out = self.row(width(heads.heads));
        ops.push(Op::Attention { q, k, v, heads, out });
        out
    }

    fn rope(&mut self, ops: &mut Vec<Op>, input: TensorId, heads: u16, head_dim: u16) -> TensorId {
        let rotary = 2 * self.rng.range(1, i64::from(head_dim) / 2) as u32;
        let table = self.param("angles", DType::I32, self.sizes.max_positions, rotary);
        let cols = self.cols(input);
        let out = self.tensor(Rows::Position, cols, TensorKind::I16);
        let shift = (0..heads).map(|_| self.pick(&[0, 5, 16, 32])).collect();
        ops.push(Op::Rope { input, table, heads, head_dim, shift, out });
        out
    }

    /// An op on rows, chosen by chance.
    fn row_op(&mut self, ops: &mut Vec<Op>, input: TensorId) -> TensorId {
        let cols = self.cols(input);
        let kind = self.rng.range(0, 8);
        if kind == 0 && cols <= 8_192 {
            let width = self.pick(self.sizes.widths);
            return self.product(ops, input, width, TensorKind::I32);
        }
        let out = self.row(cols);
        let frac = self.rng.range(0, 31) as u8;
        ops.push(match kind {
            1 => Op::Gelu { input, frac, out },
            2 => Op::Silu { input, frac, out },
            3 => Op::L2Normalize { input, out },
            4 => {
                let groups = self.pick(&[1, 2, 5]);
                let groups = if cols.is_multiple_of(groups) { groups } else { 1 };
                Op::RmsNorm { input, norm: self.norm(cols / groups), groups: groups as u16, out }
            }
            6 => Op::Multiply { a: input, b: input, shift: self.pick(&[0, 20, 31, 62]), out },
            7 => Op::Shift { input, shift: self.pick(&[0, 3, 31]), out },
            5 => {
                let (norm, bias) = (self.norm(cols), self.param("bias", DType::I32, 1, cols));
                Op::LayerNorm { input, norm, bias, out }
            }
            _ => Op::Add { a: input, b: input, out },
        });
        out
    }

    /// A few ops, at most one attention among them. Some of them may lead nowhere.
    fn ops(&mut self, ops: &mut Vec<Op>, mut x: TensorId, mut attention: bool) -> TensorId {
        for _ in 0..self.rng.range(1, 4) {
            let input = x;
            if attention && self.cols(input) <= 8_192 && self.rng.range(0, 1) == 0 {
                attention = false;
                x = self.attention(ops, input);
            } else {
                x = self.row_op(ops, input);
            }
            if self.rng.range(0, 3) == 0 {
                self.row_op(ops, input);
            }
            if self.cols(x) == self.cols(input) {
                let out = self.row(self.cols(x));
                ops.push(Op::Add { a: input, b: x, out });
                x = out;
            }
        }
        x
    }

    pub fn layer(&mut self, ops: Vec<Op>, output: TensorId) {
        let name = format!("layer {}", self.program.layers.len());
        self.program.layers.push(Layer { name, ops, output });
    }

    /// Two to four layers, the last of which samples.
    pub fn decoder(mut self) -> Program {
        self.decoder = true;
        // The logits are a product of whatever comes last.
        let narrow = self.sizes.widths.iter().take_while(|width| **width <= 8_192).count();
        self.sizes.widths = &self.sizes.widths[..narrow];
        let width = self.pick(self.sizes.widths);
        let (embed, mut x) = self.embed(width);
        self.layer(vec![embed], x);
        for _ in 0..self.rng.range(0, 2) {
            let mut ops = vec![];
            x = self.ops(&mut ops, x, true);
            self.layer(ops, x);
        }
        let mut ops = vec![];
        if self.rng.range(0, 1) == 0 {
            x = self.ops(&mut ops, x, true);
        }
        let cols = self.cols(x);
        let last = self.tensor(Rows::Point, cols, TensorKind::I32);
        ops.push(Op::Gather { input: x, out: last });
        let codes = self.tensor(Rows::Point, cols, TensorKind::Bfp);
        ops.push(Op::Quantize { input: last, out: codes });
        let vocab = self.program.vocab_size;
        let weight = self.scaled(DType::I8, vocab, cols);
        let logits = self.tensor(Rows::Point, vocab, TensorKind::I32);
        ops.push(Op::MatMul { input: codes, weight, bias: None, out: logits });
        let token_bytes = self.param("token bytes", DType::I8, vocab, TOKEN_BYTES_WIDTH as u32);
        let word = self.tensor(Rows::Point, 1, TensorKind::I32);
        let frac = self.pick(&[0, 8, 20, 31]);
        ops.push(Op::Sample { logits, frac, token_bytes, out: word });
        self.layer(ops, word);
        self.program.validate().expect("a valid program");
        self.program
    }

    /// Two to four layers, with or without pooling.
    pub fn random(mut self) -> Program {
        let width = self.pick(self.sizes.widths);
        let (embed, sum) = self.embed(width);
        let mut ops = vec![embed];
        let mut x = if self.rng.range(0, 1) == 0 { sum } else { self.ops(&mut ops, sum, false) };
        self.layer(ops, x);
        for last in [false, false, true].into_iter().skip(self.rng.range(0, 2) as usize) {
            let pooling = if last { self.rng.range(0, 2) } else { 0 };
            let mut ops = vec![];
            x = self.ops(&mut ops, x, pooling != 1);
            if pooling != 0 {
                let cols = self.cols(x);
                let out = self.tensor(Rows::Sequence, cols, TensorKind::I32);
                ops.push(if pooling == 1 { Op::MeanPool { input: x, out } } else { Op::FirstPool { input: x, out } });
                let unit = self.tensor(Rows::Sequence, cols, TensorKind::I32);
                ops.push(Op::L2Normalize { input: out, out: unit });
                x = unit;
            }
            self.layer(ops, x);
        }
        self.program.validate().expect("a valid program");
        self.program
    }
}

/// Values over the whole range of each parameter.
pub fn params(program: &Program, rng: &mut SplitMix) -> Arc<OwnedParams> {
    let limit = i64::from(CODE_MAX);
    let values = program.params.iter().map(|p| {
        let (rows, cols) = (p.rows as usize, p.cols as usize);
        let fill = |rng: &mut SplitMix, low, high| Pattern::Mixed.fill(rng, rows, cols, low, high).into_iter();
        match (p.dtype, p.name.as_str()) {
            (DType::I8, "token bytes") => ParamValue::I8(random_token_bytes(rng, rows)),
            (DType::I8, _) => ParamValue::I8(fill(rng, -127, 127).map(|v| v as i8).collect()),
            (DType::I16, "shift") => ParamValue::I16((0..cols).map(|_| rng.range(8, 30) as i16).collect()),
            (DType::I16, _) => ParamValue::I16(fill(rng, -limit, limit).map(|v| v as i16).collect()),
            (DType::U16, _) => ParamValue::U16((0..cols).map(|_| rng.range(1 << 15, 65_535) as u16).collect()),
            (DType::I32, _) => ParamValue::I32(fill(rng, i32::MIN.into(), i32::MAX.into()).map(|v| v as i32).collect()),
        }
    });
    Arc::new(OwnedParams(values.collect()))
}
