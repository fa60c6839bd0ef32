//! Where a world's chance comes from: the seed alone.

use std::ops::RangeInclusive;

/// Bytes that are drawn from the XOF at a time.
const BLOCK_BYTES: usize = 512;

/// A stream of numbers that follows from a name: BLAKE3's extendable output, the same on every machine.
pub struct Random {
    stream: blake3::OutputReader,
    block: [u8; BLOCK_BYTES],
    used: usize,
}

impl Random {
    /// The stream of a purpose and a seed. Streams of two purposes have nothing to do with each other, so that a draw
    /// more in one place moves nothing in another.
    pub fn new(purpose: &str, seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("lockstep 2026-11 v1 simulation");
        hasher.update(&seed.to_le_bytes()).update(purpose.as_bytes());
        Self { stream: hasher.finalize_xof(), block: [0; BLOCK_BYTES], used: BLOCK_BYTES }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        if self.used == BLOCK_BYTES {
            self.stream.fill(&mut self.block);
            self.used = 0;
        }
        let bytes = self.block[self.used..self.used + 8].try_into().expect("eight bytes");
        self.used += 8;
        u64::from_le_bytes(bytes)
    }

    /// The next 32 bytes: a key, a nonce.
    pub fn bytes32(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for part in bytes.chunks_exact_mut(8) {
            part.copy_from_slice(&self.next_u64().to_le_bytes());
        }
        bytes
    }

    /// A number of a range that is not empty. The bias of the remainder does not matter here.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let width = range.end() - range.start();
        if width == u64::MAX {
            return self.next_u64();
        }
        range.start() + self.next_u64() % (width + 1)
    }

    /// An index below `len`, which is not 0.
    pub fn index(&mut self, len: usize) -> usize {
        self.within(0..=len as u64 - 1) as usize
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }

    /// Whether something happens that happens so many times in a thousand.
    pub fn per_mille(&mut self, odds: u64) -> bool {
        self.within(0..=999) < odds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_follows_from_purpose_and_seed_alone() {
        let draw = |purpose, seed| {
            let mut random = Random::new(purpose, seed);
            (0..200).map(|_| random.next_u64()).collect::<Vec<_>>()
        };
        assert_eq!(draw("network", 7), draw("network", 7));
        assert_ne!(draw("network", 7), draw("network", 8));
        assert_ne!(draw("network", 7), draw("claims", 7));
    }

    #[test]
    fn numbers_stay_in_their_range_and_reach_both_ends() {
        let mut random = Random::new("range", 1);
        let drawn: std::collections::BTreeSet<_> = (0..500).map(|_| random.within(3..=9)).collect();
        assert_eq!(drawn, (3..=9).collect());
        assert_eq!(random.within(5..=5), 5);
        assert!((0..100).all(|_| !random.per_mille(0)));
        assert!((0..100).all(|_| random.per_mille(1_000)));
    }
}
