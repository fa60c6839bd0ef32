//! What a worker tells whoever watches it.

use std::net::SocketAddr;
use std::time::Duration;

use lockstep_protocol::dispute::{DisputeId, Side, Verdict};
use lockstep_protocol::ids::{JobId, LeaseEpoch, ModelId, NodeId, Place, Root};
use lockstep_protocol::limits::WORKER_EVENT_LAG;
use lockstep_protocol::messages::FailureCode;
use tokio::sync::broadcast;

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The backend is being compared with the oracle.
    Checking {
        /// Basename of the op, or `model`.
        op: &'static str,
        /// Cases done so far.
        done: u64,
    },
    /// The backend is exact, and was measured.
    Checked {
        /// The backend's name.
        backend: String,
        /// Cases compared.
        cases: u64,
        /// Elements compared.
        elements: u64,
        /// Multiply-accumulates a second.
        macs_per_second: u64,
    },
    /// A connection is tried.
    Connecting {
        /// As configured.
        address: String,
    },
    /// The coordinator took the worker in.
    Connected {
        /// Its key.
        coordinator: NodeId,
        /// Where it is.
        address: SocketAddr,
        /// Its program's version, for people.
        software: String,
    },
    /// No connection, or it is over. Another is tried after the pause.
    Disconnected {
        /// Why.
        reason: String,
        /// The pause.
        retry_in: Duration,
    },
    /// A model is being fetched.
    Pulling {
        /// Which.
        model: ModelId,
        /// Bytes that are there.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A model is there, verified and proven.
    ModelReady {
        /// Which.
        model: ModelId,
    },
    /// A model can't be had or used.
    ModelFailed {
        /// Which.
        model: ModelId,
        /// Why.
        reason: String,
    },
    /// An assignment came.
    Assigned {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// Its tokens.
        tokens: usize,
    },
    /// An assignment runs.
    Running {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// Assignments that run together.
        batch: usize,
    },
    /// A layer is done, and its root on its way.
    LayerRoot {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// Where.
        place: Place,
        /// The root.
        root: Root,
    },
    /// A run is done and signed, and a commitment to it on its way. The result goes out when the coordinator asks for
    /// it.
    Finished {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// Multiply-accumulates of the run.
        work_units: u64,
        /// From the start of its batch.
        elapsed: Duration,
    },
    /// The coordinator keeps the result.
    Accepted {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
    },
    /// The coordinator no longer wants an assignment.
    Cancelled {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
    },
    /// The coordinator halted an assignment, because another worker's run of the job differs; what was streamed is
    /// signed and on its way.
    Halted {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// Roots that were streamed.
        roots: usize,
    },
    /// An assignment was given back.
    Failed {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
        /// Why.
        code: FailureCode,
        /// Why, for people.
        reason: String,
    },
    /// It is this worker's turn in a dispute about one of its runs.
    DisputeAsked {
        /// Which.
        dispute: DisputeId,
        /// About which job.
        job: JobId,
        /// Whether the run is challenged, or challenges.
        side: Side,
        /// Where the two runs differ first.
        place: Place,
    },
    /// A move is signed, kept, and on its way.
    DisputeMoved {
        /// In which dispute.
        dispute: DisputeId,
        /// In which round, from 0.
        round: u16,
        /// What kind of move.
        kind: &'static str,
    },
    /// A move was not made.
    DisputeFailed {
        /// In which dispute.
        dispute: DisputeId,
        /// Why.
        reason: String,
        /// When it is tried again; `None` where that would change nothing.
        retry_in: Option<Duration>,
    },
    /// The disputed run, made once more, is not the one that this worker signed: it takes the run back.
    Conceded {
        /// In which dispute.
        dispute: DisputeId,
        /// The run's job.
        job: JobId,
        /// The run's assignment.
        epoch: LeaseEpoch,
    },
    /// The other side of a dispute signed two different moves for one round; the first is shown to the coordinator.
    EquivocationSeen {
        /// In which dispute.
        dispute: DisputeId,
        /// In which round.
        round: u16,
    },
    /// A dispute is over.
    DisputeJudged {
        /// Which.
        dispute: DisputeId,
        /// How it ended.
        verdict: Verdict,
        /// Whether this worker lost it; `None` where it has not played since it was started.
        lost: Option<bool>,
    },
    /// The coordinator's log was followed to a head, and the head cosigned.
    Cosigned {
        /// Entries of the log.
        size: u64,
    },
    /// A head of the coordinator's log was not cosigned: it does not continue what the coordinator signed before, or the
    /// worker could not keep it. Where two heads prove two histories, both are kept in the data directory.
    HeadRefused {
        /// Entries of the log, as the head says.
        size: u64,
        /// Why.
        reason: String,
    },
    /// The machine passed a test while it worked: the backend gave every known answer.
    SelfTested {
        /// Packages that are damaged on this machine; they are pulled again.
        damaged: Vec<ModelId>,
    },
    /// The backend failed a test while it worked. The worker takes back what it signed since the last good one, and ends.
    SelfTestFailed {
        /// Which element of which op, or what else.
        reason: String,
    },
    /// The backend's device failed, and failed again where it was tested: it is lost. The worker gives back what runs, and
    /// ends; what it signed before stands.
    DeviceLost {
        /// The backend.
        backend: String,
        /// What the device said.
        reason: String,
    },
    /// The worker takes back a run that it signed, because a test of this machine failed since.
    Retracted {
        /// Of which job.
        job: JobId,
        /// Which assignment.
        epoch: LeaseEpoch,
    },
    /// The worker took a run back, and tests itself before it comes again.
    Faulty {
        /// What the coordinator said.
        reason: String,
    },
    /// The coordinator found this worker wrong, and takes nothing from it any more.
    Quarantined {
        /// Why.
        reason: String,
    },
    /// The worker finishes what it has and takes nothing new.
    Draining,
}

/// Where events go. Nobody needs to watch.
#[derive(Clone, Debug)]
pub(crate) struct Events(broadcast::Sender<Event>);

impl Events {
    pub fn new() -> (Self, broadcast::Receiver<Event>) {
        let (sender, receiver) = broadcast::channel(WORKER_EVENT_LAG);
        (Self(sender), receiver)
    }

    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }

    pub fn emit(&self, event: Event) {
        tracing::debug!(?event);
        // An error says that nobody watches.
        let _ = self.0.send(event);
    }
}
