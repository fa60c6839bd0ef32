//! Matrix product (SPEC 5.3).

use std::ops::Range;

use super::isa::{Block, MAX_TILES, Multiplier, Sums, block_shape, rows_at_once};
use super::packed::{PackedMatrix, PackedRows, TILE};
use super::path::for_each_path;
use super::{CpuKernels, Isa};
use crate::fixed::{CODE_MAX, rescale};
use crate::host::{BfpRows, MatMulOut, Scaled};

/// Twin of [`crate::reference::matmul::matmul`].
pub(super) fn matmul(
    cpu: &CpuKernels,
    x: BfpRows<'_>,
    w: Scaled<'_>,
    packed: &PackedMatrix,
    bias: Option<&[i32]>,
    out: MatMulOut<'_>,
) -> u64 {
    let product = Product { isa: cpu.isa, x, scales: w, bias, w: packed };
    match out {
        MatMulOut::I32(out) => product.run(cpu, out),
        MatMulOut::I16(out) => product.run(cpu, out),
    }
}

/// An output element: its range and its conversion.
trait Element: Copy + Default + Send + Sync {
    const RANGE: [i64; 2];
    fn cast(v: i64) -> Self;
}

impl Element for i32 {
    const RANGE: [i64; 2] = [i32::MIN as i64, i32::MAX as i64];
    #[inline(always)]
    fn cast(v: i64) -> Self {
        v as i32
    }
}

impl Element for i16 {
    const RANGE: [i64; 2] = [-(CODE_MAX as i64), CODE_MAX as i64];
    #[inline(always)]
    fn cast(v: i64) -> Self {
        v as i16
    }
}

/// What turns the sums of a tile's columns into outputs.
struct Columns {
    mantissa: [i32; TILE],
    /// What all sums of a column lack, times its mantissa.
    correction: [i64; TILE],
    shift: [i64; TILE],
    bias: [i64; TILE],
    /// Smallest and largest shift of the tile's real columns.
    shifts: [i64; 2],
    /// Number of real columns.
    count: usize,
}

impl Columns {
    #[inline(always)]
    fn new(w: &Scaled<'_>, packed: &PackedMatrix, bias: Option<&[i32]>, tile: usize) -> Self {
        let first = tile.wrapping_mul(TILE);
        let count = TILE.min(w.mantissa.len().wrapping_sub(first));
        // Padding repeats the last shift, and has mantissa 0.
        let shifts = sixteen(&w.shift[first..], w.shift[first + count - 1]);
        let mantissa: [i32; TILE] = widened(sixteen(&w.mantissa[first..], 0));
        let mut correction = *packed.correction(tile);
        for (correction, m) in correction.iter_mut().zip(mantissa) {
            // Below 2^60 in magnitude.
            *correction = correction.wrapping_mul(i64::from(m));
        }
        let bias = match bias {
            Some(bias) => widened(sixteen(&bias[first..], 0)),
            None => [0; TILE],
        };
        let least = shifts.iter().fold(i16::MAX, |least, s| least.min(*s));
        let most = shifts.iter().fold(i16::MIN, |most, s| most.max(*s));
        Self { mantissa, correction, shift: widened(shifts), bias, shifts: [least.into(), most.into()], count }
    }
}

/// The first 16 values, or as many as there are and then padding.
#[inline(always)]
fn sixteen<T: Copy>(values: &[T], padding: T) -> [T; TILE] {
    match values.first_chunk::<TILE>() {
        Some(values) => *values,
        None => {
            let mut padded = [padding; TILE];
            padded[..values.len()].copy_from_slice(values);
            padded
        }
    }
}

#[inline(always)]
fn widened<T: Into<W>, W: Copy + Default>(values: [T; TILE]) -> [W; TILE] {
    let mut wide = [W::default(); TILE];
    for (wide, value) in wide.iter_mut().zip(values) {
        *wide = value.into();
    }
    wide
}

/// Everything about a product but where it goes.
struct Product<'a> {
    isa: Isa,
    x: BfpRows<'a>,
    scales: Scaled<'a>,
    bias: Option<&'a [i32]>,
    w: &'a PackedMatrix,
}

impl Product<'_> {
    /// Many rows are split by rows; few by columns, so that every thread has work.
    fn run<T: Element>(&self, cpu: &CpuKernels, out: &mut [T]) -> u64 {
        let (rows, n, at_once) = (self.x.exponents.len(), self.w.rows(), rows_at_once(self.isa));
        if cpu.threads.count() > 1 && rows < at_once * cpu.threads.count() {
            return self.by_columns(cpu, out);
        }
        let pieces = out.chunks_mut(at_once * n).enumerate().collect();
        cpu.threads.each(pieces, |(piece, out): (usize, &mut [T])| {
            self.tiles(&self.pack(piece * at_once, out.len() / n), 0..self.w.tiles(), n, out)
        })
    }

    /// Strips of columns; those of more than one row go to buffers of their own, and from there to the output.
    fn by_columns<T: Element>(&self, cpu: &CpuKernels, out: &mut [T]) -> u64 {
        let (rows, n, tiles) = (self.x.exponents.len(), self.w.rows(), self.w.tiles());
        let left = self.pack(0, rows);
        // Long strips: threads that take turns at short ones keep memory from being read in line (measured: a fifth slower).
        let strip = tiles.div_ceil(cpu.threads.count() * 4).next_multiple_of(MAX_TILES);
        if rows == 1 {
            let strips = out.chunks_mut(strip * TILE).enumerate().collect();
            return cpu.threads.each(strips, |(i, out): (usize, &mut [T])| {
                self.tiles(&left, i * strip..tiles.min((i + 1) * strip), out.len(), out)
            });
        }
        let strips = cpu.threads.map(tiles.div_ceil(strip), |i| {
            let strip = i * strip..tiles.min((i + 1) * strip);
            let width = n.min(strip.end * TILE) - strip.start * TILE;
            let mut buffer = vec![T::default(); rows * width];
            let saturations = self.tiles(&left, strip, width, &mut buffer);
            (width, buffer, saturations)
        });
        let (mut at, mut saturations) = (0, 0);
        for (width, buffer, clamped) in strips {
            for (out, strip) in out.chunks_exact_mut(n).zip(buffer.chunks_exact(width)) {
                out[at..at + width].copy_from_slice(strip);
            }
            at += width;
            saturations += clamped;
        }
        saturations
    }

    fn pack(&self, first: usize, rows: usize) -> Left<'_> {
        let cols = self.scales.cols;
        let mut x = PackedRows::new(self.isa, rows, cols);
        x.fill(self.isa, |r| &self.x.codes[(first + r) * cols..(first + r + 1) * cols]);
        Left { rows: x, exponents: &self.x.exponents[first..first + rows] }
    }

    /// Columns of some tiles; `out` is `[rows][width]`.
    fn tiles<T: Element>(&self, left: &Left<'_>, range: Range<usize>, width: usize, out: &mut [T]) -> u64 {
        let all = left.exponents.len();
        let (step_rows, step_tiles) = block_shape(self.isa, self.w.planes(), all);
        let mut multiplier = Multiplier::new(self.isa);
        let mut sums = Sums::new(self.isa, self.w, all);
        let mut saturations = 0;
        for tile in range.clone().step_by(step_tiles) {
            let tiles = step_tiles.min(range.end - tile);
            for row in (0..all).step_by(step_rows) {
                let block = Block { row, rows: step_rows.min(all - row), tile, tiles };
                multiplier.product(&left.rows, self.w, block, &mut sums);
                let out = &mut out[row * width + (tile - range.start) * TILE..];
                saturations += requantize(self.isa, self, &sums, left, block, width, out);
            }
        }
        saturations
    }
}

/// Some rows of the left operand.
struct Left<'a> {
    rows: PackedRows,
    exponents: &'a [i32],
}

for_each_path! {
    /// Rescales the sums of a block, adds the bias and clamps. `out` starts with the block's first element, and `width`
    /// elements later starts the next row. Returns the number of clamped elements.
    fn requantize<T: Element>(
        by: &Product<'_>,
        sums: &Sums,
        left: &Left<'_>,
        block: Block,
        width: usize,
        out: &mut [T],
    ) -> u64 {
        let mut clamped = 0_u64;
        for c in 0..block.tiles {
            let columns = Columns::new(&by.scales, by.w, by.bias, block.tile.wrapping_add(c));
            for r in 0..block.rows {
                let row = block.row.wrapping_add(r);
                // At most 2^14 codes of 2^15.
                let row_sum = left.rows.sum(row) as i32;
                let exponent = i64::from(left.exponents[row]);
                let i = r.wrapping_mul(block.tiles).wrapping_add(c);
                let out = &mut out[r.wrapping_mul(width).wrapping_add(c.wrapping_mul(TILE))..][..columns.count];
                let more = match sums.limbs() {
                    2 => finish::<2, T>(sums.tile(i), row_sum, &columns, exponent, out),
                    _ => finish::<3, T>(sums.tile(i), row_sum, &columns, exponent, out),
                };
                clamped = clamped.wrapping_add(more);
            }
        }
        clamped
    }
}

/// One row of one tile.
#[inline(always)]
fn finish<const LIMBS: usize, T: Element>(
    limbs: &[[i32; TILE]; LIMBS],
    row_sum: i32,
    columns: &Columns,
    exponent: i64,
    out: &mut [T],
) -> u64 {
    let [least, most] = columns.shifts.map(|s| s.wrapping_sub(exponent));
    if least >= 1 && most <= 63 {
        let fits = match <&mut [T; TILE]>::try_from(&mut *out) {
            Ok(out) => scale_right(limbs, row_sum, columns, exponent, out),
            Err(_) => {
                let mut tile = [T::default(); TILE];
                let fits = scale_right(limbs, row_sum, columns, exponent, &mut tile);
                out.copy_from_slice(&tile[..out.len()]);
                fits
            }
        };
        if fits {
            return 0;
        }
    }
    scale_any(limbs, row_sum, columns, exponent, out)
}

/// Where every column is shifted right by 1 to 63. Tells whether every output is in range; where it is not, `out` has no
/// meaning.
#[inline(always)]
fn scale_right<const LIMBS: usize, T: Element>(
    limbs: &[[i32; TILE]; LIMBS],
    row_sum: i32,
    columns: &Columns,
    exponent: i64,
    out: &mut [T; TILE],
) -> bool {
    let mut outside = false;
    for c in 0..TILE {
        // Products of 32-bit numbers are the cheap ones.
        let scaled = |limb: i32| i64::from(limb).wrapping_mul(i64::from(columns.mantissa[c]));
        // The whole sum is below 2^46 and the product below 2^62, so it does not matter if a part of it wraps.
        let product = limbs.iter().fold(0_i64, |sum, limb| (sum << 8).wrapping_add(scaled(limb[c])));
        let lack = if LIMBS == 2 { 0 } else { scaled(row_sum).wrapping_mul(PackedMatrix::WIDE_OFFSET) };
        let product = product.wrapping_add(columns.correction[c]).wrapping_add(lack);
        // Half up, with the bias added in the same units: floor((floor(p / 2^(s-1)) + 2b + 1) / 2).
        let down = columns.shift[c].wrapping_sub(exponent).wrapping_sub(1) & 63;
        let doubled = columns.bias[c].wrapping_mul(2).wrapping_add(1);
        let y = (product >> down).wrapping_add(doubled) >> 1;
        outside |= (y < T::RANGE[0]) | (y > T::RANGE[1]);
        out[c] = T::cast(y);
    }
    !outside
}

/// Any column by any shift, one by one: a shift to the left may leave 64 bits. Returns the number of clamped elements.
#[cold]
#[inline(never)]
fn scale_any<const LIMBS: usize, T: Element>(
    limbs: &[[i32; TILE]; LIMBS],
    row_sum: i32,
    columns: &Columns,
    exponent: i64,
    out: &mut [T],
) -> u64 {
    let lack = if LIMBS == 2 { 0 } else { i64::from(row_sum) * PackedMatrix::WIDE_OFFSET };
    let mut clamped = 0;
    for (c, out) in out.iter_mut().enumerate() {
        let mantissa = i64::from(columns.mantissa[c]);
        // The mantissa divides its product with the correction.
        let correction = columns.correction[c].checked_div(mantissa).unwrap_or(0);
        let sum = limbs.iter().fold(0, |sum, limb| (sum << 8) + i64::from(limb[c])) + correction + lack;
        let y = rescale(sum, mantissa as u16, columns.shift[c] - exponent) + columns.bias[c];
        let fitting = y.clamp(T::RANGE[0], T::RANGE[1]);
        *out = T::cast(fitting);
        clamped += u64::from(fitting != y);
    }
    clamped
}
