//! Entries of the log, and their leaves.

use serde::{Deserialize, Serialize};

use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::domain::Domain;
use crate::hex::byte_newtype;
use crate::ids::{Digest, JobId, LeaseEpoch, NodeId, Place};
use crate::machine::Record;

byte_newtype! {
    /// What hides an entry in its leaf: without it nobody can tell whether a leaf is that of a guessed entry.
    Blind, 32
}

impl Blind {
    /// The blind of the leaf at `index`, from the coordinator's secret.
    pub fn derive(secret: &[u8; 32], index: u64) -> Self {
        let mut writer = Writer::new();
        writer.raw(secret);
        writer.u64(index);
        Self(*Domain::LogBlind.hash(&writer.into_bytes()).as_bytes())
    }
}

/// One thing that a coordinator did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Entry {
    /// It took a job.
    Submitted {
        /// Which.
        job: JobId,
    },
    /// It gave a job to a worker: for the first run or for an audit, which the entry does not say.
    Assigned {
        /// Which job.
        job: JobId,
        /// Under which lease.
        epoch: LeaseEpoch,
        /// To whom.
        worker: NodeId,
    },
    /// It took a result.
    Result {
        /// Of which job.
        job: JobId,
        /// Of which lease.
        epoch: LeaseEpoch,
        /// The digest of the worker's receipt.
        receipt: Digest,
    },
    /// It stated something about a receipt.
    Statement {
        /// Of which job.
        job: JobId,
        /// The digest of the statement.
        statement: Digest,
    },
    /// It found a worker's run wrong, and gives it nothing any more.
    Refuted {
        /// Of which job.
        job: JobId,
        /// Whose.
        worker: NodeId,
        /// The first place at which it is wrong.
        place: Place,
    },
}

impl Entry {
    /// The entry that a record of the job machine makes; `None` for what only says how the machine went on.
    pub fn of_record(record: &Record) -> Option<Self> {
        let job = record.job();
        match record {
            Record::Submitted(_) => Some(Self::Submitted { job }),
            Record::Assigned { epoch, node, .. } => Some(Self::Assigned { job, epoch: *epoch, worker: *node }),
            Record::Ran { result, .. } => {
                let receipt = &result.receipt.receipt;
                Some(Self::Result { job, epoch: receipt.epoch, receipt: receipt.digest() })
            }
            Record::Quarantined { node, place, .. } => Some(Self::Refuted { job, worker: *node, place: *place }),
            Record::Drawn { .. }
            | Record::Tightened { .. }
            | Record::Settled { .. }
            | Record::Abandoned { .. }
            | Record::Finished { .. }
            | Record::Failed { .. } => None,
        }
    }

    /// The job that it is about.
    pub fn job(&self) -> JobId {
        match self {
            Self::Submitted { job }
            | Self::Assigned { job, .. }
            | Self::Result { job, .. }
            | Self::Statement { job, .. }
            | Self::Refuted { job, .. } => *job,
        }
    }
}

impl Canonical for Entry {
    const MIN_BYTES: usize = 2 + 32;
    fn encode(&self, writer: &mut Writer) {
        let tag = match self {
            Self::Submitted { .. } => 1,
            Self::Assigned { .. } => 2,
            Self::Result { .. } => 3,
            Self::Statement { .. } => 4,
            Self::Refuted { .. } => 5,
        };
        writer.u16(tag);
        self.job().encode(writer);
        match self {
            Self::Submitted { .. } => {}
            Self::Assigned { epoch, worker, .. } => {
                epoch.encode(writer);
                worker.encode(writer);
            }
            Self::Result { epoch, receipt, .. } => {
                epoch.encode(writer);
                receipt.encode(writer);
            }
            Self::Statement { statement, .. } => statement.encode(writer),
            Self::Refuted { worker, place, .. } => {
                worker.encode(writer);
                place.encode(writer);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let tag = reader.u16()?;
        let job = reader.value()?;
        Ok(match tag {
            1 => Self::Submitted { job },
            2 => Self::Assigned { job, epoch: reader.value()?, worker: reader.value()? },
            3 => Self::Result { job, epoch: reader.value()?, receipt: reader.value()? },
            4 => Self::Statement { job, statement: reader.value()? },
            5 => Self::Refuted { job, worker: reader.value()?, place: reader.value()? },
            tag => return Err(DecodeError::InvalidTag { what: "log entry", tag: tag.into() }),
        })
    }
}

/// The leaf of an entry under its blind.
pub fn leaf_hash(blind: &Blind, entry: &Entry) -> Digest {
    let mut writer = Writer::new();
    blind.encode(&mut writer);
    writer.raw(&to_bytes(entry));
    Domain::LogLeaf.hash(&writer.into_bytes())
}
