//! Fewer fractional bits (SPEC 5.15).

use super::CpuKernels;
use super::path::for_each_path;

/// Twin of [`crate::reference::shift::shift`].
pub(super) fn shift(cpu: &CpuKernels, input: &[i32], shift: u32, out: &mut [i32]) {
    cpu.threads.rows(out, 1, |start, out| {
        round(cpu.isa, &input[start..start + out.len()], shift, out);
        0
    });
}

for_each_path! {
    fn round(input: &[i32], shift: u32, out: &mut [i32]) {
        let half = (1_i64 << shift) >> 1;
        for (y, x) in out.iter_mut().zip(input) {
            *y = (i64::from(*x).wrapping_add(half) >> (shift & 63)) as i32;
        }
    }
}
