//! From ops to launches.

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::program::{DType, EmbedIndex, Norm, Op, ParamId, ScaledRows, TensorId, TensorKind};

use super::DeviceExecutor;
use crate::device::Buffer;
use crate::params::{
    BinaryParams, EmbedParams, EmbedTable, MAX_TABLES, MatMulParams, NormParams, QuantizeParams, ROW_PADDING,
    RopeParams, RowsParams, UnaryParams,
};
use crate::plan;

impl DeviceExecutor {
    /// Launches an op whose output is prepared and not empty. `line` is that of attention in the caches.
    pub(super) fn run_op(&self, op: &Op, line: usize) -> Result<(), BackendError> {
        let launch = match op {
            Op::Embed { tables, out } => self.embed(tables, *out),
            Op::Quantize { input, out } => {
                let (cols, stride) = (self.cols(*out), padded(self.cols(*out)));
                let (codes, exponents) = (self.values.at(*out), self.values.exponents_at(*out));
                let input = self.values.at(*input);
                plan::quantize(self.rows(*out), QuantizeParams { input, codes, exponents, cols, stride })
            }
            Op::MatMul { input, weight, bias, out } => self.matmul(*input, weight, *bias, *out),
            Op::Add { a, b, out } => plan::add(self.binary(*a, *b, 0, *out)),
            Op::Multiply { a, b, shift, out } => plan::multiply(self.binary(*a, *b, *shift, *out)),
            Op::LayerNorm { input, norm, bias, out } => {
                let params = NormParams { bias: self.weights.at(*bias), ..self.norm(*input, norm, 1, *out) };
                plan::layer_norm(self.rows(*out), params)
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
            Op::Gelu { input, frac, out } => plan::gelu(self.unary(*input, Some(0), *frac, *out)),
            Op::Silu { input, frac, out } => plan::silu(self.unary(*input, Some(1), *frac, *out)),
            Op::Shift { input, shift, out } => plan::shift(self.unary(*input, None, *shift, *out)),
            Op::MeanPool { input, out } => plan::mean_pool(self.rows(*out), self.pool(*input, *out)),
            Op::FirstPool { input, out } => plan::first_pool(self.rows(*out), self.pool(*input, *out)),
            Op::Gather { input, out } => {
                let first = self.inputs.points.address();
                plan::gather(self.rows(*out), RowsParams { first, ..self.pool(*input, *out) })
            }
            Op::Rope { .. } => return self.rope(op),
            Op::Attention { .. } => return self.attention(op, line),
            Op::Sample { .. } => return self.sample(op),
        };
        Ok(self.device.launch(&launch)?)
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

    fn embed(&self, tables: &[(ScaledRows, EmbedIndex)], out: TensorId) -> plan::Launch {
        let mut of = [EmbedTable::default(); MAX_TABLES];
        for (to, (rows, index)) in of.iter_mut().zip(tables) {
            let (index, constant) = match index {
                EmbedIndex::Token => (self.inputs.tokens.address(), 0),
                EmbedIndex::Position => (self.inputs.positions.address(), 0),
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
            saturations: self.saturations.address(),
            count: tables.len() as u32,
            cols: self.cols(out),
            stride: padded(self.cols(out)),
            unused: 0,
        };
        plan::embed(self.rows(out), params)
    }

    fn matmul(&self, input: TensorId, weight: &ScaledRows, bias: Option<ParamId>, out: TensorId) -> plan::Launch {
        let wide = self.program.param(weight.codes).dtype == DType::I16;
        let params = MatMulParams {
            codes: self.values.at(input),
            exponents: self.values.exponents_at(input),
            weight: self.weights.at(weight.codes),
            mantissa: self.weights.at(weight.mantissa),
            shift: self.weights.at(weight.shift),
            bias: bias.map_or(0, |b| self.weights.at(b)),
            out: self.values.at(out),
            saturations: self.saturations.address(),
            rows: self.rows(out),
            cols: self.cols(out),
            stride: padded(self.cols(input)),
            narrow: (self.program.tensor(out).kind == TensorKind::I16).into(),
        };
        plan::matmul(self.units, wide, params)
    }

    fn binary(&self, a: TensorId, b: TensorId, shift: u8, out: TensorId) -> BinaryParams {
        BinaryParams {
            a: self.values.at(a),
            b: self.values.at(b),
            out: self.values.at(out),
            saturations: self.saturations.address(),
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
            saturations: self.saturations.address(),
            cols: self.cols(out) / groups,
            shift: norm.shift.into(),
            epsilon_mantissa: norm.epsilon_mantissa,
            epsilon_shift: norm.epsilon_shift.into(),
        }
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
            first: self.inputs.first.address(),
            count: self.inputs.count.address(),
            out: self.values.at(out),
            cols: self.cols(out),
            unused: 0,
        }
    }

    fn rope(&self, op: &Op) -> Result<(), BackendError> {
        let Op::Rope { input, table, head_dim, shift, out, .. } = op else { unreachable!("only called for rope") };
        let shift = Buffer::of(&self.device, shift)?;
        let params = RopeParams {
            input: self.values.at(*input),
            table: self.weights.at(*table),
            positions: self.inputs.positions.address(),
            shift: shift.address(),
            out: self.values.at(*out),
            saturations: self.saturations.address(),
            cols: self.cols(*out),
            head_dim: (*head_dim).into(),
            rotary_dim: self.program.param(*table).cols,
            unused: 0,
        };
        Ok(self.device.launch(&plan::rope(self.rows(*out), params))?)
    }
}

/// Elements from one row of codes to the next.
const fn padded(cols: u32) -> u32 {
    cols.next_multiple_of(ROW_PADDING as u32)
}
