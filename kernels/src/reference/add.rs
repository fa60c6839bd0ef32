//! Saturating sum (SPEC 5.4).

use crate::fixed::sat32;

/// `out[i] = sat32(a[i] + b[i])`; returns the number of clamped elements.
pub fn add(a: &[i32], b: &[i32], out: &mut [i32]) -> u64 {
    let mut saturations = 0;
    for ((y, a), b) in out.iter_mut().zip(a).zip(b) {
        let (sum, clamped) = sat32(i64::from(*a) + i64::from(*b));
        *y = sum;
        saturations += u64::from(clamped);
    }
    saturations
}
