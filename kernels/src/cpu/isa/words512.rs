//! Products of 16-bit codes with AVX-512 VNNI: `vpdpwssd` of whole codes with digits of a few rows.

#![allow(clippy::needless_range_loop, reason = "an index counts rows, digits and steps of several arrays at once")]

use std::arch::x86_64::{
    __m512i, __mmask32, _mm512_add_epi64, _mm512_and_si512, _mm512_castsi512_si256, _mm512_cvtepi32_epi64,
    _mm512_dpwssd_epi32, _mm512_extracti64x4_epi64, _mm512_loadu_si512, _mm512_maskz_loadu_epi16,
    _mm512_permutex2var_epi32, _mm512_set1_epi16, _mm512_set1_epi32, _mm512_setr_epi32, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_slli_epi64, _mm512_srai_epi16, _mm512_storeu_si512, _mm512_unpackhi_epi16,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi16, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::words::{Lines, SEGMENT};
use crate::cpu::path::{Isa, Path};
use crate::reference::attention::BLOCK;

/// Sums of 32 bits in a register.
const LANES: usize = 16;

/// Codes in a register.
const CODES: usize = 32;

/// Most rows whose sums stay in registers.
const ROWS: usize = 4;

/// How far ahead lines are asked for: these products wait for memory.
const AHEAD: usize = 32;

/// Whether the machine of this path has the instructions.
pub(super) fn serves(isa: Isa) -> bool {
    matches!(isa.path(), Path::Avx512Vnni | Path::AmxInt8)
}

/// Pairs of codes of a segment.
const PAIRS: usize = SEGMENT / 2;

/// Digits of a row, high and low; each number has those of two neighbours.
#[derive(Clone, Copy)]
struct Digits([[i32; PAIRS]; 2]);

impl Digits {
    const ZERO: Self = Self([[0; PAIRS]; 2]);

    /// Those of some rows of codes.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn of<'a>(rows: impl ExactSizeIterator<Item = &'a [i16]>) -> Vec<Self> {
        let mut digits = vec![Self::ZERO; rows.len()];
        for (Self([high, low]), row) in digits.iter_mut().zip(rows) {
            let places = high.as_chunks_mut::<LANES>().0.iter_mut().zip(low.as_chunks_mut::<LANES>().0);
            for ((high, low), codes) in places.zip(row.chunks(CODES)) {
                let codes = load(codes);
                // SAFETY: 16 pairs are 64 bytes, and the stores need no alignment.
                unsafe {
                    _mm512_storeu_si512(high.as_mut_ptr().cast::<__m512i>(), _mm512_srai_epi16::<8>(codes));
                    let low_digits = _mm512_and_si512(codes, _mm512_set1_epi16(255));
                    _mm512_storeu_si512(low.as_mut_ptr().cast::<__m512i>(), low_digits);
                }
            }
        }
        digits
    }

    /// Those of pair `pair`, which is below [`PAIRS`], in every lane.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn pair(&self, digit: usize, pair: usize) -> __m512i {
        _mm512_set1_epi32(self.0[digit][pair % PAIRS])
    }
}

/// See [`dots`](super::words::dots).
pub(super) fn dots(isa: Isa, rows: &[i16], lines: Lines<'_>, sums: &mut [[i64; BLOCK]]) {
    assert!(serves(isa));
    for first in (0..lines.width()).step_by(SEGMENT) {
        // SAFETY: an `Isa` of these paths exists only where their features were detected.
        unsafe { dots_of_segment(rows, lines, first, sums) }
    }
}

/// See [`weighted`](super::words::weighted).
pub(super) fn weighted(isa: Isa, rows: &[[i16; BLOCK]], lines: Lines<'_>, sums: &mut [i64]) {
    assert!(serves(isa));
    for (rows, sums) in rows.chunks(ROWS).zip(sums.chunks_mut(ROWS * lines.width())) {
        // SAFETY: as above.
        unsafe { weighted_rows(rows, lines, sums) }
    }
}

/// Up to [`SEGMENT`] elements of all lines, from `first` on, added to the sums; 16 lines at a time, their pairs of elements turned
/// so that each lane has a line.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dots_of_segment(rows: &[i16], lines: Lines<'_>, first: usize, sums: &mut [[i64; BLOCK]]) {
    let end = lines.width().min(first + SEGMENT);
    let digits = Digits::of(rows.chunks_exact(lines.width()).map(|row| &row[first..end]));
    let mut turned = [_mm512_setzero_si512(); PAIRS];
    for line in (0..lines.count()).step_by(LANES) {
        lines.prefetch(line + AHEAD..line + AHEAD + LANES);
        for (turned, codes) in turned.as_chunks_mut::<LANES>().0.iter_mut().zip((first..end).step_by(CODES)) {
            for (l, of_line) in turned.iter_mut().enumerate() {
                // The last line stands for those that are not there.
                *of_line = load(&lines.line((line + l).min(lines.count() - 1))[codes..end]);
            }
            turn(turned);
        }
        let turned = &turned[..(end - first).div_ceil(2)];
        for (digits, sums) in digits.chunks(ROWS).zip(sums.chunks_mut(ROWS)) {
            match digits.len() {
                1 => add_dots::<1>(digits, turned, first == 0, line, sums),
                2 => add_dots::<2>(digits, turned, first == 0, line, sums),
                3 => add_dots::<3>(digits, turned, first == 0, line, sums),
                _ => add_dots::<4>(digits, turned, first == 0, line, sums),
            }
        }
    }
}

/// The first 32 codes, or as many as there are and zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(codes: &[i16]) -> __m512i {
    let mask = if codes.len() >= CODES { __mmask32::MAX } else { (1 << codes.len()) - 1 };
    // SAFETY: only elements of the slice are read; masked ones are not touched.
    unsafe { _mm512_maskz_loadu_epi16(mask, codes.as_ptr()) }
}

/// Transposes 16 rows of 16 pairs.
#[inline]
#[target_feature(enable = "avx512f")]
fn turn(rows: &mut [__m512i; LANES]) {
    for two in rows.as_chunks_mut::<2>().0 {
        let [a, b] = *two;
        *two = [_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)];
    }
    // Column `j` of each part of 4 columns, of 4 rows.
    for four in rows.as_chunks_mut::<4>().0 {
        let [a, b, c, d] = *four;
        *four = [
            _mm512_unpacklo_epi64(a, c),
            _mm512_unpackhi_epi64(a, c),
            _mm512_unpacklo_epi64(b, d),
            _mm512_unpackhi_epi64(b, d),
        ];
    }
    for j in 0..4 {
        let [a, b, c, d] = [rows[j], rows[4 + j], rows[8 + j], rows[12 + j]];
        let (ab, cd) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
        rows[j] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        rows[4 + j] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
        let (ab, cd) = (_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d));
        rows[8 + j] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        rows[12 + j] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
    }
}

/// Products of some rows with 16 lines, from `line` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_dots<const R: usize>(
    digits: &[Digits],
    turned: &[__m512i],
    is_first: bool,
    line: usize,
    sums: &mut [[i64; BLOCK]],
) {
    let digits = digits.first_chunk::<R>().expect("as many rows as the kernel is for");
    let mut acc = [[_mm512_setzero_si512(); 2]; R];
    for (pair, codes) in turned.iter().enumerate() {
        for r in 0..R {
            for digit in 0..2 {
                acc[r][digit] = _mm512_dpwssd_epi32(acc[r][digit], *codes, digits[r].pair(digit, pair));
            }
        }
    }
    for (acc, sums) in acc.into_iter().zip(sums) {
        for (wide, out) in widen(acc[0], acc[1]).into_iter().zip(sums[line..line + LANES].as_chunks_mut::<8>().0) {
            // SAFETY: eight sums are 64 bytes, and neither needs an alignment.
            unsafe {
                let before = _mm512_loadu_si512(out.as_ptr().cast::<__m512i>());
                let sum = if is_first { wide } else { _mm512_add_epi64(before, wide) };
                _mm512_storeu_si512(out.as_mut_ptr().cast::<__m512i>(), sum);
            }
        }
    }
}

/// `256 * high + low`, in 64 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn widen(high: __m512i, low: __m512i) -> [__m512i; 2] {
    let (h0, h1) = (_mm512_castsi512_si256(high), _mm512_extracti64x4_epi64::<1>(high));
    let (l0, l1) = (_mm512_castsi512_si256(low), _mm512_extracti64x4_epi64::<1>(low));
    let (h0, h1) = (_mm512_cvtepi32_epi64(h0), _mm512_cvtepi32_epi64(h1));
    [
        _mm512_add_epi64(_mm512_slli_epi64::<8>(h0), _mm512_cvtepi32_epi64(l0)),
        _mm512_add_epi64(_mm512_slli_epi64::<8>(h1), _mm512_cvtepi32_epi64(l1)),
    ]
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn weighted_rows(rows: &[[i16; BLOCK]], lines: Lines<'_>, sums: &mut [i64]) {
    let digits = Digits::of(rows.iter().map(|row| &row[..]));
    for first in (0..lines.width()).step_by(CODES) {
        match rows.len() {
            1 => weighted_channels::<1>(&digits, lines, first, sums),
            2 => weighted_channels::<2>(&digits, lines, first, sums),
            3 => weighted_channels::<3>(&digits, lines, first, sums),
            _ => weighted_channels::<4>(&digits, lines, first, sums),
        }
    }
}

/// Sums of up to 32 elements of the lines, from `first` on, two lines at a time: codes of two lines side by side are pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn weighted_channels<const R: usize>(digits: &[Digits], lines: Lines<'_>, first: usize, sums: &mut [i64]) {
    let digits = digits.first_chunk::<R>().expect("as many rows as the kernel is for");
    let mut acc = [[[_mm512_setzero_si512(); 2]; 2]; R];
    for pair in 0..lines.count().div_ceil(2) {
        if first == 0 {
            lines.prefetch(2 * pair + AHEAD..2 * pair + AHEAD + 2);
        }
        let even = load(&lines.line(2 * pair)[first..]);
        // A line that is not there has weight 0.
        let odd = load(&lines.line((2 * pair + 1).min(lines.count() - 1))[first..]);
        let codes = [_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd)];
        for r in 0..R {
            for digit in 0..2 {
                let weights = digits[r].pair(digit, pair);
                for half in 0..2 {
                    acc[r][digit][half] = _mm512_dpwssd_epi32(acc[r][digit][half], codes[half], weights);
                }
            }
        }
    }
    for (acc, sums) in acc.into_iter().zip(sums.chunks_exact_mut(lines.width())) {
        let (high, low) = (in_order(acc[0]), in_order(acc[1]));
        let mut wide = [0_i64; CODES];
        let halves = [widen(high[0], low[0]), widen(high[1], low[1])];
        for (out, half) in wide.as_chunks_mut::<8>().0.iter_mut().zip(halves.as_flattened()) {
            // SAFETY: eight sums are 64 bytes, and the store needs no alignment.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast::<__m512i>(), *half) };
        }
        let sums = &mut sums[first..];
        let count = sums.len().min(CODES);
        sums[..count].copy_from_slice(&wide[..count]);
    }
}

/// Undoes what the pairing of neighbours does to the order: each half has four elements of every eight.
#[inline]
#[target_feature(enable = "avx512f")]
fn in_order([low, high]: [__m512i; 2]) -> [__m512i; 2] {
    let first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    let second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    [_mm512_permutex2var_epi32(low, first, high), _mm512_permutex2var_epi32(low, second, high)]
}
