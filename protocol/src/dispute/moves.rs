//! Moves: what the sides sign.

use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::domain::Domain;
use crate::identity::{IdentityError, Keypair, Signature};
use crate::ids::{Digest, DisputeId, NodeId};
use crate::limits::{CHUNK_BYTES, MAX_MOVE_BYTES, MAX_MOVE_VALUES, MAX_READS};

/// What a move says. Which kind is next, and how long, follows from the game and never from the move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MoveBody {
    /// The chaining values below the disputed block, from left to right.
    Descend {
        /// At most [`MAX_MOVE_VALUES`].
        values: Vec<[u8; 32]>,
    },
    /// The frontiers of all steps but the last, one after the other.
    Ops {
        /// At most [`MAX_MOVE_VALUES`].
        values: Vec<[u8; 32]>,
    },
    /// The disputed chunk.
    Reveal {
        /// At most 1,024 bytes.
        chunk: Vec<u8>,
    },
    /// The openings of what the disputed element reads, in order.
    Open {
        /// At most [`MAX_READS`].
        openings: Vec<Vec<u8>>,
    },
    /// The side takes its run back, and loses.
    Concede,
}

impl MoveBody {
    /// The name of its kind, for people.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Descend { .. } => "descend",
            Self::Ops { .. } => "ops",
            Self::Reveal { .. } => "reveal",
            Self::Open { .. } => "open",
            Self::Concede => "concede",
        }
    }
}

impl Canonical for MoveBody {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Descend { values } => {
                writer.u16(1);
                writer.seq(values);
            }
            Self::Ops { values } => {
                writer.u16(2);
                writer.seq(values);
            }
            Self::Reveal { chunk } => {
                writer.u16(3);
                writer.bytes(chunk);
            }
            Self::Open { openings } => {
                writer.u16(4);
                writer.length(openings.len());
                openings.iter().for_each(|opening| writer.bytes(opening));
            }
            Self::Concede => writer.u16(5),
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Descend { values: reader.seq("chaining values", MAX_MOVE_VALUES)? },
            2 => Self::Ops { values: reader.seq("frontiers", MAX_MOVE_VALUES)? },
            3 => Self::Reveal { chunk: reader.bytes("revealed chunk", CHUNK_BYTES)?.to_vec() },
            4 => {
                let count = reader.length("openings", MAX_READS, 4)?;
                let opening = |_| reader.bytes("opening", MAX_MOVE_BYTES).map(<[u8]>::to_vec);
                Self::Open { openings: (0..count).map(opening).collect::<Result<_, _>>()? }
            }
            5 => Self::Concede,
            tag => return Err(DecodeError::InvalidTag { what: "move", tag: tag.into() }),
        })
    }
}

/// One move, bound to its dispute, its round, and all moves of the rounds before (SPEC.md 25.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Of which dispute.
    pub dispute: DisputeId,
    /// In which round, counted from 0.
    pub round: u16,
    /// [`history`] of the rounds before, as the side saw them.
    pub previous: Digest,
    /// What it says.
    pub body: MoveBody,
}

impl Move {
    /// Its name in [`history`]: also the 32 bytes that are signed.
    pub fn digest(&self) -> Digest {
        Domain::DisputeMove.hash(&to_bytes(self))
    }

    /// Signs it.
    pub fn sign(self, keys: &Keypair) -> SignedMove {
        SignedMove { signature: keys.sign(Domain::DisputeMove, &to_bytes(&self)), made: self }
    }
}

impl Canonical for Move {
    const MIN_BYTES: usize = 32 + 2 + 32 + MoveBody::MIN_BYTES;
    fn encode(&self, writer: &mut Writer) {
        self.dispute.encode(writer);
        writer.u16(self.round);
        self.previous.encode(writer);
        self.body.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { dispute: reader.value()?, round: reader.u16()?, previous: reader.value()?, body: reader.value()? })
    }
}

/// A move with its signature. It is valid by that, whoever brings it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedMove {
    /// What was signed.
    pub made: Move,
    /// By the key of the side's run, over the canonical move.
    pub signature: Signature,
}

impl SignedMove {
    /// Checks that this key signed it.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn check(&self, key: &NodeId) -> Result<(), IdentityError> {
        key.verify(Domain::DisputeMove, &to_bytes(&self.made), &self.signature)
    }
}

impl Canonical for SignedMove {
    const MIN_BYTES: usize = Move::MIN_BYTES + 64;
    fn encode(&self, writer: &mut Writer) {
        self.made.encode(writer);
        self.signature.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { made: reader.value()?, signature: reader.value()? })
    }
}

/// What binds a move to all rounds before it: the dispute's id before the first round, and after each round the hash of
/// what was before and of both sides' moves.
pub fn history<'a>(dispute: DisputeId, rounds: impl IntoIterator<Item = [&'a Move; 2]>) -> Digest {
    let start = Digest::from_bytes(*dispute.as_bytes());
    rounds.into_iter().fold(start, next_history)
}

/// [`history`] after one more round.
pub(super) fn next_history(before: Digest, moves: [&Move; 2]) -> Digest {
    let mut writer = Writer::new();
    before.encode(&mut writer);
    moves.iter().for_each(|made| made.digest().encode(&mut writer));
    Domain::DisputeRound.hash(&writer.into_bytes())
}
