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
