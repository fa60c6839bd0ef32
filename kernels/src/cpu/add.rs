//! Saturating sum (SPEC 5.4).

use super::CpuKernels;
use super::path::for_each_path;

/// Twin of [`crate::reference::add::add`].
pub(super) fn add(cpu: &CpuKernels, a: &[i32], b: &[i32], out: &mut [i32]) -> u64 {
    cpu.threads.rows(out, 1, |start, out| {
        let end = start + out.len();
        sum(cpu.isa, &a[start..end], &b[start..end], out)
    })
}

for_each_path! {
    fn sum(a: &[i32], b: &[i32], out: &mut [i32]) -> u64 {
        let mut saturations = 0_u64;
        for ((y, a), b) in out.iter_mut().zip(a).zip(b) {
            // The wrapped sum is wrong exactly where both terms have the sign that it lacks.
            let sum = a.wrapping_add(*b);
            let clamped = ((a ^ sum) & (b ^ sum)) < 0;
            *y = if clamped { (*a >> 31) ^ i32::MAX } else { sum };
            saturations = saturations.wrapping_add(u64::from(clamped));
        }
        saturations
    }
}
