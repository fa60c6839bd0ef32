//! The two activation tables, from an exact integer procedure (SPEC section 4).
//!
//! Both are defined over the real numbers as correctly rounded values, so any procedure that reaches them will do.
//! This one sums positive power series in Q54: nothing cancels, and about 47 significant bits remain of the 31 needed.

use std::sync::LazyLock;

/// Intervals in each table; there is one more entry than intervals.
pub const INTERVALS: usize = 1_024;

/// Fractional bits of the table entries.
pub const TABLE_FRAC: u32 = 31;

/// A function on `[0, 2^(10 - steps_log2))`, tabulated at multiples of `2^-steps_log2`, that rises to 1.
#[derive(Debug)]
pub struct Table {
    /// `entries[i]` is the function at `i / 2^steps_log2`, in Q31, rounded half up.
    pub entries: [u32; INTERVALS + 1],
    /// Binary logarithm of the number of table steps per unit.
    pub steps_log2: u32,
}

/// Gauss integral `Φ(x) = (1 + erf(x / √2)) / 2` on `[0, 8]`, 128 steps per unit (SPEC 4.1).
pub static GAUSS: LazyLock<Table> =
    LazyLock::new(|| Table { entries: std::array::from_fn(|i| gauss(i as u128, 128)), steps_log2: 7 });

/// Logistic function `σ(x) = 1 / (1 + exp(-x))` on `[0, 16]`, 64 steps per unit (SPEC 4.2).
pub static SIGMOID: LazyLock<Table> =
    LazyLock::new(|| Table { entries: std::array::from_fn(|i| sigmoid(i as u128, 64)), steps_log2: 6 });

impl Table {
    /// The function at `|x|`, in Q31, by linear interpolation (SPEC 4.3). `x` has `frac <= 31` fractional bits.
    ///
    /// Beyond the last entry the function is 1, that is, `2^31`.
    #[inline]
    pub fn at_magnitude(&self, x: i32, frac: u32) -> u32 {
        let fine = self.steps_log2 + 16;
        let a = u64::from(x.unsigned_abs());
        let t = if frac <= fine { a << (fine - frac) } else { a >> (frac - fine) };
        let index = t >> 16;
        if index >= INTERVALS as u64 {
            return 1 << TABLE_FRAC;
        }
        let (low, high) = (self.entries[index as usize], self.entries[index as usize + 1]);
        let rise = u64::from(high - low) * (t & 0xffff);
        low + ((rise + 0x8000) >> 16) as u32
    }

    /// `x * f(x)`, rounded half up, where `f(-x) = 1 - f(x)` (SPEC 4.3). Never leaves the range of `i32`.
    #[inline]
    pub fn times(&self, x: i32, frac: u32) -> i32 {
        let f = i64::from(self.at_magnitude(x, frac));
        let f = if x < 0 { (1 << TABLE_FRAC) - f } else { f };
        crate::fixed::round_shift(i64::from(x) * f, TABLE_FRAC) as i32
    }
}

const ONE: u128 = 1 << 54;

/// `exp(numerator / denominator)` in Q54 for an exponent of at most 32: the Taylor series, all terms positive.
fn exp_q54(numerator: u128, denominator: u128) -> u128 {
    let (mut sum, mut term, mut n) = (ONE, ONE, 1);
    while term > 0 {
        term = term * numerator / (denominator * n);
        sum += term;
        n += 1;
    }
    sum
}

/// `round(2^31 * Φ(i / steps))` by `Φ(x) = 1/2 + φ(x) * (x + x^3/3 + x^5/(3*5) + ...)`; `steps` is at most 2,048.
fn gauss(i: u128, steps: u128) -> u32 {
    /// `floor(2^64 / sqrt(2π))`.
    const INV_SQRT_2PI: u128 = 7_359_186_146_747_302_452;
    let (mut sum, mut n) = (0, 3);
    let mut term = ONE * i / steps;
    while term > 0 {
        sum += term;
        term = term * i / steps * i / (steps * n);
        n += 2;
    }
    // Both sums are below 2^101. Dropping the same low bits of both leaves at least 54 significant bits in the
    // divisor and keeps the product with the constant inside 128 bits.
    let exp = exp_q54(i * i, 2 * steps * steps);
    let drop = (128 - exp.leading_zeros()).saturating_sub(62);
    let ratio = ((sum >> drop) * INV_SQRT_2PI) / (exp >> drop);
    ((1_u128 << 30) + ((ratio + (1 << 32)) >> 33)) as u32
}

/// `round(2^31 * σ(i / steps))` by `σ(x) = e^x / (e^x + 1)`.
fn sigmoid(i: u128, steps: u128) -> u32 {
    let exp = exp_q54(i, steps);
    let sum = exp + ONE;
    // At most 2^78 + 2^54: room for the 32 more bits of the quotient.
    (((exp << 32) / sum + 1) >> 1) as u32
}

#[cfg(test)]
#[allow(clippy::float_arithmetic, reason = "errors against real functions are floats")]
mod tests {
    use super::*;

    /// Tables are constants of the specification: a changed digest is a different arithmetic.
    #[test]
    fn digests_are_pinned() {
        for (table, digest) in [
            (&GAUSS, "2ee8b5620a984222fe9011987d34bf9b2b5feab06887db9cb837b3ec6a365d4a"),
            (&SIGMOID, "f3326dc31843ec22c48e3b9aea5600b1ddd08db584cf3543486ca321c8d7c6f7"),
        ] {
            let bytes: Vec<u8> = table.entries.iter().flat_map(|e| e.to_le_bytes()).collect();
            assert_eq!(blake3::hash(&bytes).to_hex().as_str(), digest);
        }
    }

    /// Interpolation is exact at the entries and worst between them; eight points an interval show the worst.
    #[test]
    fn interpolation_error_is_as_stated() {
        type Exact = fn(u128, u128) -> u32;
        for (table, exact, limit) in [(&GAUSS, gauss as Exact, 1.9e-6), (&SIGMOID, sigmoid as Exact, 3.0e-6)] {
            let steps = 8 << table.steps_log2;
            let frac = table.steps_log2 + 3;
            let worst = (0..8 * INTERVALS as u32)
                .map(|i| table.at_magnitude(i as i32, frac).abs_diff(exact(u128::from(i), steps)))
                .max();
            let worst = f64::from(worst.unwrap_or(u32::MAX)) / 2_f64.powi(31);
            assert!(worst <= limit, "{worst:e} > {limit:e}");
            assert!(worst >= limit / 2.0, "the stated bound is loose: {worst:e}");
        }
    }

    #[test]
    fn ends_and_monotonicity() {
        for table in [&GAUSS, &SIGMOID] {
            assert_eq!(table.entries[0], 1 << 30);
            assert!(table.entries.windows(2).all(|w| w[0] <= w[1]));
            assert!(table.entries[INTERVALS] > (1_u32 << 31) - 400);
        }
    }
}
