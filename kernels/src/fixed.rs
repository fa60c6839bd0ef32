//! Scalar fixed-point arithmetic shared by the ops (SPEC section 3).
//!
//! Rounding is half up everywhere: `round(a / 2^s) = floor((a + 2^(s-1)) / 2^s)`.

/// Largest magnitude of an activation or `w16` weight code: `256*127 + 127`, so that every code splits into two
/// signed 8-bit digits (SPEC 2.5).
pub const CODE_MAX: i32 = 32_639;

/// Fractional bits of attention scores, in log2 units (SPEC 5.7).
pub const SCORE_FRAC: u32 = 20;

/// `a / 2^s`, rounded half up, for any `s >= 0`. `s >= 63` gives 0, which equals the exact value for
/// `|a| <= 2^62` (SPEC 3.1).
#[inline]
pub fn round_shift(a: i64, s: u32) -> i64 {
    match s {
        0 => a,
        1..=62 => (a >> s) + ((a >> (s - 1)) & 1),
        _ => 0,
    }
}

/// Clamps to the range of `i32` and tells whether that changed the value.
#[inline]
pub fn sat32(a: i64) -> (i32, bool) {
    let y = a.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
    (y as i32, y != a)
}

/// Clamps to `-CODE_MAX..=CODE_MAX` and tells whether that changed the value.
#[inline]
pub fn sat_code(a: i64) -> (i16, bool) {
    let y = a.clamp(-i64::from(CODE_MAX), i64::from(CODE_MAX));
    (y as i16, y != a)
}

/// Rescales an accumulator by `m / 2^s` with one rounding, before bias and saturation (SPEC 3.2).
///
/// `|a| < 2^46` and `m < 2^16`, so `a * m` is below `2^62`. For `s < 0` the product is multiplied by `2^-s` and
/// saturates at `±2^62`, which a shift of 62 reaches for any nonzero product.
#[inline]
pub fn rescale(a: i64, m: u16, s: i64) -> i64 {
    let p = a * i64::from(m);
    if s >= 0 {
        return round_shift(p, s.min(63) as u32);
    }
    let limit = 1_i64 << 62;
    let left = (-s).min(62) as u32;
    let wide = i128::from(p) << left;
    wide.clamp(i128::from(-limit), i128::from(limit)) as i64
}

/// Number of bits of `v`: 0 for 0, otherwise `floor(log2 v) + 1`.
#[inline]
pub fn bit_length(v: u64) -> u32 {
    64 - v.leading_zeros()
}

/// The largest magnitude, 0 of nothing.
#[inline]
pub fn magnitude(x: impl Iterator<Item = i32>) -> u32 {
    x.map(i32::unsigned_abs).max().unwrap_or(0)
}

/// Row exponent of a block floating point row with largest magnitude `max` (SPEC 3.3): the smallest `e >= 0` for
/// which `max / 2^e`, rounded half up, is at most [`CODE_MAX`].
#[inline]
pub fn row_exponent(max: u32) -> u32 {
    let mut e = bit_length(u64::from(max)).saturating_sub(15);
    while round_shift(i64::from(max), e) > i64::from(CODE_MAX) {
        e += 1;
    }
    e
}

/// Normalised reciprocal (SPEC 3.4): for `v > 0` with `n` bits, let `x` be the top 32 bits of `v` (shifted left when
/// `n < 32`); returns `r = floor(2^62 / x)`, so `1/v ≈ r * 2^-(n+30)` and `2^30 < r <= 2^31`.
///
/// Relative error at most `2^-30 + 2^-31`, always from below in `r`. `v = 0` gives 0.
#[inline]
pub fn recip(v: u64) -> u32 {
    if v == 0 {
        return 0;
    }
    let n = bit_length(v);
    let x = if n >= 32 { v >> (n - 32) } else { v << (32 - n) };
    ((1_u64 << 62) / x) as u32
}

/// Normalised inverse square root (SPEC 3.5): `(r, p)` with `1/sqrt(v) ≈ r * 2^-(46+p)` and `2^30 <= r <= 2^31`.
///
/// `p` is the integer for which `x = floor(v / 4^p)` lies in `[2^30, 2^32)`, and `r = floor(2^46 / sqrt(x))`, that
/// is, the largest integer with `r*r*x <= 2^92`. Relative error at most `2^-29`. `v = 0` gives `(0, 0)`.
#[inline]
pub fn rsqrt(v: u64) -> (u32, i32) {
    if v == 0 {
        return (0, 0);
    }
    let n = bit_length(v) as i32;
    let p = (n - 31).div_euclid(2);
    let x = if p >= 0 { v >> (2 * p) } else { v << (-2 * p) };
    let r = ((1_u128 << 92) / u128::from(x)).isqrt();
    (r as u32, p)
}

/// Coefficients of the quartic for `2^-f` on `[0, 1)`, in Q30, constant term first (SPEC 3.6).
pub const EXP2_COEFFICIENTS: [i64; 5] = [1_073_741_824, -744_171_352, 257_114_789, -57_148_512, 7_335_765];

/// `2^-f` in Q30 for `f` in Q20, `0 <= f < 2^20`; Horner's rule with one half-up rounding per step (SPEC 3.6).
#[inline]
pub fn exp2_neg_fraction(f: u32) -> i64 {
    let [c0, c1, c2, c3, c4] = EXP2_COEFFICIENTS;
    let f = i64::from(f);
    let mut p = c4;
    for c in [c3, c2, c1, c0] {
        p = c + round_shift(p * f, SCORE_FRAC);
    }
    p
}

/// Softmax weight `min(32767, round(2^15 * 2^-d))` for a distance `d >= 0` in Q20 log2 units (SPEC 3.7).
#[inline]
pub fn softmax_weight(d: u64) -> u16 {
    let n = d >> SCORE_FRAC;
    if n > 30 {
        return 0;
    }
    let p = exp2_neg_fraction((d & ((1 << SCORE_FRAC) - 1)) as u32);
    round_shift(p, 15 + n as u32).min(32_767) as u16
}

#[cfg(test)]
#[allow(clippy::float_arithmetic, reason = "errors against real functions are floats")]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_half_up() {
        assert_eq!([-3, -2, -1, 0, 1, 2, 3].map(|a| round_shift(a, 1)), [-1, -1, 0, 0, 1, 1, 2]);
        assert_eq!(round_shift(i64::MAX, 62), 2);
        assert_eq!(round_shift(1 << 62, 63), 0);
        assert_eq!(round_shift(-5, 0), -5);
    }

    #[test]
    fn rescale_agrees_with_wide_integers() {
        for a in [0, 1, -1, 5, (1 << 46) - 1, -(1 << 46) + 1] {
            for m in [1_u16, 1 << 15, u16::MAX] {
                for s in -70_i64..=70 {
                    let p = i128::from(a) * i128::from(m);
                    let exact = if s > 0 { (p + (1 << (s - 1))) >> s } else { p << (-s).min(60) };
                    let clamp = |v: i128| v.clamp(i128::from(i32::MIN), i128::from(i32::MAX));
                    assert_eq!(clamp(rescale(a, m, s).into()), clamp(exact), "a={a} m={m} s={s}");
                }
            }
        }
    }

    #[test]
    fn row_exponent_is_the_smallest_that_fits() {
        for max in (0..70_000).chain((1 << 31) - 70_000..=1 << 31) {
            let e = row_exponent(max);
            assert!(round_shift(i64::from(max), e) <= i64::from(CODE_MAX));
            assert!(e == 0 || round_shift(i64::from(max), e - 1) > i64::from(CODE_MAX));
        }
    }

    /// Every fraction there is: the stated error is the true maximum.
    #[test]
    fn exp2_error_is_as_stated() {
        let error = |f: u32| {
            let exact = 2_f64.powf(30.0 - f64::from(f) / 2_f64.powi(20));
            (exp2_neg_fraction(f) as f64 / exact - 1.0).abs()
        };
        let worst = (0..1 << SCORE_FRAC).map(error).fold(0.0, f64::max);
        assert!((2.9e-6..3.0e-6).contains(&worst), "{worst:e}");
        assert!((1..1 << SCORE_FRAC).all(|f| exp2_neg_fraction(f) <= exp2_neg_fraction(f - 1)));
    }

    #[test]
    fn softmax_weights_fit_and_fall() {
        assert_eq!(softmax_weight(0), 32_767);
        assert_eq!(softmax_weight(1 << SCORE_FRAC), 16_384);
        assert_eq!(softmax_weight(31 << SCORE_FRAC), 0);
        assert_eq!(softmax_weight(u64::from(u32::MAX) + 1), 0);
    }

    /// Boundaries of every bit length, and a spread of values between.
    fn samples() -> impl Iterator<Item = u64> {
        let mixed = (0..200_000_u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (i % 64));
        (0..64).flat_map(|b| [1 << b, (1 << b) - 1, (1 << b) + 1]).chain(mixed).chain([u64::MAX]).filter(|v| *v > 0)
    }

    #[test]
    fn recip_error_is_as_stated() {
        for v in samples() {
            let r = recip(v);
            let scaled = f64::from(r) * v as f64 * 2_f64.powi(-(bit_length(v) as i32 + 30));
            assert!((1 << 30..=1 << 31).contains(&r));
            assert!((scaled - 1.0).abs() <= 1.5 * 2_f64.powi(-30), "v={v}: {:e}", scaled - 1.0);
        }
        assert_eq!(recip(0), 0);
    }

    #[test]
    fn rsqrt_error_is_as_stated() {
        for v in samples() {
            let (r, p) = rsqrt(v);
            let scaled = f64::from(r) * (v as f64).sqrt() * 2_f64.powi(-(46 + p));
            assert!((1 << 30..=1 << 31).contains(&r));
            assert!((scaled - 1.0).abs() <= 2_f64.powi(-29), "v={v}: {:e}", scaled - 1.0);
        }
        assert_eq!(rsqrt(0), (0, 0));
    }
}
