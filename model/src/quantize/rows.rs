//! The scale of one row, and the codes next to `w / scale`, exactly.

use crate::exact::{exp2, log2_floor};

/// `scale = mantissa * 2^-shift`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowScale {
    /// In `[2^15, 2^16)`.
    pub mantissa: u16,
    /// Any sign.
    pub shift: i32,
}

impl RowScale {
    /// The smallest scale with a 16-bit mantissa under which no code of the row exceeds `code_max`: the real scale
    /// `max |w| / code_max`, rounded up. A row of zeros gets `2^15 * 2^-15`.
    ///
    /// `row` is finite, with magnitudes below 2^200 (products of a float and a small constant).
    pub fn of(row: &[f64], code_max: i32) -> Self {
        let max = row.iter().fold(0.0_f64, |max, w| max.max(w.abs()));
        if max < exp2(-300) {
            return Self { mantissa: 1 << 15, shift: 15 };
        }
        let limit = f64::from(code_max);
        let mut shift = 15 + log2_floor(limit) - log2_floor(max);
        let mut mantissa = smallest_cover(max * exp2(shift), limit);
        while mantissa < 32_768.0 {
            shift += 1;
            mantissa = smallest_cover(max * exp2(shift), limit);
        }
        while mantissa >= 65_536.0 {
            shift -= 1;
            mantissa = smallest_cover(max * exp2(shift), limit);
        }
        Self { mantissa: mantissa as u16, shift }
    }

    /// The scale as a number, exactly.
    pub fn value(self) -> f64 {
        f64::from(self.mantissa) * exp2(-self.shift)
    }

    /// `floor(w / scale)`. Products of a code and the mantissa are exact doubles, so the comparisons are too.
    pub fn floor(self, w: f64) -> i32 {
        let (w, m) = (w * exp2(self.shift), f64::from(self.mantissa));
        let guess = (w / m).floor();
        let floor = if guess * m > w {
            guess - 1.0
        } else if (guess + 1.0) * m <= w {
            guess + 1.0
        } else {
            guess
        };
        floor as i32
    }

    /// `floor(w / scale + 1/2)`.
    pub fn nearest(self, w: f64) -> i32 {
        let floor = self.floor(w);
        let middle = (2.0 * f64::from(floor) + 1.0) * f64::from(self.mantissa);
        floor + i32::from(2.0 * w * exp2(self.shift) >= middle)
    }

    /// Whether `code` is the floor or the ceiling of `w / scale`.
    pub fn encloses(self, w: f64, code: i32) -> bool {
        let floor = self.floor(w);
        code == floor || (code == floor + 1 && !self.is_exact(w, floor))
    }

    /// Whether `code * scale` is `w`.
    pub fn is_exact(self, w: f64, code: i32) -> bool {
        f64::from(code) * f64::from(self.mantissa) == w * exp2(self.shift)
    }
}

/// The smallest integer `m` with `m * limit >= x`.
fn smallest_cover(x: f64, limit: f64) -> f64 {
    let guess = (x / limit).ceil();
    if guess * limit < x {
        guess + 1.0
    } else if (guess - 1.0) * limit >= x {
        guess - 1.0
    } else {
        guess
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn scale_is_the_smallest_that_covers(w in -1e3_f32..1e3, e in -140_i32..60, wide in any::<bool>()) {
            let code_max = if wide { 32_639 } else { 127 };
            let w = f64::from(w) * exp2(e);
            prop_assume!(w != 0.0);
            let scale = RowScale::of(&[w, w / 3.0, 0.0], code_max);
            prop_assert!(scale.mantissa >= 1 << 15);
            prop_assert!(scale.value() * f64::from(code_max) >= w.abs());
            prop_assert!((scale.value() - exp2(-scale.shift)) * f64::from(code_max) < w.abs());
            for w in [w, w / 3.0, -w / 7.0, 0.0] {
                let (floor, nearest) = (scale.floor(w), scale.nearest(w));
                prop_assert!(f64::from(floor) * scale.value() <= w && w < f64::from(floor + 1) * scale.value());
                prop_assert!((f64::from(nearest) * scale.value() - w).abs() <= scale.value() / 2.0);
                prop_assert!(nearest.abs() <= code_max);
                prop_assert!(scale.encloses(w, nearest) && scale.encloses(w, floor));
                prop_assert!(!scale.encloses(w, floor - 1) && !scale.encloses(w, floor + 2));
            }
        }
    }

    #[test]
    fn exact_multiples_have_one_code() {
        let scale = RowScale::of(&[127.0 * 40_000.0], 127);
        assert_eq!(scale, RowScale { mantissa: 40_000, shift: 0 });
        assert!(scale.encloses(80_000.0, 2) && !scale.encloses(80_000.0, 3) && !scale.encloses(80_000.0, 1));
        assert_eq!(RowScale::of(&[0.0, -0.0], 127), RowScale { mantissa: 1 << 15, shift: 15 });
        assert_eq!(RowScale::of(&[0.0], 127).floor(0.0), 0);
    }
}
