//! Matrix product (SPEC 5.3).

use super::isa::{Block, MAX_ROWS, MAX_TILES, Sums, block_shape, product};
use super::packed::{PackedMatrix, PackedRows, TILE};
use super::path::for_each_path;
use super::{CpuKernels, Isa};
use crate::fixed::{CODE_MAX, rescale};
use crate::host::{BfpRows, MatMulOut, Scaled};

/// Rows in one piece of work where rows are split: a multiple of every block's rows.
const PIECE: usize = 12;

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
    mantissa: [i64; TILE],
    shift: [i64; TILE],
    bias: [i64; TILE],
    /// Smallest shift of the tile's real columns.
    least: i64,
    /// Number of real columns.
    count: usize,
}

impl Columns {
    fn new(w: &Scaled<'_>, bias: Option<&[i32]>, tile: usize) -> Self {
        let first = tile * TILE;
        let count = TILE.min(w.mantissa.len() - first);
        let real = first..first + count;
        let least = w.shift[real.clone()].iter().min().map_or(0, |s| i64::from(*s));
        let mut columns = Self { mantissa: [0; TILE], shift: [least; TILE], bias: [0; TILE], least, count };
        for (i, n) in real.enumerate() {
            columns.mantissa[i] = i64::from(w.mantissa[n]);
            columns.shift[i] = i64::from(w.shift[n]);
            columns.bias[i] = bias.map_or(0, |b| i64::from(b[n]));
        }
        columns
    }
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
        let (rows, n) = (self.x.exponents.len(), self.w.rows());
        if cpu.threads.count() > 1 && rows < PIECE * cpu.threads.count() {
            return self.by_columns(cpu, out);
        }
        let pieces = out.chunks_mut(PIECE * n).enumerate().collect();
        cpu.threads.each(pieces, |(piece, out): (usize, &mut [T])| {
            let first = piece * PIECE;
            let x = self.pack(first, out.len() / n);
            self.tiles(&x, first, 0, self.w.tiles(), n, out)
        })
    }

    /// Strips of columns go to buffers of their own, and from there to the output.
    fn by_columns<T: Element>(&self, cpu: &CpuKernels, out: &mut [T]) -> u64 {
        let (rows, n, tiles) = (self.x.exponents.len(), self.w.rows(), self.w.tiles());
        let x = self.pack(0, rows);
        let strip = tiles.div_ceil(cpu.threads.count() * 4).next_multiple_of(MAX_TILES);
        let strips = cpu.threads.map(tiles.div_ceil(strip), |i| {
            let (first, end) = (i * strip, tiles.min((i + 1) * strip));
            let width = n.min(end * TILE) - first * TILE;
            let mut buffer = vec![T::default(); rows * width];
            let saturations = self.tiles(&x, 0, first, end, width, &mut buffer);
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

    fn pack(&self, first: usize, rows: usize) -> PackedRows {
        let cols = self.scales.cols;
        let mut x = PackedRows::new(self.isa, rows, cols);
        x.fill(self.isa, |r| &self.x.codes[(first + r) * cols..(first + r + 1) * cols]);
        x
    }

    /// Columns of tiles `from..to` of the rows in `x`, which start at row `first`; `out` is `[rows][width]`.
    fn tiles<T: Element>(
        &self,
        x: &PackedRows,
        first: usize,
        from: usize,
        to: usize,
        width: usize,
        out: &mut [T],
    ) -> u64 {
        let (step_rows, step_tiles) = block_shape(self.isa, self.w.planes());
        let mut sums: Sums = [0; MAX_ROWS * MAX_TILES * TILE];
        let mut saturations = 0;
        for tile in (from..to).step_by(step_tiles) {
            let tiles = step_tiles.min(to - tile);
            let columns: [Columns; MAX_TILES] =
                std::array::from_fn(|c| Columns::new(&self.scales, self.bias, tile + c.min(tiles - 1)));
            for row in (0..x.rows()).step_by(step_rows) {
                let rows = step_rows.min(x.rows() - row);
                product(self.isa, x, self.w, Block { row, rows, tile, tiles }, &mut sums);
                for r in row..row + rows {
                    let add = self.w.offset() * x.sum(r);
                    let exponent = i64::from(self.x.exponents[first + r]);
                    for (c, columns) in columns.iter().enumerate().take(tiles) {
                        let at = ((r - row) * tiles + c) * TILE;
                        let sums = sums[at..].first_chunk().expect("a block is whole tiles");
                        let at = r * width + (tile + c - from) * TILE;
                        saturations += finish(self.isa, sums, add, columns, exponent, &mut out[at..at + columns.count]);
                    }
                }
            }
        }
        saturations
    }
}

/// Rescales, adds the bias and clamps one row of one tile. Returns the number of clamped elements.
fn finish<T: Element>(isa: Isa, sums: &[i64; TILE], add: i64, columns: &Columns, exponent: i64, out: &mut [T]) -> u64 {
    let rescale = |out: &mut [T; TILE]| {
        if columns.least < exponent {
            rescale_left(sums, add, columns, exponent, out)
        } else {
            rescale_right(isa, sums, add, columns, exponent, out)
        }
    };
    if let Ok(out) = <&mut [T; TILE]>::try_from(&mut *out) {
        return rescale(out);
    }
    // The last tile may be partly padding, which comes out as zeros.
    let mut tile = [T::default(); TILE];
    let clamped = rescale(&mut tile);
    out.copy_from_slice(&tile[..out.len()]);
    clamped
}

/// Where some column is shifted left, which may leave 64 bits: one by one.
#[cold]
fn rescale_left<T: Element>(
    sums: &[i64; TILE],
    add: i64,
    columns: &Columns,
    exponent: i64,
    out: &mut [T; TILE],
) -> u64 {
    let y =
        |c: usize| rescale(sums[c] + add, columns.mantissa[c] as u16, columns.shift[c] - exponent) + columns.bias[c];
    clamp(&std::array::from_fn(|c| if c < columns.count { y(c) } else { 0 }), out)
}

for_each_path! {
    /// Where no column is shifted left.
    fn rescale_right<T: Element>(
        sums: &[i64; TILE],
        add: i64,
        columns: &Columns,
        exponent: i64,
        out: &mut [T; TILE],
    ) -> u64 {
        let mut y = [0; TILE];
        for c in 0..TILE {
            // |sum| <= 2^44 and the mantissa is below 2^16, so products stay below 2^60; a half is at most 2^62.
            let p = sums[c].wrapping_add(add).wrapping_mul(columns.mantissa[c]);
            let s = columns.shift[c].wrapping_sub(exponent).min(63) as u32 & 63;
            let half = ((1_u64 << s) >> 1) as i64;
            y[c] = (p.wrapping_add(half) >> s).wrapping_add(columns.bias[c]);
        }
        clamp(&y, out)
    }
}

/// Clamps to the range, and counts only where something was clamped.
#[inline(always)]
fn clamp<T: Element>(y: &[i64; TILE], out: &mut [T; TILE]) -> u64 {
    let clamped = y.map(|y| y.clamp(T::RANGE[0], T::RANGE[1]));
    let changed = y.iter().zip(&clamped).fold(0, |changed, (y, clamped)| changed | (y ^ clamped));
    *out = clamped.map(T::cast);
    if changed == 0 { 0 } else { y.iter().zip(&clamped).map(|(y, clamped)| u64::from(y != clamped)).sum() }
}
