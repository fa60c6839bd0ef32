//! `i32` rows to block floating point rows (SPEC 5.2).

use super::CpuKernels;
use super::normalize::magnitude;
use super::path::for_each_path;
use crate::fixed::row_exponent;

/// Twin of [`crate::reference::quantize::quantize`].
pub(super) fn quantize(cpu: &CpuKernels, input: &[i32], cols: usize, codes: &mut [i16], exponents: &mut [i32]) {
    let piece = cpu.threads.piece(exponents.len(), cols);
    let inputs = input.chunks(piece * cols);
    let pieces = inputs.zip(codes.chunks_mut(piece * cols)).zip(exponents.chunks_mut(piece)).collect();
    cpu.threads.each(pieces, |((input, codes), exponents)| {
        let rows = input.chunks_exact(cols).zip(codes.chunks_exact_mut(cols)).zip(exponents);
        for ((x, q), exponent) in rows {
            let e = row_exponent(magnitude(cpu.isa, x));
            *exponent = e as i32;
            round_row(cpu.isa, x, e, q);
        }
        0
    });
}

for_each_path! {
    /// `q[i] = round(x[i] / 2^e)`, which fits because `e` is the row's exponent.
    fn round_row(x: &[i32], e: u32, q: &mut [i16]) {
        // Without rounding at e = 0; the sum cannot wrap, because the shifted value is below 2^30 then.
        let (below, mask) = if e == 0 { (0, 0) } else { (e - 1, 1) };
        for (q, x) in q.iter_mut().zip(x) {
            *q = (x >> (e & 31)).wrapping_add((x >> (below & 31)) & mask) as i16;
        }
    }
}
