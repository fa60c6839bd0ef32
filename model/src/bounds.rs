//! Proof, from the actual codes, that no accumulator overflows on any input (SPEC section 22).
//!
//! The proof takes no input into account: activations are whatever their type can hold. So it also holds for a worker
//! that lies about them. It runs at import and again wherever a package is opened; nobody trusts the importer. What
//! saturates by definition (`i32` and `i16` outputs) is not a matter of this proof: formats are chosen so that it does
//! not happen, and backends count it.
//!
//! What depends on the weights: that codes are in range and mantissas normalised, and that no sum of embedding rows
//! saturates. The other sums follow from the limits of a valid program alone (widths, heads, positions); they are
//! computed here all the same, so that a limit that grows is caught where it matters.
//!
//! With the accumulators goes what a dispute needs: every element of every layer follows from at most 64 KiB.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_kernels::fixed::{CODE_MAX, rescale};
use lockstep_kernels::program::{EmbedIndex, Heads, Norm, Op, ParamId, Program, ScaledRows};
use lockstep_kernels::reference::attention::{BLOCK, GUARD};
use lockstep_kernels::steps::check_reads;
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

/// Proves every accumulator of a validated program, and that each of its elements can be disputed (SPEC 24.6).
///
/// # Errors
/// The first op or parameter for which the proof fails, by name.
pub fn prove(program: &Program, params: &dyn Params) -> Result<(), ModelError> {
    check_reads(program).map_err(|e| ModelError::bounds("dispute view", e.to_string()))?;
    let mut proof = Proof { program, params, products: BTreeSet::new(), tables: BTreeMap::new() };
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
    /// What is known of matrices so far: many ops may name one, and each is read once.
    products: BTreeSet<[u16; 3]>,
    tables: BTreeMap<[u16; 3], Vec<i64>>,
}

fn key(rows: &ScaledRows) -> [u16; 3] {
    [rows.codes.0, rows.mantissa.0, rows.shift.0]
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
    fn op(&mut self, op: &Op) -> Result<(), Failure> {
        let cols = |id| i128::from(self.program.tensor(id).cols);
        match op {
            Op::Embed { tables, .. } => self.embed(tables),
            Op::MatMul { weight, .. } => self.matmul(weight),
            Op::LayerNorm { input, norm, .. } => {
                // The mean: twice the sum of 30-bit magnitudes, plus the width.
                below(cols(*input) * ((1 << 31) + 1), LIMIT, "the sum of a row")?;
                self.norm(cols(*input), norm)
            }
            Op::RmsNorm { input, norm, groups, .. } => self.norm(cols(*input) / i128::from(*groups), norm),
            Op::L2Normalize { input, .. } => squares(cols(*input)),
            Op::Attention { heads, .. } => self.attention(heads),
            Op::MeanPool { .. } => {
                let rows = i128::from(self.program.max_positions);
                below(rows * ((1 << 32) + 1), LIMIT, "the sum over positions")
            }
            // One product or sum of two 32-bit values, or none.
            Op::Quantize { .. }
            | Op::Add { .. }
            | Op::Gelu { .. }
            | Op::Silu { .. }
            | Op::FirstPool { .. }
            | Op::Multiply { .. }
            | Op::Shift { .. }
            | Op::Gather { .. } => Ok(()),
            // Weights of 2^30 at most, for less than 2^24 tokens.
            Op::Sample { .. } => Ok(()),
            // Two products of 32-bit values, below 2^63 but for the one sum that the op takes care of.
            Op::Rope { .. } => Ok(()),
        }
    }

    /// The sum of one row of each table does not even saturate.
    fn embed(&mut self, tables: &[(ScaledRows, EmbedIndex)]) -> Result<(), Failure> {
        let mut sum = 0_i128;
        for (rows, index) in tables {
            if !self.tables.contains_key(&key(rows)) {
                let peaks = self.row_peaks(rows)?;
                self.tables.insert(key(rows), peaks);
            }
            let peaks = &self.tables[&key(rows)];
            sum += i128::from(match index {
                EmbedIndex::Constant(row) => peaks.get(*row as usize).copied().unwrap_or(0),
                EmbedIndex::Token | EmbedIndex::Position => peaks.iter().copied().max().unwrap_or(0),
            });
        }
        below(sum, 1 << 31, "the sum of embedding rows")
    }

    /// The largest magnitude of each row of a table, rescaled.
    fn row_peaks(&self, rows: &ScaledRows) -> Result<Vec<i64>, Failure> {
        let (mantissa, shift) = self.scales(rows)?;
        let mut peaks = Vec::with_capacity(mantissa.len());
        self.each_row(
            rows.codes,
            |peak, code| peak.max(code),
            |n, peak| {
                let (m, s) = (mantissa[n], i64::from(shift[n]));
                // Rounding is half up, so the signs may differ by one.
                peaks.push(rescale(peak, m, s).max(rescale(-peak, m, s).saturating_neg()));
                Ok(())
            },
        )?;
        Ok(peaks)
    }

    fn matmul(&mut self, weight: &ScaledRows) -> Result<(), Failure> {
        if self.products.contains(&key(weight)) {
            return Ok(());
        }
        self.scales(weight)?;
        // At most 2^18 columns of codes below 2^15: the sums themselves are exact.
        self.each_row(
            weight.codes,
            |sum, code| sum + code,
            |n, sum| {
                if sum < MATMUL_LIMIT / i64::from(CODE_MAX) {
                    return Ok(());
                }
                Err(blame(weight.codes, format!("row {n} can exceed 2^46")))
            },
        )?;
        self.products.insert(key(weight));
        Ok(())
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
    fn scales(&self, rows: &ScaledRows) -> Result<(&[u16], &[i16]), Failure> {
        let mantissa = self.params.param(rows.mantissa).as_u16().unwrap_or_default();
        let shift = self.params.param(rows.shift).as_i16().unwrap_or_default();
        if let Some(n) = mantissa.iter().position(|m| *m < 1 << 15) {
            return Err(blame(rows.mantissa, format!("element {n} is {}, not normalised", mantissa[n])));
        }
        Ok((mantissa, shift))
    }

    /// Folds the magnitudes of each row of codes, all of them in range, and hands the rows' values out in order.
    fn each_row(
        &self,
        codes: ParamId,
        fold: impl Fn(i64, i64) -> i64,
        mut row: impl FnMut(usize, i64) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let cols = self.program.param(codes).cols as usize;
        let mut whole = |n: usize, codes_of_row: &mut dyn Iterator<Item = i64>, max: i64| {
            let mut value = 0;
            for code in codes_of_row {
                if code.abs() > max {
                    return Err(blame(codes, format!("row {n} has the code {code}")));
                }
                value = fold(value, code.abs());
            }
            row(n, value)
        };
        match self.params.param(codes) {
            ParamData::I8(c) => c
                .chunks_exact(cols)
                .enumerate()
                .try_for_each(|(n, r)| whole(n, &mut r.iter().map(|c| i64::from(*c)), BYTE_MAX)),
            ParamData::I16(c) => c
                .chunks_exact(cols)
                .enumerate()
                .try_for_each(|(n, r)| whole(n, &mut r.iter().map(|c| i64::from(*c)), i64::from(CODE_MAX))),
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
