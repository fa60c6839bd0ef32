//! Matrix product (SPEC 5.3).

use std::ops::Range;

use super::isa::{Block, MAX_TILES, Multiplier, Sums, block_shape, rows_at_once};
use super::packed::{PackedMatrix, PackedRows, TILE};
use super::path::for_each_path;
use super::{CpuKernels, Isa};
use crate::fixed::{CODE_MAX, rescale};
use crate::host::{BfpRows, MatMul, MatMulOut, Scaled};

/// Bytes of a matrix in one strip, at the least: threads that take turns at shorter ones keep memory from being read in line.
const STRIP_BYTES: usize = 64 << 10;

/// Twin of [`crate::reference::matmul::matmul`], of several matrices. Few rows are packed once for all of them, and one row is one
/// hand-over to the threads. Many rows take a matrix after the other: two may be more than a near cache holds.
pub(super) fn products(cpu: &CpuKernels, x: BfpRows<'_>, parts: Vec<MatMul<'_, PackedMatrix>>) -> u64 {
    let (rows, at_once) = (x.exponents.len(), rows_at_once(cpu.isa));
    let parts = parts.into_iter().map(|part| {
        let MatMul { weight: scales, prepared: w, bias, out } = part;
        (Product { isa: cpu.isa, scales, bias, w }, out)
    });
    if cpu.threads.count() == 1 || rows >= at_once * cpu.threads.count() {
        return parts.map(|(product, out)| by_rows(cpu, x, product, out)).sum();
    }
    let left = Left::pack(cpu.isa, x, 0..rows);
    if rows == 1 {
        return one_row(cpu, &left, parts.collect());
    }
    parts
        .map(|(product, out)| match out {
            MatMulOut::I32(out) => product.by_columns(cpu, &left, out),
            MatMulOut::I16(out) => product.by_columns(cpu, &left, out),
        })
        .sum()
}

/// Many rows are split by rows.
fn by_rows(cpu: &CpuKernels, x: BfpRows<'_>, product: Product<'_>, out: MatMulOut<'_>) -> u64 {
    let (rows, at_once, tiles) = (x.exponents.len(), rows_at_once(cpu.isa), product.w.tiles());
    let mut rest = out;
    let mut pieces = Vec::with_capacity(rows.div_ceil(at_once));
    for first in (0..rows).step_by(at_once) {
        let out;
        (out, rest) = rest.split(at_once * product.w.rows());
        pieces.push((first..rows.min(first + at_once), out));
    }
    cpu.threads
        .each(pieces, |(rows, out)| product.tiles(&Left::pack(cpu.isa, x, rows), 0..tiles, product.w.rows(), out))
}

/// One row: strips of columns, so that every thread has work. They begin long and end short, so that no thread waits long for the
/// last one.
fn one_row(cpu: &CpuKernels, left: &Left<'_>, parts: Vec<(Product<'_>, MatMulOut<'_>)>) -> u64 {
    let mut unread: usize = parts.iter().map(|(product, _)| product.w.bytes()).sum();
    let mut strips = Vec::new();
    for (product, mut rest) in parts {
        let of_tile = product.w.bytes() / product.w.tiles();
        let mut tile = 0;
        while tile < product.w.tiles() {
            let bytes = (unread / (2 * cpu.threads.count())).max(STRIP_BYTES);
            let end = product.w.tiles().min(tile + bytes.div_ceil(of_tile).next_multiple_of(MAX_TILES));
            let out;
            (out, rest) = rest.split((end - tile) * TILE);
            strips.push((product, tile..end, out));
            unread -= (end - tile) * of_tile;
            tile = end;
        }
    }
    cpu.threads.each(strips, |(product, tiles, out)| product.tiles(left, tiles, out.len(), out))
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

/// Everything about a product but its rows and where it goes.
#[derive(Clone, Copy)]
struct Product<'a> {
    isa: Isa,
    scales: Scaled<'a>,
    bias: Option<&'a [i32]>,
    w: &'a PackedMatrix,
}

impl Product<'_> {
    /// Of few rows: strips of columns go to buffers of their own, and from there to the output.
    fn by_columns<T: Element>(&self, cpu: &CpuKernels, left: &Left<'_>, out: &mut [T]) -> u64 {
        let (rows, n, tiles) = (left.exponents.len(), self.w.rows(), self.w.tiles());
        let strip = tiles.div_ceil(cpu.threads.count() * 4).next_multiple_of(MAX_TILES);
        let strips = cpu.threads.map(tiles.div_ceil(strip), |i| {
            let strip = i * strip..tiles.min((i + 1) * strip);
            let width = n.min(strip.end * TILE) - strip.start * TILE;
            let mut buffer = vec![T::default(); rows * width];
            let saturations = self.tiles_of(left, strip, width, &mut buffer);
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

    /// Columns of some tiles; `out` is `[rows][width]`.
    fn tiles(&self, left: &Left<'_>, range: Range<usize>, width: usize, out: MatMulOut<'_>) -> u64 {
        match out {
            MatMulOut::I32(out) => self.tiles_of(left, range, width, out),
            MatMulOut::I16(out) => self.tiles_of(left, range, width, out),
        }
    }

    fn tiles_of<T: Element>(&self, left: &Left<'_>, range: Range<usize>, width: usize, out: &mut [T]) -> u64 {
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

impl<'a> Left<'a> {
    fn pack(isa: Isa, x: BfpRows<'a>, range: Range<usize>) -> Self {
        let cols = x.codes.len() / x.exponents.len();
        let mut rows = PackedRows::new(isa, range.len(), cols);
        rows.fill(isa, |r| &x.codes[(range.start + r) * cols..][..cols]);
        Self { rows, exponents: &x.exponents[range] }
    }
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
