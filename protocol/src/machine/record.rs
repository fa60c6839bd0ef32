//! What the job machine must not forget, in canonical form.

use std::sync::Arc;

use crate::canonical::{Canonical, DecodeError, Reader, Writer};
use crate::commitment::RunCommitment;
use crate::dispute::Terms;
use crate::hand_over::HandOverProof;
use crate::ids::{DisputeId, JobId, LeaseEpoch, Millis, NodeId, Place, Root, Salt, VerdictKind};
use crate::limits::{MAX_NAME_BYTES, MAX_RUN_ROOTS};
use crate::machine::audit::{AuditDraw, AuditPolicy};
use crate::machine::types::JobSpec;
use crate::machine::work::Work;
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
    /// Two runs differ, and their dispute ended without a loser.
    #[error("two runs differ and their dispute found nobody wrong")]
    Undecided,
    /// Its client wanted it no more.
    #[error("the client cancelled the job")]
    Cancelled,
    /// Whoever is connected and could have had it refused it.
    #[error("every worker that could have run it refused the job")]
    Refused,
}

impl Canonical for JobFailure {
    const MIN_BYTES: usize = 2;
    fn encode(&self, writer: &mut Writer) {
        writer.u16(match self {
            Self::Attempts => 1,
            Self::NoAuditor => 2,
            Self::Undecided => 3,
            Self::Cancelled => 4,
            Self::Refused => 5,
        });
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u16()? {
            1 => Ok(Self::Attempts),
            2 => Ok(Self::NoAuditor),
            3 => Ok(Self::Undecided),
            4 => Ok(Self::Cancelled),
            5 => Ok(Self::Refused),
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
    /// A lease was given to one more worker, which has other layers of the run than the one in whose name it is.
    Staged {
        /// Of which job.
        job: JobId,
        /// The lease.
        epoch: LeaseEpoch,
        /// To whom.
        node: NodeId,
    },
    /// A worker committed to a run, which nobody but the coordinator can have seen.
    Committed {
        /// Of which job.
        job: JobId,
        /// Under which lease.
        epoch: LeaseEpoch,
        /// To what.
        commitment: RunCommitment,
    },
    /// A run was accepted: the first one, or an audit.
    Ran {
        /// Of which job.
        job: JobId,
        /// The run.
        result: Box<JobResult>,
        /// Its roots at all points but the last, in stream order: the receipt has their digests.
        before: Vec<Root>,
        /// Opens the commitment to it.
        salt: Salt,
        /// Who runs its worker, where the coordinator knows.
        operator: Option<String>,
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
    /// A dispute began about two runs of the job.
    Disputed {
        /// Of which job.
        job: JobId,
        /// About what. The dispute's id follows from them ([`Terms::id`]).
        terms: Box<Terms>,
    },
    /// A dispute about runs of the job has ended.
    Judged {
        /// Of which job.
        job: JobId,
        /// Which dispute.
        dispute: DisputeId,
        /// How it ended.
        kind: VerdictKind,
        /// Where the runs differed first.
        place: Place,
        /// The leases of the runs that are refuted.
        losers: Vec<LeaseEpoch>,
    },
    /// Two workers that run the job in lockstep streamed different roots.
    Diverged {
        /// Which job.
        job: JobId,
        /// The leases.
        epochs: [LeaseEpoch; 2],
        /// The first place at which they differ.
        place: Place,
    },
    /// A worker took its run back.
    Retracted {
        /// Of which job.
        job: JobId,
        /// The lease of the run.
        epoch: LeaseEpoch,
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
    /// Somebody who has no lease of the job disputes a run of it.
    Challenged {
        /// Of which job.
        job: JobId,
        /// About what.
        terms: Box<Terms>,
    },
    /// That dispute has ended.
    ChallengeEnded {
        /// About which job.
        job: JobId,
        /// Which.
        dispute: DisputeId,
        /// Whether the run that was challenged lost it.
        upheld: bool,
        /// When, on the machine's clock.
        at: Millis,
    },
    /// A run of a job that has not ended lost a challenge.
    Refuted {
        /// Of which job.
        job: JobId,
        /// The lease of the run.
        epoch: LeaseEpoch,
        /// Which dispute.
        dispute: DisputeId,
        /// How it was lost.
        kind: VerdictKind,
        /// Where the runs differed first.
        place: Place,
    },
    /// A worker was found wrong.
    Quarantined {
        /// Which.
        node: NodeId,
        /// In which job.
        job: JobId,
        /// Where its run differed from another one.
        place: Place,
        /// By what it was found out.
        kind: VerdictKind,
    },
    /// A worker of a pipeline signed a hand-over that no honest one signs.
    HandedOverWrong {
        /// In which job.
        job: JobId,
        /// What shows it, to anybody.
        proof: Box<HandOverProof>,
    },
    /// Another run was accepted of a worker that was set aside: until there are enough.
    Redeemed {
        /// Which worker.
        node: NodeId,
        /// In which job.
        job: JobId,
        /// How many there are now.
        accepted: u32,
    },
    /// A worker that took its run back, or was silent where it had to speak, is given nothing for a while.
    SetAside {
        /// Which.
        node: NodeId,
        /// In which job.
        job: JobId,
        /// Until when, on the machine's clock.
        until: Millis,
    },
}

impl Record {
    /// The job that the record is about. Once a job has a `Finished` or `Failed` record, its records
    /// may be dropped from what is replayed, but for those that [outlive](Record::outlives_job) it; the store then has to answer a
    /// repeated submission by itself, because the machine forgot the job.
    pub fn job(&self) -> JobId {
        match self {
            Self::Submitted(spec) => spec.job.id(),
            Self::Assigned { job, .. }
            | Self::Staged { job, .. }
            | Self::Committed { job, .. }
            | Self::Ran { job, .. }
            | Self::Drawn { job, .. }
            | Self::Disputed { job, .. }
            | Self::Judged { job, .. }
            | Self::Retracted { job, .. }
            | Self::Diverged { job, .. }
            | Self::Abandoned { job }
            | Self::Tightened { job, .. }
            | Self::Finished { job }
            | Self::Failed { job, .. }
            | Self::Quarantined { job, .. }
            | Self::Challenged { job, .. }
            | Self::ChallengeEnded { job, .. }
            | Self::Refuted { job, .. }
            | Self::HandedOverWrong { job, .. }
            | Self::Redeemed { job, .. }
            | Self::SetAside { job, .. } => *job,
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

    /// Whether the record is about a worker for good, evidence against one, or about a challenge, and must be kept also when the job has ended.
    pub fn outlives_job(&self) -> bool {
        matches!(
            self,
            Self::Quarantined { .. }
                | Self::HandedOverWrong { .. }
                | Self::SetAside { .. }
                | Self::Redeemed { .. }
                | Self::Challenged { .. }
                | Self::ChallengeEnded { .. }
        )
    }

    /// Whether the record ends its job.
    pub fn ends_job(&self) -> bool {
        matches!(self, Self::Finished { .. } | Self::Failed { .. })
    }
}

impl Canonical for JobSpec {
    const MIN_BYTES: usize = crate::job::Job::MIN_BYTES + 2 + 4 + Work::MIN_BYTES + AuditPolicy::MIN_BYTES + 1;
    fn encode(&self, writer: &mut Writer) {
        self.job.encode(writer);
        writer.u16(self.layers);
        writer.u32(self.output_count);
        self.work.encode(writer);
        self.policy.encode(writer);
        writer.bool(self.planted.is_some());
        if let Some(planted) = &self.planted {
            writer.seq(planted);
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            job: Arc::new(reader.value()?),
            layers: reader.u16()?,
            output_count: reader.u32()?,
            work: reader.value()?,
            policy: reader.value()?,
            planted: decode_planted(reader)?,
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
            Self::Ran { job, result, before, salt, operator } => {
                writer.u16(3);
                job.encode(writer);
                result.encode(writer);
                writer.seq(before);
                salt.encode(writer);
                writer.bool(operator.is_some());
                if let Some(operator) = operator {
                    writer.string(operator);
                }
            }
            Self::Drawn { job, draw, auditors } => {
                writer.u16(4);
                job.encode(writer);
                draw.encode(writer);
                writer.u8(*auditors);
            }
            Self::Disputed { job, terms } => {
                writer.u16(5);
                job.encode(writer);
                terms.encode(writer);
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
            Self::Quarantined { node, job, place, kind } => {
                writer.u16(9);
                node.encode(writer);
                job.encode(writer);
                place.encode(writer);
                kind.encode(writer);
            }
            Self::Tightened { job, policy } => {
                writer.u16(10);
                job.encode(writer);
                policy.encode(writer);
            }
            Self::Committed { job, epoch, commitment } => {
                writer.u16(11);
                job.encode(writer);
                epoch.encode(writer);
                commitment.encode(writer);
            }
            Self::Judged { job, dispute, kind, place, losers } => {
                writer.u16(12);
                job.encode(writer);
                dispute.encode(writer);
                kind.encode(writer);
                place.encode(writer);
                writer.seq(losers);
            }
            Self::Retracted { job, epoch } => {
                writer.u16(13);
                job.encode(writer);
                epoch.encode(writer);
            }
            Self::Diverged { job, epochs, place } => {
                writer.u16(18);
                job.encode(writer);
                epochs.iter().for_each(|epoch| epoch.encode(writer));
                place.encode(writer);
            }
            Self::Challenged { job, terms } => {
                writer.u16(15);
                job.encode(writer);
                terms.encode(writer);
            }
            Self::ChallengeEnded { job, dispute, upheld, at } => {
                writer.u16(16);
                job.encode(writer);
                dispute.encode(writer);
                writer.bool(*upheld);
                at.encode(writer);
            }
            Self::Refuted { job, epoch, dispute, kind, place } => {
                writer.u16(17);
                job.encode(writer);
                epoch.encode(writer);
                dispute.encode(writer);
                kind.encode(writer);
                place.encode(writer);
            }
            Self::Staged { job, epoch, node } => {
                writer.u16(20);
                job.encode(writer);
                epoch.encode(writer);
                node.encode(writer);
            }
            Self::HandedOverWrong { job, proof } => {
                writer.u16(21);
                job.encode(writer);
                proof.encode(writer);
            }
            Self::Redeemed { node, job, accepted } => {
                writer.u16(19);
                node.encode(writer);
                job.encode(writer);
                writer.u32(*accepted);
            }
            Self::SetAside { node, job, until } => {
                writer.u16(14);
                node.encode(writer);
                job.encode(writer);
                until.encode(writer);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            1 => Self::Submitted(reader.value()?),
            2 => Self::Assigned { job: reader.value()?, epoch: reader.value()?, node: reader.value()? },
            3 => Self::Ran {
                job: reader.value()?,
                result: Box::new(reader.value()?),
                before: reader.seq("roots of a run", MAX_RUN_ROOTS)?,
                salt: reader.value()?,
                operator: decode_operator(reader)?,
            },
            4 => Self::Drawn { job: reader.value()?, draw: reader.value()?, auditors: reader.u8()? },
            5 => Self::Disputed { job: reader.value()?, terms: Box::new(reader.value()?) },
            6 => Self::Abandoned { job: reader.value()? },
            7 => Self::Finished { job: reader.value()? },
            8 => Self::Failed { job: reader.value()?, reason: reader.value()? },
            9 => Self::Quarantined {
                node: reader.value()?,
                job: reader.value()?,
                place: reader.value()?,
                kind: reader.value()?,
            },
            10 => Self::Tightened { job: reader.value()?, policy: reader.value()? },
            12 => Self::Judged {
                job: reader.value()?,
                dispute: reader.value()?,
                kind: reader.value()?,
                place: reader.value()?,
                losers: reader.seq("losers", 2)?,
            },
            13 => Self::Retracted { job: reader.value()?, epoch: reader.value()? },
            18 => Self::Diverged {
                job: reader.value()?,
                epochs: [reader.value()?, reader.value()?],
                place: reader.value()?,
            },
            15 => Self::Challenged { job: reader.value()?, terms: Box::new(reader.value()?) },
            16 => Self::ChallengeEnded {
                job: reader.value()?,
                dispute: reader.value()?,
                upheld: reader.bool()?,
                at: reader.value()?,
            },
            17 => Self::Refuted {
                job: reader.value()?,
                epoch: reader.value()?,
                dispute: reader.value()?,
                kind: reader.value()?,
                place: reader.value()?,
            },
            14 => Self::SetAside { node: reader.value()?, job: reader.value()?, until: reader.value()? },
            20 => Self::Staged { job: reader.value()?, epoch: reader.value()?, node: reader.value()? },
            21 => Self::HandedOverWrong { job: reader.value()?, proof: Box::new(reader.value()?) },
            19 => Self::Redeemed { node: reader.value()?, job: reader.value()?, accepted: reader.u32()? },
            11 => Self::Committed { job: reader.value()?, epoch: reader.value()?, commitment: reader.value()? },
            tag => return Err(DecodeError::InvalidTag { what: "record", tag: tag.into() }),
        })
    }
}

fn decode_planted(reader: &mut Reader<'_>) -> Result<Option<Vec<Root>>, DecodeError> {
    Ok(if reader.bool()? { Some(reader.seq("known roots", MAX_RUN_ROOTS)?) } else { None })
}

fn decode_operator(reader: &mut Reader<'_>) -> Result<Option<String>, DecodeError> {
    Ok(if reader.bool()? { Some(reader.string("operator", MAX_NAME_BYTES)?.to_owned()) } else { None })
}
