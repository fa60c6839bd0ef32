//! What a coordinator states about a worker's receipt: later, separately, signed, in a chain.

use serde::{Deserialize, Serialize};

use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::domain::Domain;
use crate::identity::{Keypair, Signature};
use crate::ids::{Digest, DisputeId, Millis, NodeId, Place, VerdictKind};

/// What is stated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StatementKind {
    /// The result was accepted under a live lease. Always the first statement, and only that.
    Accepted {},
    /// Another worker ran the job without knowing the first one's roots.
    Audited {
        /// That worker.
        auditor: NodeId,
        /// The digest of its receipt.
        receipt: Digest,
        /// Whether all its roots and its output equal those of the subject.
        matched: bool,
    },
    /// A run lost a dispute.
    Refuted {
        /// The digest of the run's receipt: the subject's or an audit's.
        receipt: Digest,
        /// The first place at which it differs from a run of somebody else.
        place: Place,
        /// The dispute, whose file anybody can judge again.
        dispute: DisputeId,
        /// Whether that proves it.
        kind: VerdictKind,
    },
    /// The worker took its run back.
    Withdrawn {
        /// The digest of the run's receipt: the subject's or an audit's.
        receipt: Digest,
    },
}

impl Canonical for StatementKind {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Accepted {} => writer.u16(1),
            Self::Audited { auditor, receipt, matched } => {
                writer.u16(2);
                auditor.encode(writer);
                receipt.encode(writer);
                writer.bool(*matched);
            }
            Self::Refuted { receipt, place, dispute, kind } => {
                writer.u16(3);
                receipt.encode(writer);
                place.encode(writer);
                dispute.encode(writer);
                kind.encode(writer);
            }
            Self::Withdrawn { receipt } => {
                writer.u16(4);
                receipt.encode(writer);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Accepted {},
            2 => Self::Audited { auditor: reader.value()?, receipt: reader.value()?, matched: reader.bool()? },
            3 => Self::Refuted {
                receipt: reader.value()?,
                place: reader.value()?,
                dispute: reader.value()?,
                kind: reader.value()?,
            },
            4 => Self::Withdrawn { receipt: reader.value()? },
            tag => return Err(DecodeError::InvalidTag { what: "statement", tag: tag.into() }),
        })
    }
}

/// One statement of a coordinator about one worker's receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Who states it.
    pub coordinator: NodeId,
    /// The digest of the receipt that it is about.
    pub subject: Digest,
    /// The digest of the statement before this one about the same receipt; zeros for the first. So
    /// no statement can be taken out from between others, and their order is signed.
    pub previous: Digest,
    /// When, in milliseconds since the Unix epoch on the coordinator's clock.
    pub time: Millis,
    /// What.
    pub kind: StatementKind,
}

/// What stands in [`Statement::previous`] of the first statement.
pub const NO_STATEMENT: Digest = Digest::from_bytes([0; 32]);

impl Statement {
    /// What the next statement calls this one.
    pub fn digest(&self) -> Digest {
        Domain::Statement.hash(&to_bytes(self))
    }

    /// Signs it. `keys` must be those of [`Statement::coordinator`].
    pub fn sign(self, keys: &Keypair) -> SignedStatement {
        let signature = keys.sign(Domain::Statement, &to_bytes(&self));
        SignedStatement { statement: self, signature }
    }
}

impl Canonical for Statement {
    const MIN_BYTES: usize = 3 * 32 + 8 + StatementKind::MIN_BYTES;
    fn encode(&self, writer: &mut Writer) {
        self.coordinator.encode(writer);
        self.subject.encode(writer);
        self.previous.encode(writer);
        self.time.encode(writer);
        self.kind.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            coordinator: reader.value()?,
            subject: reader.value()?,
            previous: reader.value()?,
            time: reader.value()?,
            kind: reader.value()?,
        })
    }
}

/// A statement with its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedStatement {
    /// What was signed.
    pub statement: Statement,
    /// By [`Statement::coordinator`], over the canonical statement.
    pub signature: Signature,
}

impl Canonical for SignedStatement {
    const MIN_BYTES: usize = Statement::MIN_BYTES + 64;
    fn encode(&self, writer: &mut Writer) {
        self.statement.encode(writer);
        self.signature.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { statement: reader.value()?, signature: reader.value()? })
    }
}
