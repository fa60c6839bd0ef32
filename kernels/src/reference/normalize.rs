//! What LayerNorm, RMSNorm and L2 normalisation share: rows scaled to 30 bits, and division by a root (SPEC 5.5).

use crate::fixed::{bit_length, round_shift, rsqrt};

/// A row scaled by a power of two so that its largest magnitude has 30 bits.
#[derive(Debug)]
pub struct ScaledRow {
    /// Elements, `|z| <= 2^30`.
    pub z: Vec<i64>,
    /// `z = x * 2^scale`, rounded half up where `scale` is negative; -2 to 30.
    pub scale: i32,
}

/// Scales a row: `scale = 30 - bit_length(max |x|)`. A row of zeros stays as it is.
pub fn scale_row(x: &[i32]) -> ScaledRow {
    let max = x.iter().map(|v| v.unsigned_abs()).max().unwrap_or(0);
    let scale = 30 - bit_length(u64::from(max)) as i32;
    let shifted = |v: &i32| {
        let v = i64::from(*v);
        if scale >= 0 { v << scale } else { round_shift(v, (-scale) as u32) }
    };
    ScaledRow { z: x.iter().map(shifted).collect(), scale }
}

/// `sum (c >> 8)^2` with half-up rounding of each `c / 2^8`; below 2^62 for `|c| <= 2^31` of at most 2^15 elements
/// whose mean was removed or whose magnitude is at most 2^30.
pub fn sum_of_squares(c: &[i64]) -> u64 {
    c.iter().map(|c| round_shift(*c, 8)).map(|h| (h * h) as u64).sum()
}

/// `epsilon_mantissa * 2^(2*(scale - 8) - epsilon_shift)`, rounded half up, saturating at 2^62: the epsilon term at
/// the scale of [`sum_of_squares`].
pub fn scaled_epsilon(mantissa: u32, shift: i16, scale: i32) -> u64 {
    let left = 2 * (scale - 8) - i32::from(shift);
    match left {
        _ if mantissa == 0 => 0,
        31.. => 1 << 62,
        0..=30 => u64::from(mantissa) << left,
        _ => round_shift(i64::from(mantissa), left.unsigned_abs()) as u64,
    }
}

/// `round(c[i] * 2^22 / sqrt(w))`: Q1.30 where `w` is at the scale of [`sum_of_squares`].
pub fn divide_by_root(c: &[i64], w: u64) -> Vec<i64> {
    let (r, p) = rsqrt(w);
    let shift = (24 + p) as u32;
    c.iter().map(|c| round_shift(c * i64::from(r), shift)).collect()
}
