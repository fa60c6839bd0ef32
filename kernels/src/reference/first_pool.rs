//! The first position of each sequence (SPEC 5.11).

use std::ops::Range;

/// `out[s,i] = input[first row of s, i]`.
pub fn first_pool(input: &[i32], cols: usize, spans: &[Range<usize>], out: &mut [i32]) {
    for (span, y) in spans.iter().zip(out.chunks_exact_mut(cols)) {
        y.copy_from_slice(&input[span.start * cols..(span.start + 1) * cols]);
    }
}
