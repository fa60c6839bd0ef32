//! Mean over positions (SPEC 5.10).

use std::ops::Range;

/// `out[s,i] = floor((2*sum + n) / (2*n))` with the exact sum over the sequence's `n` rows.
pub fn mean_pool(input: &[i32], cols: usize, spans: &[Range<usize>], out: &mut [i32]) {
    for (span, y) in spans.iter().zip(out.chunks_exact_mut(cols)) {
        let n = span.len() as i64;
        for (i, y) in y.iter_mut().enumerate() {
            let sum: i64 = span.clone().map(|t| i64::from(input[t * cols + i])).sum();
            *y = mean(sum, n) as i32;
        }
    }
}

/// `floor((2*sum + n) / (2*n))` for `n >= 1`, an `i32` for the sum of as many. Sums beyond 2^62 wrap.
pub fn mean(sum: i64, n: i64) -> i64 {
    sum.wrapping_mul(2).wrapping_add(n).div_euclid(2 * n)
}
