//! Limb products in plain Rust.

use super::{Block, Sums};
use crate::cpu::packed::{PackedMatrix, PackedRows, Quad, STEP, TILE};

/// Steps whose products fit 32 bits: `64 * 4 * 2^15 * 2^7 = 2^30`.
const FLUSH: usize = 64;

/// One row times one tile.
pub(super) fn product(x: &PackedRows, w: &PackedMatrix, block: Block, sums: &mut Sums) {
    let planes = w.planes();
    let mut exact = [0; TILE];
    let codes = x.codes(block.row).chunks(FLUSH * STEP);
    for (codes, quads) in codes.zip(w.tile(block.tile).chunks(FLUSH * planes)) {
        for plane in 0..planes {
            let partial = partial(codes, quads, plane, planes);
            let weight = if plane + 1 == planes { 1 } else { 256 };
            for (sum, partial) in exact.iter_mut().zip(partial) {
                *sum += i64::from(partial) * weight;
            }
        }
    }
    sums.set_exact(0, &exact);
}

/// Sums of one digit plane over at most [`FLUSH`] steps.
fn partial(codes: &[i16], quads: &[Quad], plane: usize, planes: usize) -> [i32; TILE] {
    let mut sums = [0_i32; TILE];
    for (codes, quads) in codes.as_chunks::<STEP>().0.iter().zip(quads.chunks_exact(planes)) {
        for (sum, digits) in sums.iter_mut().zip(quads[plane].0.as_chunks::<STEP>().0) {
            for (q, d) in codes.iter().zip(digits) {
                // Cannot wrap: see `FLUSH`.
                *sum = sum.wrapping_add(i32::from(*q) * i32::from(*d));
            }
        }
    }
    sums
}
