//! Reading memory: sums of words, so that nothing can be left out, and nothing but reading takes time.

use std::convert::Infallible;
use std::hint::black_box;

use super::together;
use crate::samples::{Effort, Samples};

/// Words that are added side by side, several to each register of any machine.
const LANES: usize = 64;

/// Seconds to read `bytes` once, a share by each thread.
pub(super) fn read(threads: usize, bytes: usize, effort: Effort) -> Samples {
    // Written with numbers that differ, or the system might map all pages to one.
    let words: Vec<u64> = (0..bytes as u64 / 8).collect();
    let share = words.len().div_ceil(threads).max(1);
    let shares: Vec<&[u64]> = words.chunks(share).collect();
    let once = || {
        let read = |thread: usize| {
            black_box(shares.get(thread).map(|words| sum(black_box(words))));
        };
        Ok::<_, Infallible>(together(threads, read))
    };
    effort.sample(once).unwrap_or_default()
}

fn sum(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was just detected.
            return unsafe { avx512(words) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was just detected.
            return unsafe { avx2(words) };
        }
    }
    body(words)
}

#[inline(always)]
fn body(words: &[u64]) -> u64 {
    let mut sums = [0_u64; LANES];
    let (chunks, rest) = words.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    rest.iter().chain(&sums).fold(0, |sum, word| sum.wrapping_add(*word))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(words: &[u64]) -> u64 {
    body(words)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(words: &[u64]) -> u64 {
    body(words)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_word_is_read() {
        let words: Vec<u64> = (1..=1_000).collect();
        assert_eq!(super::sum(&words), 500_500);
    }
}
