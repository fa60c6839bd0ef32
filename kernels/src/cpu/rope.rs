//! Rotary position embedding (SPEC 5.13).

use super::CpuKernels;
use super::path::for_each_path;
use crate::host::RopeArgs;

/// Twin of [`crate::reference::rope::rope`].
pub(super) fn rope(cpu: &CpuKernels, input: &[i32], args: RopeArgs<'_>, positions: &[u32], out: &mut [i16]) -> u64 {
    let (isa, dim) = (cpu.isa, args.head_dim);
    let cols = args.shift.len() * dim;
    cpu.threads.rows(out, cols, |first, out| {
        let mut angles = [Vec::new(), Vec::new()];
        let mut saturations = 0;
        let rows = input[first * cols..].chunks_exact(cols).zip(out.chunks_exact_mut(cols));
        for ((x, y), position) in rows.zip(&positions[first..]) {
            let row = args.row(*position);
            for (i, angles) in angles.iter_mut().enumerate() {
                angles.clear();
                angles.extend(row.iter().skip(i).step_by(2));
            }
            let heads = x.chunks_exact(dim).zip(y.chunks_exact_mut(dim));
            for ((x, y), shift) in heads.zip(args.shift) {
                saturations += rotate(isa, x, &angles[0], &angles[1], u32::from(*shift), y);
            }
        }
        saturations
    })
}

for_each_path! {
    /// One head. `(sum + 2^(s-1)) >> s` could wrap; `(sum >> s) + bit s-1` can't.
    fn rotate(x: &[i32], cos: &[i32], sin: &[i32], shift: u32, out: &mut [i16]) -> u64 {
        let half = cos.len();
        let (firsts, rest) = x.split_at(half);
        let (seconds, rest) = rest.split_at(half);
        let (out_firsts, out_rest) = out.split_at_mut(half);
        let (out_seconds, out_rest) = out_rest.split_at_mut(half);
        let mut saturations = 0_u64;
        let (down, last) = ((30 + shift) & 63, (29 + shift) & 63);
        let pairs = firsts.iter().zip(seconds).zip(cos.iter().zip(sin));
        for (((x1, x2), (c, s)), (y1, y2)) in pairs.zip(out_firsts.iter_mut().zip(out_seconds)) {
            let [x1, x2, c, s] = [x1, x2, c, s].map(|v| i64::from(*v));
            // Below 2^63 in magnitude.
            let first = x1.wrapping_mul(c).wrapping_sub(x2.wrapping_mul(s));
            // Of all sums only 2^62 + 2^62 does not fit; a unit less rounds alike.
            let second = x1.wrapping_mul(s).saturating_add(x2.wrapping_mul(c));
            for (y, sum) in [(y1, first), (y2, second)] {
                let v = (sum >> down).wrapping_add(sum >> last & 1);
                *y = v.clamp(-32_639, 32_639) as i16;
                saturations = saturations.wrapping_add(u64::from(i64::from(*y) != v));
            }
        }
        let half_unit = (1_i64 << shift) >> 1;
        for (y, x) in out_rest.iter_mut().zip(rest) {
            let v = i64::from(*x).wrapping_add(half_unit) >> (shift & 63);
            *y = v.clamp(-32_639, 32_639) as i16;
            saturations = saturations.wrapping_add(u64::from(i64::from(*y) != v));
        }
        saturations
    }
}
