//! The exact limb product, once for each instruction-set path.

use super::packed::{PackedMatrix, PackedRows, TILE};
use super::path::{Isa, Path};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

/// Most rows of a block on any path.
pub(crate) const MAX_ROWS: usize = 6;

/// Most tiles of a block on any path.
pub(crate) const MAX_TILES: usize = 2;

/// Sums of one block, `[rows][tiles * 16]`.
pub(crate) type Sums = [i64; MAX_ROWS * MAX_TILES * TILE];

/// A part of a product: some rows of the left operand times some tiles of the right one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// First row.
    pub(crate) row: usize,
    /// Number of rows, at most what [`block_shape`] says.
    pub(crate) rows: usize,
    /// First tile.
    pub(crate) tile: usize,
    /// Number of tiles, at most what [`block_shape`] says.
    pub(crate) tiles: usize,
}

/// The most rows and tiles that the path keeps in registers at once, for a right operand of `planes` digits.
pub(crate) const fn block_shape(isa: Isa, planes: usize) -> (usize, usize) {
    match (isa.path(), planes) {
        (Path::Avx512Vnni, 1) => (6, 2),
        (Path::Avx512Vnni, _) => (4, 2),
        (Path::Avx2, _) => (2, 1),
        (Path::Portable, _) => (1, 1),
    }
}

/// Exact sums `sum_k x[r,k] * digits(w)[n,k]`; the caller adds [`PackedMatrix::offset`] times the row's sum.
pub(crate) fn product(isa: Isa, x: &PackedRows, w: &PackedMatrix, block: Block, sums: &mut Sums) {
    let (rows, tiles) = block_shape(isa, w.planes());
    assert!(block.rows <= rows && block.tiles <= tiles && block.tile + block.tiles <= w.tiles());
    assert!(block.row + block.rows <= x.rows() && x.steps() == w.steps());
    match isa.path() {
        #[cfg(target_arch = "x86_64")]
        Path::Avx512Vnni => avx512::product(isa, x, w, block, sums),
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => avx2::product(isa, x, w, block, sums),
        _ => portable::product(x, w, block, sums),
    }
}
