//! Mean over positions (SPEC 5.10).

use std::ops::Range;

/// `out[s,i] = floor((2*sum + n) / (2*n))` with the exact sum over the sequence's `n` rows.
pub fn mean_pool(input: &[i32], cols: usize, spans: &[Range<usize>], out: &mut [i32]) {
    for (span, y) in spans.iter().zip(out.chunks_exact_mut(cols)) {
        let n = span.len() as i64;
        for (i, y) in y.iter_mut().enumerate() {
            let sum: i64 = span.clone().map(|t| i64::from(input[t * cols + i])).sum();
            *y = (2 * sum + n).div_euclid(2 * n) as i32;
        }
    }
}
