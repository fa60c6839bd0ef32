//! Fewer fractional bits (SPEC 5.15).

use crate::fixed::round_shift;

/// `out[i] = round(input[i] / 2^shift)` for a shift of at most 31. Never clamps.
pub fn shift(input: &[i32], shift: u32, out: &mut [i32]) {
    for (y, x) in out.iter_mut().zip(input) {
        *y = round_shift(i64::from(*x), shift) as i32;
    }
}
