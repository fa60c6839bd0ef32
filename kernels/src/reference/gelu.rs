//! GELU (SPEC 5.8).

use crate::tables::GAUSS;

/// `out[i] = x * Φ(x)`, input and output with `frac` fractional bits. Never clamps.
pub fn gelu(input: &[i32], frac: u32, out: &mut [i32]) {
    for (y, x) in out.iter_mut().zip(input) {
        *y = GAUSS.times(*x, frac);
    }
}
