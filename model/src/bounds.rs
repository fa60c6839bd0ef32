//! Proof, from the actual codes, that no accumulator overflows on any input (SPEC section 22).
//!
//! The proof takes no input into account: activations are whatever their type can hold. So it also holds for a worker
//! that lies about them. It runs at import and again wherever a package is opened; nobody trusts the importer. What
//! saturates by definition (`i32` and `i16` outputs) is not a matter of this proof: formats are chosen so that it does
//! not happen, and backends count it.

use lockstep_kernels::fixed::{CODE_MAX, rescale};
use lockstep_kernels::program::{EmbedIndex, Heads, Norm, Op, ParamId, Program, ScaledRows};
use lockstep_kernels::reference::attention::{BLOCK, GUARD};
use lockstep_kernels::value::{ParamData, Params};

use crate::error::ModelError;

/// Accumulators of matrix products stay below this, so that a 16-bit mantissa keeps the product below 2^62.
const MATMUL_LIMIT: i64 = 1 << 46;
/// Everything else stays below this in 64 bits, which leaves a factor of 2 for rounding.
const LIMIT: i128 = 1 << 62;
/// Largest 8-bit code.
const BYTE_MAX: i64 = 127;
/// Largest softmax weight.
const WEIGHT_MAX: i128 = 32_767;

/// Proves every accumulator of a validated program.
///
/// # Errors
/// The first op or parameter for which the proof fails, by name.
pub fn prove(program: &Program, params: &dyn Params) -> Result<(), ModelError> {
    let proof = Proof { program, params };
    for (l, layer) in program.layers.iter().enumerate() {
        for (i, op) in layer.ops.iter().enumerate() {
            proof.op(op).map_err(|f| match f.param {
                Some(id) => ModelError::bounds(format!("parameter {:?}", program.param(id).name), f.reason),
                None => ModelError::bounds(format!("layer {l} ({}) op {i} ({})", layer.name, op.name()), f.reason),
            })?;
        }
    }
    Ok(())
}

struct Proof<'a> {
    program: &'a Program,
    params: &'a dyn Params,
}

/// Why an op can't be proven, and whether a parameter is to blame.
struct Failure {
    param: Option<ParamId>,
    reason: String,
}

fn blame(param: ParamId, reason: String) -> Failure {
    Failure { param: Some(param), reason }
}

fn below(value: i128, limit: i128, what: &str) -> Result<(), Failure> {
    if value < limit {
        return Ok(());
    }
    Err(Failure { param: None, reason: format!("{what} can reach {value}, the limit is {limit}") })
}

impl Proof<'_> {
    fn op(&self, op: &Op) -> Result<(), Failure> {
        let cols = |id| i128::from(self.program.tensor(id).cols);
        match op {
            Op::Embed { tables, .. } => self.embed(tables),
            Op::MatMul { weight, .. } => self.matmul(weight),
            Op::LayerNorm { input, norm, .. } => {
                // The mean: twice the sum of 30-bit magnitudes, plus the width.
                below(cols(*input) * ((1 << 31) + 1), LIMIT, "the sum of a row")?;
                self.norm(cols(*input), norm)
            }
            Op::RmsNorm { input, norm, .. } => self.norm(cols(*input), norm),
            Op::L2Normalize { input, .. } => squares(cols(*input)),
            Op::Attention { heads, .. } => self.attention(heads),
            Op::MeanPool { .. } => {
                let rows = i128::from(self.program.max_positions);
                below(rows * ((1 << 32) + 1), LIMIT, "the sum over positions")
            }
            // One product or sum of two 32-bit values, or none.
            Op::Quantize { .. } | Op::Add { .. } | Op::Gelu { .. } | Op::Silu { .. } | Op::FirstPool { .. } => Ok(()),
        }
    }

    /// The sum of one row of each table does not even saturate.
    fn embed(&self, tables: &[(ScaledRows, EmbedIndex)]) -> Result<(), Failure> {
        let mut sum = 0_i128;
        for (rows, index) in tables {
            let scales = self.scales(rows)?;
            let cols = self.program.param(rows.codes).cols as usize;
            let peaks = self.row_sums(rows.codes, cols, |peak, code| peak.max(code))?;
            let row_peak = |(peak, (m, s)): (&i64, &(u16, i16))| {
                i128::from(rescale(*peak, *m, i64::from(*s))).max(-i128::from(rescale(-*peak, *m, i64::from(*s))))
            };
            let mut rows = peaks.iter().zip(&scales).map(row_peak);
            sum += match index {
                EmbedIndex::Constant(row) => rows.nth(*row as usize).unwrap_or(0),
                EmbedIndex::Token | EmbedIndex::Position => rows.max().unwrap_or(0),
            };
        }
        below(sum, 1 << 31, "the sum of embedding rows")
    }

    fn matmul(&self, weight: &ScaledRows) -> Result<(), Failure> {
        self.scales(weight)?;
        let cols = self.program.param(weight.codes).cols as usize;
        let sums = self.row_sums(weight.codes, cols, |sum, code| sum + code)?;
        // At most 2^18 columns of codes below 2^15: the sums themselves are exact.
        match sums.iter().position(|s| *s >= MATMUL_LIMIT / i64::from(CODE_MAX)) {
            None => Ok(()),
            Some(n) => Err(blame(weight.codes, format!("row {n} can exceed 2^46"))),
        }
    }

    /// `unit * scale` in 64 bits: a centred element divided by the root of the squares reaches 1.5 where rounding
    /// hides the others, and the scale is any `i32`.
    fn norm(&self, cols: i128, norm: &Norm) -> Result<(), Failure> {
        squares(cols)?;
        let scale = self.params.param(norm.scale).as_i32().unwrap_or_default();
        let peak = scale.iter().map(|s| i128::from(s.unsigned_abs())).max().unwrap_or(0);
        below(3 * (1 << 29) * peak, LIMIT, "the scaled row")
    }

    fn attention(&self, heads: &Heads) -> Result<(), Failure> {
        let code = i128::from(CODE_MAX);
        below(i128::from(heads.head_dim) * code * code, LIMIT, "a score")?;
        let positions = i128::from(self.program.max_positions);
        let blocks = positions.div_euclid(BLOCK as i128) + 1;
        let block = BLOCK as i128 * WEIGHT_MAX * code;
        below(blocks * ((block << GUARD) + 1), LIMIT, "the weighted sum of values")
    }

    /// Mantissas and shifts of a matrix; each mantissa has 16 bits.
    fn scales(&self, rows: &ScaledRows) -> Result<Vec<(u16, i16)>, Failure> {
        let mantissa = self.params.param(rows.mantissa).as_u16().unwrap_or_default();
        let shift = self.params.param(rows.shift).as_i16().unwrap_or_default();
        if let Some(n) = mantissa.iter().position(|m| *m < 1 << 15) {
            return Err(blame(rows.mantissa, format!("element {n} is {}, not normalised", mantissa[n])));
        }
        Ok(mantissa.iter().copied().zip(shift.iter().copied()).collect())
    }

    /// Folds the magnitudes of each row of codes, and checks that every code is in range.
    fn row_sums(&self, codes: ParamId, cols: usize, fold: impl Fn(i64, i64) -> i64) -> Result<Vec<i64>, Failure> {
        let out_of_range = |n: usize, code: i64| blame(codes, format!("row {n} has the code {code}"));
        let row = |n: usize, row: &mut dyn Iterator<Item = i64>, max: i64| {
            let mut sum = 0;
            for code in row {
                if code.abs() > max {
                    return Err(out_of_range(n, code));
                }
                sum = fold(sum, code.abs());
            }
            Ok(sum)
        };
        match self.params.param(codes) {
            ParamData::I8(c) => {
                let rows = c.chunks_exact(cols).enumerate();
                rows.map(|(n, r)| row(n, &mut r.iter().map(|c| i64::from(*c)), BYTE_MAX)).collect()
            }
            ParamData::I16(c) => {
                let rows = c.chunks_exact(cols).enumerate();
                rows.map(|(n, r)| row(n, &mut r.iter().map(|c| i64::from(*c)), i64::from(CODE_MAX))).collect()
            }
            ParamData::U16(_) | ParamData::I32(_) => Err(blame(codes, "has no codes".into())),
        }
    }
}

/// Sums of squares of 23-bit magnitudes (a centred 30-bit row, shifted by 8) and the epsilon, which saturates at 2^62:
/// together below 2^64.
fn squares(cols: i128) -> Result<(), Failure> {
    below(cols << 46, LIMIT, "the sum of squares")
}

#[cfg(test)]
#[path = "bounds_tests.rs"]
mod tests;
