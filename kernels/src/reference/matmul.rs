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
            let a = dot(row, w.codes, n * w.cols);
            let shift = i64::from(w.shift[n]) - i64::from(*exponent);
            let y = rescale(a, w.mantissa[n], shift) + i64::from(bias.map_or(0, |b| b[n]));
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
fn dot(x: &[i16], codes: ParamData<'_>, start: usize) -> i64 {
    let range = start..start + x.len();
    match codes {
        ParamData::I8(w) => x.iter().zip(&w[range]).map(|(x, w)| i64::from(*x) * i64::from(*w)).sum(),
        ParamData::I16(w) => x.iter().zip(&w[range]).map(|(x, w)| i64::from(*x) * i64::from(*w)).sum(),
        _ => unreachable!("validation: weight codes are i8 or i16"),
    }
}
