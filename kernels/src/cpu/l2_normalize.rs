//! Scaling to unit length (SPEC 5.12).

use super::CpuKernels;
use super::normalize::{centre_row, magnitude, root_factor, row_scale, scale_row};
use super::path::for_each_path;

/// Twin of [`crate::reference::l2_normalize::l2_normalize`].
pub(super) fn l2_normalize(cpu: &CpuKernels, input: &[i32], cols: usize, out: &mut [i32]) {
    let isa = cpu.isa;
    cpu.threads.rows(out, cols, |first, out| {
        let mut z = vec![0; cols];
        for (x, y) in input[first * cols..].chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
            scale_row(isa, x, row_scale(magnitude(isa, x)), &mut z);
            let squares = centre_row(isa, &mut z, 0);
            let (factor, shift) = root_factor(squares);
            unit_row(isa, &z, factor, shift, y);
        }
        0
    });
}

for_each_path! {
    /// `out[i] = round(z[i] * factor / 2^shift)`.
    fn unit_row(z: &[i64], factor: i64, shift: u32, out: &mut [i32]) {
        let half = (1_i64 << shift) >> 1;
        for (y, z) in out.iter_mut().zip(z) {
            // |z| <= 2^30 and the factor is at most 2^31: nothing wraps.
            *y = (z.wrapping_mul(factor).wrapping_add(half) >> (shift & 63)) as i32;
        }
    }
}
