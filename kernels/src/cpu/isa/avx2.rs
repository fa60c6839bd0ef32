//! Limb products with AVX2: `vpmaddwd` on 16-bit codes and digits widened from bytes.

#![allow(clippy::needless_range_loop, reason = "an index counts rows and tiles of several arrays at once")]

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_add_epi32, _mm256_cvtepi8_epi16, _mm256_madd_epi16, _mm256_set1_epi64x,
    _mm256_setzero_si256, _mm256_storeu_si256,
};

use super::{Block, Sums};
use crate::cpu::packed::{PackedMatrix, PackedRows, Quad, STEP, TILE};
use crate::cpu::path::{Isa, Path};

/// Steps whose products fit 32 bits, both halves of a column together: `64 * 4 * 2^15 * 2^7 = 2^30`.
const FLUSH: usize = 64;

/// Registers of 4 columns in a tile.
const GROUPS: usize = TILE / 4;

/// One or two rows times one tile.
pub(super) fn product(isa: Isa, x: &PackedRows, w: &PackedMatrix, block: Block, sums: &mut Sums) {
    assert!(isa.path() == Path::Avx2);
    let tile = w.tile(block.tile);
    match block.rows {
        // SAFETY: an `Isa` of this path exists only where AVX2 was detected.
        1 => unsafe { rows([x.codes(block.row)], tile, w.planes(), sums) },
        // SAFETY: as above.
        2 => unsafe { rows([x.codes(block.row), x.codes(block.row + 1)], tile, w.planes(), sums) },
        rows => unreachable!("{rows} rows in a block of at most 2"),
    }
}

#[target_feature(enable = "avx2")]
fn rows<const R: usize>(x: [&[i16]; R], tile: &[Quad], planes: usize, sums: &mut Sums) {
    let mut exact = [[0; TILE]; R];
    let steps = tile.len() / planes;
    for start in (0..steps).step_by(FLUSH) {
        let end = steps.min(start + FLUSH);
        let mut codes = [&[][..]; R];
        for r in 0..R {
            codes[r] = &x[r][start * STEP..end * STEP];
        }
        for plane in 0..planes {
            let weight = if plane + 1 == planes { 1 } else { 256 };
            partial(codes, &tile[start * planes..end * planes], plane, planes, weight, &mut exact);
        }
    }
    for (r, exact) in exact.iter().enumerate() {
        sums.set_exact(r, exact);
    }
}

/// Adds `weight` times the sums of one digit plane over at most [`FLUSH`] steps.
#[target_feature(enable = "avx2")]
fn partial<const R: usize>(
    codes: [&[i16]; R],
    quads: &[Quad],
    plane: usize,
    planes: usize,
    weight: i64,
    sums: &mut [[i64; TILE]; R],
) {
    let mut acc = [[_mm256_setzero_si256(); GROUPS]; R];
    for (step, quads) in quads.chunks_exact(planes).enumerate() {
        let digits = widen(&quads[plane]);
        for r in 0..R {
            let q: &[i16; STEP] = codes[r][step * STEP..].first_chunk().expect("rows are padded to whole steps");
            let q = _mm256_set1_epi64x(packed(*q));
            for g in 0..GROUPS {
                acc[r][g] = _mm256_add_epi32(acc[r][g], _mm256_madd_epi16(q, digits[g]));
            }
        }
    }
    for r in 0..R {
        for g in 0..GROUPS {
            let lanes = lanes(acc[r][g]);
            for c in 0..4 {
                // Cannot wrap: see `FLUSH`.
                let sum = lanes[2 * c].wrapping_add(lanes[2 * c + 1]);
                sums[r][g * 4 + c] += i64::from(sum) * weight;
            }
        }
    }
}

/// Four codes as one 64-bit lane.
#[inline(always)]
fn packed(q: [i16; STEP]) -> i64 {
    let [a, b, c, d] = q.map(|q| u64::from(q as u16));
    (a | b << 16 | c << 32 | d << 48) as i64
}

/// Digits of 4 columns in each register, as 16-bit numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(quad: &Quad) -> [__m256i; GROUPS] {
    let mut wide = [_mm256_setzero_si256(); GROUPS];
    for (g, wide) in wide.iter_mut().enumerate() {
        let bytes = &quad.0[g * 16..(g + 1) * 16];
        // SAFETY: the slice holds 16 bytes, and the load needs no alignment.
        *wide = _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(bytes.as_ptr().cast::<__m128i>()) });
    }
    wide
}

#[inline]
#[target_feature(enable = "avx2")]
fn lanes(v: __m256i) -> [i32; 8] {
    let mut lanes = [0; 8];
    // SAFETY: the array holds 32 bytes, and the store needs no alignment.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast::<__m256i>(), v) };
    lanes
}
