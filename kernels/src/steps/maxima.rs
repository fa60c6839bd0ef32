//! Largest magnitudes of column blocks, which quantize and the norms share. A row of several groups has the blocks of
//! one group after the other.

use std::ops::Range;

use super::lower::Lowering;
use super::view::{Data, View};
use super::{BLOCK_COLS, Part, PlanError, Width};
use crate::fixed::magnitude;

/// Number of column blocks.
pub(super) const fn blocks(cols: u64) -> u64 {
    cols.div_ceil(BLOCK_COLS)
}

/// Columns of a block, of groups of `cols` columns.
pub(super) fn block(cols: u64, block: u64) -> Range<u64> {
    let (group, block) = (block / blocks(cols) * cols, block % blocks(cols));
    group + block * BLOCK_COLS..group + cols.min((block + 1) * BLOCK_COLS)
}

/// Adds the step, for `groups` groups of `cols` columns.
pub(super) fn lower(lowering: &mut Lowering<'_>, cols: u64, groups: u64) -> Result<View, PlanError> {
    lowering.rows(Part::Maxima, groups * blocks(cols), Width::I64)
}

/// The largest magnitude of a block, from a read of its elements.
pub(super) fn of_block(data: Data<'_>, read: usize) -> i64 {
    magnitude(data.i32s(read)).into()
}

/// The largest magnitude of a row, from a read of its blocks' maxima; no row exceeds 2^31.
pub(super) fn of_row(data: Data<'_>, read: usize) -> u32 {
    data.i64s(read).max().unwrap_or(0).clamp(0, 1 << 31) as u32
}
