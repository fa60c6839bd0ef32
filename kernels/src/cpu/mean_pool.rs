//! Mean over positions (SPEC 5.10).

use std::ops::Range;

use super::CpuKernels;
use super::path::for_each_path;

/// Twin of [`crate::reference::mean_pool::mean_pool`].
pub(super) fn mean_pool(cpu: &CpuKernels, input: &[i32], cols: usize, spans: &[Range<usize>], out: &mut [i32]) {
    let sequences = spans.iter().zip(out.chunks_exact_mut(cols)).collect();
    cpu.threads.each(sequences, |(span, out): (&Range<usize>, &mut [i32])| {
        let mut sums = vec![0; cols];
        for row in input[span.start * cols..span.end * cols].chunks_exact(cols) {
            add_row(cpu.isa, row, &mut sums);
        }
        let n = span.len() as i64;
        for (y, sum) in out.iter_mut().zip(sums) {
            *y = (2 * sum + n).div_euclid(2 * n) as i32;
        }
        0
    });
}

for_each_path! {
    fn add_row(row: &[i32], sums: &mut [i64]) {
        for (sum, v) in sums.iter_mut().zip(row) {
            // At most 2^17 positions of 2^31: nothing wraps.
            *sum = sum.wrapping_add(i64::from(*v));
        }
    }
}
