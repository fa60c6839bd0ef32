//! Rotary position embedding (SPEC 5.13).

use crate::fixed::{round_shift, sat_code};
use crate::host::RopeArgs;

/// Fractional bits of the table.
const TABLE_FRAC: u32 = 30;

/// Each row's heads, their pairs rotated by the angles of the row's position and brought to 16 bits. Returns the number
/// of clamped elements.
pub fn rope(input: &[i32], args: RopeArgs<'_>, positions: &[u32], out: &mut [i16]) -> u64 {
    let cols = args.shift.len() * args.head_dim;
    let mut saturations = 0;
    for ((x, y), position) in input.chunks_exact(cols).zip(out.chunks_exact_mut(cols)).zip(positions) {
        let angles = args.row(*position);
        let heads = x.chunks_exact(args.head_dim).zip(y.chunks_exact_mut(args.head_dim));
        saturations += heads.zip(args.shift).map(|((x, y), shift)| head(x, angles, *shift, y)).sum::<u64>();
    }
    saturations
}

/// One head; `angles` is `cos_0, sin_0, cos_1, sin_1, ...`.
fn head(x: &[i32], angles: &[i32], shift: u8, out: &mut [i16]) -> u64 {
    let half = angles.len() / 2;
    let mut saturations = 0;
    for (i, y) in out.iter_mut().enumerate() {
        let value = match i {
            _ if i < half => first(x[i], x[i + half], angles[2 * i], angles[2 * i + 1], shift),
            _ if i < 2 * half => second(x[i - half], x[i], angles[2 * (i - half)], angles[2 * (i - half) + 1], shift),
            _ => round_shift(x[i].into(), shift.into()),
        };
        let (code, clamped) = sat_code(value);
        *y = code;
        saturations += u64::from(clamped);
    }
    saturations
}

/// The first of a rotated pair before it saturates: `x1 * cos - x2 * sin`, for a shift of at most 32.
pub fn first(x1: i32, x2: i32, cos: i32, sin: i32, shift: u8) -> i64 {
    let sum = i64::from(x1) * i64::from(cos) - i64::from(x2) * i64::from(sin);
    round_shift(sum, TABLE_FRAC + u32::from(shift))
}

/// The second of a rotated pair before it saturates: `x1 * sin + x2 * cos`, for a shift of at most 32.
pub fn second(x1: i32, x2: i32, cos: i32, sin: i32, shift: u8) -> i64 {
    // The one sum that leaves 64 bits, 2^63, is far beyond a code or, with the largest shifts, rounds alike.
    let sum = (i64::from(x1) * i64::from(sin)).saturating_add(i64::from(x2) * i64::from(cos));
    round_shift(sum, TABLE_FRAC + u32::from(shift))
}
