//! Postings: the only changes of a ledger.

use serde::{Deserialize, Serialize};

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::domain::Domain;
use crate::ids::{Digest, DisputeId, JobId, LeaseEpoch, NodeId};
use crate::limits::MAX_AWARDS;

/// What credits are held or paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Purpose {
    /// The bond by which a worker may take part.
    Admission {},
    /// The bond for one run of a job, or the pay for it.
    Lease {
        /// Which job.
        job: JobId,
        /// Under which lease.
        epoch: LeaseEpoch,
    },
    /// The bond of one side of a dispute.
    Dispute {
        /// Which.
        dispute: DisputeId,
    },
}

impl std::fmt::Display for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Admission {} => f.write_str("admission"),
            Self::Lease { job, epoch } => write!(f, "job {job} epoch {epoch}"),
            Self::Dispute { dispute } => write!(f, "dispute {dispute}"),
        }
    }
}

impl Canonical for Purpose {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Admission {} => writer.u16(1),
            Self::Lease { job, epoch } => {
                writer.u16(2);
                job.encode(writer);
                epoch.encode(writer);
            }
            Self::Dispute { dispute } => {
                writer.u16(3);
                dispute.encode(writer);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Admission {},
            2 => Self::Lease { job: reader.value()?, epoch: reader.value()? },
            3 => Self::Dispute { dispute: reader.value()? },
            tag => return Err(DecodeError::InvalidTag { what: "purpose", tag: tag.into() }),
        })
    }
}

/// A part of forfeited credits that somebody gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Award {
    /// Who: also whose credits they were, where only a part of them is lost.
    pub to: NodeId,
    /// How many credits.
    pub amount: u64,
}

impl Canonical for Award {
    const MIN_BYTES: usize = 32 + 8;
    fn encode(&self, writer: &mut Writer) {
        self.to.encode(writer);
        writer.u64(self.amount);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { to: reader.value()?, amount: reader.u64()? })
    }
}

/// One change of the ledger. An amount may be 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Posting {
    /// New credits for nothing that the ledger knows: the operator put them in.
    Issue {
        /// For whom.
        to: NodeId,
        /// How many.
        amount: u64,
    },
    /// Free credits are held, beside what is held already for the purpose.
    Hold {
        /// Whose.
        from: NodeId,
        /// For what.
        purpose: Purpose,
        /// How many.
        amount: u64,
    },
    /// All that is held for a purpose becomes free again.
    Release {
        /// Whose.
        node: NodeId,
        /// What it was held for.
        purpose: Purpose,
    },
    /// All that is held for a purpose is lost: awarded, and the rest is burned.
    Forfeit {
        /// Whose.
        node: NodeId,
        /// What it was held for.
        purpose: Purpose,
        /// Who gets what, at most [`MAX_AWARDS`].
        awards: Vec<Award>,
    },
    /// New credits for work.
    Pay {
        /// For whom.
        to: NodeId,
        /// For what.
        purpose: Purpose,
        /// How many.
        amount: u64,
    },
}

impl Posting {
    /// What the credits are held or paid for.
    pub fn purpose(&self) -> Option<&Purpose> {
        match self {
            Self::Issue { .. } => None,
            Self::Hold { purpose, .. }
            | Self::Release { purpose, .. }
            | Self::Forfeit { purpose, .. }
            | Self::Pay { purpose, .. } => Some(purpose),
        }
    }
}

impl Canonical for Posting {
    const MIN_BYTES: usize = 2 + 32 + 2;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Issue { to, amount } => {
                writer.u16(1);
                to.encode(writer);
                writer.u64(*amount);
            }
            Self::Hold { from, purpose, amount } => {
                writer.u16(2);
                from.encode(writer);
                purpose.encode(writer);
                writer.u64(*amount);
            }
            Self::Release { node, purpose } => {
                writer.u16(3);
                node.encode(writer);
                purpose.encode(writer);
            }
            Self::Forfeit { node, purpose, awards } => {
                writer.u16(4);
                node.encode(writer);
                purpose.encode(writer);
                writer.seq(awards);
            }
            Self::Pay { to, purpose, amount } => {
                writer.u16(5);
                to.encode(writer);
                purpose.encode(writer);
                writer.u64(*amount);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Issue { to: reader.value()?, amount: reader.u64()? },
            2 => Self::Hold { from: reader.value()?, purpose: reader.value()?, amount: reader.u64()? },
            3 => Self::Release { node: reader.value()?, purpose: reader.value()? },
            4 => Self::Forfeit {
                node: reader.value()?,
                purpose: reader.value()?,
                awards: reader.seq("awards", MAX_AWARDS)?,
            },
            5 => Self::Pay { to: reader.value()?, purpose: reader.value()?, amount: reader.u64()? },
            tag => return Err(DecodeError::InvalidTag { what: "posting", tag: tag.into() }),
        })
    }
}

/// What the transparency log says of postings that were made together, of which the first has this index.
pub fn batch_digest(first: u64, postings: &[Posting]) -> Digest {
    let mut writer = Writer::new();
    writer.u64(first);
    writer.seq(postings);
    Domain::LedgerBatch.hash(&writer.into_bytes())
}
