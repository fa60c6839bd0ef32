//! Sum of embedding rows (SPEC 5.1).

use crate::fixed::{rescale, sat32};
use crate::host::Scaled;

/// `out[t,i] = sat32(sum over tables of rescale(codes[row,i], mantissa[row], shift[row]))` with
/// `row = index[table][t]`; a row beyond the table counts as zeros. Returns the number of clamped elements.
pub fn embed(tables: &[Scaled<'_>], index: &[Vec<u32>], out: &mut [i32]) -> u64 {
    let Some(cols) = tables.first().map(|t| t.cols) else { return 0 };
    let mut saturations = 0;
    for (t, y) in out.chunks_exact_mut(cols).enumerate() {
        for (i, y) in y.iter_mut().enumerate() {
            // Eight tables whose elements were shifted left to ±2^62 leave 64 bits.
            let rows = tables.iter().zip(index);
            let sum: i128 = rows.map(|(table, index)| i128::from(element(table, index[t] as usize, i))).sum();
            let (sum, clamped) = sat32(sum.clamp(i64::MIN.into(), i64::MAX.into()) as i64);
            *y = sum;
            saturations += u64::from(clamped);
        }
    }
    saturations
}

fn element(table: &Scaled<'_>, row: usize, i: usize) -> i64 {
    let codes = table.codes.as_i16().expect("validation: embedding tables are w16");
    match table.mantissa.get(row) {
        Some(m) => rescale(i64::from(codes[row * table.cols + i]), *m, i64::from(table.shift[row])),
        None => 0,
    }
}
