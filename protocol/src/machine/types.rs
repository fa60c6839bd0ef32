//! What goes into the job machine and what comes out.

use std::sync::Arc;

use thiserror::Error;

use crate::commitment::{ChainHead, Difference};
use crate::identity::Keypair;
use crate::ids::{JobId, LeaseEpoch, Millis, ModelId, NodeId, Nonce, Place, Root};
use crate::job::{Job, JobError};
use crate::machine::audit::{AuditDraw, AuditPolicy};
use crate::machine::record::{JobFailure, Record};
use crate::messages::{FailureCode, Hello, JobResult, RefusalCode};
use crate::receipt::{Receipt, ReceiptError, Refutation};

/// A job with what the coordinator knows about it from the model's program. A run that says
/// otherwise is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSpec {
    /// The job.
    pub job: Arc<Job>,
    /// Transformer layers of the model.
    pub layers: u16,
    /// Numbers in the output.
    pub output_count: u32,
    /// Multiply-accumulates of one run.
    pub work_units: u64,
    /// How the job is audited.
    pub policy: AuditPolicy,
}

/// What the machine needs to know of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Multiply-accumulates a second that the worker says it does; 0 where it does not say.
    pub macs_per_second: u64,
    /// Assignments that it takes at a time.
    pub max_in_flight: u32,
    /// Models that it holds.
    pub models: Vec<ModelId>,
}

impl From<&Hello> for Capabilities {
    fn from(hello: &Hello) -> Self {
        Self {
            macs_per_second: hello.macs_per_second,
            max_in_flight: hello.max_in_flight,
            models: hello.models.clone(),
        }
    }
}

/// What happened, as told to [`super::Machine::handle`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A worker said hello. If it was there already, its old session is over.
    WorkerJoined {
        /// Which.
        node: NodeId,
        /// What it can do.
        capabilities: Capabilities,
    },
    /// A worker's connection ended. Not for a session that another `WorkerJoined` of the same key
    /// replaced: that one is over already.
    WorkerLeft {
        /// Which.
        node: NodeId,
    },
    /// A worker sent a heartbeat.
    Heartbeat {
        /// Which.
        node: NodeId,
    },
    /// A worker now holds a model.
    ModelHeld {
        /// Which worker.
        node: NodeId,
        /// Which model.
        model: ModelId,
    },
    /// A worker takes nothing new.
    Draining {
        /// Which.
        node: NodeId,
    },
    /// A client wants a job.
    Submit(JobSpec),
    /// A worker began to run an assignment: its job stream opened.
    Began {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
    },
    /// A worker streamed a root.
    LayerRoot {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// Where.
        place: Place,
        /// The root.
        root: Root,
    },
    /// A worker sent a result.
    Completed {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// The result.
        result: Box<JobResult>,
    },
    /// A worker gave an assignment back, or its job stream broke.
    Failed {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// Why.
        code: FailureCode,
    },
    /// The answer to [`Action::NeedDraw`].
    Drawn {
        /// Which job.
        job: JobId,
        /// From [`super::audit_draw`].
        draw: AuditDraw,
    },
    /// The answer to [`Action::NeedSettlement`].
    Settled {
        /// Which job.
        job: JobId,
        /// The right roots, in stream order; `None` where the job could not be recomputed.
        truth: Option<Vec<Root>>,
    },
    /// Time went on to [`super::Machine::next_wake`].
    Tick,
}

/// What the shell must do, in order, and only once all records of the same [`Output`] are durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Turn a worker away and close its connection.
    RefuseWorker {
        /// Which.
        node: NodeId,
        /// Why.
        code: RefusalCode,
    },
    /// Close the connection of a worker that fell silent.
    Disconnect {
        /// Which.
        node: NodeId,
    },
    /// Acknowledge a submission: the job is kept.
    Submitted {
        /// Which job.
        job: JobId,
    },
    /// The job was submitted before; no second one is started.
    AlreadyKnown {
        /// Which job.
        job: JobId,
        /// Whether it has ended.
        ended: bool,
        /// How it is audited, or was. Of an unfinished job that is what satisfies this submission and
        /// all before; an ended one may have been audited less than this submission asks for.
        policy: AuditPolicy,
    },
    /// Refuse a submission.
    RefuseJob {
        /// Which job.
        job: JobId,
        /// Why.
        reason: SubmitError,
    },
    /// Send an assignment.
    Assign {
        /// To which worker.
        node: NodeId,
        /// The assignment.
        epoch: LeaseEpoch,
        /// The job.
        job: Arc<Job>,
    },
    /// Tell a worker that an assignment is over.
    Cancel {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
    },
    /// Tell a worker that its result is kept.
    Accepted {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
    },
    /// A root or result was refused. The worker's session is over, with all its leases: its connection is
    /// to be closed.
    Rejected {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// Why.
        reason: RejectReason,
    },
    /// A root was taken into a live run (to show; nothing has to be done).
    Committed {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// Where.
        place: Place,
        /// The root.
        root: Root,
        /// Whether an earlier run of the job has another root there.
        differs: bool,
    },
    /// Give the client its answer; audits may follow. Not sent for jobs that are held.
    Answer {
        /// Which job.
        job: JobId,
        /// The first run.
        result: Box<JobResult>,
    },
    /// Compute [`super::audit_draw`] over head and nonce, and feed [`Input::Drawn`].
    NeedDraw {
        /// Which job.
        job: JobId,
        /// The first run's chain head, durable.
        head: ChainHead,
        /// The client's nonce.
        nonce: Nonce,
    },
    /// Two runs differ (to report; [`Action::NeedSettlement`] follows).
    Mismatch {
        /// Which job.
        job: JobId,
        /// The first difference: `a` of the first run, `b` of the audit.
        difference: Difference,
        /// Who made the first run.
        first: NodeId,
        /// Who made the audit.
        auditor: NodeId,
    },
    /// Recompute the job and feed [`Input::Settled`].
    NeedSettlement {
        /// Which job.
        job: Arc<Job>,
    },
    /// A worker was found wrong: it gets nothing any more. Its connection is to be closed.
    Quarantine {
        /// Which worker.
        node: NodeId,
        /// In which job.
        job: JobId,
        /// Where.
        place: Place,
    },
    /// A job has ended well.
    JobDone {
        /// Which job.
        job: JobId,
        /// All that is known about it.
        outcome: Box<Outcome>,
    },
    /// A job has ended without a result.
    JobFailed {
        /// Which job.
        job: JobId,
        /// Why.
        reason: JobFailure,
    },
}

/// What [`super::Machine::handle`] returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// To be made durable together, in this order, before any action is carried out.
    pub records: Vec<Record>,
    /// To be carried out in this order.
    pub actions: Vec<Action>,
}

/// Why a submission is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// The job or its layers are not allowed.
    #[error("{0}")]
    Job(#[from] JobError),
    /// The output is empty or too large.
    #[error("an output of {0} values is not allowed")]
    OutputCount(u32),
    /// The audit policy is out of range.
    #[error("the audit policy is out of range")]
    Policy,
    /// Too many jobs wait already.
    #[error("too many jobs are waiting: try again later")]
    Busy,
}

/// Why a result is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RejectReason {
    /// The receipt is not of this worker and assignment, or its numbers are not the program's.
    #[error("the receipt's {0} is not that of the assignment")]
    NotThisAssignment(&'static str),
    /// The signed roots are not those that were streamed.
    #[error("the signed roots are not those that were streamed")]
    NotAsStreamed,
    /// A root was streamed out of order.
    #[error("a root for {found} came where another place was next")]
    OutOfOrder {
        /// The place that came.
        found: Place,
    },
    /// The receipt does not check.
    #[error("{0}")]
    Receipt(#[from] ReceiptError),
}

/// All that is known about a job when it ends well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The run whose output is the answer: the first one that nobody refuted.
    pub result: JobResult,
    /// The other runs, in the order in which they came.
    pub others: Vec<JobResult>,
    /// Which of them were found wrong.
    pub refutations: Vec<Refutation>,
    /// How many audits the draw asked for; fewer came where no worker was found in time.
    pub audits_wanted: u8,
}

impl Outcome {
    /// The receipt with everything in it. `answered` is the receipt that the client got already, if
    /// any: its statements are continued where its answer still stands.
    pub fn receipt(&self, job: &Job, answered: Option<Receipt>, keys: &Keypair, time: Millis) -> Receipt {
        let mut receipt = answered
            .filter(|receipt| receipt.worker == self.result.receipt && receipt.audits.is_empty())
            .unwrap_or_else(|| {
                let JobResult { receipt, output } = self.result.clone();
                Receipt::accepted(job.clone(), receipt, output, keys, time)
            });
        for other in &self.others {
            receipt.add_audit(other.receipt.clone(), keys, time);
        }
        for refutation in &self.refutations {
            receipt.add_refutation(refutation, keys, time);
        }
        receipt
    }
}
