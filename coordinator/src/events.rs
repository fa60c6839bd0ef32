//! What a coordinator tells those who watch it.

use lockstep_protocol::ids::{JobId, LeaseEpoch, ModelId, NodeId, Place, Root};
use serde::Serialize;

/// Something happened, and is durable where it has to be. Sent in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A worker was taken in.
    WorkerJoined {
        /// Its key.
        node: NodeId,
        /// Its backend, as it says.
        backend: String,
        /// Multiply-accumulates a second, as it says; 0 where it does not.
        macs_per_second: u64,
    },
    /// A worker was turned away.
    WorkerRefused {
        /// Its key.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// A worker's connection ended.
    WorkerLeft {
        /// Its key.
        node: NodeId,
    },
    /// A job was taken and is kept.
    JobSubmitted {
        /// Which.
        job: JobId,
        /// On which model.
        model: ModelId,
        /// How many tokens.
        tokens: usize,
    },
    /// A job was given to a worker.
    Assigned {
        /// Which.
        job: JobId,
        /// The lease.
        epoch: LeaseEpoch,
        /// To whom.
        node: NodeId,
    },
    /// A worker streamed the root of a layer.
    Committed {
        /// Of which job.
        job: JobId,
        /// Under which lease.
        epoch: LeaseEpoch,
        /// Who.
        node: NodeId,
        /// Where.
        place: Place,
        /// The root.
        root: Root,
        /// Whether an earlier run of the job has another root there.
        differs: bool,
    },
    /// A worker's result was refused.
    Rejected {
        /// Of which job.
        job: JobId,
        /// Under which lease.
        epoch: LeaseEpoch,
        /// Whose.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// The first run of a job was accepted.
    Accepted {
        /// Which job.
        job: JobId,
        /// Under which lease.
        epoch: LeaseEpoch,
        /// Whose.
        node: NodeId,
    },
    /// It was drawn how many audits a job gets.
    AuditDrawn {
        /// Which job.
        job: JobId,
        /// How many; 0 for none.
        auditors: u8,
    },
    /// A later run of a job was accepted.
    Audited {
        /// Which job.
        job: JobId,
        /// Under which lease.
        epoch: LeaseEpoch,
        /// Whose.
        node: NodeId,
        /// Whether it came to the same roots as the first run.
        matched: bool,
    },
    /// Two runs differ.
    Mismatch {
        /// Of which job.
        job: JobId,
        /// The first place at which they do.
        place: Place,
        /// Who made the first run.
        first: NodeId,
        /// Its root there.
        first_root: Option<Root>,
        /// Who made the audit.
        auditor: NodeId,
        /// Its root there.
        auditor_root: Option<Root>,
    },
    /// The job was recomputed, or could not be.
    Settled {
        /// Which job.
        job: JobId,
        /// Whether it could be.
        recomputed: bool,
    },
    /// A worker was found wrong and gets nothing any more.
    Quarantined {
        /// Which.
        node: NodeId,
        /// In which job.
        job: JobId,
        /// The first place at which it was wrong.
        place: Place,
    },
    /// A job has ended well.
    Done {
        /// Which.
        job: JobId,
        /// Whose output is the answer.
        worker: NodeId,
        /// How many others came to the same.
        matched: usize,
        /// How many came to something else.
        mismatched: usize,
    },
    /// A job has ended without a result.
    Failed {
        /// Which.
        job: JobId,
        /// Why.
        reason: String,
    },
}
