//! What GELU and SiLU share: interpolation in a table, many elements at once (SPEC 4.3).

use super::CpuKernels;
use super::path::for_each_path;
use crate::tables::{INTERVALS, TABLE_FRAC, Table};

/// Room for a power of two of steps, so that a masked index needs no check.
const ROOM: usize = 2 * INTERVALS;

/// A table as steps: the value at the step's start in the low half, the rise to the next in the high half. The last
/// step is the constant 1 beyond the table.
#[derive(Debug)]
pub(super) struct Steps {
    steps: [u64; ROOM],
    /// Fractional bits of a position in the table, 16 of them within a step.
    fine: u32,
}

impl Steps {
    pub(super) fn new(table: &Table) -> Self {
        let mut steps = [1 << TABLE_FRAC; ROOM];
        for (step, ends) in steps.iter_mut().zip(table.entries.windows(2)) {
            *step = u64::from(ends[1] - ends[0]) << 32 | u64::from(ends[0]);
        }
        Self { steps, fine: table.steps_log2 + 16 }
    }

    /// `out[i] = round(x * f(x))` with `frac` fractional bits.
    pub(super) fn times_all(&self, cpu: &CpuKernels, input: &[i32], frac: u32, out: &mut [i32]) {
        let left = self.fine.saturating_sub(frac);
        let right = frac.saturating_sub(self.fine);
        // Magnitudes from here on are beyond the table; 2^26 is its end in steps of 2^-16.
        let end = ((INTERVALS as u64) << 16) << right >> left;
        cpu.threads.rows(out, 1, |start, out| {
            times(cpu.isa, &self.steps, &input[start..start + out.len()], [left, right], end, out);
            0
        });
    }
}

for_each_path! {
    fn times(steps: &[u64; ROOM], input: &[i32], shifts: [u32; 2], end: u64, out: &mut [i32]) {
        let [left, right] = shifts;
        for (y, x) in out.iter_mut().zip(input) {
            let a = u64::from(x.unsigned_abs()).min(end);
            let t = a << (left & 63) >> (right & 63);
            let step = steps[(t >> 16) as usize % ROOM];
            // The rise is below 2^24 and the rest below 2^16.
            let rise = (step >> 32).wrapping_mul(t & 0xffff).wrapping_add(0x8000) >> 16;
            let f = (step & 0xffff_ffff).wrapping_add(rise) as i64;
            let f = if *x < 0 { (1_i64 << TABLE_FRAC).wrapping_sub(f) } else { f };
            // |x| <= 2^31 and f <= 2^31.
            *y = (i64::from(*x).wrapping_mul(f).wrapping_add(1 << (TABLE_FRAC - 1)) >> TABLE_FRAC) as i32;
        }
    }
}
