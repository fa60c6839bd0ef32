//! What the norms share: maxima, sums and squares of column blocks, and a row divided by its length (SPEC 24.11).

use super::lower::Lowering;
use super::view::{Data, View};
use super::{At, BLOCK_COLS, Part, PlanError, Read, Width, maxima};
use crate::fixed::rsqrt;
use crate::reference::normalize::{divide, mean, row_scale, scale_element, square};

/// The steps before the output, and how they are read. An element of a norm reads `x`, maxima, sums if the row is
/// centred, squares, in this order, as far as there is need.
#[derive(Debug)]
pub(super) struct Statistics {
    input: View,
    /// Columns of what is normalised as one: a row, or each of its equal groups.
    cols: u64,
    maxima: View,
    sums: Option<View>,
    squares: View,
}

/// What the reads of an element say of its row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// `z = x * 2^scale`.
    scale: i32,
    /// Mean of `z`; 0 where the row is not centred.
    mean: i64,
}

impl Row {
    fn centred(self, x: i32) -> i64 {
        scale_element(x, self.scale).wrapping_sub(self.mean)
    }
}

impl Statistics {
    /// Adds the steps for rows of `groups` groups of `cols` columns.
    pub(super) fn lower(
        lowering: &mut Lowering<'_>,
        input: View,
        [cols, groups]: [u64; 2],
        centred: bool,
    ) -> Result<Self, PlanError> {
        let maxima = maxima::lower(lowering, cols, groups)?;
        let mut blocks = |part| lowering.rows(part, groups * maxima::blocks(cols), Width::I64);
        let sums = if centred { Some(blocks(Part::Sums)?) } else { None };
        Ok(Self { input, cols, maxima, sums, squares: blocks(Part::Squares)? })
    }

    /// Whether the mean is removed.
    fn centred(&self) -> bool {
        self.sums.is_some()
    }

    /// What an element of any part reads of `x` and the statistics.
    pub(super) fn reads(&self, part: Part, at: At) -> Vec<Read> {
        let x = match part {
            Part::Out => self.input.one(at.row, at.col),
            _ => self.input.read(at.row, maxima::block(self.cols, at.col)),
        };
        let blocks = maxima::blocks(self.cols);
        let group = if part == Part::Out { at.col / self.cols } else { at.col / blocks };
        let whole = |view: &View| view.read(at.row, group * blocks..(group + 1) * blocks);
        let mut reads = vec![x];
        reads.extend(self.before(part).map(whole));
        reads
    }

    /// The statistics that a part reads.
    fn before(&self, part: Part) -> impl Iterator<Item = &View> {
        let count = match part {
            Part::Maxima => 0,
            Part::Sums => 1,
            Part::Squares => 2,
            _ => 3,
        };
        let sums = self.sums.as_ref();
        [Some(&self.maxima), sums, Some(&self.squares)].into_iter().take(count).flatten()
    }

    /// An element of the maxima, the sums or the squares.
    pub(super) fn evaluate(&self, part: Part, data: Data<'_>) -> i64 {
        if part == Part::Maxima {
            return maxima::of_block(data, 0);
        }
        if part == Part::Sums {
            let scale = row_scale(maxima::of_row(data, 1));
            return data.i32s(0).fold(0, |sum, x| sum.wrapping_add(scale_element(x, scale)));
        }
        let row = self.row(data);
        data.i32s(0).fold(0_u64, |sum, x| sum.wrapping_add(square(row.centred(x)))) as i64
    }

    fn row(&self, data: Data<'_>) -> Row {
        let scale = row_scale(maxima::of_row(data, 1));
        let mean = if self.centred() { mean(data.i64s(2).fold(0, i64::wrapping_add), self.cols as i64) } else { 0 };
        Row { scale, mean }
    }

    /// The element of the output before its scale, in Q1.30; `epsilon` from the row's scale.
    pub(super) fn unit(&self, data: Data<'_>, epsilon: impl Fn(i32) -> u64) -> i64 {
        let row = self.row(data);
        let squares = data.i64s(self.reads_of_unit() - 1).fold(0, i64::wrapping_add) as u64;
        divide(row.centred(data.i32(0)), rsqrt(squares.wrapping_add(epsilon(row.scale))))
    }

    /// Number of reads before an output reads its scale.
    pub(super) fn reads_of_unit(&self) -> usize {
        3 + usize::from(self.centred())
    }

    /// Most chunks that [`reads`](Self::reads) touches.
    pub(super) fn chunks(&self, part: Part) -> u64 {
        let len = if part == Part::Out { 1 } else { self.cols.min(BLOCK_COLS) };
        let blocks = maxima::blocks(self.cols);
        self.input.chunks(len) + self.before(part).map(|view| view.chunks(blocks)).sum::<u64>()
    }
}
