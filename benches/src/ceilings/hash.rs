//! Hashing: BLAKE3 of messages of several lengths, each thread its own.

use std::convert::Infallible;
use std::hint::black_box;

use super::together;
use crate::samples::{Effort, Samples};

/// Lengths of the messages: a chunk, a row, a small tensor, a large one.
pub const SIZES: [usize; 4] = [1 << 10, 4 << 10, 64 << 10, 256 << 20];

/// Bytes that a thread hashes in one sample at the least.
const BYTES_OF_SAMPLE: usize = 4 << 20;

/// Seconds to hash messages of `bytes`, and the bytes of all of them together. One long message is shared by the threads.
pub(super) fn blake3(threads: usize, bytes: usize, effort: Effort) -> (Samples, usize) {
    let (bytes, times) = if bytes > BYTES_OF_SAMPLE { (bytes / threads, 1) } else { (bytes, BYTES_OF_SAMPLE / bytes) };
    let messages: Vec<Vec<u8>> = (0..threads).map(|thread| vec![thread as u8; bytes]).collect();
    let once = || {
        let hash = |thread: usize| {
            for _ in 0..times {
                black_box(blake3::hash(black_box(&messages[thread])));
            }
        };
        Ok::<_, Infallible>(together(threads, hash))
    };
    (effort.sample(once).unwrap_or_default(), threads * times * bytes)
}
