//! RMSNorm (SPEC 5.6).

use super::CpuKernels;
use super::normalize::{Factor, centre_row, finish_row, magnitude, root_factor, row_scale, scale_row};
use crate::host::NormArgs;
use crate::reference::normalize::scaled_epsilon;

/// Twin of [`crate::reference::rms_norm::rms_norm`].
pub(super) fn rms_norm(cpu: &CpuKernels, input: &[i32], args: NormArgs<'_>, out: &mut [i32]) -> u64 {
    let (isa, cols, norm) = (cpu.isa, args.scale.len(), args.norm);
    cpu.threads.rows(out, cols, |first, out| {
        let mut z = vec![0; cols];
        let rows = input[first * cols..].chunks_exact(cols).zip(out.chunks_exact_mut(cols));
        rows.map(|(x, y)| {
            let scale = row_scale(magnitude(isa, x));
            scale_row(isa, x, scale, &mut z);
            let squares = centre_row(isa, &mut z, 0);
            let epsilon = scaled_epsilon(norm.epsilon_mantissa, norm.epsilon_shift, scale);
            let (factor, shift) = root_factor(squares + epsilon);
            finish_row(isa, &z, Factor { factor, shift }, args.scale, u32::from(norm.shift), &[], y)
        })
        .sum()
    })
}
