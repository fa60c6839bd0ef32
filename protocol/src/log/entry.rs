//! Entries of the log, and their leaves.

use serde::{Deserialize, Serialize};

use crate::canonical::{Canonical, DecodeError, Reader, Writer, to_bytes};
use crate::commitment::RunCommitment;
use crate::domain::Domain;
use crate::hex::byte_newtype;
use crate::ids::{Digest, DisputeId, JobId, LeaseEpoch, NodeId, Place};
use crate::ledger::{Posting, batch_digest};
use crate::machine::{DrawSecret, Record};

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
    /// A worker took its run back.
    Withdrawn {
        /// Of which job.
        job: JobId,
        /// Of which lease.
        epoch: LeaseEpoch,
    },
    /// A worker committed to a run that nobody had seen.
    Committed {
        /// Of which job.
        job: JobId,
        /// Of which lease.
        epoch: LeaseEpoch,
        /// To what.
        commitment: RunCommitment,
    },
    /// It began a chain of secrets for draws, of which it had used none.
    Anchored {
        /// Which chain, from 0.
        chain: u32,
        /// What all its secrets hash down to.
        anchor: Digest,
    },
    /// It drew whether a job is audited.
    Drawn {
        /// Which job.
        job: JobId,
        /// Whether before the job started, for audits side by side.
        lockstep: bool,
        /// With which secret, used for this draw alone.
        secret: DrawSecret,
        /// How many audits follow.
        auditors: u8,
    },
    /// It opened a dispute.
    Disputed {
        /// About which job.
        job: JobId,
        /// Which.
        dispute: DisputeId,
    },
    /// It wrote down something in a dispute: a move, a notice, a credit.
    Transcript {
        /// Of which job.
        job: JobId,
        /// Of which dispute.
        dispute: DisputeId,
        /// Its place in the transcript.
        index: u32,
        /// The digest of the transcript's entry.
        digest: Digest,
    },
    /// It judged a dispute.
    Judged {
        /// Of which job.
        job: JobId,
        /// Which.
        dispute: DisputeId,
        /// The digest of the transcript's entry with the verdict.
        verdict: Digest,
    },
    /// It was shown that a worker of a pipeline signed something wrong of rows that it handed over.
    HandedOverWrong {
        /// In which job.
        job: JobId,
        /// Who.
        worker: NodeId,
        /// The digest of what shows it ([`crate::hand_over::HandOverProof::digest`]).
        proof: Digest,
    },
    /// It made postings of its ledger.
    Ledger {
        /// The index of the first of them.
        first: u64,
        /// How many they are.
        count: u32,
        /// Of what they are ([`crate::ledger::batch_digest`]).
        digest: Digest,
    },
}

impl Entry {
    /// The entry that a record of the job machine makes; `None` for what only says how the machine went on, and for
    /// verdicts, whose entries come with the transcripts of their disputes.
    pub fn of_record(record: &Record) -> Option<Self> {
        let job = record.job();
        match record {
            Record::Submitted(_) => Some(Self::Submitted { job }),
            Record::Assigned { epoch, node, .. } | Record::Staged { epoch, node, .. } => {
                Some(Self::Assigned { job, epoch: *epoch, worker: *node })
            }
            Record::Committed { epoch, commitment, .. } => {
                Some(Self::Committed { job, epoch: *epoch, commitment: *commitment })
            }
            Record::Ran { result, .. } => {
                let receipt = &result.receipt.receipt;
                Some(Self::Result { job, epoch: receipt.epoch, receipt: receipt.digest() })
            }
            Record::Drawn { draw, auditors, .. } => {
                Some(Self::Drawn { job, lockstep: draw.lockstep, secret: draw.secret, auditors: *auditors })
            }
            Record::Disputed { terms, .. } | Record::Challenged { terms, .. } => {
                Some(Self::Disputed { job, dispute: terms.id() })
            }
            Record::HandedOverWrong { proof, .. } => {
                Some(Self::HandedOverWrong { job, worker: proof.hand_over().worker, proof: proof.digest() })
            }
            Record::Retracted { epoch, .. } => Some(Self::Withdrawn { job, epoch: *epoch }),
            Record::Quarantined { node, place, .. } => Some(Self::Refuted { job, worker: *node, place: *place }),
            Record::Tightened { .. }
            | Record::Judged { .. }
            | Record::SetAside { .. }
            | Record::Redeemed { .. }
            | Record::ChallengeEnded { .. }
            | Record::Diverged { .. }
            | Record::Refuted { .. }
            | Record::Abandoned { .. }
            | Record::Finished { .. }
            | Record::Failed { .. } => None,
        }
    }

    /// The entry of postings that are made together, of which the first has this index; `None` where there are none.
    ///
    /// # Panics
    /// Where there are 2^32 or more: a batch fits in one commit of the store.
    pub fn of_postings(first: u64, postings: &[Posting]) -> Option<Self> {
        let count = u32::try_from(postings.len()).expect("a batch of postings fits in a commit");
        (count > 0).then(|| Self::Ledger { first, count, digest: batch_digest(first, postings) })
    }

    /// The job that it is about; `None` where it is about all of them.
    pub fn job(&self) -> Option<JobId> {
        match self {
            Self::Submitted { job }
            | Self::Assigned { job, .. }
            | Self::Result { job, .. }
            | Self::Statement { job, .. }
            | Self::Refuted { job, .. }
            | Self::Withdrawn { job, .. }
            | Self::Committed { job, .. }
            | Self::Drawn { job, .. }
            | Self::Disputed { job, .. }
            | Self::Transcript { job, .. }
            | Self::Judged { job, .. }
            | Self::HandedOverWrong { job, .. } => Some(*job),
            Self::Anchored { .. } | Self::Ledger { .. } => None,
        }
    }

    fn tag(&self) -> u16 {
        match self {
            Self::Submitted { .. } => 1,
            Self::Assigned { .. } => 2,
            Self::Result { .. } => 3,
            Self::Statement { .. } => 4,
            Self::Refuted { .. } => 5,
            Self::Withdrawn { .. } => 6,
            Self::Committed { .. } => 7,
            Self::Anchored { .. } => 8,
            Self::Drawn { .. } => 9,
            Self::Disputed { .. } => 10,
            Self::Transcript { .. } => 11,
            Self::Judged { .. } => 12,
            Self::Ledger { .. } => 13,
            Self::HandedOverWrong { .. } => 14,
        }
    }
}

impl Canonical for Entry {
    const MIN_BYTES: usize = 2 + 32;
    fn encode(&self, writer: &mut Writer) {
        writer.u16(self.tag());
        if let Some(job) = self.job() {
            job.encode(writer);
        }
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
            Self::Withdrawn { epoch, .. } => epoch.encode(writer),
            Self::Committed { epoch, commitment, .. } => {
                epoch.encode(writer);
                commitment.encode(writer);
            }
            Self::Anchored { chain, anchor } => {
                writer.u32(*chain);
                anchor.encode(writer);
            }
            Self::Drawn { lockstep, secret, auditors, .. } => {
                writer.bool(*lockstep);
                secret.encode(writer);
                writer.u8(*auditors);
            }
            Self::Disputed { dispute, .. } => dispute.encode(writer),
            Self::Transcript { dispute, index, digest, .. } => {
                dispute.encode(writer);
                writer.u32(*index);
                digest.encode(writer);
            }
            Self::Judged { dispute, verdict, .. } => {
                dispute.encode(writer);
                verdict.encode(writer);
            }
            Self::HandedOverWrong { worker, proof, .. } => {
                worker.encode(writer);
                proof.encode(writer);
            }
            Self::Ledger { first, count, digest } => {
                writer.u64(*first);
                writer.u32(*count);
                digest.encode(writer);
            }
        }
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let tag = reader.u16()?;
        match tag {
            8 => return Ok(Self::Anchored { chain: reader.u32()?, anchor: reader.value()? }),
            13 => return Ok(Self::Ledger { first: reader.u64()?, count: reader.u32()?, digest: reader.value()? }),
            _ => {}
        }
        let job = reader.value()?;
        Ok(match tag {
            1 => Self::Submitted { job },
            2 => Self::Assigned { job, epoch: reader.value()?, worker: reader.value()? },
            3 => Self::Result { job, epoch: reader.value()?, receipt: reader.value()? },
            4 => Self::Statement { job, statement: reader.value()? },
            5 => Self::Refuted { job, worker: reader.value()?, place: reader.value()? },
            6 => Self::Withdrawn { job, epoch: reader.value()? },
            7 => Self::Committed { job, epoch: reader.value()?, commitment: reader.value()? },
            9 => {
                let (lockstep, secret) = (reader.bool()?, reader.value()?);
                Self::Drawn { job, lockstep, secret, auditors: reader.u8()? }
            }
            10 => Self::Disputed { job, dispute: reader.value()? },
            11 => {
                let (dispute, index) = (reader.value()?, reader.u32()?);
                Self::Transcript { job, dispute, index, digest: reader.value()? }
            }
            14 => Self::HandedOverWrong { job, worker: reader.value()?, proof: reader.value()? },
            12 => Self::Judged { job, dispute: reader.value()?, verdict: reader.value()? },
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
