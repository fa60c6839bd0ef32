//! Largest magnitudes of column blocks, which quantize and the norms share.

use std::ops::Range;

use super::lower::Lowering;
use super::view::{Data, View};
use super::{BLOCK_COLS, Part, PlanError, Width};
use crate::fixed::magnitude;

/// Number of column blocks.
pub(super) const fn blocks(cols: u64) -> u64 {
    cols.div_ceil(BLOCK_COLS)
}

/// Columns of a block.
pub(super) fn block(cols: u64, block: u64) -> Range<u64> {
    block * BLOCK_COLS..cols.min((block + 1) * BLOCK_COLS)
}

/// Adds the step.
pub(super) fn lower(lowering: &mut Lowering<'_>, cols: u64) -> Result<View, PlanError> {
    lowering.rows(Part::Maxima, blocks(cols), Width::I64)
}

/// The largest magnitude of a block, from a read of its elements.
pub(super) fn of_block(data: Data<'_>, read: usize) -> i64 {
    magnitude(data.i32s(read)).into()
}

/// The largest magnitude of a row, from a read of its blocks' maxima; no row exceeds 2^31.
pub(super) fn of_row(data: Data<'_>, read: usize) -> u32 {
    data.i64s(read).max().unwrap_or(0).clamp(0, 1 << 31) as u32
}
