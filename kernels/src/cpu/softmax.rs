//! Block softmax for attention: weights of one block, and blocks brought together (SPEC 5.7).

use super::Isa;
use super::path::for_each_path;
use crate::fixed::{EXP2_COEFFICIENTS, SCORE_FRAC, bit_length, recip};
use crate::reference::attention::GUARD;

/// Distances from here on weigh nothing.
const FAR: u32 = 1 << 30;

/// `(c << 20) + 2^19` for a Horner step: adding it before the shift rounds and adds `c` at once.
const fn step(c: i64) -> i64 {
    (c << SCORE_FRAC) + (1 << (SCORE_FRAC - 1))
}

/// Writes the weight of each score against the block's reference, which is returned in whole log2 units.
pub(super) fn weigh(isa: Isa, scores: &[i32], weights: &mut [i16]) -> i64 {
    let max = largest(isa, scores);
    let reference = (i64::from(max) + (1 << SCORE_FRAC) - 1) >> SCORE_FRAC;
    // How far the reference lies above the largest score: below one unit.
    let above = ((reference << SCORE_FRAC) - i64::from(max)) as u32;
    weights_of(isa, scores, max, above, weights);
    reference
}

for_each_path! {
    fn largest(scores: &[i32]) -> i32 {
        scores.iter().fold(i32::MIN, |max, s| max.max(*s))
    }
}

for_each_path! {
    /// [`crate::fixed::softmax_weight`] of `above + max - score`.
    fn weights_of(scores: &[i32], max: i32, above: u32, weights: &mut [i16]) {
        const FRACTION: u32 = (1 << SCORE_FRAC) - 1;
        let [c0, c1, c2, c3, c4] = EXP2_COEFFICIENTS;
        for (w, s) in weights.iter_mut().zip(scores) {
            // The difference of two i32 fits u32. Cut where the weight is 0 anyway, the sum fits too.
            let d = (max.wrapping_sub(*s) as u32).min(FAR).wrapping_add(above);
            let f = i64::from((d & FRACTION) as i32);
            // Every p fits i32 and f has 20 bits.
            let mut p = c4;
            p = p.wrapping_mul(f).wrapping_add(step(c3)) >> SCORE_FRAC;
            p = i64::from(p as i32).wrapping_mul(f).wrapping_add(step(c2)) >> SCORE_FRAC;
            p = i64::from(p as i32).wrapping_mul(f).wrapping_add(step(c1)) >> SCORE_FRAC;
            p = i64::from(p as i32).wrapping_mul(f).wrapping_add(step(c0)) >> SCORE_FRAC;
            // p <= 2^30, so from 17 units on nothing is left, and a cut at 18 keeps the shift inside 64 bits.
            let right = 15 + (d >> SCORE_FRAC).min(18);
            let weight = p.wrapping_add(1 << ((right - 1) & 63)) >> (right & 63);
            *w = weight.min(32_767) as i16;
        }
    }
}

/// The blocks of some rows so far.
///
/// Every block must be shifted against the largest reference of all, and rounding happens per block, so they are kept
/// and not merged as they come.
pub(super) struct Combined {
    rows: usize,
    cols: usize,
    /// `[blocks][rows]`; none where the row sees nothing of the block.
    references: Vec<Option<i64>>,
    /// `[blocks][rows]`.
    weights: Vec<i64>,
    /// `[blocks][rows][cols]`.
    values: Vec<i64>,
    /// Scratch, `[cols]`.
    sums: Vec<i64>,
}

/// One block of every row, to be filled.
pub(super) struct BlockSums<'a> {
    /// Whole log2 units, `[rows]`.
    pub(super) references: &'a mut [Option<i64>],
    /// Sums of weights, `[rows]`.
    pub(super) weights: &'a mut [i64],
    /// Sums of weight times value, `[rows][cols]`.
    pub(super) values: &'a mut [i64],
    /// Elements in a row of `values`.
    pub(super) cols: usize,
}

impl Combined {
    /// No block yet, of `rows` rows and `cols` channels.
    pub(super) fn new(rows: usize, cols: usize) -> Self {
        Self { rows, cols, references: vec![], weights: vec![], values: vec![], sums: vec![0; cols] }
    }

    /// `count` blocks, to be filled in any order: see [`blocks`](Self::blocks).
    pub(super) fn of_blocks(rows: usize, cols: usize, count: usize) -> Self {
        let mut combined = Self::new(rows, cols);
        combined.references.resize(count * rows, None);
        combined.weights.resize(count * rows, 0);
        combined.values.resize(count * rows * cols, 0);
        combined
    }

    /// All blocks.
    pub(super) fn blocks(&mut self) -> impl Iterator<Item = BlockSums<'_>> {
        let (rows, cols) = (self.rows, self.cols);
        let references = self.references.chunks_exact_mut(rows);
        let of_weights = references.zip(self.weights.chunks_exact_mut(rows));
        of_weights
            .zip(self.values.chunks_exact_mut(rows * cols))
            .map(move |((references, weights), values)| BlockSums { references, weights, values, cols })
    }

    /// Forgets all blocks.
    pub(super) fn clear(&mut self) {
        self.references.clear();
        self.weights.clear();
        self.values.clear();
    }

    /// Adds a block.
    pub(super) fn push(&mut self) -> BlockSums<'_> {
        let (at, cols) = (self.references.len(), self.cols);
        self.references.resize(at + self.rows, None);
        self.weights.resize(at + self.rows, 0);
        self.values.resize((at + self.rows) * cols, 0);
        let (references, weights) = (&mut self.references[at..], &mut self.weights[at..]);
        BlockSums { references, weights, values: &mut self.values[at * cols..], cols }
    }

    /// Sums the blocks of a row and divides once.
    pub(super) fn finish(&mut self, isa: Isa, row: usize, value_shift: u32, out: &mut [i32]) {
        let blocks = || self.references.iter().enumerate().skip(row).step_by(self.rows);
        let reference = blocks().filter_map(|(_, block)| *block).max().expect("a row sees at least one block");
        let mut weight = 0;
        self.sums.fill(0);
        for (i, block) in blocks() {
            let Some(block) = block else { continue };
            let down = (reference - block).min(63) as u32;
            weight += crate::fixed::round_shift(self.weights[i] << GUARD, down);
            add_scaled(isa, &self.values[i * self.cols..(i + 1) * self.cols], down, &mut self.sums);
        }
        let (r, bits) = (i64::from(recip(weight as u64)), bit_length(weight as u64));
        // The largest score of its block weighs more than 2^14, so `weight` has at least 23 bits.
        divide(isa, &self.sums, [bits - 16, 31 + value_shift], r, out);
    }
}

for_each_path! {
    /// `sums[i] += round(values[i] * 2^GUARD / 2^down)`.
    fn add_scaled(values: &[i64], down: u32, sums: &mut [i64]) {
        let half = ((1_u64 << down) >> 1) as i64;
        for (sum, v) in sums.iter_mut().zip(values) {
            // |v| is below 2^39, a half at most 2^62, and there are at most 2^9 blocks.
            *sum = sum.wrapping_add((v << GUARD).wrapping_add(half) >> (down & 63));
        }
    }
}

for_each_path! {
    /// `out[i] = sat32(round(round(sums[i] / 2^first) * r / 2^second))`.
    fn divide(sums: &[i64], shifts: [u32; 2], r: i64, out: &mut [i32]) {
        let [first, second] = shifts;
        let (half_first, half_second) = ((1_i64 << first) >> 1, (1_i64 << second) >> 1);
        for (y, sum) in out.iter_mut().zip(sums) {
            // The mean of values is at most 2^15, so the first result is about 2^31 at most, and r is at most 2^31;
            // the half is at most 2^61.
            let top = sum.wrapping_add(half_first) >> (first & 63);
            let v = top.wrapping_mul(r).wrapping_add(half_second) >> (second & 63);
            *y = v.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
        }
    }
}
