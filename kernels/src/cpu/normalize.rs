//! What LayerNorm, RMSNorm and L2 normalisation share (SPEC 5.5): twin of [`crate::reference::normalize`].

use super::path::for_each_path;
use crate::fixed::{bit_length, rsqrt};

for_each_path! {
    /// Largest `|x|`.
    pub(super) fn magnitude(x: &[i32]) -> u32 {
        x.iter().fold(0, |max, v| max.max(v.unsigned_abs()))
    }
}

/// `30 - bit_length(max |x|)`.
pub(super) fn row_scale(magnitude: u32) -> i32 {
    30 - bit_length(u64::from(magnitude)) as i32
}

for_each_path! {
    /// `z[i] = x[i] * 2^scale`, rounded half up where `scale` is negative; returns the sum.
    pub(super) fn scale_row(x: &[i32], scale: i32, z: &mut [i64]) -> i64 {
        let (left, right) = (scale.max(0) as u32, (-scale).max(0) as u32);
        let half = (1_i64 << right) >> 1;
        let mut sum = 0_i64;
        for (z, x) in z.iter_mut().zip(x) {
            // Below 2^31 times at most 2^15 elements: nothing wraps.
            *z = i64::from(*x).wrapping_shl(left).wrapping_add(half) >> (right & 63);
            sum = sum.wrapping_add(*z);
        }
        sum
    }
}

for_each_path! {
    /// Subtracts `mean` from each element; returns the sum of squares of `c / 2^8`.
    pub(super) fn centre_row(z: &mut [i64], mean: i64) -> u64 {
        let mut sum = 0_u64;
        for z in z {
            // At most 2^31 after centring, 2^23 after the shift, 2^61 in the sum: nothing wraps.
            *z = z.wrapping_sub(mean);
            let h = z.wrapping_add(128) >> 8;
            sum = sum.wrapping_add(i64::from(h as i32).wrapping_mul(i64::from(h as i32)) as u64);
        }
        sum
    }
}

/// `1 / sqrt(w)` as a factor and a right shift, so that `c * factor / 2^shift` is in Q1.30.
pub(super) fn root_factor(w: u64) -> (i64, u32) {
    let (r, p) = rsqrt(w);
    (i64::from(r), (24 + p) as u32)
}

/// A multiplication followed by a rounding right shift of 1 to 62.
#[derive(Clone, Copy)]
pub(super) struct Factor {
    pub(super) factor: i64,
    pub(super) shift: u32,
}

for_each_path! {
    /// `out[i] = sat32(round(round(c[i] * root) * scale[i] / 2^shift) + bias[i])`; an empty bias counts as zeros.
    /// Returns the number of clamped elements.
    pub(super) fn finish_row(c: &[i64], root: Factor, scale: &[i32], shift: u32, bias: &[i32], out: &mut [i32]) -> u64 {
        let (half_root, half) = ((1_i64 << root.shift) >> 1, (1_i64 << shift) >> 1);
        let mut saturations = 0_u64;
        let mut element = |c: i64, scale: i32, bias: i32, y: &mut i32| {
            // |c| <= 2^31 and the factor is at most 2^31; the unit value is below 2^31 and so is the scale. With the
            // rounding terms of at most 2^61 nothing wraps.
            let unit = c.wrapping_mul(root.factor).wrapping_add(half_root) >> (root.shift & 63);
            let scaled = unit.wrapping_mul(i64::from(scale)).wrapping_add(half) >> (shift & 63);
            let v = scaled.wrapping_add(i64::from(bias));
            *y = v.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
            saturations = saturations.wrapping_add(u64::from(i64::from(*y) != v));
        };
        if bias.is_empty() {
            for ((y, c), scale) in out.iter_mut().zip(c).zip(scale) {
                element(*c, *scale, 0, y);
            }
        } else {
            for (((y, c), scale), bias) in out.iter_mut().zip(c).zip(scale).zip(bias) {
                element(*c, *scale, *bias, y);
            }
        }
        saturations
    }
}
