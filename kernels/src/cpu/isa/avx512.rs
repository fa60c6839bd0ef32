//! Limb products with AVX-512 VNNI: `vpdpbusd` on unsigned digits of `code + 32768` and signed digits of the weights.

#![allow(clippy::needless_range_loop, reason = "an index counts rows and tiles of several arrays at once")]

use std::arch::x86_64::{
    __m512i, _mm512_add_epi64, _mm512_castsi512_si256, _mm512_cvtepi32_epi64, _mm512_dpbusd_epi32,
    _mm512_extracti64x4_epi64, _mm512_load_si512, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512,
    _mm512_slli_epi64, _mm512_storeu_si512,
};

use super::{Block, Sums};
use crate::cpu::packed::{PackedMatrix, PackedRows, Quad, STEP, TILE};
use crate::cpu::path::{Isa, Path};

/// Up to 6 rows (one digit plane) or 4 rows (two) times one or two tiles.
pub(super) fn product(isa: Isa, x: &PackedRows, w: &PackedMatrix, block: Block, sums: &mut Sums) {
    assert!(isa.path() == Path::Avx512Vnni);
    macro_rules! dispatch {
        ($kernel:ident: $($rows:literal)*) => {
            match (block.rows, block.tiles) {
                $(
                    // SAFETY: an `Isa` of this path exists only where its features were detected.
                    ($rows, 1) => unsafe { $kernel::<$rows, 1>(x, w, block, sums) },
                    // SAFETY: as above.
                    ($rows, 2) => unsafe { $kernel::<$rows, 2>(x, w, block, sums) },
                )*
                (rows, tiles) => unreachable!("a block of {rows} rows and {tiles} tiles"),
            }
        };
    }
    if w.planes() == 1 { dispatch!(narrow: 1 2 3 4 5 6) } else { dispatch!(wide: 1 2 3 4) }
}

/// One digit plane: `256 * sum(high * w) + sum(low * w) - 32768 * sum(w)`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn narrow<const R: usize, const C: usize>(x: &PackedRows, w: &PackedMatrix, block: Block, sums: &mut Sums) {
    let steps = w.steps();
    let digits = Digits::new(x, block.row, R);
    assert!(digits.steps == steps);
    let tiles = tiles::<C>(w, block);
    let mut acc = [[[_mm512_setzero_si512(); 2]; C]; R];
    for step in 0..steps {
        let mut weights = [_mm512_setzero_si512(); C];
        for c in 0..C {
            // SAFETY: `step < steps`, the length of every tile.
            weights[c] = unsafe { load(tiles[c], step) };
        }
        for r in 0..R {
            // SAFETY: `r < R` and `step < steps`.
            let [low, high] = unsafe { [digits.broadcast(2 * r, step), digits.broadcast(2 * r + 1, step)] };
            for c in 0..C {
                acc[r][c][0] = _mm512_dpbusd_epi32(acc[r][c][0], low, weights[c]);
                acc[r][c][1] = _mm512_dpbusd_epi32(acc[r][c][1], high, weights[c]);
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            let [low, high] = acc[r][c];
            let correction = w.correction(block.tile + c);
            let out = &mut sums[(r * C + c) * TILE..(r * C + c + 1) * TILE];
            for half in 0..2 {
                let sum = _mm512_add_epi64(shifted::<8>(widen(high, half)), widen(low, half));
                store(&mut out[half * 8..], _mm512_add_epi64(sum, load_i64(&correction[half * 8..])));
            }
        }
    }
}

/// Two digit planes; the cross products share a sum.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn wide<const R: usize, const C: usize>(x: &PackedRows, w: &PackedMatrix, block: Block, sums: &mut Sums) {
    let steps = w.steps();
    let digits = Digits::new(x, block.row, R);
    assert!(digits.steps == steps);
    let tiles = tiles::<C>(w, block);
    let mut acc = [[[_mm512_setzero_si512(); 3]; C]; R];
    for step in 0..steps {
        let mut weights = [[_mm512_setzero_si512(); 2]; C];
        for c in 0..C {
            // SAFETY: `step < steps`, half the length of every tile.
            weights[c] = unsafe { [load(tiles[c], 2 * step), load(tiles[c], 2 * step + 1)] };
        }
        for r in 0..R {
            // SAFETY: `r < R` and `step < steps`.
            let [low, high] = unsafe { [digits.broadcast(2 * r, step), digits.broadcast(2 * r + 1, step)] };
            for c in 0..C {
                let [w_high, w_low] = weights[c];
                acc[r][c][0] = _mm512_dpbusd_epi32(acc[r][c][0], low, w_low);
                acc[r][c][1] = _mm512_dpbusd_epi32(acc[r][c][1], high, w_low);
                acc[r][c][2] = _mm512_dpbusd_epi32(acc[r][c][2], high, w_high);
                acc[r][c][1] = _mm512_dpbusd_epi32(acc[r][c][1], low, w_high);
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            let [low, middle, high] = acc[r][c];
            let correction = w.correction(block.tile + c);
            let out = &mut sums[(r * C + c) * TILE..(r * C + c + 1) * TILE];
            for half in 0..2 {
                let sum = _mm512_add_epi64(shifted::<8>(widen(high, half)), widen(middle, half));
                let sum = _mm512_add_epi64(shifted::<8>(sum), widen(low, half));
                store(&mut out[half * 8..], _mm512_add_epi64(sum, load_i64(&correction[half * 8..])));
            }
        }
    }
}

/// Digits of 16 columns.
///
/// # Safety
/// `at < tile.len()`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(tile: &[Quad], at: usize) -> __m512i {
    // SAFETY: the caller keeps to the tile; a `Quad` is 64 bytes, aligned to 64.
    unsafe { _mm512_load_si512(tile.as_ptr().add(at).cast::<__m512i>()) }
}

/// Digit planes of `R` rows, checked once for the whole loop.
#[derive(Clone, Copy)]
struct Digits<'a> {
    bytes: &'a [u8],
    steps: usize,
}

impl<'a> Digits<'a> {
    /// Rows `row..row + rows`, two planes each.
    fn new(x: &'a PackedRows, row: usize, rows: usize) -> Self {
        let (bytes, steps) = (x.digits(row, rows), x.steps());
        assert!(bytes.len() == 2 * rows * steps * STEP);
        Self { bytes, steps }
    }

    /// Four digits of one plane in every lane.
    ///
    /// # Safety
    /// `plane < 2 * rows` and `step < steps`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn broadcast(self, plane: usize, step: usize) -> __m512i {
        let at = (plane * self.steps + step) * STEP;
        // SAFETY: the planes are `[2 * rows][steps][4]` bytes by the check in `new`, and the caller keeps to them.
        _mm512_set1_epi32(unsafe { self.bytes.as_ptr().add(at).cast::<i32>().read_unaligned() })
    }
}

/// The tiles of a block, each `[steps][planes]`, checked once for the whole loop.
#[inline(always)]
fn tiles<const C: usize>(w: &PackedMatrix, block: Block) -> [&[Quad]; C] {
    let tiles = std::array::from_fn(|c| w.tile(block.tile + c));
    assert!(tiles.iter().all(|t: &&[Quad]| t.len() == w.steps() * w.planes()));
    tiles
}

/// Half of the lanes as 64-bit numbers.
#[inline]
#[target_feature(enable = "avx512f")]
fn widen(v: __m512i, half: usize) -> __m512i {
    _mm512_cvtepi32_epi64(if half == 0 { _mm512_castsi512_si256(v) } else { _mm512_extracti64x4_epi64::<1>(v) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn shifted<const BITS: u32>(v: __m512i) -> __m512i {
    _mm512_slli_epi64::<BITS>(v)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i64(from: &[i64]) -> __m512i {
    let from = &from[..8];
    // SAFETY: the slice holds 64 bytes, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast::<__m512i>()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(to: &mut [i64], v: __m512i) {
    let to = &mut to[..8];
    // SAFETY: the slice holds 64 bytes, and the store needs no alignment.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast::<__m512i>(), v) };
}
