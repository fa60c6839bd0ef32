//! Products of a few rows of 16-bit codes with lines of them that are read where they lie: queries with the keys of a cache,
//! weights of a softmax with its values.
//!
//! A code of a row is taken as `256 * high + low`, with `high` from -128 to 127 and `low` from 0 to 255. A product of either
//! digit with a whole code is below 2^23, so that 256 of them fit a sum of 32 bits.

use std::ops::Range;

use crate::cpu::path::{Isa, for_each_path};
use crate::reference::attention::BLOCK;

/// Products that one sum of 32 bits holds.
pub(super) const SEGMENT: usize = 256;
const _: () = assert!(BLOCK <= SEGMENT);

/// Lines of codes: line `j` has `width` elements from `j * stride` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lines<'a> {
    codes: &'a [i16],
    stride: usize,
    width: usize,
    count: usize,
}

impl<'a> Lines<'a> {
    /// At least one line, and at most as many as a softmax block has.
    pub(crate) fn new(codes: &'a [i16], stride: usize, width: usize, count: usize) -> Self {
        assert!((1..=BLOCK).contains(&count) && width >= 1, "{count} lines of {width}");
        assert!(codes.len() >= (count - 1) * stride + width, "lines end where the codes do");
        Self { codes, stride, width, count }
    }

    pub(super) const fn width(&self) -> usize {
        self.width
    }

    pub(super) const fn count(&self) -> usize {
        self.count
    }

    pub(super) fn line(&self, j: usize) -> &'a [i16] {
        &self.codes[j * self.stride..][..self.width]
    }

    /// Asks memory for some lines, or those of them that are there.
    #[inline]
    pub(crate) fn prefetch(&self, lines: Range<usize>) {
        const CACHE_LINE: usize = 64 / size_of::<i16>();
        for j in lines.start..lines.end.min(self.count) {
            for at in (0..self.width).step_by(CACHE_LINE) {
                let code = self.codes.as_ptr().wrapping_add(j * self.stride + at);
                // SAFETY: every processor of this kind has the instruction, and it reads nothing.
                #[cfg(target_arch = "x86_64")]
                unsafe {
                    std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(code.cast::<i8>());
                }
                #[cfg(not(target_arch = "x86_64"))]
                let _ = code;
            }
        }
    }
}

/// `sums[r][j]` is the dot product of row `r` of `rows`, which are as wide as the lines, with line `j`. Sums of lines that are
/// not there have no meaning.
pub(crate) fn dots(isa: Isa, rows: &[i16], lines: Lines<'_>, sums: &mut [[i64; BLOCK]]) {
    assert!(rows.len() == sums.len() * lines.width());
    #[cfg(target_arch = "x86_64")]
    if super::words512::serves(isa) {
        return super::words512::dots(isa, rows, lines, sums);
    }
    let mut digits = [[0; SEGMENT]; 2];
    for (row, sums) in rows.chunks_exact(lines.width()).zip(sums) {
        sums.fill(0);
        for (i, row) in row.chunks(SEGMENT).enumerate() {
            split(isa, row, &mut digits);
            for (j, sum) in sums[..lines.count()].iter_mut().enumerate() {
                *sum += dot(isa, &digits, &lines.line(j)[i * SEGMENT..][..row.len()]);
            }
        }
    }
}

/// `sums[r][c]` is the sum over lines `j` of `rows[r][j]` times element `c` of line `j`. Codes of rows are from 0 to 32,767, and 0
/// beyond the last line; `sums` is `[rows][width]`.
pub(crate) fn weighted(isa: Isa, rows: &[[i16; BLOCK]], lines: Lines<'_>, sums: &mut [i64]) {
    assert!(sums.len() == rows.len() * lines.width());
    #[cfg(target_arch = "x86_64")]
    if super::words512::serves(isa) {
        return super::words512::weighted(isa, rows, lines, sums);
    }
    for (row, sums) in rows.iter().zip(sums.chunks_exact_mut(lines.width())) {
        for (i, sums) in sums.chunks_mut(CHANNELS).enumerate() {
            match <&mut [i64; CHANNELS]>::try_from(&mut *sums) {
                Ok(sums) => add_channels(isa, row, lines, i * CHANNELS, sums),
                Err(_) => add_rest(isa, row, lines, i * CHANNELS, sums),
            }
        }
    }
}

for_each_path! {
    /// The digits of some codes, high and low.
    fn split(codes: &[i16], digits: &mut [[i16; SEGMENT]; 2]) {
        let [high, low] = digits;
        for ((high, low), code) in high.iter_mut().zip(low).zip(codes) {
            *high = code >> 8;
            *low = code & 255;
        }
    }
}

for_each_path! {
    fn dot(digits: &[[i16; SEGMENT]; 2], line: &[i16]) -> i64 {
        let [high, low] = digits.each_ref().map(|digits| {
            let products = digits.iter().zip(line).map(|(d, code)| i32::from(*d).wrapping_mul(i32::from(*code)));
            i64::from(products.fold(0_i32, i32::wrapping_add))
        });
        (high << 8).wrapping_add(low)
    }
}

/// Channels whose sums stay in registers while the lines go by.
const CHANNELS: usize = 32;

for_each_path! {
    fn add_channels(row: &[i16; BLOCK], lines: Lines<'_>, first: usize, sums: &mut [i64; CHANNELS]) {
        // Both halves of at most 256 products fit 32 bits.
        let (mut low, mut high) = ([0_i32; CHANNELS], [0_i32; CHANNELS]);
        for (w, line) in row.iter().zip(lines.codes[first..].chunks(lines.stride)).take(lines.count) {
            let Some(line) = line.first_chunk::<CHANNELS>() else { return };
            for c in 0..CHANNELS {
                let product = i32::from(*w).wrapping_mul(i32::from(line[c]));
                low[c] = low[c].wrapping_add(product & 0xffff);
                high[c] = high[c].wrapping_add(product >> 16);
            }
        }
        for c in 0..CHANNELS {
            sums[c] = (i64::from(high[c]) << 16).wrapping_add(i64::from(low[c]));
        }
    }
}

for_each_path! {
    fn add_rest(row: &[i16; BLOCK], lines: Lines<'_>, first: usize, sums: &mut [i64]) {
        sums.fill(0);
        for (w, line) in row.iter().zip(lines.codes[first..].chunks(lines.stride)).take(lines.count) {
            for (sum, v) in sums.iter_mut().zip(line) {
                *sum = sum.wrapping_add(i64::from(i32::from(*w).wrapping_mul(i32::from(*v))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::SplitMix;
    use crate::cpu::Path;

    /// All codes at one end, at the other, or anything.
    fn codes(rng: &mut SplitMix, kind: usize, count: usize) -> Vec<i16> {
        match kind {
            0 => vec![i16::MIN; count],
            1 => vec![i16::MAX; count],
            _ => (0..count).map(|_| rng.range(i16::MIN.into(), i16::MAX.into()) as i16).collect(),
        }
    }

    fn exact(pairs: impl Iterator<Item = (i16, i16)>) -> i64 {
        pairs.map(|(a, b)| i64::from(a) * i64::from(b)).sum()
    }

    /// On every path, at all widths and counts around what kernels step by, with codes at both ends.
    #[test]
    fn products_are_exact() {
        let mut rng = SplitMix::named("products of words");
        for isa in Path::available().into_iter().map(|path| Isa::new(path).expect("an available path")) {
            for width in [1, 2, 31, 32, 33, 64, 96, 255, 256, 257, 511, 512] {
                for (i, count) in [1, 2, 15, 16, 17, 48, 255, 256].into_iter().enumerate() {
                    let (kinds, rows, stride) = ([i % 3, (i + width) % 3], 1 + (i + width) % 9, width + i % 2 * 7);
                    let lines = codes(&mut rng, kinds[0], (count - 1) * stride + width);
                    let lines = Lines::new(&lines, stride, width, count);
                    let queries = codes(&mut rng, kinds[1], rows * width);
                    let mut sums = vec![[0; BLOCK]; rows];
                    dots(isa, &queries, lines, &mut sums);
                    for (r, query) in queries.chunks_exact(width).enumerate() {
                        for (j, sum) in sums[r][..count].iter().enumerate() {
                            let expected = exact(query.iter().copied().zip(lines.line(j).iter().copied()));
                            assert_eq!(*sum, expected, "{isa:?}, {rows} rows, {count} lines of {width}: [{r}][{j}]");
                        }
                    }
                    let mut weights = vec![[0; BLOCK]; rows];
                    for row in &mut weights {
                        let codes = codes(&mut rng, kinds[1].max(1), count).into_iter().map(|code| code & 0x7fff);
                        row.iter_mut().zip(codes).for_each(|(weight, code)| *weight = code);
                    }
                    let mut sums = vec![0; rows * width];
                    weighted(isa, &weights, lines, &mut sums);
                    for (at, sum) in sums.iter().enumerate() {
                        let (r, c) = (at / width, at % width);
                        let expected = exact((0..count).map(|j| (weights[r][j], lines.line(j)[c])));
                        assert_eq!(*sum, expected, "{isa:?}, {rows} rows, {count} lines of {width}: [{r}][{c}]");
                    }
                }
            }
        }
    }
}
