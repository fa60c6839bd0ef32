//! LayerNorm (SPEC 5.5).

use super::normalize::{divide_by_root, gain, mean, scale_row, scaled_epsilon, sum_of_squares};
use crate::fixed::sat32;
use crate::host::NormArgs;

/// For each row: centre it, divide by the root of the sum of squares plus epsilon, scale, add the bias. Returns the
/// number of clamped elements.
pub fn layer_norm(input: &[i32], args: NormArgs<'_>, bias: &[i32], out: &mut [i32]) -> u64 {
    let cols = args.scale.len();
    let mut saturations = 0;
    for (x, y) in input.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
        let row = scale_row(x);
        let mean = mean(row.z.iter().sum(), cols as i64);
        let centred: Vec<i64> = row.z.iter().map(|z| z - mean).collect();
        let epsilon = scaled_epsilon(args.norm.epsilon_mantissa, args.norm.epsilon_shift, row.scale);
        let unit = divide_by_root(&centred, sum_of_squares(&centred) + epsilon);
        for (i, y) in y.iter_mut().enumerate() {
            let scaled = gain(unit[i], args.scale[i], args.norm.shift);
            let (v, clamped) = sat32(scaled + i64::from(bias[i]));
            *y = v;
            saturations += u64::from(clamped);
        }
    }
    saturations
}
