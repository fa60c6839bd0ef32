//! SiLU (SPEC 5.9).

use crate::tables::SIGMOID;

/// `out[i] = x * σ(x)`, input and output with `frac` fractional bits. Never clamps.
pub fn silu(input: &[i32], frac: u32, out: &mut [i32]) {
    for (y, x) in out.iter_mut().zip(input) {
        *y = SIGMOID.times(*x, frac);
    }
}
