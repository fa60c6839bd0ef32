//! Thresholds of weights, one digit of 4 bits after the other: the measure of each digit by blocks of weights, then the
//! digit (SPEC 24.17).

use super::lower::Lowering;
use super::view::{Data, View};
use super::{At, Filter, Part, PlanError, Read, Width, maxima};

/// Bits of a digit.
const DIGIT_BITS: u32 = 4;
/// Values of a digit.
const DIGITS: u64 = 1 << DIGIT_BITS;
/// Digits of a threshold.
pub(super) const COUNT: u8 = 8;

/// The steps of one threshold. What it needs to reach is a number, or a share of what an earlier threshold keeps.
#[derive(Debug)]
pub(super) struct Threshold {
    filter: Filter,
    /// Weights, and how many there are.
    weights: View,
    len: u64,
    goal: Goal,
    /// For each digit the measure of every value, `[16, blocks]`.
    histograms: Vec<View>,
    /// For each digit the threshold so far, and what is still to be reached by the digits below: `[1, 2]`.
    digits: Vec<View>,
}

/// What the measures of the weights that are kept must reach.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    /// This.
    Number(u64),
    /// The share, in ten-thousandths, of the sum of the blocks' sums.
    Share(u32, View),
}

/// First bit of a digit.
fn shift(digit: u8) -> u32 {
    DIGIT_BITS * u32::from(COUNT - 1 - digit)
}

impl Threshold {
    /// Adds the steps.
    pub(super) fn lower(
        lowering: &mut Lowering<'_>,
        filter: Filter,
        weights: View,
        len: u64,
        goal: Goal,
    ) -> Result<Self, PlanError> {
        let (mut histograms, mut digits) = (vec![], vec![]);
        for digit in 0..COUNT {
            let shape = [DIGITS, maxima::blocks(len)];
            histograms.push(lowering.block(Part::Histogram(filter, digit), shape, Width::I64)?);
            digits.push(lowering.block(Part::Digit(filter, digit), [1, 2], Width::I64)?);
        }
        Ok(Self { filter, weights, len, goal, histograms, digits })
    }

    /// Which one it is.
    pub(super) const fn filter(&self) -> Filter {
        self.filter
    }

    /// The threshold.
    pub(super) fn read(&self) -> Read {
        self.digits[usize::from(COUNT) - 1].one(0, 0)
    }

    /// Chunks of [`read`](Self::read).
    pub(super) fn read_chunks(&self) -> u64 {
        self.digits[usize::from(COUNT) - 1].chunks(1)
    }

    fn before(&self, digit: u8) -> Option<&View> {
        usize::from(digit).checked_sub(1).map(|digit| &self.digits[digit])
    }

    /// What an element of a digit's histogram reads.
    pub(super) fn histogram_reads(&self, digit: u8, at: At) -> Vec<Read> {
        let mut reads = vec![self.weights.read(0, maxima::block(self.len, at.col))];
        reads.extend(self.before(digit).map(|before| before.one(0, 0)));
        reads
    }

    /// The measure of the weights of a block that have these higher digits and this one.
    pub(super) fn histogram(&self, digit: u8, at: At, data: Data<'_>) -> i64 {
        let shift = shift(digit);
        let prefix = if digit == 0 { 0 } else { data.i64(1) as u64 };
        let wanted = prefix >> (shift + DIGIT_BITS) << DIGIT_BITS | at.row;
        let found = data.i32s(0).map(|w| u64::from(w as u32)).filter(|w| w >> shift == wanted);
        match self.filter {
            Filter::TopK => found.count() as i64,
            Filter::TopP => found.sum::<u64>() as i64,
        }
    }

    /// What both elements of a digit read.
    pub(super) fn digit_reads(&self, digit: u8) -> Vec<Read> {
        let blocks = 0..maxima::blocks(self.len);
        let mut reads: Vec<Read> =
            (0..DIGITS).map(|value| self.histograms[usize::from(digit)].read(value, blocks.clone())).collect();
        match (self.before(digit), self.goal) {
            (Some(before), _) => reads.push(before.read(0, 0..2)),
            (None, Goal::Share(_, sums)) => reads.push(sums.read(0, blocks)),
            (None, Goal::Number(_)) => {}
        }
        reads
    }

    /// The threshold so far, or what is still to be reached: the digit is the largest with which the measures from above
    /// reach it.
    pub(super) fn digit(&self, digit: u8, at: At, data: Data<'_>) -> i64 {
        let total = |read| data.i64s(read).fold(0, i64::wrapping_add) as u64;
        let state = DIGITS as usize;
        let (mut prefix, mut need) = match (digit, self.goal) {
            (0, Goal::Number(number)) => (0, number),
            (0, Goal::Share(p, _)) => (0, crate::reference::sample::share(p, total(state))),
            _ => {
                let mut state = data.i64s(state);
                let mut next = || state.next().unwrap_or_default() as u64;
                (next(), next())
            }
        };
        let mut value = DIGITS - 1;
        while value > 0 && total(value as usize) < need {
            need -= total(value as usize);
            value -= 1;
        }
        prefix = prefix.wrapping_add(value << shift(digit));
        if at.col == 0 { prefix as i64 } else { need as i64 }
    }

    /// Most chunks that an element of a histogram or a digit reads.
    pub(super) fn chunks(&self, part: Part) -> u64 {
        let blocks = maxima::blocks(self.len);
        match part {
            Part::Histogram(_, digit) => {
                self.weights.chunks(self.len.min(super::BLOCK_COLS)) + self.before(digit).map_or(0, |v| v.chunks(1))
            }
            Part::Digit(_, digit) => {
                let goal = if let Goal::Share(_, sums) = self.goal { sums.chunks(blocks) } else { 0 };
                let state = self.before(digit).map_or(goal, |before| before.chunks(2));
                DIGITS * self.histograms[usize::from(digit)].chunks(blocks) + state
            }
            _ => 0,
        }
    }
}
