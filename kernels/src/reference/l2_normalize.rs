//! Scaling to unit length (SPEC 5.12).

use super::normalize::{divide_by_root, scale_row, sum_of_squares};

/// For each row: `out[i] = x[i] / |x|` in Q1.30; a row of zeros stays zeros.
pub fn l2_normalize(input: &[i32], cols: usize, out: &mut [i32]) {
    for (x, y) in input.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
        let row = scale_row(x);
        for (y, unit) in y.iter_mut().zip(divide_by_root(&row.z, sum_of_squares(&row.z))) {
            *y = unit as i32;
        }
    }
}
