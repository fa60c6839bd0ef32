//! What the job machine must not forget, in canonical form.

use std::sync::Arc;

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::ids::{JobId, LeaseEpoch, NodeId, Place, Root};
use crate::limits::MAX_RECEIPT_ROOTS;
use crate::machine::audit::{AuditDraw, AuditPolicy};
use crate::machine::types::JobSpec;
use crate::messages::JobResult;

/// Why a job ended without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobFailure {
    /// Too many workers failed at it: the rule stands in [`crate::machine`].
    #[error("every attempt to run the job failed")]
    Attempts,
    /// The job is held until it is audited, and nobody was there to audit it.
    #[error("no other worker was there to audit the job")]
    NoAuditor,
    /// The job is held, two runs differ, and it could not be recomputed.
    #[error("two runs differ and the job could not be recomputed")]
    Unsettled,
}

impl Canonical for JobFailure {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        writer.u16(match self {
            Self::Attempts => 1,
            Self::NoAuditor => 2,
            Self::Unsettled => 3,
        });
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u16()? {
            1 => Ok(Self::Attempts),
            2 => Ok(Self::NoAuditor),
            3 => Ok(Self::Unsettled),
            tag => Err(DecodeError::InvalidTag { what: "job failure", tag: tag.into() }),
        }
    }
}

/// One durable fact. All facts about jobs, in order, give the machine's durable state again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A job was taken.
    Submitted(JobSpec),
    /// A lease was given. No epoch is ever given twice, even across a crash: see [`Record::epoch`].
    Assigned {
        /// Of which job.
        job: JobId,
        /// The lease.
        epoch: LeaseEpoch,
        /// To whom.
        node: NodeId,
    },
    /// A run was accepted: the first one, or an audit.
    Ran {
        /// Of which job.
        job: JobId,
        /// The run.
        result: Box<JobResult>,
    },
    /// It was drawn whether the job is audited.
    Drawn {
        /// Which job.
        job: JobId,
        /// The draw.
        draw: AuditDraw,
        /// How many audits follow, from the draw or because the first worker was caught since.
        auditors: u8,
    },
    /// The job was recomputed.
    Settled {
        /// Which job.
        job: JobId,
        /// The right roots; `None` where it could not be done.
        truth: Option<Vec<Root>>,
    },
    /// The audits that are still missing were given up.
    Abandoned {
        /// Of which job.
        job: JobId,
    },
    /// The job has ended well.
    Finished {
        /// Which.
        job: JobId,
    },
    /// The job has ended without a result.
    Failed {
        /// Which.
        job: JobId,
        /// Why.
        reason: JobFailure,
    },
    /// The job was submitted again, under a stricter policy.
    Tightened {
        /// Which.
        job: JobId,
        /// What satisfies all its submissions.
        policy: AuditPolicy,
    },
    /// A worker was found wrong.
    Quarantined {
        /// Which.
        node: NodeId,
        /// In which job.
        job: JobId,
        /// Where.
        place: Place,
    },
}

impl Record {
    /// The job that the record is about. Once a job has a `Finished` or `Failed` record, its records
    /// may be dropped from what is replayed, all but `Quarantined`; the store then has to answer a
    /// repeated submission by itself, because the machine forgot the job.
    pub fn job(&self) -> JobId {
        match self {
            Self::Submitted(spec) => spec.job.id(),
            Self::Assigned { job, .. }
            | Self::Ran { job, .. }
            | Self::Drawn { job, .. }
            | Self::Settled { job, .. }
            | Self::Abandoned { job }
            | Self::Tightened { job, .. }
            | Self::Finished { job }
            | Self::Failed { job, .. }
            | Self::Quarantined { job, .. } => *job,
        }
    }

    /// The epoch that the record gives out. The highest of all outlives the records of ended jobs: the
    /// store keeps it beside them, for [`super::Machine::restore`].
    pub fn epoch(&self) -> Option<LeaseEpoch> {
        match self {
            Self::Assigned { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }

    /// Whether the record ends its job.
    pub fn ends_job(&self) -> bool {
        matches!(self, Self::Finished { .. } | Self::Failed { .. })
    }
}

impl Canonical for JobSpec {
    const MIN_BYTES: usize = crate::job::Job::MIN_BYTES + 2 + 4 + 8 + 4;
    fn encode(&self, writer: &mut Writer) {
        self.job.encode(writer);
        writer.u16(self.layers);
        writer.u32(self.output_count);
        writer.u64(self.work_units);
        self.policy.encode(writer);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            job: Arc::new(reader.value()?),
            layers: reader.u16()?,
            output_count: reader.u32()?,
            work_units: reader.u64()?,
            policy: reader.value()?,
        })
    }
}

impl Canonical for Record {
    const MIN_BYTES: usize = 2 + 32;
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Submitted(spec) => {
                writer.u16(1);
                spec.encode(writer);
            }
            Self::Assigned { job, epoch, node } => {
                writer.u16(2);
                job.encode(writer);
                epoch.encode(writer);
                node.encode(writer);
            }
            Self::Ran { job, result } => {
                writer.u16(3);
                job.encode(writer);
                result.encode(writer);
            }
            Self::Drawn { job, draw, auditors } => {
                writer.u16(4);
                job.encode(writer);
                draw.seed.encode(writer);
                writer.u8(*auditors);
            }
            Self::Settled { job, truth } => {
                writer.u16(5);
                job.encode(writer);
                writer.bool(truth.is_some());
                if let Some(truth) = truth {
                    writer.seq(truth);
                }
            }
            Self::Abandoned { job } => {
                writer.u16(6);
                job.encode(writer);
            }
            Self::Finished { job } => {
                writer.u16(7);
                job.encode(writer);
            }
            Self::Failed { job, reason } => {
                writer.u16(8);
                job.encode(writer);
                reason.encode(writer);
            }
            Self::Quarantined { node, job, place } => {
                writer.u16(9);
                node.encode(writer);
                job.encode(writer);
                place.encode(writer);
            }
            Self::Tightened { job, policy } => {
                writer.u16(10);
                job.encode(writer);
                policy.encode(writer);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Submitted(reader.value()?),
            2 => Self::Assigned { job: reader.value()?, epoch: reader.value()?, node: reader.value()? },
            3 => Self::Ran { job: reader.value()?, result: Box::new(reader.value()?) },
            4 => {
                Self::Drawn { job: reader.value()?, draw: AuditDraw { seed: reader.value()? }, auditors: reader.u8()? }
            }
            5 => Self::Settled { job: reader.value()?, truth: decode_truth(reader)? },
            6 => Self::Abandoned { job: reader.value()? },
            7 => Self::Finished { job: reader.value()? },
            8 => Self::Failed { job: reader.value()?, reason: reader.value()? },
            9 => Self::Quarantined { node: reader.value()?, job: reader.value()?, place: reader.value()? },
            10 => Self::Tightened { job: reader.value()?, policy: reader.value()? },
            tag => return Err(DecodeError::InvalidTag { what: "record", tag: tag.into() }),
        })
    }
}

fn decode_truth(reader: &mut Reader<'_>) -> Result<Option<Vec<Root>>, DecodeError> {
    Ok(if reader.bool()? { Some(reader.seq("settled roots", MAX_RECEIPT_ROOTS)?) } else { None })
}
