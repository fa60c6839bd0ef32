//! Limb products with AVX-512 VNNI: `vpdpbusd` on unsigned digits of `code + 32768` and signed digits of the weights.

#![allow(clippy::needless_range_loop, reason = "an index counts rows and tiles of several arrays at once")]

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_dpbusd_epi32, _mm512_load_si512, _mm512_set1_epi32,
    _mm512_setzero_si512, _mm512_storeu_si512,
};

use super::{Block, FEW, Sums};
use crate::cpu::packed::{PackedMatrix, PackedRows, Quad, STEP};
use crate::cpu::path::{Isa, Path};

/// Up to 6 rows (one digit plane) or 4 rows (two) times one or two tiles.
pub(super) fn product(isa: Isa, x: &PackedRows, w: &PackedMatrix, block: Block, sums: &mut Sums) {
    assert!(matches!(isa.path(), Path::Avx512Vnni | Path::AmxInt8));
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

/// How far ahead the weights of a pass over few rows are asked for, in steps: these passes wait for memory.
const AHEAD: usize = 48;

/// One digit plane: high and low digits of the left operand times it.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn narrow<const R: usize, const C: usize>(x: &PackedRows, w: &PackedMatrix, block: Block, sums: &mut Sums) {
    let (left, right) = (Left::new(x, w, block, R), Right::new(w, block, C));
    let mut acc = [[[_mm512_setzero_si512(); 2]; C]; R];
    for step in 0..w.steps() {
        if R <= FEW {
            right.prefetch::<C, 1>(step);
        }
        // SAFETY: `step` is below the number of steps, `c` below the block's tiles.
        let weights: [__m512i; C] = std::array::from_fn(|c| unsafe { right.load::<1>(c, step, 0) });
        for r in 0..R {
            // SAFETY: `r` is below the block's rows.
            let [high, low] = unsafe { left.broadcast(r, step) };
            for c in 0..C {
                acc[r][c][0] = _mm512_dpbusd_epi32(acc[r][c][0], high, weights[c]);
                acc[r][c][1] = _mm512_dpbusd_epi32(acc[r][c][1], low, weights[c]);
            }
        }
    }
    store(&acc, sums);
}

/// Two digit planes; the cross products share a sum.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn wide<const R: usize, const C: usize>(x: &PackedRows, w: &PackedMatrix, block: Block, sums: &mut Sums) {
    let (left, right) = (Left::new(x, w, block, R), Right::new(w, block, C));
    let mut acc = [[[_mm512_setzero_si512(); 3]; C]; R];
    for step in 0..w.steps() {
        if R <= FEW {
            right.prefetch::<C, 2>(step);
        }
        let weights: [[__m512i; 2]; C] =
            // SAFETY: `step` is below the number of steps, `c` below the block's tiles.
            std::array::from_fn(|c| unsafe { [right.load::<2>(c, step, 0), right.load::<2>(c, step, 1)] });
        for r in 0..R {
            // SAFETY: `r` is below the block's rows.
            let [high, low] = unsafe { left.broadcast(r, step) };
            for c in 0..C {
                let [w_high, w_low] = weights[c];
                acc[r][c][0] = _mm512_dpbusd_epi32(acc[r][c][0], high, w_high);
                acc[r][c][1] = _mm512_dpbusd_epi32(acc[r][c][1], high, w_low);
                acc[r][c][2] = _mm512_dpbusd_epi32(acc[r][c][2], low, w_low);
                acc[r][c][1] = _mm512_dpbusd_epi32(acc[r][c][1], low, w_high);
            }
        }
    }
    store(&acc, sums);
}

/// Digits of a block's rows, `[rows][low, high][steps][4]`.
#[derive(Clone, Copy)]
struct Left<'a> {
    digits: &'a [u8],
    /// Bytes of one plane of one row.
    plane: usize,
}

impl<'a> Left<'a> {
    fn new(x: &'a PackedRows, w: &PackedMatrix, block: Block, rows: usize) -> Self {
        let (digits, plane) = (x.digits(block.row, rows), w.steps() * STEP);
        assert!(digits.len() == 2 * rows * plane);
        Self { digits, plane }
    }

    /// Four digits of each plane of a row, high and low, in every lane.
    ///
    /// # Safety
    /// Row and step lie in the block.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn broadcast(self, r: usize, step: usize) -> [__m512i; 2] {
        let low = r.wrapping_mul(2).wrapping_mul(self.plane).wrapping_add(step.wrapping_mul(STEP));
        [low.wrapping_add(self.plane), low].map(|at| {
            // SAFETY: the block has `2 * rows` planes of `4 * steps` bytes by the check in `new`.
            _mm512_set1_epi32(unsafe { self.digits.as_ptr().add(at).cast::<i32>().read_unaligned() })
        })
    }
}

/// Digits of a block's tiles, `[tiles][steps][planes]`, one after the other.
#[derive(Clone, Copy)]
struct Right<'a> {
    quads: &'a [Quad],
    steps: usize,
}

impl<'a> Right<'a> {
    fn new(w: &'a PackedMatrix, block: Block, tiles: usize) -> Self {
        let (quads, steps) = (w.consecutive(block.tile, tiles), w.steps());
        assert!(quads.len() == tiles * steps * w.planes());
        Self { quads, steps }
    }

    /// # Safety
    /// Tile and step lie in the block, and `PLANES` is its number of planes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load<const PLANES: usize>(self, c: usize, step: usize, plane: usize) -> __m512i {
        let at = c.wrapping_mul(self.steps).wrapping_add(step).wrapping_mul(PLANES).wrapping_add(plane);
        // SAFETY: the block has `tiles * steps * planes` quads by the check in `new`; each is 64 bytes, aligned to 64.
        unsafe { _mm512_load_si512(self.quads.as_ptr().add(at).cast::<__m512i>()) }
    }

    /// Asks for a step to come, which may lie in the next block, or beyond the end, where asking does nothing.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn prefetch<const TILES: usize, const PLANES: usize>(self, step: usize) {
        for i in 0..TILES * PLANES {
            let at = step.wrapping_add(AHEAD).wrapping_mul(TILES * PLANES).wrapping_add(i);
            _mm_prefetch::<_MM_HINT_T0>(self.quads.as_ptr().wrapping_add(at).cast::<i8>());
        }
    }
}

/// Writes `[rows][tiles][limbs]`.
#[inline]
#[target_feature(enable = "avx512f")]
fn store<const R: usize, const C: usize, const LIMBS: usize>(acc: &[[[__m512i; LIMBS]; C]; R], sums: &mut Sums) {
    let out = &mut sums.limbs[..R * C * LIMBS];
    for (out, acc) in out.iter_mut().zip(acc.as_flattened().as_flattened()) {
        // SAFETY: 16 sums are 64 bytes, and the store needs no alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast::<__m512i>(), *acc) };
    }
}
