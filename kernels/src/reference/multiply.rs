//! Product, element by element (SPEC 5.14).

use crate::fixed::{round_shift, sat32};

/// `out[i] = sat32(round(a[i] * b[i] / 2^shift))` for a shift of at most 62; returns the number of clamped elements.
pub fn multiply(a: &[i32], b: &[i32], shift: u32, out: &mut [i32]) -> u64 {
    let mut saturations = 0;
    for ((y, a), b) in out.iter_mut().zip(a).zip(b) {
        let (product, clamped) = sat32(round_shift(i64::from(*a) * i64::from(*b), shift));
        *y = product;
        saturations += u64::from(clamped);
    }
    saturations
}
