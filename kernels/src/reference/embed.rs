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
            let rows = tables.iter().zip(index);
            let (sum, clamped) = total(rows.map(|(table, index)| of_table(table, index[t] as usize, i)));
            *y = sum;
            saturations += u64::from(clamped);
        }
    }
    saturations
}

fn of_table(table: &Scaled<'_>, row: usize, i: usize) -> i64 {
    let codes = table.codes.as_i16().expect("validation: embedding tables are w16");
    match table.mantissa.get(row) {
        Some(m) => element(codes[row * table.cols + i], *m, table.shift[row]),
        None => 0,
    }
}

/// What one table contributes.
pub fn element(code: i16, mantissa: u16, shift: i16) -> i64 {
    rescale(code.into(), mantissa, shift.into())
}

/// The saturating sum over tables, and whether it was clamped.
pub fn total(elements: impl Iterator<Item = i64>) -> (i32, bool) {
    // Eight tables whose elements were shifted left to ±2^62 leave 64 bits.
    let sum: i128 = elements.map(i128::from).sum();
    sat32(sum.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
}
