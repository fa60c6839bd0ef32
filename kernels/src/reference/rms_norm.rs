//! RMSNorm (SPEC 5.6).

use super::normalize::{divide_by_root, gain, scale_row, scaled_epsilon, sum_of_squares};
use crate::fixed::sat32;
use crate::host::NormArgs;

/// For each row: divide by the root of the sum of squares plus epsilon, and scale. Returns the number of clamped
/// elements.
pub fn rms_norm(input: &[i32], args: NormArgs<'_>, out: &mut [i32]) -> u64 {
    let cols = args.scale.len();
    let mut saturations = 0;
    for (x, y) in input.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
        let row = scale_row(x);
        let epsilon = scaled_epsilon(args.norm.epsilon_mantissa, args.norm.epsilon_shift, row.scale);
        let unit = divide_by_root(&row.z, sum_of_squares(&row.z) + epsilon);
        for (i, y) in y.iter_mut().enumerate() {
            let (v, clamped) = sat32(gain(unit[i], args.scale[i], args.norm.shift));
            *y = v;
            saturations += u64::from(clamped);
        }
    }
    saturations
}
