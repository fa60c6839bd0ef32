//! Q formats from a proof over the real weights, not from calibration (SPEC 21.11).
//!
//! After LayerNorm a row is `g*n + b` with `sum n = 0` and `sum n² <= d`, so a product with `w` is at most
//! `|w*g - mean(w*g)| * sqrt(d) + |w·b + bias|`. Elsewhere a product is at most the sum of the magnitudes. The rounding
//! of weights and rows is added to both.

use crate::checkpoint::Weights;
use crate::error::ModelError;
use crate::exact::{exp2, fraction_bits};
use lockstep_kernels::fixed::{CODE_MAX, SCORE_FRAC};

use super::matrix::RealMatrix;

/// Rounding inside norms, attention and tables, all far below this share of a value.
const SLACK: f64 = 1.0 + 1.0 / 256.0;
/// Largest magnitude that a proven value reaches in an `i32` tensor.
const LIMIT_I32: f64 = 2_147_483_392.0;
/// Largest magnitude that a proven value reaches in an `i16` tensor.
const LIMIT_I16: f64 = (CODE_MAX - 1) as f64;
/// Most fractional bits of any tensor.
const FRAC_CAP: i32 = 40;
/// The least that GELU's negative side needs.
const GELU_DIP: f64 = 0.171;
/// The least that SiLU's negative side needs.
const SILU_DIP: f64 = 0.279;

/// The output of a norm over the reals: `gain * n + bias`.
#[derive(Debug)]
pub struct NormRow {
    /// Whether the mean of `n` is 0, as after LayerNorm; RMSNorm leaves it.
    pub centred: bool,
    /// The model's scale.
    pub gain: Vec<f64>,
    /// The model's bias.
    pub bias: Vec<f64>,
}

impl NormRow {
    /// Reads `prefix.weight` and `prefix.bias`.
    pub fn read(weights: &Weights, prefix: &str, len: u32) -> Result<Self, ModelError> {
        Ok(Self {
            centred: true,
            gain: read_vector(weights, &format!("{prefix}.weight"), len)?,
            bias: read_vector(weights, &format!("{prefix}.bias"), len)?,
        })
    }

    /// Reads `prefix.weight` of an RMSNorm, times a factor.
    pub fn read_rms(weights: &Weights, prefix: &str, len: u32, factor: f64) -> Result<Self, ModelError> {
        let mut gain = read_vector(weights, &format!("{prefix}.weight"), len)?;
        gain.iter_mut().for_each(|g| *g *= factor);
        Ok(Self { centred: false, bias: vec![0.0; gain.len()], gain })
    }

    fn root(&self) -> f64 {
        (self.gain.len() as f64).sqrt()
    }

    /// Bound of each element.
    pub fn peaks(&self) -> Vec<f64> {
        let root = self.root();
        self.gain.iter().zip(&self.bias).map(|(g, b)| (g.abs() * root + b.abs()) * SLACK).collect()
    }

    /// Bound of each row of `matrix * (this row, quantised) + bias`.
    pub fn product(&self, matrix: &RealMatrix, bias: &[f64]) -> Vec<f64> {
        let step = rounding(largest(&self.peaks()));
        let gain_norm = self.gain.iter().map(|g| g * g).sum::<f64>().sqrt();
        let bias_sum: f64 = self.bias.iter().map(|b| b.abs()).sum();
        let bound = |(n, offset): (usize, &f64)| {
            let (w, error) = (matrix.row(n), matrix.code_error(n));
            let sum = || w.iter().zip(&self.gain).map(|(w, g)| w * g).sum::<f64>();
            let mean = if self.centred { sum() / w.len() as f64 } else { 0.0 };
            let centred = |(w, g): (&f64, &f64)| (w * g - mean) * (w * g - mean);
            let spread = w.iter().zip(&self.gain).map(centred).sum::<f64>().sqrt() + error * gain_norm;
            let constant = w.iter().zip(&self.bias).map(|(w, b)| w * b).sum::<f64>() + offset;
            let rounding = (magnitude(w) + error * w.len() as f64) * step;
            (spread * self.root() + constant.abs() + error * bias_sum + rounding) * SLACK
        };
        bias.iter().enumerate().map(bound).collect()
    }
}

/// Bound of each row of `matrix * (a row within peaks, quantised) + bias`.
pub fn product_within(peaks: &[f64], matrix: &RealMatrix, bias: &[f64]) -> Vec<f64> {
    let step = rounding(largest(peaks));
    let bound = |(n, offset): (usize, &f64)| {
        let error = matrix.code_error(n);
        let sum: f64 = matrix.row(n).iter().zip(peaks).map(|(w, p)| (w.abs() + error) * (p + step)).sum();
        (sum + offset.abs()) * SLACK
    };
    bias.iter().enumerate().map(bound).collect()
}

/// Bound of `silu(gate) * up` of each element.
pub fn gated_peaks(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(g, u)| g.max(SILU_DIP) * u * SLACK).collect()
}

/// Bound of GELU of each element.
pub fn gelu_peaks(peaks: &[f64]) -> Vec<f64> {
    peaks.iter().map(|p| p.max(GELU_DIP) * SLACK).collect()
}

/// Reads a vector.
pub fn read_vector(weights: &Weights, tensor: &str, len: u32) -> Result<Vec<f64>, ModelError> {
    Ok(weights.read(tensor, &[len])?.into_iter().map(f64::from).collect())
}

/// Fractional bits of an `i32` tensor whose values stay within `bound`.
pub fn wide(place: &str, bound: f64, cap: i32) -> Result<i32, ModelError> {
    wide_within(place, bound, cap.min(FRAC_CAP))
}

/// As [`wide`], with a cap above the usual one.
pub fn wide_within(place: &str, bound: f64, cap: i32) -> Result<i32, ModelError> {
    fraction_bits(bound, LIMIT_I32, 0, cap)
        .ok_or_else(|| ModelError::bounds(place, format!("values up to {bound:e} do not fit 31 bits")))
}

/// As [`wide`], for a tensor that is quantised: [`rounding`] counts on 16 bits of the row's own bound.
pub fn wide_row(place: &str, bound: f64, own: f64, cap: i32) -> Result<i32, ModelError> {
    let frac = wide(place, bound, cap)?;
    if own * exp2(frac) >= 65_536.0 || frac >= 30 {
        return Ok(frac);
    }
    Err(ModelError::bounds(place, format!("{frac} fractional bits leave fewer than 16 to a row within {own:e}")))
}

/// Fractional bits of the codes of each head, from the bounds of its channels.
pub fn heads(place: &str, bounds: &[f64], head_dim: usize) -> Result<Vec<i32>, ModelError> {
    let head = |(h, bounds): (usize, &[f64])| {
        let bound = largest(bounds);
        fraction_bits(bound, LIMIT_I16, 0, FRAC_CAP)
            .ok_or_else(|| ModelError::bounds(place, format!("head {h}: values up to {bound:e} do not fit 16 bits")))
    };
    bounds.chunks_exact(head_dim).enumerate().map(head).collect()
}

/// Scores have 20 fractional bits, and dot products are only ever shifted right. Where the proven formats of a head's
/// queries and keys fall short of 20 together, both give up headroom, the query first: a proof by norms is loose by
/// several bits. Beyond that a code would saturate, which backends count. Several queries may share a key.
pub fn reach_scores(
    place: &str,
    mut query: Vec<i32>,
    mut key: Vec<i32>,
    most: i32,
) -> Result<(Vec<i32>, Vec<i32>), ModelError> {
    let lacking = |q: i32, k: i32| (SCORE_FRAC as i32 - q - k).max(0);
    let shared = query.len() / key.len();
    for (g, (queries, k)) in query.chunks_exact_mut(shared).zip(&mut key).enumerate() {
        let worst = queries.iter().map(|q| lacking(*q, *k)).max().unwrap_or(0);
        if worst > most {
            let what = format!("key head {g} lacks {worst} bits: its scores can't be bounded");
            return Err(ModelError::bounds(place, what));
        }
        *k += worst / 2;
        queries.iter_mut().for_each(|q| *q += lacking(*q, *k));
    }
    Ok((query, key))
}

/// Bounds of rotated heads: the length of each pair `(j, j + head_dim / 2)`.
pub fn rotated(bounds: &[f64], head_dim: usize) -> Vec<f64> {
    let mut out = vec![0.0; bounds.len()];
    for (head, out) in bounds.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
        let half = head_dim / 2;
        for j in 0..half {
            let length = (head[j] * head[j] + head[j + half] * head[j + half]).sqrt() * SLACK;
            (out[j], out[j + half]) = (length, length);
        }
    }
    out
}

/// The largest of some bounds.
pub fn largest(bounds: &[f64]) -> f64 {
    bounds.iter().fold(0.0, |max, b| max.max(*b))
}

/// Largest sum of two rows, element by element.
pub fn largest_sum(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).fold(0.0, |max, (a, b)| max.max(a + b))
}

fn magnitude(w: &[f64]) -> f64 {
    w.iter().map(|w| w.abs()).sum()
}

/// The most by which an element of a row within `peak` changes when it is written in its Q format and quantised to
/// 16-bit codes: half a step of at most `peak / 16319`, and half a unit of a format that keeps 16 bits of `peak`.
fn rounding(peak: f64) -> f64 {
    peak * exp2(-14) + exp2(-30)
}
