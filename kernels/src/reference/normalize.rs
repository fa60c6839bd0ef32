//! What LayerNorm, RMSNorm and L2 normalisation share: rows scaled to 30 bits, and division by a root (SPEC 5.5).
//!
//! Functions of one element are total: a referee computes with statistics that two parties merely agree on. What can't
//! overflow for any row wraps for those.

use crate::fixed::{bit_length, magnitude, round_shift, rsqrt};

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
    let scale = row_scale(magnitude(x.iter().copied()));
    ScaledRow { z: x.iter().map(|x| scale_element(*x, scale)).collect(), scale }
}

/// `30 - bit_length(max)` for the largest magnitude of a row, at most 2^31.
pub fn row_scale(max: u32) -> i32 {
    30 - bit_length(u64::from(max)) as i32
}

/// `x * 2^scale`, rounded half up, for a scale of -2 to 30.
pub fn scale_element(x: i32, scale: i32) -> i64 {
    let x = i64::from(x);
    if scale >= 0 { x << scale } else { round_shift(x, (-scale) as u32) }
}

/// `floor((2*sum + d) / (2*d))` for `d >= 1`: the mean, rounded half up.
pub fn mean(sum: i64, d: i64) -> i64 {
    sum.wrapping_mul(2).wrapping_add(d).div_euclid(2 * d)
}

/// `sum (c >> 8)^2` with half-up rounding of each `c / 2^8`; below 2^62 for `|c| <= 2^31` of at most 2^15 elements
/// whose mean was removed or whose magnitude is at most 2^30.
pub fn sum_of_squares(c: &[i64]) -> u64 {
    c.iter().map(|c| square(*c)).sum()
}

/// `(c >> 8)^2` with half-up rounding of `c / 2^8`.
pub fn square(c: i64) -> u64 {
    let h = round_shift(c, 8);
    h.wrapping_mul(h) as u64
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
    let root = rsqrt(w);
    c.iter().map(|c| divide(*c, root)).collect()
}

/// One element of [`divide_by_root`], from the inverse root of `w`.
pub fn divide(c: i64, (r, p): (u32, i32)) -> i64 {
    round_shift(c.wrapping_mul(r.into()), (24 + p) as u32)
}

/// `unit * scale / 2^shift`, rounded half up, for a shift of 1 to 62.
pub fn gain(unit: i64, scale: i32, shift: u8) -> i64 {
    round_shift(unit.wrapping_mul(scale.into()), shift.into())
}
