//! What a player can say about its own run.

use std::ops::Range;

use thiserror::Error;

use crate::dispute::Source;
use crate::openings::ChunkRange;

/// A tensor that both sides commit to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tensor {
    /// The disputed layer's output.
    Output,
    /// A step of the disputed row.
    Step(u16),
}

/// Why a player can't say something, in words.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct EvidenceError(pub String);

/// A run, as far as a dispute asks for it. `chunk` is the disputed chunk of the layer's output, once it is known.
pub trait Evidence {
    /// The chaining values of aligned blocks of a tensor. `blocks` counts in blocks of `2^log` chunks; the last block of a
    /// tensor may be shorter. The value of a block that is the whole tensor is the root.
    ///
    /// # Errors
    /// There is no such tensor or block, or the run can't be made again.
    fn frontier(
        &mut self,
        chunk: Option<u64>,
        tensor: Tensor,
        log: u8,
        blocks: Range<u64>,
    ) -> Result<Vec<[u8; 32]>, EvidenceError>;

    /// One chunk of a tensor.
    ///
    /// # Errors
    /// As [`Evidence::frontier`].
    fn chunk(&mut self, chunk: u64, tensor: Tensor, index: u64) -> Result<Vec<u8>, EvidenceError>;

    /// An opening of chunks of a tensor that both sides agree on ([`crate::openings::open_range`]).
    ///
    /// # Errors
    /// As [`Evidence::frontier`].
    fn open(&mut self, chunk: u64, source: Source, range: ChunkRange) -> Result<Vec<u8>, EvidenceError>;

    /// An opening of chunks of the first rows of the disputed layer's output, as they were committed at an earlier point.
    /// Asked for only where a job commits at more than one point.
    ///
    /// # Errors
    /// As [`Evidence::frontier`]; always, unless it is implemented.
    fn open_prefix(&mut self, rows: u32, range: ChunkRange) -> Result<Vec<u8>, EvidenceError> {
        Err(EvidenceError(format!("chunk {} of the first {rows} rows is not at hand", range.first)))
    }
}
