//! Sum of embedding rows (SPEC 5.1).

use super::CpuKernels;
use super::path::for_each_path;
use crate::host::Scaled;

/// Twin of [`crate::reference::embed::embed`].
pub(super) fn embed(cpu: &CpuKernels, tables: &[Scaled<'_>], index: &[Vec<u32>], out: &mut [i32]) -> u64 {
    let Some(cols) = tables.first().map(|t| t.cols) else { return 0 };
    cpu.threads.rows(out, cols, |first, out| {
        let mut sums = vec![0; cols];
        let rows = out.chunks_exact_mut(cols).enumerate();
        rows.map(|(t, out)| row(cpu, tables, index, first + t, &mut sums, out)).sum()
    })
}

/// One output row; `sums` is scratch of its width.
fn row(
    cpu: &CpuKernels,
    tables: &[Scaled<'_>],
    index: &[Vec<u32>],
    t: usize,
    sums: &mut [i64],
    out: &mut [i32],
) -> u64 {
    sums.fill(0);
    for (table, rows) in tables.iter().zip(index) {
        let row = rows[t] as usize;
        let Some(mantissa) = table.mantissa.get(row) else { continue };
        let Ok(shift) = u32::try_from(table.shift[row]) else {
            // A left shift may leave 64 bits. No sensible table has one.
            let index: Vec<_> = index.iter().map(|rows| vec![rows[t]]).collect();
            return crate::reference::embed::embed(tables, &index, out);
        };
        let codes = table.codes.as_i16().expect("validation: embedding tables are w16");
        add_row(cpu.isa, &codes[row * table.cols..(row + 1) * table.cols], *mantissa, shift.min(63), sums);
    }
    saturate(cpu.isa, sums, out)
}

for_each_path! {
    /// `sums[i] += round(codes[i] * mantissa / 2^shift)`.
    fn add_row(codes: &[i16], mantissa: u16, shift: u32, sums: &mut [i64]) {
        let half = ((1_u64 << shift) >> 1) as i64;
        for (sum, code) in sums.iter_mut().zip(codes) {
            // Products are below 2^31, and a half is at most 2^62: nothing wraps.
            let product = i64::from(i32::from(*code).wrapping_mul(i32::from(mantissa)));
            *sum = sum.wrapping_add(product.wrapping_add(half) >> (shift & 63));
        }
    }
}

for_each_path! {
    fn saturate(sums: &[i64], out: &mut [i32]) -> u64 {
        let mut saturations = 0_u64;
        for (y, sum) in out.iter_mut().zip(sums) {
            *y = (*sum).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
            saturations = saturations.wrapping_add(u64::from(i64::from(*y) != *sum));
        }
        saturations
    }
}
