//! Openings: any chunks of a tensor with the proof that they belong to its plain BLAKE3 root.
//!
//! BLAKE3 is a Merkle tree over chunks of 1 KiB, so the chaining values beside the path from the root
//! to some chunks prove them (Bao). An opening is self-contained: parents and chunks in pre-order,
//! without a length. **The length of the whole tensor is always an argument**, known from a manifest
//! or a job, because one opening can verify for several lengths.
//!
//! The owner of a tensor keeps an [`Outboard`], 64 bytes for every 16 KiB, and hashes nothing twice but
//! the groups that it opens.

use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::{CreateOutboard, DecodeResponseIter, encode_ranges_validated};
use bao_tree::io::{BaoContentItem, DecodeError as BaoDecodeError};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges};
use thiserror::Error;

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::ids::Root;
use crate::limits::{CHUNK_BYTES, GROUP_CHUNKS, MAX_BLOB_BYTES, MAX_OPENING_BYTES, MAX_OPENING_CHUNKS};

const BLOCK_SIZE: BlockSize = BlockSize::from_chunk_log(GROUP_CHUNKS.ilog2() as u8);

/// Why an opening can't be made or is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpeningError {
    /// The range is empty, too wide, or reaches past the end.
    #[error("chunks {first}..+{count} of {len} bytes can't be opened")]
    Range {
        /// First chunk.
        first: u64,
        /// How many.
        count: u32,
        /// Length of the whole, in bytes.
        len: u64,
    },
    /// The whole is longer than any blob may be, or the data has another length than its outboard.
    #[error("a length of {len} bytes is not that of the blob")]
    Length {
        /// The length.
        len: u64,
    },
    /// The data no longer has the root that its outboard was made for.
    #[error("the data does not fit its root: was the file changed?")]
    Data,
    /// The proof does not lead to the root.
    #[error("the opening does not fit the root: {0}")]
    Proof(String),
    /// The proof is longer than what it proves asks for.
    #[error("{left} bytes follow the opening")]
    TrailingBytes {
        /// How many.
        left: usize,
    },
}

/// Whole chunks of a tensor, at most [`MAX_OPENING_CHUNKS`]. Of the last chunk of a tensor only the
/// bytes that exist are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRange {
    /// The first chunk, counted from 0.
    pub first: u64,
    /// How many, at least 1.
    pub count: u32,
}

impl ChunkRange {
    /// The range that follows `done` chunks of a tensor of `len` bytes, as wide as one opening may
    /// be; `None` at its end. Asking so until `None` fetches the whole.
    pub fn next(done: u64, len: u64) -> Option<Self> {
        let left = chunk_count(len).checked_sub(done).filter(|left| *left > 0)?;
        let count = left.min(u64::from(MAX_OPENING_CHUNKS)) as u32;
        Some(Self { first: done, count })
    }

    /// The bytes that the range means of a tensor of `len` bytes.
    ///
    /// # Errors
    /// [`OpeningError::Length`], [`OpeningError::Range`].
    pub fn bytes(&self, len: u64) -> Result<std::ops::Range<u64>, OpeningError> {
        if len > MAX_BLOB_BYTES {
            return Err(OpeningError::Length { len });
        }
        let range = OpeningError::Range { first: self.first, count: self.count, len };
        let end = self.first.checked_add(self.count.into()).ok_or(range.clone())?;
        if self.count == 0 || self.count > MAX_OPENING_CHUNKS || end > chunk_count(len) {
            return Err(range);
        }
        let chunk = CHUNK_BYTES as u64;
        Ok(self.first * chunk..(end * chunk).min(len))
    }

    fn to_bao(self) -> ChunkRanges {
        ChunkRanges::from(ChunkNum(self.first)..ChunkNum(self.first + u64::from(self.count)))
    }
}

impl Canonical for ChunkRange {
    const MIN_BYTES: usize = 12;
    fn encode(&self, writer: &mut Writer) {
        writer.u64(self.first);
        writer.u32(self.count);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { first: reader.u64()?, count: reader.u32()? })
    }
}

/// How many chunks a tensor of so many bytes has: at least one, which may be empty.
pub const fn chunk_count(len: u64) -> u64 {
    let count = len.div_ceil(CHUNK_BYTES as u64);
    if count == 0 { 1 } else { count }
}

/// The inner chaining values of a tensor, without which nothing can be opened.
#[derive(Clone, Debug)]
pub struct Outboard {
    inner: PreOrderOutboard<Vec<u8>>,
}

impl Outboard {
    /// Hashes a tensor.
    ///
    /// # Errors
    /// [`OpeningError::Length`] above [`MAX_BLOB_BYTES`].
    pub fn new(data: &[u8]) -> Result<Self, OpeningError> {
        let len = data.len() as u64;
        if len > MAX_BLOB_BYTES {
            return Err(OpeningError::Length { len });
        }
        let inner = PreOrderOutboard::<Vec<u8>>::create_sized(data, len, BLOCK_SIZE)
            .map_err(|error| OpeningError::Proof(error.to_string()))?;
        Ok(Self { inner })
    }

    /// The tensor's root: its plain BLAKE3.
    pub fn root(&self) -> Root {
        self.inner.root.into()
    }

    /// The tensor's length in bytes.
    pub fn data_len(&self) -> u64 {
        self.inner.tree.size()
    }
}

/// Opens chunks of a tensor.
///
/// # Errors
/// [`OpeningError::Length`], [`OpeningError::Range`], and [`OpeningError::Data`] when the data changed
/// since its outboard was made: nothing false is ever sent.
pub fn open_range(data: &[u8], outboard: &Outboard, range: ChunkRange) -> Result<Vec<u8>, OpeningError> {
    let len = data.len() as u64;
    if len != outboard.data_len() {
        return Err(OpeningError::Length { len });
    }
    let bytes = range.bytes(len)?;
    let mut opening = Vec::with_capacity((bytes.end - bytes.start) as usize + 4_096);
    encode_ranges_validated(data, &outboard.inner, &range.to_bao(), &mut opening).map_err(|_| OpeningError::Data)?;
    Ok(opening)
}

/// Checks an opening of a tensor of `len` bytes and returns the bytes of the range.
///
/// # Errors
/// Any [`OpeningError`] but [`OpeningError::Data`].
pub fn verify_range(root: &Root, len: u64, range: ChunkRange, opening: &[u8]) -> Result<Vec<u8>, OpeningError> {
    let bytes = range.bytes(len)?;
    if opening.len() > MAX_OPENING_BYTES {
        return Err(OpeningError::TrailingBytes { left: opening.len() - MAX_OPENING_BYTES });
    }
    let mut rest = opening;
    let mut data = Vec::with_capacity(((bytes.end - bytes.start) as usize).min(opening.len()));
    let ranges = range.to_bao();
    let tree = BaoTree::new(len, BLOCK_SIZE);
    let root = blake3::Hash::from_bytes(*root.as_bytes());
    for item in DecodeResponseIter::new(root, tree, &mut rest, &ranges) {
        let item = item.map_err(|error: BaoDecodeError| OpeningError::Proof(error.to_string()))?;
        if let BaoContentItem::Leaf(leaf) = item {
            data.extend_from_slice(&leaf.data);
        }
    }
    if !rest.is_empty() {
        return Err(OpeningError::TrailingBytes { left: rest.len() });
    }
    if data.len() as u64 != bytes.end - bytes.start {
        return Err(OpeningError::Proof("it holds other chunks than were asked for".to_owned()));
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data(len: usize) -> Vec<u8> {
        (0..len).map(|index| (index * 31 + index / 251) as u8).collect()
    }

    #[test]
    fn a_whole_blob_is_fetched_range_by_range() {
        for len in [0, 1, 1_023, 1_024, 1_025, 16_384, 16_385, 100_000, (1 << 20) + 1, 3_500_000] {
            let data = data(len);
            let outboard = Outboard::new(&data).unwrap();
            assert_eq!(outboard.root(), blake3::hash(&data).into());
            let (mut fetched, mut done) = (Vec::new(), 0);
            while let Some(range) = ChunkRange::next(done, len as u64) {
                let opening = open_range(&data, &outboard, range).unwrap();
                assert!(opening.len() <= MAX_OPENING_BYTES);
                let part = verify_range(&outboard.root(), len as u64, range, &opening).unwrap();
                fetched.extend_from_slice(&part);
                done += u64::from(range.count);
            }
            assert_eq!(fetched, data);
        }
    }

    #[test]
    fn ranges_outside_the_blob_are_refused() {
        let data = data(5_000);
        let outboard = Outboard::new(&data).unwrap();
        for (first, count) in [(0, 0), (0, 6), (5, 1), (4, 2), (u64::MAX, 1), (0, MAX_OPENING_CHUNKS + 1)] {
            let range = ChunkRange { first, count };
            assert!(matches!(open_range(&data, &outboard, range), Err(OpeningError::Range { .. })));
            let refused = verify_range(&outboard.root(), 5_000, range, &[]);
            assert!(matches!(refused, Err(OpeningError::Range { .. })));
        }
        let too_long = verify_range(&outboard.root(), MAX_BLOB_BYTES + 1, ChunkRange { first: 0, count: 1 }, &[]);
        assert!(matches!(too_long, Err(OpeningError::Length { .. })));
    }

    /// So a length is never taken from whoever brings the opening: it follows from the program.
    #[test]
    fn an_opening_alone_does_not_tell_the_length() {
        let data = data(5 * CHUNK_BYTES);
        let outboard = Outboard::new(&data).unwrap();
        let (root, range) = (outboard.root(), ChunkRange { first: 0, count: 1 });
        let opening = open_range(&data, &outboard, range).unwrap();
        let holds = |chunks: usize| verify_range(&root, (chunks * CHUNK_BYTES) as u64, range, &opening).is_ok();
        assert_eq!((1..=16).filter(|chunks| holds(*chunks)).collect::<Vec<_>>(), [5, 6, 7, 8]);
    }

    #[test]
    fn every_changed_byte_of_an_opening_is_refused() {
        let data = data(70_000);
        let outboard = Outboard::new(&data).unwrap();
        let range = ChunkRange { first: 20, count: 3 };
        let opening = open_range(&data, &outboard, range).unwrap();
        for index in 0..opening.len() {
            let mut changed = opening.clone();
            changed[index] ^= 1;
            assert!(verify_range(&outboard.root(), 70_000, range, &changed).is_err(), "{index}");
        }
        assert!(verify_range(&outboard.root(), 70_000, range, &opening[..opening.len() - 1]).is_err());
        let longer = [&opening[..], &[0]].concat();
        assert!(verify_range(&outboard.root(), 70_000, range, &longer).is_err());
    }

    #[test]
    fn data_that_changed_under_its_outboard_is_not_sent() {
        let mut data = data(70_000);
        let outboard = Outboard::new(&data).unwrap();
        data[30_000] ^= 1;
        let range = ChunkRange { first: 29, count: 1 };
        assert_eq!(open_range(&data, &outboard, range), Err(OpeningError::Data));
    }

    /// What the theory says of an opening of chunks [first, end) below the node over chunks [start, start + len): its
    /// parents on the way, 64 bytes each, and its chunks. What lies in the range as a whole comes without parents from
    /// [`GROUP_CHUNKS`] chunks down.
    fn proof_bytes(bytes: u64, start: u64, len: u64, range: &std::ops::Range<u64>) -> u64 {
        let end = start + len;
        if range.end <= start || end <= range.start {
            return 0;
        }
        let is_whole = range.start <= start && end <= range.end;
        if len == 1 || (is_whole && len <= GROUP_CHUNKS) {
            return (end * CHUNK_BYTES as u64).min(bytes) - start * CHUNK_BYTES as u64;
        }
        let left = len.next_power_of_two() / 2;
        64 + proof_bytes(bytes, start, left, range) + proof_bytes(bytes, start + left, len - left, range)
    }

    #[test]
    fn one_chunk_of_a_full_tree_takes_a_parent_for_each_level() {
        for levels in 0..11 {
            let data = data(CHUNK_BYTES << levels);
            let outboard = Outboard::new(&data).unwrap();
            for first in [0, (1 << levels) / 3, (1 << levels) - 1] {
                let opening = open_range(&data, &outboard, ChunkRange { first, count: 1 }).unwrap();
                assert_eq!(opening.len(), CHUNK_BYTES + 64 * levels);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn an_opening_has_the_bytes_that_the_theory_says(
            len in 1_usize..600_000,
            first in any::<prop::sample::Index>(),
            count in 1_u32..70,
        ) {
            let data = data(len);
            let chunks = chunk_count(len as u64);
            let first = first.index(chunks as usize) as u64;
            let range = ChunkRange { first, count: count.min((chunks - first) as u32) };
            let opening = open_range(&data, &Outboard::new(&data).unwrap(), range).unwrap();
            let opened = first..first + u64::from(range.count);
            prop_assert_eq!(opening.len() as u64, proof_bytes(len as u64, 0, chunks, &opened));
        }

        #[test]
        fn an_opening_holds_for_its_root_and_position_only(
            len in 1_usize..200_000,
            first in 0_u64..200,
            count in 1_u32..40,
            shift in 1_u64..20,
        ) {
            let data = data(len);
            let outboard = Outboard::new(&data).unwrap();
            let range = ChunkRange { first, count };
            let Ok(bytes) = range.bytes(len as u64) else {
                return Ok(());
            };
            let opening = open_range(&data, &outboard, range).unwrap();
            let root = outboard.root();
            let part = verify_range(&root, len as u64, range, &opening).unwrap();
            prop_assert_eq!(&part[..], &data[bytes.start as usize..bytes.end as usize]);
            let moved = ChunkRange { first: first + shift, count };
            prop_assert!(verify_range(&root, len as u64, moved, &opening).is_err());
            let wider = ChunkRange { first, count: count + 1 };
            prop_assert!(verify_range(&root, len as u64, wider, &opening).is_err());
            let other = Root::from(blake3::hash(b"other"));
            prop_assert!(verify_range(&other, len as u64, range, &opening).is_err());
        }
    }
}
