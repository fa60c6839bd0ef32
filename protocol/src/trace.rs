//! The append-only BLAKE3 of a layer's rows.
//!
//! A tensor is a sequence of rows of `i32`, little-endian, each padded with zeros to whole 1 KiB
//! chunks. Its root after row t is the *plain BLAKE3 hash* of rows 0 to t, so `b3sum` of the dumped
//! rows gives the same value. [`RowTree`] gets the root of every prefix without hashing a row twice:
//! it keeps the chaining values of complete subtrees and merges them lazily, because a subtree that
//! was merged too early can no longer become a root.

pub use blake3::hazmat::ChainingValue;
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::ids::Root;
use crate::limits::CHUNK_BYTES;

/// Bytes of a row of so many `i32` after padding to whole chunks.
pub const fn padded_row_bytes(columns: usize) -> usize {
    (columns * 4).next_multiple_of(CHUNK_BYTES)
}

/// Writes one padded row at the end of `bytes`.
pub fn push_padded_row(row: &[i32], bytes: &mut Vec<u8>) {
    let start = bytes.len();
    bytes.resize(start + padded_row_bytes(row.len()), 0);
    for (to, value) in bytes[start..].chunks_exact_mut(4).zip(row) {
        to.copy_from_slice(&value.to_le_bytes());
    }
}

/// The root of a tensor that is there as a whole: `rows` holds rows of `columns` values.
///
/// # Panics
/// When `columns` is 0 or does not divide the number of values.
pub fn root_of_rows(rows: &[i32], columns: usize) -> Root {
    assert!(columns > 0 && rows.len().is_multiple_of(columns), "rows are whole");
    /// Enough for BLAKE3 to hash with the widest vectors, little enough to stay in the cache.
    const BLOCK_BYTES: usize = 64 << 10;
    let mut hasher = blake3::Hasher::new();
    let mut block = Vec::with_capacity(BLOCK_BYTES + padded_row_bytes(columns));
    for row in rows.chunks_exact(columns) {
        push_padded_row(row, &mut block);
        if block.len() >= BLOCK_BYTES {
            hasher.update(&block);
            block.clear();
        }
    }
    hasher.update(&block);
    hasher.finalize().into()
}

/// Most chunks that are hashed as one subtree: enough for the widest vectors, little enough to stay in the cache.
const SUBTREE_CHUNKS: usize = 64;

/// A tensor that grows row by row, with the root of every prefix at hand. A clone is a snapshot: it goes on from the
/// same rows on its own, and is about a kilobyte.
#[derive(Clone, Debug)]
pub struct RowTree {
    columns: usize,
    chunks: u64,
    /// Chaining values of complete subtrees from left to right. Subtrees of one size that stand side
    /// by side are merged only when the next chunk comes.
    stack: Vec<ChainingValue>,
    /// The first chunk itself while it is the only one: its root needs the root flag.
    single: Vec<u8>,
}

impl RowTree {
    /// A tensor without rows; each row will have `columns` values.
    ///
    /// # Panics
    /// When `columns` is 0.
    pub fn new(columns: usize) -> Self {
        assert!(columns > 0, "a row has values");
        Self { columns, chunks: 0, stack: Vec::new(), single: Vec::new() }
    }

    /// How many rows there are.
    pub fn rows(&self) -> u64 {
        self.chunks / (padded_row_bytes(self.columns) / CHUNK_BYTES) as u64
    }

    /// Appends one row.
    ///
    /// # Panics
    /// When the row has another width than the tensor.
    pub fn push_row(&mut self, row: &[i32]) {
        assert_eq!(row.len(), self.columns, "a row of the tensor's width");
        self.push_rows(row);
    }

    /// Appends whole rows. Many at once are hashed at BLAKE3's full speed, as aligned subtrees; the tree is the same as
    /// after [`RowTree::push_row`] of each.
    ///
    /// # Panics
    /// When the number of values is not a multiple of the tensor's width.
    pub fn push_rows(&mut self, rows: &[i32]) {
        assert!(rows.len().is_multiple_of(self.columns), "rows are whole");
        let row_bytes = padded_row_bytes(self.columns);
        let most = row_bytes * (rows.len() / self.columns);
        let mut bytes = Vec::with_capacity(most.min(SUBTREE_CHUNKS * CHUNK_BYTES + row_bytes));
        let mut rows = rows.chunks_exact(self.columns);
        loop {
            for row in rows.by_ref() {
                push_padded_row(row, &mut bytes);
                if bytes.len() >= SUBTREE_CHUNKS * CHUNK_BYTES {
                    break;
                }
            }
            // Between two refills less than a largest subtree stays behind; at the end nothing does.
            let keep = if rows.len() == 0 { 1 } else { SUBTREE_CHUNKS };
            let mut at = 0;
            while (bytes.len() - at) / CHUNK_BYTES >= keep {
                let size = self.next_subtree((bytes.len() - at) / CHUNK_BYTES) * CHUNK_BYTES;
                self.push_subtree(&bytes[at..at + size]);
                at += size;
            }
            bytes.drain(..at);
            if rows.len() == 0 {
                break;
            }
        }
    }

    /// Appends the chaining values of one row's chunks, as a device computed them with their counters
    /// ([`RowTree::next_chunk`] and following). A tensor whose only chunk comes this way has no root
    /// before the second: pass rows that are one chunk wide through [`RowTree::push_row`].
    ///
    /// # Panics
    /// When their number is not that of a row's chunks, or the tensor's only chunk would come this way.
    pub fn push_row_values(&mut self, values: &[ChainingValue]) {
        let row_bytes = padded_row_bytes(self.columns);
        assert_eq!(values.len() * CHUNK_BYTES, row_bytes, "a value for each chunk of the row");
        assert!(self.chunks > 0 || values.len() > 1, "the root of one chunk needs the chunk");
        for value in values {
            self.push_value(*value, 1);
        }
    }

    /// The BLAKE3 chunk counter of the next row's first chunk.
    pub fn next_chunk(&self) -> u64 {
        self.chunks
    }

    /// The root of all rows so far.
    pub fn root(&self) -> Root {
        match self.stack.as_slice() {
            [] => blake3::hash(&[]).into(),
            [_] if self.chunks == 1 => blake3::hash(&self.single).into(),
            [rest @ .., last] => {
                let (first, rest) = rest.split_first().expect("two chunks leave two values");
                let right =
                    rest.iter().rev().fold(*last, |right, left| merge_subtrees_non_root(left, &right, Mode::Hash));
                merge_subtrees_root(first, &right, Mode::Hash).into()
            }
        }
    }

    /// What goes on from here without the rows themselves, for [`RowTree::resume`]: nothing where there are none, the chunk where
    /// there is one, and otherwise the chaining values of the fewest complete subtrees that the root is still made of, from
    /// left to right.
    pub fn state(&self) -> Vec<u8> {
        if self.chunks == 1 {
            return self.single.clone();
        }
        let mut stack = self.stack.clone();
        while stack.len() > subtrees(self.chunks) {
            merge_last(&mut stack);
        }
        stack.concat()
    }

    /// The tree over `rows` rows that has this state; `None` where no tree of so many can have it. That the state is the one
    /// of certain rows, [`RowTree::root`] shows.
    pub fn resume(columns: usize, rows: u64, state: &[u8]) -> Option<Self> {
        let chunks = rows.checked_mul((padded_row_bytes(columns) / CHUNK_BYTES) as u64)?;
        let mut tree = Self { columns, chunks: 0, stack: Vec::new(), single: Vec::new() };
        if chunks == 1 {
            (state.len() == CHUNK_BYTES).then(|| tree.push_subtree(state))?;
            return Some(tree);
        }
        let (values, rest) = state.as_chunks::<32>();
        let is_whole = rest.is_empty() && values.len() == subtrees(chunks);
        is_whole.then(|| Self { chunks, stack: values.to_vec(), ..tree })
    }

    /// How many of the `available` next chunks, at least 1, are hashed as one subtree: a power of two that divides the
    /// chunks before them. The first subtree is half of what it could be, because whatever could become the root has to
    /// stay in two parts.
    fn next_subtree(&self, available: usize) -> usize {
        let most = available.min(SUBTREE_CHUNKS);
        let power = 1 << most.ilog2();
        match self.chunks {
            0 => (power / 2).max(1),
            chunks => power.min(1 << chunks.trailing_zeros().min(SUBTREE_CHUNKS.ilog2())),
        }
    }

    /// Appends chunks whose number [`RowTree::next_subtree`] allows.
    fn push_subtree(&mut self, chunks: &[u8]) {
        let count = (chunks.len() / CHUNK_BYTES) as u64;
        if self.chunks == 0 && count == 1 {
            self.single = chunks.to_vec();
        }
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(self.chunks * CHUNK_BYTES as u64).update(chunks);
        self.push_value(hasher.finalize_non_root(), count);
    }

    /// Merges what the chunks before this subtree completed, then adds its value.
    fn push_value(&mut self, value: ChainingValue, chunks: u64) {
        while self.stack.len() > self.chunks.count_ones() as usize {
            merge_last(&mut self.stack);
        }
        self.stack.push(value);
        self.chunks += chunks;
    }
}

/// Of how many complete subtrees the root over so many chunks is made at least. One that could be the root is left in
/// two halves.
fn subtrees(chunks: u64) -> usize {
    chunks.count_ones().max(chunks.min(2) as u32) as usize
}

/// Merges the last two subtrees of a stack of at least two.
fn merge_last(stack: &mut Vec<ChainingValue>) {
    let right = stack.pop().expect("more than one value");
    let left = stack.pop().expect("more than one value");
    stack.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(count: usize, columns: usize) -> Vec<i32> {
        (0..count * columns).map(|index| (index as i32).wrapping_mul(-1_640_531_527)).collect()
    }

    fn padded(rows: &[i32], columns: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        rows.chunks(columns).for_each(|row| push_padded_row(row, &mut bytes));
        bytes
    }

    #[test]
    fn padding_goes_to_whole_chunks() {
        assert_eq!([1, 255, 256, 257, 384].map(padded_row_bytes), [1024, 1024, 1024, 2048, 2048]);
        let bytes = padded(&[-2; 257], 257);
        assert_eq!(bytes.len(), 2048);
        assert!(bytes[1028..].iter().all(|byte| *byte == 0));
        assert_eq!(bytes[1024..1028], [0xfe, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn every_prefix_has_the_plain_hash() {
        for columns in [1, 255, 256, 257, 384, 700, 1024, 2049] {
            let rows = rows(70, columns);
            let mut tree = RowTree::new(columns);
            assert_eq!(tree.root(), blake3::hash(&[]).into());
            for (index, row) in rows.chunks(columns).enumerate() {
                tree.push_row(row);
                let prefix = &rows[..(index + 1) * columns];
                let plain = Root::from(blake3::hash(&padded(prefix, columns)));
                assert_eq!(tree.root(), plain, "{columns} columns, {} rows", index + 1);
                assert_eq!(root_of_rows(prefix, columns), plain);
                assert_eq!(tree.rows(), index as u64 + 1);
            }
        }
    }

    #[test]
    fn chunk_values_of_a_device_give_the_same_tree() {
        let columns = 600;
        let rows = rows(9, columns);
        let mut tree = RowTree::new(columns);
        for row in rows.chunks(columns) {
            let values: Vec<_> = padded(row, columns)
                .chunks(CHUNK_BYTES)
                .zip(tree.next_chunk()..)
                .map(|(chunk, counter)| {
                    let mut hasher = blake3::Hasher::new();
                    hasher.set_input_offset(counter * CHUNK_BYTES as u64).update(chunk);
                    hasher.finalize_non_root()
                })
                .collect();
            tree.push_row_values(&values);
        }
        assert_eq!(tree.root(), root_of_rows(&rows, columns));
    }

    #[test]
    fn a_snapshot_goes_on_by_itself() {
        let rows = rows(400, 300);
        let mut tree = RowTree::new(300);
        tree.push_rows(&rows[..123 * 300]);
        let mut snapshot = tree.clone();
        tree.push_rows(&rows[123 * 300..]);
        assert_eq!(snapshot.root(), root_of_rows(&rows[..123 * 300], 300));
        assert_eq!((tree.rows(), snapshot.rows()), (400, 123));
        snapshot.push_rows(&rows[123 * 300..]);
        assert_eq!(snapshot.root(), tree.root());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_mix_of_single_and_many_rows_has_the_plain_hash(
            steps in prop::collection::vec(prop_oneof![0_usize..4, 0_usize..300], 1..12),
            columns in prop_oneof![Just(1_usize), Just(256), Just(1024), 1_usize..2_000],
        ) {
            let rows = rows(steps.iter().sum(), columns);
            let mut tree = RowTree::new(columns);
            let mut at = 0;
            for count in steps {
                let end = at + count * columns;
                tree.push_rows(&rows[at..end]);
                at = end;
                let plain = Root::from(blake3::hash(&padded(&rows[..at], columns)));
                prop_assert_eq!(tree.root(), plain);
                prop_assert_eq!(tree.rows() as usize, at / columns);
            }
        }

        #[test]
        fn a_tree_goes_on_from_its_state(before in 0_usize..300, after in 1_usize..20, columns in 1_usize..600) {
            let rows = rows(before + after, columns);
            let mut tree = RowTree::new(columns);
            tree.push_rows(&rows[..before * columns]);
            let state = tree.state();
            prop_assert!(state.len() <= crate::limits::MAX_TREE_STATE_BYTES);
            let mut resumed = RowTree::resume(columns, before as u64, &state).unwrap();
            prop_assert_eq!(resumed.root(), tree.root());
            resumed.push_rows(&rows[before * columns..]);
            prop_assert_eq!(resumed.root(), root_of_rows(&rows, columns));
            prop_assert_eq!(resumed.rows() as usize, before + after);
            // Of another length it is the state of no such tree.
            let long = [&state[..], &[0]].concat();
            prop_assert!(RowTree::resume(columns, before as u64, &long).is_none());
            let short = state.split_last().map(|(_, short)| RowTree::resume(columns, before as u64, short));
            prop_assert!(short.is_none_or(|tree| tree.is_none()));
        }

        #[test]
        fn a_long_tensor_has_the_plain_hash(count in 1_usize..600, columns in 1_usize..600) {
            let rows = rows(count, columns);
            let mut tree = RowTree::new(columns);
            rows.chunks(columns).for_each(|row| tree.push_row(row));
            prop_assert_eq!(tree.root(), blake3::hash(&padded(&rows, columns)).into());
            prop_assert_eq!(tree.root(), root_of_rows(&rows, columns));
        }
    }
}
