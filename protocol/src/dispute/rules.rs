//! The rules that a move has to keep, each a function of its own. A move that breaks one is refused, without effect; one
//! that contradicts its own side's commitment loses.

use thiserror::Error;

use crate::dispute::tree::{Block, Value};
use crate::dispute::{MoveBody, Phase, Side, SignedMove, Terms};
use crate::ids::{Digest, DisputeId, Root};
use crate::limits::CHUNK_BYTES;
use crate::openings::{ChunkRange, OpeningError, verify_range};

/// Why a move is refused. It has no effect, and the clock runs on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The move is of another dispute.
    #[error("it is a move of another dispute")]
    AnotherDispute,
    /// No side signed it.
    #[error("the signature does not verify")]
    Signature,
    /// The move is for a round that has not begun.
    #[error("it is a move for round {found}, and this is round {expected}")]
    Round {
        /// The round that is played.
        expected: u16,
        /// The round of the move.
        found: u16,
    },
    /// The move follows other moves than were made.
    #[error("it follows other moves than were made")]
    History,
    /// All moves are made, or the dispute is over.
    #[error("no move is waited for any more")]
    Late,
    /// The move is of another kind than is next.
    #[error("it is a move to {found}, and one to {expected} is next")]
    Kind {
        /// The kind that is next.
        expected: &'static str,
        /// The kind of the move.
        found: &'static str,
    },
    /// It has another number of values, bytes or openings than follows from the game.
    #[error("it has {found} {what}, and {expected} are asked for")]
    Count {
        /// What is counted.
        what: &'static str,
        /// How many follow from the game.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// An opening does not verify.
    #[error("opening {index}: {error}")]
    Opening {
        /// Which, counted from 0.
        index: usize,
        /// What is wrong.
        error: OpeningError,
    },
    /// The program reads a tensor that nobody has committed to: a fault of the manifest.
    #[error("read {index} is of a tensor without an agreed root")]
    Source {
        /// Which read, counted from 0.
        index: usize,
    },
}

/// A move is of this dispute.
pub(super) fn this_dispute(signed: &SignedMove, dispute: DisputeId) -> Result<(), Refusal> {
    if signed.made.dispute == dispute { Ok(()) } else { Err(Refusal::AnotherDispute) }
}

/// A move is not for a later round than the one that is played.
pub(super) fn begun_round(signed: &SignedMove, round: u16) -> Result<(), Refusal> {
    let found = signed.made.round;
    if found <= round { Ok(()) } else { Err(Refusal::Round { expected: round, found }) }
}

/// A move is signed by a side's own key: that side's. `likely` is tried first, since a signature takes longer to check
/// than all else.
pub(super) fn signer(signed: &SignedMove, terms: &Terms, likely: Side) -> Result<Side, Refusal> {
    let by = |side: &Side| signed.check(&terms.key(*side)).is_ok();
    [likely, likely.other()].into_iter().find(by).ok_or(Refusal::Signature)
}

/// A move is bound to the moves that were made before.
pub(super) fn same_history(signed: &SignedMove, history: Digest) -> Result<(), Refusal> {
    if signed.made.previous == history { Ok(()) } else { Err(Refusal::History) }
}

/// A move is of the kind that is next.
pub(super) fn kind(phase: Phase, body: &MoveBody) -> Result<(), Refusal> {
    let expected = match (phase, body) {
        (Phase::Row | Phase::Chunk, MoveBody::Descend { .. })
        | (Phase::Ops, MoveBody::Ops { .. })
        | (Phase::Reveal, MoveBody::Reveal { .. })
        | (Phase::Open, MoveBody::Open { .. })
        | (Phase::Row | Phase::Ops | Phase::Chunk | Phase::Reveal | Phase::Open, MoveBody::Concede) => return Ok(()),
        (Phase::Row | Phase::Chunk, _) => "descend",
        (Phase::Ops, _) => "ops",
        (Phase::Reveal, _) => "reveal",
        (Phase::Open, _) => "open",
        (Phase::Recompute | Phase::Ended, _) => return Err(Refusal::Late),
    };
    Err(Refusal::Kind { expected, found: body.name() })
}

/// A move has as many items as follow from the game.
pub(super) fn count(what: &'static str, expected: usize, found: usize) -> Result<(), Refusal> {
    if expected == found { Ok(()) } else { Err(Refusal::Count { what, expected, found }) }
}

/// Children merge to what their own side committed to.
pub(super) fn merges(block: &Block, children: &[Value], committed: &Value) -> bool {
    block.merge(children) == *committed
}

/// A revealed chunk hashes to what its own side committed to.
pub(super) fn hashes(block: &Block, chunk: &[u8], committed: &Value) -> bool {
    block.value_of_chunk(chunk) == *committed
}

/// An opening proves bytes of a tensor whose root and length the game knows: these bytes.
pub(super) fn opens(
    index: usize,
    bytes: &std::ops::Range<u64>,
    (root, len): (Root, u64),
    opening: &[u8],
) -> Result<Vec<u8>, Refusal> {
    let range = chunks_of(bytes);
    let chunks = verify_range(&root, len, range, opening).map_err(|error| Refusal::Opening { index, error })?;
    let skip = bytes.start - range.first * CHUNK_BYTES as u64;
    let found = chunks.get(skip as usize..(bytes.end - bytes.start + skip) as usize);
    // The last chunk of a tensor may end before the range does, and then there is no such read.
    found.map(<[u8]>::to_vec).ok_or(Refusal::Source { index })
}

/// The whole chunks that hold these bytes: what an opening of them covers.
pub(super) fn chunks_of(bytes: &std::ops::Range<u64>) -> ChunkRange {
    let chunk = CHUNK_BYTES as u64;
    let first = bytes.start / chunk;
    let count = bytes.end.div_ceil(chunk).saturating_sub(first);
    ChunkRange { first, count: u32::try_from(count).unwrap_or(u32::MAX) }
}
