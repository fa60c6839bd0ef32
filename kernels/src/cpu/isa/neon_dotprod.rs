//! Limb products with NEON's byte dot products: `sdot` on signed digits of both operands.

#![allow(clippy::needless_range_loop, reason = "an index counts rows and registers of several arrays at once")]

use std::arch::aarch64::{
    int8x8_t, int8x16_t, int32x4_t, vdup_n_s8, vdup_n_s32, vdupq_n_s32, vld1q_s8, vreinterpret_s8_s32, vset_lane_s32,
    vst1q_s32,
};
use std::arch::asm;

use super::{Block, Sums};
use crate::cpu::packed::{PackedMatrix, PackedRows, Quad, STEP, TILE};
use crate::cpu::path::{Isa, Path};

/// Registers of 4 columns in a tile.
const GROUPS: usize = TILE / 4;

/// Up to 3 rows (one digit plane) or 2 rows (two) times one tile.
pub(super) fn product(isa: Isa, x: &PackedRows, w: &PackedMatrix, block: Block, sums: &mut Sums) {
    assert!(isa.path() == Path::NeonDotprod);
    let tile = w.tile(block.tile);
    match (w.planes(), block.rows) {
        // SAFETY: an `Isa` of this path exists only where its features were detected.
        (1, 1) => unsafe { narrow::<1>(x, tile, block, sums) },
        // SAFETY: as above.
        (1, 2) => unsafe { narrow::<2>(x, tile, block, sums) },
        // SAFETY: as above.
        (1, 3) => unsafe { narrow::<3>(x, tile, block, sums) },
        // SAFETY: as above.
        (2, 1) => unsafe { wide::<1>(x, tile, block, sums) },
        // SAFETY: as above.
        (2, 2) => unsafe { wide::<2>(x, tile, block, sums) },
        (planes, rows) => unreachable!("a block of {rows} rows and {planes} planes"),
    }
}

/// One digit plane: high and low digits of the left operand times it.
#[target_feature(enable = "dotprod")]
fn narrow<const R: usize>(x: &PackedRows, tile: &[Quad], block: Block, sums: &mut Sums) {
    let left = Left::<R>::new(x, block, tile.len());
    let mut acc = [[[vdupq_n_s32(0); GROUPS]; 2]; R];
    for (step, quad) in tile.iter().enumerate() {
        // SAFETY: there are as many steps.
        let digits = unsafe { left.step(step) };
        for g in 0..GROUPS {
            let weights = load(quad, g);
            for r in 0..R {
                let [low, high] = digits[r];
                acc[r][0][g] = dot(acc[r][0][g], weights, high);
                acc[r][1][g] = dot(acc[r][1][g], weights, low);
            }
        }
    }
    store(&acc, sums);
}

/// Two digit planes; the cross products share a sum.
#[target_feature(enable = "dotprod")]
fn wide<const R: usize>(x: &PackedRows, tile: &[Quad], block: Block, sums: &mut Sums) {
    let steps = tile.as_chunks::<2>().0;
    let left = Left::<R>::new(x, block, steps.len());
    let mut acc = [[[vdupq_n_s32(0); GROUPS]; 3]; R];
    for (step, [w_high, w_low]) in steps.iter().enumerate() {
        // SAFETY: there are as many steps.
        let digits = unsafe { left.step(step) };
        for g in 0..GROUPS {
            let (w_high, w_low) = (load(w_high, g), load(w_low, g));
            for r in 0..R {
                let [low, high] = digits[r];
                acc[r][0][g] = dot(acc[r][0][g], w_high, high);
                acc[r][1][g] = dot(acc[r][1][g], w_low, high);
                acc[r][2][g] = dot(acc[r][2][g], w_low, low);
                acc[r][1][g] = dot(acc[r][1][g], w_high, low);
            }
        }
    }
    store(&acc, sums);
}

/// Digits of `R` rows, `[R][low, high][steps][4]`.
#[derive(Clone, Copy)]
struct Left<'a, const R: usize> {
    digits: &'a [u8],
    /// Bytes of one plane of one row.
    plane: usize,
}

impl<'a, const R: usize> Left<'a, R> {
    fn new(x: &'a PackedRows, block: Block, steps: usize) -> Self {
        let (digits, plane) = (x.digits(block.row, R), steps * STEP);
        assert!(digits.len() == 2 * R * plane);
        Self { digits, plane }
    }

    /// Four digits of each plane of each row, low and high, each in the first lane.
    ///
    /// # Safety
    /// `step` is below the number of steps.
    #[inline]
    #[target_feature(enable = "dotprod")]
    unsafe fn step(self, step: usize) -> [[int8x8_t; 2]; R] {
        let mut digits = [[vdup_n_s8(0); 2]; R];
        for (i, digits) in digits.as_flattened_mut().iter_mut().enumerate() {
            let at = i.wrapping_mul(self.plane).wrapping_add(step.wrapping_mul(STEP));
            // SAFETY: there are `2 * R` planes of `4 * steps` bytes by the check in `new`.
            let four = unsafe { self.digits.as_ptr().add(at).cast::<i32>().read_unaligned() };
            *digits = vreinterpret_s8_s32(vset_lane_s32::<0>(four, vdup_n_s32(0)));
        }
        digits
    }
}

/// Digits of 4 columns.
#[inline]
#[target_feature(enable = "dotprod")]
fn load(quad: &Quad, group: usize) -> int8x16_t {
    let digits: &[i8; 4 * STEP] = &quad.0.as_chunks().0[group];
    // SAFETY: the digits of 4 columns are 16 bytes, and the load needs no alignment.
    unsafe { vld1q_s8(digits.as_ptr()) }
}

/// Adds to each of 4 columns' sums the products of its digits in `weights` with the first four of `digits`. At most 2^14
/// products of 2^14, twice as many for both cross products: nothing wraps. (The standard library's function for it is not
/// stable.)
#[inline]
#[target_feature(enable = "dotprod")]
fn dot(mut sums: int32x4_t, weights: int8x16_t, digits: int8x8_t) -> int32x4_t {
    // SAFETY: the function has the feature, and the instruction touches nothing but these registers.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {weights:v}.16b, {digits:v}.4b[0]",
            sums = inout(vreg) sums,
            weights = in(vreg) weights,
            digits = in(vreg) digits,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Writes `[rows][limbs]`.
#[inline]
#[target_feature(enable = "dotprod")]
fn store<const R: usize, const LIMBS: usize>(acc: &[[[int32x4_t; GROUPS]; LIMBS]; R], sums: &mut Sums) {
    let out = &mut sums.limbs[..R * LIMBS];
    for (out, acc) in out.iter_mut().zip(acc.as_flattened()) {
        for (out, lanes) in out.as_chunks_mut::<4>().0.iter_mut().zip(acc) {
            // SAFETY: 4 sums are 16 bytes, and the store needs no alignment beyond theirs.
            unsafe { vst1q_s32(out.as_mut_ptr(), *lanes) };
        }
    }
}
