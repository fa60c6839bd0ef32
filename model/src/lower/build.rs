//! Collects the tensors, parameters and layers of a program.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lockstep_kernels::program::{Layer, Norm, Op, Param, ParamId, Rows, ScaledRows, Tensor, TensorId, TensorKind};

use super::formats::NormRow;
use super::matrix::RealMatrix;
use super::{ParamValues, Spill};
use crate::error::ModelError;
use crate::exact::{exp2, log2_floor, round_half_up};
use crate::quantize::{RowScale, Width};

/// The parts of a program so far.
#[derive(Debug, Default)]
pub struct Builder {
    pub tensors: Vec<Tensor>,
    pub params: Vec<Param>,
    pub values: Vec<Arc<ParamValues>>,
    pub layers: Vec<Layer>,
    /// Where large parameters go; otherwise they stay in memory.
    pub spill: Option<Spill>,
}

impl Builder {
    /// Declares an activation tensor.
    pub fn tensor(&mut self, name: &str, rows: Rows, cols: u32, kind: TensorKind) -> TensorId {
        self.tensors.push(Tensor { name: name.into(), rows, cols, kind });
        TensorId((self.tensors.len() - 1) as u16)
    }

    /// Closes a layer.
    pub fn layer(&mut self, name: String, ops: Vec<Op>, output: TensorId) {
        self.layers.push(Layer { name, ops, output });
    }

    /// Declares a parameter of `rows` equal rows.
    pub fn param(&mut self, name: String, rows: u32, values: ParamValues) -> Result<ParamId, ModelError> {
        let (dtype, data) = (values.dtype(), values.data());
        let id = u16::try_from(self.params.len())
            .map_err(|_| ModelError::Unsupported("a model with more than 65,535 parameters".into()))?;
        let cols = data.len() as u32 / rows.max(1);
        self.params.push(Param { name, dtype, rows, cols });
        let kept = self.keep(values)?;
        self.values.push(kept);
        Ok(ParamId(id))
    }

    /// Values where they are to lie: in memory or in a file.
    pub fn keep(&self, values: ParamValues) -> Result<Arc<ParamValues>, ModelError> {
        let kept = match &self.spill {
            Some(spill) => spill.keep(values)?,
            None => values,
        };
        Ok(Arc::new(kept))
    }

    /// A matrix with nearest codes. `frac_in` and `frac_out` are the fractional bits of what goes in (0 for a table)
    /// and of each row's output.
    pub fn scaled_rows(
        &mut self,
        tensor: &str,
        matrix: &RealMatrix,
        frac_in: i32,
        frac_out: impl Fn(usize) -> i32,
        threads: NonZeroUsize,
    ) -> Result<ScaledRows, ModelError> {
        let shift = |(n, scale): (usize, &RowScale)| row_shift(tensor, n, scale.shift + frac_in - frac_out(n));
        let shifts = matrix.scales.iter().enumerate().map(shift).collect::<Result<Vec<_>, _>>()?;
        let mantissas = matrix.scales.iter().map(|s| s.mantissa).collect();
        let rows = matrix.scales.len() as u32;
        Ok(ScaledRows {
            codes: self.param(format!("{tensor}.codes"), rows, matrix.nearest(threads))?,
            mantissa: self.param(format!("{tensor}.mantissa"), 1, ParamValues::U16(mantissas))?,
            shift: self.param(format!("{tensor}.shift"), 1, ParamValues::I16(shifts))?,
        })
    }

    /// A bias vector, each element in its own Q format.
    pub fn bias(&mut self, tensor: &str, values: &[f64], frac: impl Fn(usize) -> i32) -> Result<ParamId, ModelError> {
        let code = |(n, b): (usize, &f64)| fixed(tensor, n, *b, frac(n));
        let codes = values.iter().enumerate().map(code).collect::<Result<Vec<_>, _>>()?;
        self.param(format!("{tensor}.codes"), 1, ParamValues::I32(codes))
    }

    /// A LayerNorm between two Q formats: its constants and its bias.
    pub fn layer_norm(
        &mut self,
        prefix: &str,
        row: &NormRow,
        epsilon: f64,
        fracs: [i32; 2],
    ) -> Result<(Norm, ParamId), ModelError> {
        let norm = self.norm(prefix, row, epsilon, fracs)?;
        let bias = self.bias(&format!("{prefix}.bias"), &row.bias, |_| fracs[1])?;
        Ok((norm, bias))
    }

    /// A norm between two Q formats, but for its bias.
    pub fn norm(
        &mut self,
        prefix: &str,
        row: &NormRow,
        epsilon: f64,
        [frac_in, frac_out]: [i32; 2],
    ) -> Result<Norm, ModelError> {
        let root = (row.gain.len() as f64).sqrt();
        let gains: Vec<f64> = row.gain.iter().map(|g| g * root).collect();
        let largest = gains.iter().fold(0.0_f64, |max, g| max.max(g.abs()));
        // As many bits as fit: the largest code has 30 or 31, and the shift to the output's format stays in 1..=62.
        let most = if largest > 0.0 { 29 - log2_floor(largest) } else { 30 };
        let scale_frac = most.min(32 + frac_out);
        let shift = 30 + scale_frac - frac_out;
        let shift = u8::try_from(shift).ok().filter(|s| (1..=62).contains(s)).ok_or_else(|| {
            ModelError::bounds(prefix, format!("a scale of {largest:e} does not fit {frac_out} fractional bits"))
        })?;
        let scale_name = format!("{prefix}.weight");
        let code = |(n, g): (usize, &f64)| fixed(&scale_name, n, *g, scale_frac);
        let codes = gains.iter().enumerate().map(code).collect::<Result<Vec<_>, _>>()?;
        let scale = self.param(format!("{scale_name}.codes"), 1, ParamValues::I32(codes))?;
        let (epsilon_mantissa, epsilon_shift) = epsilon_parts(row.gain.len() as f64 * epsilon, frac_in);
        Ok(Norm { scale, shift, epsilon_mantissa, epsilon_shift })
    }
}

/// The shift of row `n` of a matrix.
pub fn row_shift(tensor: &str, n: usize, shift: i32) -> Result<i16, ModelError> {
    i16::try_from(shift).map_err(|_| ModelError::tensor(tensor, format!("row {n} is too small or too large to scale")))
}

/// Mantissa and shift of `value * 2^(2 * frac)`; see [`Norm`].
fn epsilon_parts(value: f64, frac: i32) -> (u32, i16) {
    if value < exp2(-200) {
        return (0, 0);
    }
    let mut shift = 31 - log2_floor(value);
    let mut mantissa = round_half_up(value * exp2(shift));
    if mantissa == 1 << 32 {
        (mantissa, shift) = (1 << 31, shift - 1);
    }
    (mantissa as u32, (shift - 2 * frac) as i16)
}

/// `round(value * 2^frac)` as `i32`.
pub fn fixed(tensor: &str, index: usize, value: f64, frac: i32) -> Result<i32, ModelError> {
    let scaled = value * exp2(frac);
    let code = if scaled.abs() < exp2(40) { round_half_up(scaled) } else { i64::MAX };
    i32::try_from(code).map_err(|_| {
        ModelError::tensor(tensor, format!("element {index} ({value:e}) does not fit {frac} fractional bits"))
    })
}

/// Width of a matrix's codes in a mode, where nothing says otherwise.
pub const fn width(weights: crate::package::WeightMode) -> Width {
    match weights {
        crate::package::WeightMode::W8 => Width::W8,
        crate::package::WeightMode::W16 => Width::W16,
    }
}
