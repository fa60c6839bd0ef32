//! Product, element by element (SPEC 5.14).

use super::CpuKernels;
use super::path::for_each_path;

/// Twin of [`crate::reference::multiply::multiply`].
pub(super) fn multiply(cpu: &CpuKernels, a: &[i32], b: &[i32], shift: u32, out: &mut [i32]) -> u64 {
    cpu.threads.rows(out, 1, |start, out| {
        let end = start + out.len();
        product(cpu.isa, &a[start..end], &b[start..end], shift, out)
    })
}

for_each_path! {
    fn product(a: &[i32], b: &[i32], shift: u32, out: &mut [i32]) -> u64 {
        let half = (1_i64 << shift) >> 1;
        let mut saturations = 0_u64;
        for ((y, a), b) in out.iter_mut().zip(a).zip(b) {
            // A product is at most 2^62 and a half at most 2^61.
            let v = i64::from(*a).wrapping_mul(i64::from(*b)).wrapping_add(half) >> (shift & 63);
            *y = v.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
            saturations = saturations.wrapping_add(u64::from(i64::from(*y) != v));
        }
        saturations
    }
}
