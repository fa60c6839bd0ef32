//! The exact limb product, once for each instruction-set path.

use super::packed::{PackedMatrix, PackedRows, STEP, TILE};
use super::path::{Isa, Path};

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dotprod;
mod portable;
mod tiles;
pub(super) mod words;
#[cfg(target_arch = "x86_64")]
mod words512;

/// Most tiles of a block on any path.
pub(crate) const MAX_TILES: usize = 2;

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

/// Most rows of a product that is bound by reading its right operand: it goes through memory in one line.
const FEW: usize = 2;

/// The most rows and tiles that the path keeps in registers at once, for a right operand of `planes` digits and a product
/// of `rows` rows.
pub(crate) const fn block_shape(isa: Isa, planes: usize, rows: usize) -> (usize, usize) {
    match (isa.path(), planes) {
        (Path::AmxInt8 | Path::Avx512Vnni, _) if rows <= FEW => (rows, 1),
        (Path::AmxInt8 | Path::AmxModel, 1) => (tiles::ROWS, 2),
        (Path::AmxInt8 | Path::AmxModel, _) => (tiles::ROWS, 1),
        (Path::Avx512Vnni, 1) => (6, 2),
        (Path::Avx512Vnni, _) => (4, 2),
        (Path::NeonDotprod, 1) => (3, 1),
        (Path::NeonDotprod | Path::Neon | Path::Avx2, _) => (2, 1),
        (Path::Portable, _) => (1, 1),
    }
}

/// Limb sums of one block, `[rows][tiles][limbs][16]`, the most significant limb first. An element's exact sum is that of
/// `limb * 256^i`, and [`PackedMatrix::correction`] and with two digit planes [`PackedMatrix::WIDE_OFFSET`] times the row's sum.
///
/// There is one limb more than the right operand has digit planes.
#[derive(Clone, Debug)]
pub(crate) struct Sums {
    limbs: Vec<[i32; TILE]>,
    /// Of one element.
    per_element: usize,
}

impl Sums {
    /// Room for a block of a product of `rows` rows with `w`.
    pub(crate) fn new(isa: Isa, w: &PackedMatrix, rows: usize) -> Self {
        let ((rows, tiles), per_element) = (block_shape(isa, w.planes(), rows), w.planes() + 1);
        Self { limbs: vec![[0; TILE]; rows * tiles * per_element], per_element }
    }

    /// Limbs of an element: 2 or 3.
    #[inline(always)]
    pub(crate) const fn limbs(&self) -> usize {
        self.per_element
    }

    /// Limb sums of the `i`-th row and tile together, counted along the rows.
    #[inline(always)]
    pub(crate) fn tile<const LIMBS: usize>(&self, i: usize) -> &[[i32; TILE]; LIMBS] {
        debug_assert_eq!(LIMBS, self.per_element);
        self.limbs[i * LIMBS..].first_chunk().expect("a block has room for its limbs")
    }

    /// Splits exact sums that fit `8 * limbs + 16` bits.
    fn set_exact(&mut self, i: usize, sums: &[i64; TILE]) {
        let limbs = &mut self.limbs[i * self.per_element..(i + 1) * self.per_element];
        let lower = (self.per_element - 1) as u32;
        for (limb, shift) in limbs.iter_mut().zip((0..=lower).rev()) {
            let mask = if shift == lower { -1 } else { 255 };
            for (limb, sum) in limb.iter_mut().zip(sums) {
                *limb = (sum >> (8 * shift) & mask) as i32;
            }
        }
    }
}

/// Steps that operands of `cols` columns are padded to.
pub(crate) const fn padded_steps(isa: Isa, cols: usize) -> usize {
    let steps = cols.div_ceil(STEP);
    if isa.has_tiles() { steps.next_multiple_of(tiles::STEPS) } else { steps }
}

/// Rows that a left operand of `rows` rows has room for.
pub(crate) const fn padded_rows(isa: Isa, rows: usize) -> usize {
    if isa.has_tiles() { rows.next_multiple_of(tiles::ROWS) } else { rows }
}

/// Rows of a product that one thread goes through the right operand with: some blocks' worth, because that operand comes
/// from a farther cache with each turn.
pub(crate) const fn rows_at_once(isa: Isa) -> usize {
    if isa.has_tiles() { 2 * tiles::ROWS } else { 12 }
}

/// What one thread multiplies with.
pub(crate) struct Multiplier {
    isa: Isa,
    unit: TileUnit,
}

/// The tile unit of a path that has one.
enum TileUnit {
    None,
    Model(tiles::Model),
    #[cfg(target_arch = "x86_64")]
    Amx(amx::Amx),
}

impl Multiplier {
    /// Readies this thread.
    pub(crate) fn new(isa: Isa) -> Self {
        let unit = match isa.path() {
            #[cfg(target_arch = "x86_64")]
            Path::AmxInt8 => {
                TileUnit::Amx(amx::Amx::new().expect("an `Isa` of this path exists only where the unit does"))
            }
            Path::AmxModel => TileUnit::Model(tiles::Model::new()),
            _ => TileUnit::None,
        };
        Self { isa, unit }
    }

    /// Limb sums of `sum_k x[r,k] * digits(w)[n,k]`, as the path has them.
    pub(crate) fn product(&mut self, x: &PackedRows, w: &PackedMatrix, block: Block, sums: &mut Sums) {
        assert!(block.row + block.rows <= x.rows() && block.tile + block.tiles <= w.tiles() && x.steps() == w.steps());
        match (self.isa.path(), &mut self.unit) {
            #[cfg(target_arch = "x86_64")]
            (Path::AmxInt8, _) if x.rows() <= FEW => avx512::product(self.isa, x, w, block, sums),
            #[cfg(target_arch = "x86_64")]
            (_, TileUnit::Amx(unit)) => tiles::product(unit, x, w, block, sums),
            (_, TileUnit::Model(unit)) => tiles::product(unit, x, w, block, sums),
            #[cfg(target_arch = "x86_64")]
            (Path::Avx512Vnni, _) => avx512::product(self.isa, x, w, block, sums),
            #[cfg(target_arch = "x86_64")]
            (Path::Avx2, _) => avx2::product(self.isa, x, w, block, sums),
            #[cfg(target_arch = "aarch64")]
            (Path::NeonDotprod, _) => neon_dotprod::product(self.isa, x, w, block, sums),
            #[cfg(target_arch = "aarch64")]
            (Path::Neon, _) => neon::product(self.isa, x, w, block, sums),
            _ => portable::product(x, w, block, sums),
        }
    }
}
