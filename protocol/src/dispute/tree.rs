//! Aligned blocks of a BLAKE3 tree, and the merging of their values.
//!
//! BLAKE3's tree is full on the left: every aligned block of `2^log` chunks is a subtree, and so is the shorter one at the
//! end. Merging neighbours level by level, where an odd last one moves up, gives the tree.

use std::ops::Range;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::limits::{CHUNK_BYTES, DESCENT_LEVELS, MAX_MOVE_VALUES, MAX_STEP_VALUES};

/// The value of a subtree: a chaining value, or the root where it is the whole tree.
pub(super) type Value = [u8; 32];

/// Levels of a tree of so many chunks: the smallest `h` with `2^h >= chunks`.
pub(super) const fn height(chunks: u64) -> u32 {
    if chunks <= 1 { 0 } else { u64::BITS - (chunks - 1).leading_zeros() }
}

/// An aligned block of `2^log` chunks of a tree; the last one of a tree may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Chunks of the whole tree.
    total: u64,
    log: u32,
    index: u64,
}

impl Block {
    /// The whole tree.
    pub fn whole(total: u64) -> Self {
        Self { total, log: height(total), index: 0 }
    }

    /// Block `index` of those of `2^log` chunks, which exists.
    pub fn at(total: u64, log: u32, index: u64) -> Self {
        debug_assert!(index << log < total);
        Self { total, log, index }
    }

    /// Its first chunk.
    pub fn first(&self) -> u64 {
        self.index << self.log
    }

    /// How many chunks it has.
    pub fn len(&self) -> u64 {
        (1 << self.log).min(self.total - self.first())
    }

    /// Whether it is the whole tree, so that its value is the root.
    pub fn is_root(&self) -> bool {
        self.len() == self.total
    }

    /// The size to which one round descends: the levels that are left are spread evenly over the fewest rounds.
    pub fn next_log(&self) -> u32 {
        let left = height(self.len());
        let rounds = left.div_ceil(DESCENT_LEVELS).max(1);
        left - left.div_ceil(rounds)
    }

    /// Its blocks of `2^log` chunks, by index.
    pub fn children(&self, log: u32) -> Range<u64> {
        self.first() >> log..(self.first() + self.len()).div_ceil(1 << log)
    }

    /// Child number `at` of those of `2^log` chunks.
    pub fn child(&self, log: u32, at: usize) -> Self {
        Self::at(self.total, log, self.children(log).start + at as u64)
    }

    /// The value of this block from those of all its children of one size, of which there is at least one.
    pub fn merge(&self, children: &[Value]) -> Value {
        let mut level = children.to_vec();
        while level.len() > 1 {
            let is_top = self.is_root() && level.len() == 2;
            let merged = level.chunks(2).map(|pair| match pair {
                [left, right] if is_top => *merge_subtrees_root(left, right, Mode::Hash).as_bytes(),
                [left, right] => merge_subtrees_non_root(left, right, Mode::Hash),
                [only] => *only,
                _ => unreachable!("chunks of two"),
            });
            level = merged.collect();
        }
        level[0]
    }

    /// The value of this block, which is one chunk.
    pub fn value_of_chunk(&self, bytes: &[u8]) -> Value {
        if self.is_root() {
            return *blake3::hash(bytes).as_bytes();
        }
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(self.first() * CHUNK_BYTES as u64).update(bytes);
        hasher.finalize_non_root()
    }
}

/// The block size of each step's frontier, given their chunks: blocks of one round's descent, larger ones where that would
/// be more than [`MAX_STEP_VALUES`], and fewer values for each step where all together would be too many for one move.
pub(super) fn frontier_logs(chunks: &[u64]) -> Vec<u32> {
    let logs = |most: u64| -> Vec<u32> {
        chunks.iter().map(|chunks| height(*chunks).saturating_sub(most.ilog2()).max(DESCENT_LEVELS)).collect()
    };
    let total = |logs: &[u32]| chunks.iter().zip(logs).map(|(chunks, log)| chunks.div_ceil(1 << log)).sum::<u64>();
    let mut most = MAX_STEP_VALUES;
    while most > 1 && total(&logs(most)) > MAX_MOVE_VALUES as u64 {
        most /= 2;
    }
    logs(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(chunks: u64) -> Vec<u8> {
        (0..chunks * CHUNK_BYTES as u64).map(|at| (at ^ (at >> 9) ^ (at >> 17)) as u8).collect()
    }

    fn values(bytes: &[u8]) -> Vec<Value> {
        let total = (bytes.len() / CHUNK_BYTES) as u64;
        let chunk = |(at, chunk)| Block::at(total, 0, at as u64).value_of_chunk(chunk);
        bytes.chunks(CHUNK_BYTES).enumerate().map(chunk).collect()
    }

    #[test]
    fn merging_gives_blake3_for_every_number_of_chunks_and_every_size_of_blocks() {
        let all = data(600);
        for total in 1..=600 {
            let bytes = &all[..total * CHUNK_BYTES];
            let whole = Block::whole(total as u64);
            let chunks = values(bytes);
            assert_eq!(whole.merge(&chunks), *blake3::hash(bytes).as_bytes(), "{total}");
            for log in 0..=height(total as u64) {
                let blocks = whole.children(log).map(|index| Block::at(total as u64, log, index));
                let frontier: Vec<_> = blocks
                    .map(|block| block.merge(&chunks[block.first() as usize..(block.first() + block.len()) as usize]))
                    .collect();
                assert_eq!(whole.merge(&frontier), *blake3::hash(bytes).as_bytes(), "{total} {log}");
            }
        }
    }

    /// BLAKE3 marks the root: the value of a chunk says whether it is all there is.
    #[test]
    fn a_chunk_that_is_the_whole_tensor_is_a_root_and_one_among_others_is_none() {
        let chunk = data(1);
        let root = *blake3::hash(&chunk).as_bytes();
        assert_eq!(Block::whole(1).value_of_chunk(&chunk), root);
        for total in 2..9 {
            for at in 0..total {
                let inner = Block::at(total, 0, at).value_of_chunk(&chunk);
                assert_ne!(inner, root, "chunk {at} of {total}");
                assert_ne!(Block::whole(1).merge(&[inner]), root);
            }
        }
    }

    #[test]
    fn a_descent_takes_the_fewest_rounds_and_reaches_every_chunk() {
        for total in (1..=2_000).chain([16_384, 16_385, 65_536, 1 << 25, (1 << 30) - 1, 1 << 30]) {
            for chunk in [0, total / 3, total - 1] {
                let (mut block, mut rounds) = (Block::whole(total), 0);
                while block.len() > 1 {
                    let log = block.next_log();
                    let children = block.children(log);
                    assert!(children.end - children.start <= 1 << DESCENT_LEVELS);
                    let at = children.clone().position(|at| Block::at(total, log, at).contains(chunk)).unwrap();
                    block = block.child(log, at);
                    rounds += 1;
                }
                assert_eq!(block.first(), chunk);
                assert!(rounds <= height(total).div_ceil(DESCENT_LEVELS), "{total} {chunk}");
            }
        }
    }

    impl Block {
        fn contains(&self, chunk: u64) -> bool {
            (self.first()..self.first() + self.len()).contains(&chunk)
        }
    }

    #[test]
    fn frontiers_of_any_steps_fit_one_move() {
        assert_eq!(frontier_logs(&[1, 256, 257, 8_192, 16_384, 16_385, 1 << 30]), [8, 8, 8, 8, 8, 9, 24]);
        for (count, chunks) in [(1, 1 << 30), (64, 1 << 30), (65, 1 << 30), (4_096, 1 << 30), (4_096, 1)] {
            let logs = frontier_logs(&vec![chunks; count]);
            let values: u64 = logs.iter().map(|log| chunks.div_ceil(1 << log)).sum();
            assert!(values <= MAX_MOVE_VALUES as u64, "{count} steps of {chunks} chunks: {values}");
        }
    }
}
