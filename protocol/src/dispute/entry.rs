//! Entries: what the coordinator signs about a dispute, one after the other. Its signature under a move is the
//! acknowledgement that the move came, and when.

use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::dispute::{Side, SignedMove, Terms, Verdict};
use crate::domain::Domain;
use crate::identity::{IdentityError, Keypair, Signature};
use crate::ids::{Digest, DisputeId, Millis, NodeId};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The dispute began. The first entry, and only it.
    Opened(Box<Terms>),
    /// A side moved.
    Moved {
        /// Which.
        side: Side,
        /// Its move.
        signed: SignedMove,
    },
    /// The coordinator was down for so long, which is charged to nobody.
    Credited {
        /// Milliseconds.
        ms: u64,
    },
    /// A side's clock has run out: what it may still do, it does in the time of grace that begins now.
    Notice {
        /// Which side's.
        side: Side,
    },
    /// The dispute is over. The last entry.
    Verdict(Verdict),
}

impl Canonical for What {
    const MIN_BYTES: usize = 3;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Opened(terms) => {
                writer.u16(1);
                terms.encode(writer);
            }
            Self::Moved { side, signed } => {
                writer.u16(2);
                side.encode(writer);
                signed.encode(writer);
            }
            Self::Credited { ms } => {
                writer.u16(3);
                writer.u64(*ms);
            }
            Self::Notice { side } => {
                writer.u16(4);
                side.encode(writer);
            }
            Self::Verdict(verdict) => {
                writer.u16(5);
                verdict.encode(writer);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Opened(Box::new(reader.value()?)),
            2 => Self::Moved { side: reader.value()?, signed: reader.value()? },
            3 => Self::Credited { ms: reader.u64()? },
            4 => Self::Notice { side: reader.value()? },
            5 => Self::Verdict(reader.value()?),
            tag => return Err(DecodeError::InvalidTag { what: "entry of a dispute", tag: tag.into() }),
        })
    }
}

/// One entry of a dispute's transcript.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of which dispute.
    pub dispute: DisputeId,
    /// Counted from 0, without gaps.
    pub index: u16,
    /// [`Entry::digest`] of the entry before; zeros for the first.
    pub previous: Digest,
    /// When, on the coordinator's clock; never before the entry before.
    pub at: Millis,
    /// What happened.
    pub what: What,
}

impl Entry {
    /// What the next entry calls this one: also the 32 bytes that are signed.
    pub fn digest(&self) -> Digest {
        Domain::DisputeEntry.hash(&to_bytes(self))
    }

    /// Signs it, with the coordinator's keys.
    pub fn sign(self, keys: &Keypair) -> SignedEntry {
        SignedEntry { signature: keys.sign(Domain::DisputeEntry, &to_bytes(&self)), entry: self }
    }
}

impl Canonical for Entry {
    const MIN_BYTES: usize = 32 + 2 + 32 + 8 + What::MIN_BYTES;
    fn encode(&self, writer: &mut Writer) {
        self.dispute.encode(writer);
        writer.u16(self.index);
        self.previous.encode(writer);
        self.at.encode(writer);
        self.what.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            dispute: reader.value()?,
            index: reader.u16()?,
            previous: reader.value()?,
            at: reader.value()?,
            what: reader.value()?,
        })
    }
}

/// An entry with its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedEntry {
    /// What was signed.
    pub entry: Entry,
    /// By [`Terms::coordinator`], over the canonical entry.
    pub signature: Signature,
}

impl SignedEntry {
    /// Checks that this coordinator signed it.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn check(&self, coordinator: &NodeId) -> Result<(), IdentityError> {
        coordinator.verify(Domain::DisputeEntry, &to_bytes(&self.entry), &self.signature)
    }
}

impl Canonical for SignedEntry {
    const MIN_BYTES: usize = Entry::MIN_BYTES + 64;
    fn encode(&self, writer: &mut Writer) {
        self.entry.encode(writer);
        self.signature.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { entry: reader.value()?, signature: reader.value()? })
    }
}
