//! Operands of an exact limb product, laid out for the hot loops.
//!
//! A 16-bit code `w` is held as two signed digits, `w = 256*high + low + 128` with `high = w >> 8` and
//! `low = (w & 255) - 128`, which covers all 65,536 codes. The 128 is put back by the sum of the other operand's row.
//! An 8-bit code is one digit.

use super::isa::{padded_rows, padded_steps};
use super::path::{Digits, Isa, for_each_path};
use crate::value::ParamData;

/// Columns of one tile.
pub(crate) const TILE: usize = 16;

/// Reduction elements of one step.
pub(crate) const STEP: usize = 4;

/// Longest reduction whose byte products fit 32-bit sums, two of them together: `2 * 255 * 128 * 2^14 < 2^31`.
pub(crate) const MAX_STEPS: usize = crate::program::MAX_REDUCTION as usize / STEP;

/// Digits of 16 columns at 4 reduction elements: `[16][4]`, one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Quad(pub(crate) [i8; TILE * STEP]);

/// The right operand of `x * w^T`: rows of `w` as columns of the product, in tiles `[n/16][k/4][planes][16][4]`,
/// padded with zero digits.
#[derive(Debug)]
pub struct PackedMatrix {
    quads: Vec<Quad>,
    /// What is added to the sums of each column: [`Digits::constant`] times the sum of the digits' values.
    corrections: Vec<i64>,
    rows: usize,
    steps: usize,
    planes: usize,
}

impl PackedMatrix {
    /// Packs the codes of a matrix `[rows, cols]`.
    pub(crate) fn from_codes(isa: Isa, codes: ParamData<'_>, cols: usize) -> Self {
        let rows = codes.len() / cols;
        match codes {
            ParamData::I8(w) => Self::narrow(isa, rows, cols, |n, k| w[n * cols + k]),
            ParamData::I16(codes) => Self::wide(isa, rows, cols, &ByRow { codes, start: 0, stride: cols, rows, cols }),
            _ => unreachable!("validation: weight codes are i8 or i16"),
        }
    }

    fn empty(isa: Isa, rows: usize, cols: usize, planes: usize) -> Self {
        let (tiles, steps) = (rows.div_ceil(TILE), padded_steps(isa, cols));
        assert!(steps <= MAX_STEPS, "validation: a reduction is at most {} long", MAX_STEPS * STEP);
        let len = tiles * steps * planes;
        let mut quads = Vec::with_capacity(len);
        large_pages(&mut quads);
        quads.resize(len, Quad([0; TILE * STEP]));
        Self { quads, corrections: vec![0; tiles * TILE], rows, steps, planes }
    }

    /// One digit plane; `code(row, col)`.
    fn narrow(isa: Isa, rows: usize, cols: usize, code: impl Fn(usize, usize) -> i8) -> Self {
        let mut packed = Self::empty(isa, rows, cols, 1);
        let unit = correction_unit(isa);
        for n in 0..rows {
            let tile = (n / TILE) * packed.steps;
            let mut sum = 0;
            for k in 0..cols {
                let w = code(n, k);
                sum += i64::from(w);
                packed.quads[tile + k / STEP].0[(n % TILE) * STEP + k % STEP] = w;
            }
            packed.corrections[n] = unit * sum;
        }
        packed
    }

    /// Two digit planes, high before low.
    pub(crate) fn wide<F: Fetch>(isa: Isa, rows: usize, cols: usize, codes: &F) -> Self {
        let mut packed = Self::empty(isa, rows, cols, 2);
        split_codes(isa, codes, packed.steps, &mut packed.quads, correction_unit(isa), &mut packed.corrections);
        packed
    }

    /// Columns of the product.
    pub(crate) const fn rows(&self) -> usize {
        self.rows
    }

    /// Tiles of 16 columns.
    pub(crate) const fn tiles(&self) -> usize {
        self.corrections.len() / TILE
    }

    /// Steps of 4 along the reduction.
    pub(crate) const fn steps(&self) -> usize {
        self.steps
    }

    /// Digit planes: 1 or 2.
    pub(crate) const fn planes(&self) -> usize {
        self.planes
    }

    /// Bytes of all digits; at least one.
    pub(crate) const fn bytes(&self) -> usize {
        size_of_val(self.quads.as_slice())
    }

    /// What each left row's sum is multiplied with and added, for two planes; with one there is nothing to add.
    pub(crate) const WIDE_OFFSET: i64 = 128;

    /// `[steps][planes]` of one tile.
    pub(crate) fn tile(&self, tile: usize) -> &[Quad] {
        let len = self.steps * self.planes;
        &self.quads[tile * len..(tile + 1) * len]
    }

    /// `[tiles][steps][planes]` of tiles that follow each other.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn consecutive(&self, first: usize, tiles: usize) -> &[Quad] {
        let len = self.steps * self.planes;
        &self.quads[first * len..(first + tiles) * len]
    }

    /// What is added to the sums of one tile's columns.
    pub(crate) fn correction(&self, tile: usize) -> &[i64; TILE] {
        &self.corrections.as_chunks().0[tile]
    }
}

/// Asks for large pages under a matrix that is read from memory, so that walks of page tables don't hold up the stream. A
/// wish: where it is not granted nothing changes but time.
fn large_pages(quads: &mut Vec<Quad>) {
    /// Matrices below this stay in caches.
    const LEAST: usize = 256 << 10;
    const PAGE: usize = 4_096;
    let room = quads.spare_capacity_mut();
    let bytes = size_of_val(room);
    if bytes < LEAST {
        return;
    }
    let start = room.as_mut_ptr().cast::<std::ffi::c_void>();
    let before = start.align_offset(PAGE);
    // SAFETY: the pages lie in memory that the vector owns, and the advice does not change what is in them.
    #[cfg(target_os = "linux")]
    let _ = unsafe {
        let pages = (bytes - before) / PAGE * PAGE;
        rustix::mm::madvise(start.add(before), pages, rustix::mm::Advice::LinuxHugepage)
    };
}

/// What the sum of a column's codes is multiplied with for its correction.
fn correction_unit(isa: Isa) -> i64 {
    isa.digits().map_or(0, Digits::constant)
}

/// The code that both digits of are 0: what padding is made of.
const PADDING: i16 = 128;

/// Where the 16-bit codes of a right operand come from.
pub(crate) trait Fetch: Sync {
    /// Codes of 16 columns at 4 reduction elements, `[16][4]`; [`PADDING`] outside the matrix.
    fn quad(&self, tile: usize, step: usize) -> [i16; TILE * STEP];
}

/// A matrix whose rows (columns of the product) are contiguous.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByRow<'a> {
    pub(crate) codes: &'a [i16],
    pub(crate) start: usize,
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Fetch for ByRow<'_> {
    #[inline(always)]
    fn quad(&self, tile: usize, step: usize) -> [i16; TILE * STEP] {
        let mut quad = [PADDING; TILE * STEP];
        let width = STEP.min(self.cols.saturating_sub(step * STEP));
        if width == 0 {
            return quad;
        }
        for (n, out) in (tile * TILE..self.rows).zip(quad.as_chunks_mut::<STEP>().0) {
            let at = self.start + n * self.stride + step * STEP;
            match self.codes[at..].first_chunk::<STEP>() {
                Some(codes) if width == STEP => *out = *codes,
                _ => out[..width].copy_from_slice(&self.codes[at..at + width]),
            }
        }
        quad
    }
}

/// A matrix whose columns (reduction elements) are contiguous.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByColumn<'a> {
    pub(crate) codes: &'a [i16],
    pub(crate) start: usize,
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Fetch for ByColumn<'_> {
    #[inline(always)]
    fn quad(&self, tile: usize, step: usize) -> [i16; TILE * STEP] {
        let mut quad = [PADDING; TILE * STEP];
        let height = TILE.min(self.rows - tile * TILE);
        for (i, k) in (step * STEP..self.cols.min((step + 1) * STEP)).enumerate() {
            let at = self.start + k * self.stride + tile * TILE;
            for (n, code) in self.codes[at..at + height].iter().enumerate() {
                quad[n * STEP + i] = *code;
            }
        }
        quad
    }
}

for_each_path! {
    /// Writes `[tiles][steps][high, low]` and the corrections of the columns.
    fn split_codes<F: Fetch>(codes: &F, steps: usize, quads: &mut [Quad], unit: i64, corrections: &mut [i64]) {
        let tiles = quads.chunks_exact_mut(steps * 2).zip(corrections.chunks_exact_mut(TILE));
        for (tile, (quads, corrections)) in tiles.enumerate() {
            let mut sums = [0_i32; TILE];
            for (step, quad) in quads.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let codes = codes.quad(tile, step);
                let [high, low] = quad;
                for ((high, low), code) in high.0.iter_mut().zip(&mut low.0).zip(codes) {
                    *high = (code >> 8) as i8;
                    *low = (code ^ 0x80) as i8;
                }
                for (sum, codes) in sums.iter_mut().zip(codes.as_chunks::<STEP>().0) {
                    let four = codes.iter().fold(0, |sum: i32, w| sum.wrapping_add(i32::from(*w)));
                    // At most 2^14 codes of 2^15 and as many of 128: nothing wraps.
                    *sum = sum.wrapping_add(four.wrapping_sub(i32::from(PADDING) * STEP as i32));
                }
            }
            for (correction, sum) in corrections.iter_mut().zip(sums) {
                *correction = i64::from(sum).wrapping_mul(unit);
            }
        }
    }
}

/// The left operand: rows of 16-bit codes, as the path wants them.
#[derive(Debug)]
pub(crate) struct PackedRows {
    /// Codes `[rows][4 * steps]`, for paths that multiply 16-bit numbers.
    codes: Vec<i16>,
    /// Two digits of each code, `[rows][low, high][4 * steps]`, for paths that multiply bytes.
    digits: Vec<u8>,
    /// Sum of each row's codes.
    sums: Vec<i64>,
    steps: usize,
}

impl PackedRows {
    /// Room for `rows` rows of `cols` codes.
    pub(crate) fn new(isa: Isa, rows: usize, cols: usize) -> Self {
        let steps = padded_steps(isa, cols);
        let len = padded_rows(isa, rows) * steps * STEP;
        let (codes, digits) = match isa.digits() {
            Some(_) => (vec![], vec![0; 2 * len]),
            None => (vec![0; len], vec![]),
        };
        Self { codes, digits, sums: vec![0; rows], steps }
    }

    /// Packs every row: `row(r)` gives its codes, at most as many as there is room for. Padding is left as it was:
    /// the other operand is zero there.
    pub(crate) fn fill<'a>(&mut self, isa: Isa, row: impl Fn(usize) -> &'a [i16]) {
        for r in 0..self.sums.len() {
            self.set(isa, r, row(r));
        }
    }

    /// Changes the number of codes in a row. What the rows hold then has no meaning.
    pub(crate) fn resize(&mut self, isa: Isa, cols: usize) {
        self.steps = padded_steps(isa, cols);
        let len = padded_rows(isa, self.sums.len()) * self.steps * STEP;
        self.codes.resize(if self.codes.is_empty() { 0 } else { len }, 0);
        self.digits.resize(if self.digits.is_empty() { 0 } else { 2 * len }, 0);
    }

    /// Packs one row.
    pub(crate) fn set(&mut self, isa: Isa, r: usize, codes: &[i16]) {
        let width = self.steps * STEP;
        self.sums[r] = match isa.digits() {
            Some(digits) => {
                let (low, high) = self.digits[2 * r * width..2 * (r + 1) * width].split_at_mut(width);
                split_row(isa, codes, digits.flip(), low, high)
            }
            None => copy_row(isa, codes, &mut self.codes[r * width..(r + 1) * width]),
        };
    }

    /// Steps of 4 along the reduction.
    pub(crate) const fn steps(&self) -> usize {
        self.steps
    }

    /// Number of rows.
    pub(crate) const fn rows(&self) -> usize {
        self.sums.len()
    }

    /// Sum of a row's codes.
    pub(crate) fn sum(&self, r: usize) -> i64 {
        self.sums[r]
    }

    /// Codes of a row, padded.
    pub(crate) fn codes(&self, r: usize) -> &[i16] {
        let width = self.steps * STEP;
        &self.codes[r * width..(r + 1) * width]
    }

    /// Digits of rows `r..r + rows`, `[rows][low, high][4 * steps]`; those beyond the last row have no meaning.
    pub(crate) fn digits(&self, r: usize, rows: usize) -> &[u8] {
        let width = self.steps * STEP * 2;
        &self.digits[r * width..(r + rows) * width]
    }
}

for_each_path! {
    fn split_row(codes: &[i16], flip: u16, low: &mut [u8], high: &mut [u8]) -> i64 {
        let mut sum = 0_i32;
        for ((q, low), high) in codes.iter().zip(low).zip(high) {
            let u = *q as u16 ^ flip;
            *low = u as u8;
            *high = (u >> 8) as u8;
            // At most 2^14 codes of 2^15: below 2^30.
            sum = sum.wrapping_add(i32::from(*q));
        }
        sum.into()
    }
}

for_each_path! {
    fn copy_row(codes: &[i16], out: &mut [i16]) -> i64 {
        let mut sum = 0_i64;
        for (q, out) in codes.iter().zip(out) {
            *out = *q;
            // At most 2^14 codes of 2^15: far from overflow.
            sum = sum.wrapping_add(i64::from(*q));
        }
        sum
    }
}
