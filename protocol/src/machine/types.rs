//! What goes into the job machine and what comes out.

use std::sync::Arc;

use crate::commitment::{ChainHead, Difference, RunCommitment};
use crate::dispute::{SignedPartial, Terms, Verdict};
use crate::hand_over::{HandOverProof, SignedHandOver};
use crate::identity::Keypair;
use crate::ids::{
    Digest, DisputeId, JobId, LeaseEpoch, Millis, ModelId, NodeId, Nonce, Place, Root, Salt, VerdictKind,
};
use crate::job::{Job, JobKind};
use crate::ledger::{LedgerError, Posting};
use crate::machine::audit::{AuditDraw, AuditPolicy};
use crate::machine::challenges::{Challenge, ChallengeError};
use crate::machine::reasons::{RejectReason, SubmitError};
use crate::machine::record::{JobFailure, Record};
use crate::machine::stream::{CommittedRoot, Streamed};
use crate::machine::work::Work;
use crate::machine::workers::Capabilities;
use crate::messages::{FailureCode, JobResult, RefusalCode, Stage};
use crate::receipt::{Receipt, Refutation, SignedSegment};

/// A job with what the coordinator knows about it from the model's program. A run that says
/// otherwise is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSpec {
    /// The job.
    pub job: Arc<Job>,
    /// Transformer layers of the model.
    pub layers: u16,
    /// Numbers in the output of an embedding; of a generation the most words.
    pub output_count: u32,
    /// Multiply-accumulates of one run.
    pub work: Work,
    /// How the job is audited.
    pub policy: AuditPolicy,
    /// The right roots, where the coordinator knows them and planted the job to test workers: a first run with others is
    /// audited whatever the draw says. Secret: no worker can tell such a job from any other.
    pub planted: Option<Vec<Root>>,
}

impl JobSpec {
    /// The most commitment points of a run.
    pub fn max_points(&self) -> usize {
        self.job.kind.max_points() as usize
    }

    /// The most work of a run: what bonds, leases and clocks are made for.
    pub fn work_bound(&self) -> u64 {
        self.work.units(self.max_points())
    }

    /// What it holds of the memory until it has ended, in tokens. The roots that a generation streams count for two runs.
    pub fn weight(&self) -> usize {
        let roots = match self.job.kind {
            JobKind::Embedding => 0,
            JobKind::Generation(_) => self.max_points().saturating_mul(usize::from(self.layers) + 1),
        };
        self.job.tokens.len().saturating_add(roots.saturating_mul(2 * TOKENS_OF_A_ROOT))
    }
}

/// The bytes of a root are those of so many tokens.
const TOKENS_OF_A_ROOT: usize = 8;

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
    /// A worker streamed some more of a run.
    Streamed {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// What, in order.
        said: Vec<Streamed>,
    },
    /// A worker of a pipeline says what it signed itself of what it handed over, or passes on what the one before it signed; before the
    /// first one is the last one, which hands words over.
    HandedOver {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// What was signed.
        signed: Box<SignedHandOver>,
    },
    /// A worker of a pipeline shows that the one before it signed something wrong.
    Proof {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// What shows it.
        proof: Box<HandOverProof>,
    },
    /// A worker of a pipeline has streamed all its roots.
    StageEnded {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// Values that saturated in its layers.
        saturations: u64,
    },
    /// A worker of a pipeline signed for its layers.
    Segment {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// What it signed.
        signed: Box<SignedSegment>,
    },
    /// A client waits for the job's end: it is to be told where nobody is there who could run it.
    Awaited {
        /// Which job.
        job: JobId,
        /// How long it waits for that, in milliseconds.
        patience_ms: u64,
    },
    /// The client wants the job no more. It ends at once, unless runs of it differ already: who lied is found out first.
    Cancel {
        /// Which job.
        job: JobId,
    },
    /// A worker has streamed all roots and committed to them.
    Committed {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// To what.
        commitment: RunCommitment,
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
        /// Opens the worker's commitment.
        salt: Salt,
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
        /// Why, for people; as the worker says it.
        reason: String,
    },
    /// A worker takes a run back that it found wrong itself.
    Retracted {
        /// Which worker.
        node: NodeId,
        /// Of which job.
        job: JobId,
        /// The lease of the run.
        epoch: LeaseEpoch,
    },
    /// Somebody disputes a run of a job. Also for jobs that have ended.
    Challenge(Box<Challenge>),
    /// A worker that was told to halt signed what it streamed so far.
    Partial {
        /// Which worker.
        node: NodeId,
        /// What it signed; job and lease are in it.
        partial: Box<SignedPartial>,
    },
    /// The answer to [`Action::NeedDraw`] or [`Action::NeedLockstepDraw`].
    Drawn {
        /// Which job.
        job: JobId,
        /// From [`super::audit_draw`] or [`super::lockstep_draw`].
        draw: AuditDraw,
    },
    /// A dispute that was opened by [`Action::OpenDispute`] has ended.
    Judged {
        /// About which job.
        job: JobId,
        /// Which dispute.
        dispute: DisputeId,
        /// Who lost, and how.
        verdict: Box<Verdict>,
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
        /// To an auditor of a generation the words that are claimed, so that one pass tells whether they are right; to who
        /// takes over from a worker that was lost, the words that the client was told; or else none.
        hint: Vec<u32>,
    },
    /// Send an assignment of some layers.
    AssignStage {
        /// To which worker.
        node: NodeId,
        /// The assignment: the same for all of the crew.
        epoch: LeaseEpoch,
        /// The job.
        job: Arc<Job>,
        /// As in [`Action::Assign`].
        hint: Vec<u32>,
        /// Who has which layers.
        crew: Vec<Stage>,
    },
    /// Show a worker of a pipeline the roots of the whole run, so that it signs for its layers.
    Countersign {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// The next roots in stream order.
        roots: Vec<Root>,
        /// With the last of them: values that saturated in all layers together.
        saturations: Option<u64>,
        /// With the last of them, where log-probabilities were asked for: their root.
        logprobs: Option<Root>,
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
    /// Tell a worker that committed to a run to send its result.
    Reveal {
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
    /// Roots were taken into a live run (to show; nothing has to be done).
    Committed {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// Which, in stream order.
        roots: Vec<CommittedRoot>,
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
    /// Compute [`super::lockstep_draw`] over job and nonce, and feed [`Input::Drawn`].
    NeedLockstepDraw {
        /// Which job.
        job: JobId,
        /// The client's nonce.
        nonce: Nonce,
    },
    /// Tell a worker to stop a run, and to sign the roots that it has streamed up to a place.
    Halt {
        /// Which worker.
        node: NodeId,
        /// Which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// The last place whose root is signed.
        place: Place,
    },
    /// Tell the client a word, where it wants words as they come. The job has not ended, and the word is not audited. A
    /// word with an index that was told before takes the place of that one and of all after it.
    Token {
        /// Of which job.
        job: JobId,
        /// Which of its words, counted from 0.
        index: u32,
        /// The word.
        word: u32,
        /// Its log-probabilities, where the job asks for them. Nobody has compared them.
        logprobs: Vec<i32>,
    },
    /// A job that is run in lockstep stopped (to report, and to tell the client).
    Diverged {
        /// Which job.
        job: JobId,
        /// The first place at which two streams differ.
        place: Place,
        /// Whose.
        nodes: [NodeId; 2],
    },
    /// Two runs differ (to report; [`Action::OpenDispute`] follows).
    Mismatch {
        /// Which job.
        job: JobId,
        /// The first difference: `a` of the first run, `b` of the other one.
        difference: Difference,
        /// Who made the run that is the answer so far.
        first: NodeId,
        /// Who made the other one.
        auditor: NodeId,
    },
    /// Open a dispute, or go on with it after a restart, and feed [`Input::Judged`] when it has ended. The same terms
    /// may be asked for again: they name one and the same dispute.
    OpenDispute {
        /// About which job.
        job: JobId,
        /// Who disputes what, and in which time.
        terms: Box<Terms>,
    },
    /// A challenge is taken in, and waits for its turn: [`Action::OpenDispute`] follows once it has come.
    ChallengeWaits {
        /// About which job.
        job: JobId,
        /// Its dispute.
        dispute: DisputeId,
    },
    /// Refuse a challenge.
    RefuseChallenge {
        /// About which job.
        job: JobId,
        /// Of whom.
        node: NodeId,
        /// Why.
        reason: ChallengeError,
    },
    /// A run of a job that has ended lost a challenge: to be stated about its receipt.
    Overturned {
        /// Which job.
        job: JobId,
        /// Whose run, and how.
        refutation: Refutation,
    },
    /// A worker was found wrong: it gets nothing any more. Its connection is to be closed.
    Quarantine {
        /// Which worker.
        node: NodeId,
        /// In which job.
        job: JobId,
        /// Where its run differed from another one.
        place: Place,
        /// By what it was found out.
        kind: VerdictKind,
    },
    /// A worker took a run back: it gets nothing before a time, and then has to join again. Its connection is to be
    /// closed.
    SetAside {
        /// Which worker.
        node: NodeId,
        /// In which job.
        job: JobId,
        /// Until when.
        until: Millis,
    },
    /// The ledger refused a posting of the machine's, which goes on without it: a fault of the coordinator's own, to
    /// report.
    Unposted {
        /// What was not posted.
        posting: Posting,
        /// Why.
        error: LedgerError,
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
        /// Where workers refused it, what the last of them said.
        said: Option<String>,
    },
    /// Tell those who wait for a job that nobody is connected who could run it. The job is kept until it is cancelled.
    Deserted {
        /// Which job.
        job: JobId,
    },
}

/// What [`super::Machine::handle`] returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// To be made durable together, in this order, before any action is carried out.
    pub records: Vec<Record>,
    /// To be made durable with the records, in this order: the changes of the ledger.
    pub postings: Vec<Posting>,
    /// To be carried out in this order.
    pub actions: Vec<Action>,
}

/// All that is known about a job when it ends well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The run whose output is the answer: the first one that nobody refuted.
    pub result: JobResult,
    /// The other runs, in the order in which they came.
    pub others: Vec<JobResult>,
    /// Which of them lost a dispute.
    pub refutations: Vec<Refutation>,
    /// Which of them were taken back by their workers: the digests of their receipts.
    pub withdrawals: Vec<Digest>,
    /// All roots of the answer's run, in stream order.
    pub roots: Vec<Root>,
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
        for withdrawn in &self.withdrawals {
            receipt.add_withdrawal(*withdrawn, keys, time);
        }
        receipt
    }
}
