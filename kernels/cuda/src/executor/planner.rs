//! From ops to launches.

use lockstep_kernels::pass::Pass;
use lockstep_kernels::program::{DType, EmbedIndex, Norm, Op, ParamId, Program, ScaledRows, TensorId, TensorKind};

use super::fuse::{self, Group};
use super::tensors::Tensors;
use super::weights::Weights;
use super::{GAUSS_TABLE, SIGMOID_TABLE};
use crate::device::Buffer;
use crate::params::{
    BinaryParams, EmbedParams, EmbedTable, MAX_PARTS, MAX_TABLES, MatMulParams, MatMulPart, NormParams, QuantizeParams,
    ROW_PADDING, RopeParams, RowStepsParams, RowsParams, UnaryParams,
};
use crate::plan::{self, Launch, Units};

/// Plans launches over tensors that have their places. It starts nothing.
pub(super) struct Planner<'a> {
    pub program: &'a Program,
    pub units: Units,
    pub weights: &'a Weights,
    pub tables: &'a [Buffer; 2],
    /// Prepared for the pass.
    pub values: &'a Tensors,
    pub pass: &'a Pass,
    pub lists: RowLists,
    /// Where clamped elements are counted.
    pub saturations: u64,
}

/// Where lists about the rows of a pass are on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowLists {
    /// Token and position of each row.
    pub tokens: u64,
    pub positions: u64,
    /// First row of each sequence, and how many it has.
    pub first: u64,
    pub count: u64,
    /// Row of each point.
    pub points: u64,
}

impl Planner<'_> {
    /// Launches of ops whose outputs are not empty; not for attention and sampling, which need more than tensors.
    pub fn group(&self, group: &Group<'_>) -> Vec<Launch> {
        match group {
            Group::Products(ops) => self.matmul(ops),
            Group::Rows(ops) => vec![self.row_steps(ops)],
            Group::One(op @ Op::MatMul { .. }) => self.matmul(&[op]),
            Group::One(op) => vec![self.op(op)],
        }
    }

    fn op(&self, op: &Op) -> Launch {
        match op {
            Op::Embed { tables, out } => self.embed(tables, *out),
            Op::Quantize { input, out } => plan::quantize(self.rows(*out), self.quantize(*input, *out)),
            Op::Add { a, b, out } => plan::add(self.binary(*a, *b, 0, *out)),
            Op::Multiply { a, b, shift, out } => plan::multiply(self.binary(*a, *b, *shift, *out)),
            Op::LayerNorm { input, norm, bias, out } => {
                plan::layer_norm(self.rows(*out), self.centred_norm(*input, norm, *bias, *out))
            }
            Op::RmsNorm { input, norm, groups, out } => {
                let parts = self.rows(*out) * u32::from(*groups);
                plan::rms_norm(parts, self.norm(*input, norm, (*groups).into(), *out))
            }
            Op::L2Normalize { input, out } => {
                let (input, cols) = (self.values.at(*input), self.cols(*out));
                let params = NormParams { input, out: self.values.at(*out), cols, ..NormParams::default() };
                plan::l2_normalize(self.rows(*out), params)
            }
            Op::Gelu { input, frac, out } => plan::gelu(self.unary(*input, Some(GAUSS_TABLE), *frac, *out)),
            Op::Silu { input, frac, out } => plan::silu(self.unary(*input, Some(SIGMOID_TABLE), *frac, *out)),
            Op::Shift { input, shift, out } => plan::shift(self.unary(*input, None, *shift, *out)),
            Op::MeanPool { input, out } => plan::mean_pool(self.rows(*out), self.pool(*input, *out)),
            Op::FirstPool { input, out } => plan::first_pool(self.rows(*out), self.pool(*input, *out)),
            Op::Gather { input, out } => {
                let first = self.lists.points;
                plan::gather(self.rows(*out), RowsParams { first, ..self.pool(*input, *out) })
            }
            Op::Rope { .. } => self.rope(op),
            Op::MatMul { .. } | Op::Attention { .. } | Op::Sample { .. } => unreachable!("planned elsewhere"),
        }
    }

    fn rows(&self, id: TensorId) -> u32 {
        self.pass.rows(self.program.tensor(id).rows) as u32
    }

    pub(super) fn cols(&self, id: TensorId) -> u32 {
        self.program.tensor(id).cols
    }

    fn len(&self, id: TensorId) -> u64 {
        u64::from(self.rows(id)) * u64::from(self.cols(id))
    }

    fn embed(&self, tables: &[(ScaledRows, EmbedIndex)], out: TensorId) -> Launch {
        let mut of = [EmbedTable::default(); MAX_TABLES];
        for (to, (rows, index)) in of.iter_mut().zip(tables) {
            let (index, constant) = match index {
                EmbedIndex::Token => (self.lists.tokens, 0),
                EmbedIndex::Position => (self.lists.positions, 0),
                EmbedIndex::Constant(row) => (0, *row),
            };
            *to = EmbedTable {
                codes: self.weights.at(rows.codes),
                mantissa: self.weights.at(rows.mantissa),
                shift: self.weights.at(rows.shift),
                index,
                rows: self.program.param(rows.codes).rows,
                constant,
            };
        }
        let params = EmbedParams {
            tables: of,
            out: self.values.at(out),
            saturations: self.saturations,
            count: tables.len() as u32,
            cols: self.cols(out),
            stride: padded(self.cols(out)),
            unused: 0,
        };
        plan::embed(self.rows(out), params)
    }

    fn quantize(&self, input: TensorId, out: TensorId) -> QuantizeParams {
        QuantizeParams {
            input: self.values.at(input),
            codes: self.values.at(out),
            exponents: self.values.exponents_at(out),
            cols: self.cols(out),
            stride: padded(self.cols(out)),
        }
    }

    /// Products of the same rows, of weights of one width.
    fn matmul(&self, ops: &[&Op]) -> Vec<Launch> {
        let mut parts = [MatMulPart::default(); MAX_PARTS];
        let (mut wide, mut rows) = (false, TensorId(0));
        for (part, op) in parts.iter_mut().zip(ops) {
            let Op::MatMul { input, weight, bias, out } = op else { unreachable!("only called for products") };
            wide = self.program.param(weight.codes).dtype == DType::I16;
            rows = *input;
            *part = self.part(weight, *bias, *out);
        }
        let params = MatMulParams {
            codes: self.values.at(rows),
            exponents: self.values.exponents_at(rows),
            saturations: self.saturations,
            rows: self.rows(rows),
            stride: padded(self.cols(rows)),
            count: ops.len() as u32,
            unused: 0,
            parts,
        };
        plan::matmul(self.units, wide, params)
    }

    fn part(&self, weight: &ScaledRows, bias: Option<ParamId>, out: TensorId) -> MatMulPart {
        MatMulPart {
            weight: self.weights.at(weight.codes),
            mantissa: self.weights.at(weight.mantissa),
            shift: self.weights.at(weight.shift),
            bias: bias.map_or(0, |b| self.weights.at(b)),
            out: self.values.at(out),
            cols: self.cols(out),
            narrow: (self.program.tensor(out).kind == TensorKind::I16).into(),
        }
    }

    /// Steps of rows, in one launch.
    fn row_steps(&self, ops: &[&Op]) -> Launch {
        let out = ops[0].out();
        let (saturations, cols) = (self.saturations, self.cols(out));
        let mut p = RowStepsParams { saturations, cols, ..RowStepsParams::default() };
        for op in ops {
            p.steps |= fuse::step(op).expect("only called for steps");
            match op {
                Op::Add { a, b, out } => p.add = self.binary(*a, *b, 0, *out),
                Op::Silu { input, frac, out } => p.gate = self.unary(*input, Some(SIGMOID_TABLE), *frac, *out),
                Op::Gelu { input, frac, out } => p.gate = self.unary(*input, Some(GAUSS_TABLE), *frac, *out),
                Op::Multiply { a, b, shift, out } => p.multiply = self.binary(*a, *b, *shift, *out),
                Op::RmsNorm { input, norm, out, .. } => p.norm = self.norm(*input, norm, 1, *out),
                Op::LayerNorm { input, norm, bias, out } => p.norm = self.centred_norm(*input, norm, *bias, *out),
                Op::Quantize { input, out } => p.quantize = self.quantize(*input, *out),
                _ => unreachable!("only called for steps"),
            }
        }
        plan::row_steps(self.rows(out), p)
    }

    fn binary(&self, a: TensorId, b: TensorId, shift: u8, out: TensorId) -> BinaryParams {
        BinaryParams {
            a: self.values.at(a),
            b: self.values.at(b),
            out: self.values.at(out),
            saturations: self.saturations,
            len: self.len(out),
            shift: shift.into(),
            unused: 0,
        }
    }

    /// Of each of the `groups` parts of a row.
    fn norm(&self, input: TensorId, norm: &Norm, groups: u32, out: TensorId) -> NormParams {
        NormParams {
            input: self.values.at(input),
            scale: self.weights.at(norm.scale),
            bias: 0,
            out: self.values.at(out),
            saturations: self.saturations,
            cols: self.cols(out) / groups,
            shift: norm.shift.into(),
            epsilon_mantissa: norm.epsilon_mantissa,
            epsilon_shift: norm.epsilon_shift.into(),
        }
    }

    fn centred_norm(&self, input: TensorId, norm: &Norm, bias: ParamId, out: TensorId) -> NormParams {
        NormParams { bias: self.weights.at(bias), ..self.norm(input, norm, 1, out) }
    }

    fn unary(&self, input: TensorId, table: Option<usize>, amount: u8, out: TensorId) -> UnaryParams {
        UnaryParams {
            input: self.values.at(input),
            table: table.map_or(0, |t| self.tables[t].address()),
            out: self.values.at(out),
            len: self.len(out),
            amount: amount.into(),
            unused: 0,
        }
    }

    fn pool(&self, input: TensorId, out: TensorId) -> RowsParams {
        RowsParams {
            input: self.values.at(input),
            first: self.lists.first,
            count: self.lists.count,
            out: self.values.at(out),
            cols: self.cols(out),
            unused: 0,
        }
    }

    fn rope(&self, op: &Op) -> Launch {
        let Op::Rope { input, table, head_dim, shift, out, .. } = op else { unreachable!("only called for rope") };
        let params = RopeParams {
            input: self.values.at(*input),
            table: self.weights.at(*table),
            positions: self.lists.positions,
            shift: self.weights.bytes_at(shift),
            out: self.values.at(*out),
            saturations: self.saturations,
            cols: self.cols(*out),
            head_dim: (*head_dim).into(),
            rotary_dim: self.program.param(*table).cols,
            unused: 0,
        };
        plan::rope(self.rows(*out), params)
    }
}

/// Elements from one row of codes to the next.
const fn padded(cols: u32) -> u32 {
    cols.next_multiple_of(ROW_PADDING as u32)
}
