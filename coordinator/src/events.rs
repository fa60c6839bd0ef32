//! What a coordinator tells those who watch it.

use lockstep_protocol::ids::{DisputeId, JobId, LeaseEpoch, ModelId, NodeId, Place, Root, VerdictKind};
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
    /// Two workers that ran a job side by side streamed different roots, and the job has stopped there.
    Diverged {
        /// Which job.
        job: JobId,
        /// The first place at which they differ.
        place: Place,
        /// Whose.
        nodes: [NodeId; 2],
    },
    /// Two workers play a dispute about a place at which their runs differ.
    DisputeOpened {
        /// Which dispute.
        dispute: DisputeId,
        /// About which job.
        job: JobId,
        /// The first place at which the runs differ.
        place: Place,
        /// Whose run is challenged.
        claimant: NodeId,
        /// Who challenges it.
        challenger: NodeId,
    },
    /// A side's move was taken.
    DisputeMoved {
        /// In which dispute.
        dispute: DisputeId,
        /// In which round, from 0.
        round: u16,
        /// Who moved.
        node: NodeId,
        /// Whether that is the claimant.
        claimant: bool,
        /// What the move was: `descend`, `ops`, `reveal`, `open` or `concede`.
        stage: &'static str,
        /// What is in dispute after it.
        narrowed: Narrowed,
        /// Bytes of the signed move.
        bytes: u64,
    },
    /// A side's clock has run out; a move that comes within the grace period still counts.
    DisputeNotice {
        /// In which dispute.
        dispute: DisputeId,
        /// Whose.
        node: NodeId,
    },
    /// A dispute has a verdict.
    DisputeJudged {
        /// Which.
        dispute: DisputeId,
        /// About which job.
        job: JobId,
        /// How it was lost.
        kind: VerdictKind,
        /// Who lost: one, or both.
        losers: Vec<NodeId>,
        /// The element in dispute, where it came to one.
        element: Option<DisputedElement>,
        /// Rounds that were played.
        rounds: u16,
        /// Bytes of all moves that the referee took.
        referee_bytes: u64,
        /// What the referee computed for it: signatures, hashes and the element, in microseconds of processor time, without the
        /// disk and the network. Only what was done since the last start of the coordinator.
        referee_micros: u64,
    },
    /// A run of a job that had ended well lost a challenge.
    Overturned {
        /// Which job.
        job: JobId,
        /// Whose run.
        node: NodeId,
    },
    /// A worker was found wrong and gets nothing any more.
    Quarantined {
        /// Which.
        node: NodeId,
        /// In which job.
        job: JobId,
        /// The first place at which its run differed from the other side's.
        place: Place,
        /// By what it was found out.
        kind: VerdictKind,
    },
    /// A worker took its run back, and gets nothing for a while.
    Retracted {
        /// Which.
        node: NodeId,
        /// Its run of which job.
        job: JobId,
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

/// What is still in dispute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Narrowed {
    /// The layer whose output differs.
    pub layer: u16,
    /// The step in dispute, such as `layer_norm.squares`; none while it is the layer's output.
    pub step: Option<String>,
    /// The first chunk in dispute of the layer's output, or of the step once there is one.
    pub first_chunk: u64,
    /// How many chunks from there on.
    pub chunks: u64,
    /// The element in dispute, once it is known: its index in the step, rows padded to whole chunks.
    pub element: Option<u64>,
}

/// The number on which a dispute came down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DisputedElement {
    /// The step, such as `layer_norm.squares`.
    pub step: String,
    /// Its row in the step.
    pub row: u64,
    /// Its column.
    pub column: u64,
    /// What claimant and challenger say it is.
    pub claimed: [i64; 2],
    /// What it is, where somebody opened what it follows from.
    pub right: Option<i64>,
}
