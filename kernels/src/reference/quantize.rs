//! `i32` rows to block floating point rows (SPEC 5.2).

use crate::fixed::{magnitude, round_shift, row_exponent};

/// For each row, `exponents[t] = row_exponent(max |input[t,i]|)` and
/// `codes[t,i] = round(input[t,i] / 2^exponents[t])`.
pub fn quantize(input: &[i32], cols: usize, codes: &mut [i16], exponents: &mut [i32]) {
    for ((x, q), exponent) in input.chunks_exact(cols).zip(codes.chunks_exact_mut(cols)).zip(exponents) {
        let e = row_exponent(magnitude(x.iter().copied()));
        *exponent = e as i32;
        for (q, x) in q.iter_mut().zip(x) {
            *q = round_shift(i64::from(*x), e) as i16;
        }
    }
}
