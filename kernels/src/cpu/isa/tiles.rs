//! Limb products on a tile unit: eight registers of 16 rows of 64 bytes each, of which one instruction multiplies two.
//!
//! The kernels are the same for the instructions ([`super::amx`]) and for the plain model of them that is here, which
//! follows Intel's definition. Machines with the instructions are rare; with the model every machine tests the rest.

use super::{Block, Sums};
use crate::cpu::packed::{PackedMatrix, PackedRows, Quad, STEP, TILE};

/// Rows of a register.
pub(crate) const ROWS: usize = 16;

/// Steps that a register holds: 64 bytes of the left operand, 16 rows of the right one.
pub(crate) const STEPS: usize = 16;

/// Bytes in a row of a register.
const ROW_BYTES: usize = STEPS * STEP;

/// Tile registers, numbered 0 to 7, all of them 16 rows of 64 bytes.
pub(super) trait Unit {
    /// Writes zeros.
    fn zero<const T: usize>(&mut self);

    /// Reads 16 rows of 64 bytes, each `stride` bytes after the one before. Panics where `bytes` is too short.
    fn load<const T: usize>(&mut self, bytes: &[u8], stride: usize);

    /// `c[m][n] += a[m][4k + i] * b[k][4n + i]`, summed over `k` and `i`, for unsigned `a` and signed `b`, modulo 2^32.
    fn dot<const C: usize, const A: usize, const B: usize>(&mut self);

    /// Writes 16 rows of 16 sums, each `stride` rows of `out` after the one before. Panics where `out` is too short.
    fn store<const T: usize>(&mut self, out: &mut [[i32; TILE]], stride: usize);
}

/// Up to 16 rows times one or two tiles (one digit plane) or one (two). Computes all 16 rows, for which the left operand has
/// room.
pub(super) fn product(unit: &mut impl Unit, x: &PackedRows, w: &PackedMatrix, block: Block, sums: &mut Sums) {
    match (w.planes(), block.tiles) {
        (1, 1) => narrow::<_, 1>(unit, x, w, block, sums),
        (1, 2) => narrow::<_, 2>(unit, x, w, block, sums),
        (2, 1) => wide(unit, x, w, block, sums),
        (planes, tiles) => unreachable!("a block of {tiles} tiles of {planes} planes"),
    }
}

/// One digit plane: high and low digits of 16 rows, times one or two tiles.
fn narrow<U: Unit, const C: usize>(unit: &mut U, x: &PackedRows, w: &PackedMatrix, block: Block, sums: &mut Sums) {
    let (low, high, stride) = left(x, block);
    let first = w.tile(block.tile);
    let second = if C == 2 { w.tile(block.tile + 1) } else { &[] };
    zero_all(unit);
    for step in (0..w.steps()).step_by(STEPS) {
        unit.load::<6>(bytes(&first[step..]), ROW_BYTES);
        unit.load::<4>(&high[step * STEP..], stride);
        unit.load::<5>(&low[step * STEP..], stride);
        unit.dot::<0, 4, 6>();
        unit.dot::<1, 5, 6>();
        if C == 2 {
            unit.load::<7>(bytes(&second[step..]), ROW_BYTES);
            unit.dot::<2, 4, 7>();
            unit.dot::<3, 5, 7>();
        }
    }
    // `[rows][tiles][high, low]`.
    unit.store::<0>(&mut sums.limbs, 2 * C);
    unit.store::<1>(&mut sums.limbs[1..], 2 * C);
    if C == 2 {
        unit.store::<2>(&mut sums.limbs[2..], 2 * C);
        unit.store::<3>(&mut sums.limbs[3..], 2 * C);
    }
}

/// Two digit planes of one tile. The cross products are summed apart, so that no product waits for the one before.
fn wide(unit: &mut impl Unit, x: &PackedRows, w: &PackedMatrix, block: Block, sums: &mut Sums) {
    let (low, high, stride) = left(x, block);
    let quads = w.tile(block.tile);
    zero_all(unit);
    for step in (0..w.steps()).step_by(STEPS) {
        unit.load::<6>(bytes(&quads[2 * step..]), 2 * ROW_BYTES);
        unit.load::<7>(bytes(&quads[2 * step + 1..]), 2 * ROW_BYTES);
        unit.load::<4>(&high[step * STEP..], stride);
        unit.load::<5>(&low[step * STEP..], stride);
        unit.dot::<0, 4, 6>();
        unit.dot::<1, 4, 7>();
        unit.dot::<2, 5, 6>();
        unit.dot::<3, 5, 7>();
    }
    // `[rows][high, middle, low]`.
    unit.store::<0>(&mut sums.limbs, 3);
    unit.store::<1>(&mut sums.limbs[1..], 3);
    unit.store::<3>(&mut sums.limbs[2..], 3);
    let mut crossed = [[0; TILE]; ROWS];
    unit.store::<2>(&mut crossed, 1);
    for (limbs, crossed) in sums.limbs.as_chunks_mut::<3>().0.iter_mut().zip(&crossed) {
        for (sum, crossed) in limbs[1].iter_mut().zip(crossed) {
            // Both together are below 2^30.
            *sum = sum.wrapping_add(*crossed);
        }
    }
}

fn zero_all(unit: &mut impl Unit) {
    unit.zero::<0>();
    unit.zero::<1>();
    unit.zero::<2>();
    unit.zero::<3>();
}

/// Low and high digits of the block's rows, and the bytes from one row to the next.
fn left(x: &PackedRows, block: Block) -> (&[u8], &[u8], usize) {
    let (digits, plane) = (x.digits(block.row, ROWS), x.steps() * STEP);
    (digits, &digits[plane..], 2 * plane)
}

fn bytes(quads: &[Quad]) -> &[u8] {
    // SAFETY: a `Quad` is 64 bytes without padding, and every byte is a valid `u8`.
    unsafe { std::slice::from_raw_parts(quads.as_ptr().cast::<u8>(), size_of_val(quads)) }
}

/// The registers in plain Rust.
#[derive(Clone, Debug)]
pub(super) struct Model {
    tiles: Box<[[[u8; ROW_BYTES]; ROWS]; 8]>,
}

impl Model {
    pub(super) fn new() -> Self {
        Self { tiles: Box::new([[[0; ROW_BYTES]; ROWS]; 8]) }
    }
}

impl Unit for Model {
    fn zero<const T: usize>(&mut self) {
        self.tiles[T] = [[0; ROW_BYTES]; ROWS];
    }

    fn load<const T: usize>(&mut self, bytes: &[u8], stride: usize) {
        for (m, row) in self.tiles[T].iter_mut().enumerate() {
            row.copy_from_slice(&bytes[m * stride..m * stride + ROW_BYTES]);
        }
    }

    fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        let (a, b) = (self.tiles[A], self.tiles[B]);
        for (c, a) in self.tiles[C].iter_mut().zip(&a) {
            for (a, b) in a.as_chunks::<STEP>().0.iter().zip(&b) {
                for (c, b) in c.as_chunks_mut::<4>().0.iter_mut().zip(b.as_chunks::<STEP>().0) {
                    let products = a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b as i8));
                    *c = i32::from_le_bytes(*c).wrapping_add(products.sum()).to_le_bytes();
                }
            }
        }
    }

    fn store<const T: usize>(&mut self, out: &mut [[i32; TILE]], stride: usize) {
        for (m, row) in self.tiles[T].iter().enumerate() {
            for (out, sum) in out[m * stride].iter_mut().zip(row.as_chunks::<4>().0) {
                *out = i32::from_le_bytes(*sum);
            }
        }
    }
}
