//! How much work a run is: known beforehand of an embedding, and of a generation by how many tokens it draws.

use crate::canonical::{Canonical, DecodeError, Reader, Writer};

/// Multiply-accumulates of a run by the number of its commitment points. A decoder's grow with them as a polynomial of the
/// second degree: each further point takes one row of every matrix, and attends to one position more than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Of a run with one point.
    pub first: u64,
    /// What the second point adds.
    pub second: u64,
    /// By how much each further point adds more than the one before it.
    pub growth: u64,
}

impl Work {
    /// Work that does not depend on the points: an embedding has one.
    pub const fn fixed(units: u64) -> Self {
        Self { first: units, second: 0, growth: 0 }
    }

    /// From the work of runs with one, two and three points.
    pub const fn of_points([one, two, three]: [u64; 3]) -> Self {
        let second = two.saturating_sub(one);
        Self { first: one, second, growth: three.saturating_sub(two).saturating_sub(second) }
    }

    /// The work of a run with so many points, at least 1.
    pub fn units(&self, points: usize) -> u64 {
        let more = points.saturating_sub(1) as u64;
        let pairs = u128::from(more) * u128::from(more.saturating_sub(1)) / 2;
        let steps = u128::from(self.second).saturating_mul(more.into());
        let sum = steps.saturating_add(u128::from(self.growth).saturating_mul(pairs));
        u64::try_from(sum.saturating_add(self.first.into())).unwrap_or(u64::MAX)
    }
}

impl Canonical for Work {
    const MIN_BYTES: usize = 24;
    fn encode(&self, writer: &mut Writer) {
        [self.first, self.second, self.growth].into_iter().for_each(|value| writer.u64(value));
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { first: reader.u64()?, second: reader.u64()?, growth: reader.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_of_a_decoder_follows_from_three_of_its_runs() {
        // Matrices by position and by point, and causal attention, as a program counts them.
        let macs =
            |positions: u64, points: u64| 7_000 * positions + 900 * points + 64 * (positions * (positions + 1) / 2);
        let at = |prompt: u64, points: u64| macs(prompt + points - 1, points);
        for prompt in [1, 2, 17] {
            let work = Work::of_points([1, 2, 3].map(|points| at(prompt, points)));
            for points in [1, 2, 3, 4, 100, 16_384] {
                assert_eq!(work.units(points as usize), at(prompt, points));
            }
        }
        assert_eq!(Work::fixed(5).units(1), 5);
        assert_eq!(Work { first: 1, second: u64::MAX, growth: u64::MAX }.units(16_384), u64::MAX);
    }
}
