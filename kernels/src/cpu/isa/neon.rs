//! Limb products with the NEON that every 64-bit Arm processor has: `smlal` on 16-bit codes and digits widened from
//! bytes.

#![allow(clippy::needless_range_loop, reason = "an index counts rows and columns of several arrays at once")]

use std::arch::aarch64::{
    int16x8_t, vaddlvq_s32, vcombine_s16, vdupq_n_s32, vget_low_s8, vget_low_s16, vld1_s16, vld1q_s8, vmlal_high_s16,
    vmlal_s16, vmovl_high_s8, vmovl_s8,
};

use super::{Block, Sums};
use crate::cpu::packed::{PackedMatrix, PackedRows, Quad, STEP, TILE};
use crate::cpu::path::{Isa, Path};

/// Steps whose products fit 32 bits, each of a step's four in a lane of its own: `256 * 2^15 * 2^7 = 2^30`.
const FLUSH: usize = 256;

/// Columns whose sums, of two rows and four lanes each, stay in registers: half a tile.
const HALF: usize = TILE / 2;

/// One or two rows times one tile.
pub(super) fn product(isa: Isa, x: &PackedRows, w: &PackedMatrix, block: Block, sums: &mut Sums) {
    assert!(isa.path() == Path::Neon);
    let tile = w.tile(block.tile);
    match (w.planes(), block.rows) {
        // SAFETY: an `Isa` of this path exists only where NEON was detected.
        (1, 1) => unsafe { rows::<1, 1>(x, tile, block, sums) },
        // SAFETY: as above.
        (1, 2) => unsafe { rows::<2, 1>(x, tile, block, sums) },
        // SAFETY: as above.
        (2, 1) => unsafe { rows::<1, 2>(x, tile, block, sums) },
        // SAFETY: as above.
        (2, 2) => unsafe { rows::<2, 2>(x, tile, block, sums) },
        (planes, rows) => unreachable!("a block of {rows} rows and {planes} planes"),
    }
}

#[target_feature(enable = "neon")]
fn rows<const R: usize, const PLANES: usize>(x: &PackedRows, tile: &[Quad], block: Block, sums: &mut Sums) {
    let tile = tile.as_chunks::<PLANES>().0;
    let mut exact = [[0; TILE]; R];
    let mut codes = [&[][..]; R];
    for start in (0..tile.len()).step_by(FLUSH) {
        let end = tile.len().min(start + FLUSH);
        for r in 0..R {
            codes[r] = &x.codes(block.row + r).as_chunks().0[start..end];
        }
        for plane in 0..PLANES {
            let weight = if plane + 1 == PLANES { 1 } else { 256 };
            for half in 0..TILE / HALF {
                let partial = partial(codes, &tile[start..end], plane, half);
                for r in 0..R {
                    for c in 0..HALF {
                        exact[r][half * HALF + c] += partial[r][c] * weight;
                    }
                }
            }
        }
    }
    for (r, exact) in exact.iter().enumerate() {
        sums.set_exact(r, exact);
    }
}

/// Sums of one digit plane of half a tile over at most [`FLUSH`] steps.
#[inline]
#[target_feature(enable = "neon")]
fn partial<const R: usize, const PLANES: usize>(
    codes: [&[[i16; STEP]]; R],
    quads: &[[Quad; PLANES]],
    plane: usize,
    half: usize,
) -> [[i64; HALF]; R] {
    for codes in codes {
        // Spares the loop its checks.
        assert!(codes.len() == quads.len());
    }
    let mut acc = [[vdupq_n_s32(0); HALF]; R];
    for (step, quads) in quads.iter().enumerate() {
        let digits = widen(&quads[plane], half);
        for r in 0..R {
            // SAFETY: four codes are 8 bytes, and the load needs no alignment beyond theirs.
            let q = unsafe { vld1_s16(codes[r][step].as_ptr()) };
            for pair in 0..HALF / 2 {
                let (even, odd) = (2 * pair, 2 * pair + 1);
                acc[r][even] = vmlal_s16(acc[r][even], vget_low_s16(digits[pair]), q);
                acc[r][odd] = vmlal_high_s16(acc[r][odd], digits[pair], vcombine_s16(q, q));
            }
        }
    }
    let mut sums = [[0; HALF]; R];
    for r in 0..R {
        for c in 0..HALF {
            sums[r][c] = vaddlvq_s32(acc[r][c]);
        }
    }
    sums
}

/// Digits of 2 columns in each register, as 16-bit numbers.
#[inline]
#[target_feature(enable = "neon")]
fn widen(quad: &Quad, half: usize) -> [int16x8_t; HALF / 2] {
    let bytes: &[i8; HALF * STEP] = &quad.0.as_chunks().0[half];
    // SAFETY: half a quad is 32 bytes, and the loads need no alignment.
    let [first, second] = unsafe { [vld1q_s8(bytes.as_ptr()), vld1q_s8(bytes.as_ptr().add(16))] };
    [vmovl_s8(vget_low_s8(first)), vmovl_high_s8(first), vmovl_s8(vget_low_s8(second)), vmovl_high_s8(second)]
}
