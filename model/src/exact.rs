//! Double operations whose result is the same on every machine: powers of two from bits, and exact roundings.

/// `2^n` for `-1022 <= n <= 1023`, clamped to that range.
pub fn exp2(n: i32) -> f64 {
    let biased = (n.clamp(-1022, 1023) + 1023) as u64;
    f64::from_bits(biased << 52)
}

/// `floor(log2 x)` of a positive normal number.
pub fn log2_floor(x: f64) -> i32 {
    ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

/// `floor(x + 1/2)`, exact for `|x| < 2^51`.
pub fn round_half_up(x: f64) -> i64 {
    let floor = x.floor();
    floor as i64 + i64::from(x - floor >= 0.5)
}

/// The largest `f <= cap` for which `bound * 2^f <= limit`. `None` where that would be below `floor`.
pub fn fraction_bits(bound: f64, limit: f64, floor: i32, cap: i32) -> Option<i32> {
    (floor..=cap).rev().find(|f| bound * exp2(*f) <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_and_logarithms() {
        for n in -1022..=1023 {
            assert_eq!(log2_floor(exp2(n)), n);
            assert_eq!(log2_floor(exp2(n) * 1.75), n);
        }
        assert_eq!(exp2(10), 1024.0);
        assert_eq!(exp2(-1), 0.5);
    }

    #[test]
    fn rounding_is_half_up() {
        assert_eq!([-1.5, -0.5, -0.25, 0.0, 0.49, 0.5, 1.5].map(round_half_up), [-1, 0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn fraction_bits_is_the_largest_that_fits() {
        assert_eq!(fraction_bits(1.0, 1024.0, 0, 40), Some(10));
        assert_eq!(fraction_bits(1.001, 1024.0, 0, 40), Some(9));
        assert_eq!(fraction_bits(0.0, 1024.0, 0, 40), Some(40));
        assert_eq!(fraction_bits(2000.0, 1024.0, 0, 40), None);
        assert_eq!(fraction_bits(f64::INFINITY, 1024.0, 0, 40), None);
    }
}
