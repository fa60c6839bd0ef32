//! Matrix product (SPEC 5.3).

use crate::fixed::{rescale, sat_code, sat32};
use crate::host::{BfpRows, MatMulOut, Scaled};
use crate::value::ParamData;

/// `out[t,n] = saturate(rescale(A, mantissa[n], shift[n] - exponents[t]) + bias[n])` with the exact
/// `A = sum_k codes[t,k] * weight[n,k]`. Returns the number of clamped elements.
pub fn matmul(x: BfpRows<'_>, w: Scaled<'_>, bias: Option<&[i32]>, mut out: MatMulOut<'_>) -> u64 {
    let rows = w.mantissa.len();
    let mut saturations = 0;
    for (t, (row, exponent)) in x.codes.chunks_exact(w.cols).zip(x.exponents).enumerate() {
        for n in 0..rows {
            let a = row_dot(row, w.codes, n * w.cols);
            let y = scaled(a, w.mantissa[n], w.shift[n], *exponent, bias.map_or(0, |b| b[n]));
            let clamped = match &mut out {
                MatMulOut::I32(out) => {
                    let (y, clamped) = sat32(y);
                    out[t * rows + n] = y;
                    clamped
                }
                MatMulOut::I16(out) => {
                    let (y, clamped) = sat_code(y);
                    out[t * rows + n] = y;
                    clamped
                }
            };
            saturations += u64::from(clamped);
        }
    }
    saturations
}

/// The exact dot product of a row of activations with the weight row that starts at `start`.
fn row_dot(x: &[i16], codes: ParamData<'_>, start: usize) -> i64 {
    let range = start..start + x.len();
    let x = x.iter().map(|x| i64::from(*x));
    match codes {
        ParamData::I8(w) => dot(x, w[range].iter().map(|w| i64::from(*w))),
        ParamData::I16(w) => dot(x, w[range].iter().map(|w| i64::from(*w))),
        _ => unreachable!("validation: weight codes are i8 or i16"),
    }
}

/// The exact dot product of codes.
pub fn dot(x: impl Iterator<Item = i64>, w: impl Iterator<Item = i64>) -> i64 {
    x.zip(w).map(|(x, w)| x * w).sum()
}

/// The output before it saturates, from the exact product `a`.
pub fn scaled(a: i64, mantissa: u16, shift: i16, exponent: i32, bias: i32) -> i64 {
    rescale(a, mantissa, i64::from(shift) - i64::from(exponent)) + i64::from(bias)
}
