//! A connected worker as the engine sees it: who it is, and a bounded way to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lockstep_protocol::dispute::{SignedEntry, Verdict};
use lockstep_protocol::ids::{DisputeId, JobId, LeaseEpoch, NodeId, Place, Root};
use lockstep_protocol::job::Job;
use lockstep_protocol::limits::MAX_OUTBOX_MESSAGES;
use lockstep_protocol::messages::{Ask, Hello, RefusalCode, Stage};
use tokio::sync::{Notify, mpsc};

use crate::store::Cosign;

/// What goes down to a worker. Jobs are shared until they are written.
#[derive(Clone, Debug)]
pub enum Down {
    /// It is taken in.
    Welcome,
    /// It is turned away; the connection ends after it.
    Refused(RefusalCode),
    /// It gets a job, and as an auditor of a generation the words that are claimed.
    Assign(LeaseEpoch, Arc<Job>, Vec<u32>),
    /// It gets some layers of a job, in a pipeline.
    AssignStage(Box<Share>),
    /// It is to sign for its layers of a pipeline, if these are the next roots of all; with the last of them, what saturated,
    /// and the root of the log-probabilities.
    Countersign(JobId, LeaseEpoch, Vec<Root>, Option<u64>, Option<Root>),
    /// It may send the result to which it committed.
    Reveal(JobId, LeaseEpoch),
    /// Its result is durable.
    Accepted(JobId, LeaseEpoch),
    /// It is to stop a run and sign what it streamed up to a place.
    Halt(JobId, LeaseEpoch, Place),
    /// Its assignment is over.
    Cancel(JobId, LeaseEpoch),
    /// It is its turn in a dispute.
    Asked(Box<Ask>),
    /// Its move in a dispute is durable.
    Acknowledged(Box<SignedEntry>),
    /// Its dispute is over.
    Judged(DisputeId, Verdict),
    /// It is asked to cosign a head of the log.
    Cosign(Box<Cosign>),
    /// The coordinator goes down; the connection ends after it.
    Shutdown,
}

/// What a worker of a pipeline is given.
#[derive(Clone, Debug)]
pub struct Share {
    /// The lease of all.
    pub epoch: LeaseEpoch,
    /// The job.
    pub job: Arc<Job>,
    /// Words that are claimed.
    pub hint: Vec<u32>,
    /// Who has which layers.
    pub crew: Vec<Stage>,
}

/// One session of a worker.
#[derive(Debug)]
pub struct Peer {
    /// The worker's key.
    pub node: NodeId,
    /// Tells sessions of one key apart.
    pub session: u64,
    /// What it said about itself, without its models: the machine has those.
    pub hello: Hello,
    /// Where it connects from.
    pub address: SocketAddr,
    outbox: mpsc::Sender<Down>,
    kill: Arc<Notify>,
    joined: Instant,
    replaced: AtomicBool,
}

impl Peer {
    /// A session, with what its connection takes messages and the order to end from.
    pub fn new(
        node: NodeId,
        session: u64,
        hello: Hello,
        address: SocketAddr,
    ) -> (Arc<Self>, mpsc::Receiver<Down>, Arc<Notify>) {
        let (outbox, messages) = mpsc::channel(MAX_OUTBOX_MESSAGES);
        let kill = Arc::new(Notify::new());
        (
            Arc::new(Self {
                node,
                session,
                hello,
                address,
                outbox,
                kill: Arc::clone(&kill),
                joined: Instant::now(),
                replaced: AtomicBool::new(false),
            }),
            messages,
            kill,
        )
    }

    /// Queues a message. A worker whose queue is full does not read: its connection ends.
    pub fn send(&self, message: Down) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.outbox.try_send(message) {
            tracing::warn!(node = %self.node, "the worker does not read its messages; disconnecting");
            self.kill();
        }
    }

    /// Queues a message that comes again later, unless half of the queue waits: nobody loses its connection over it.
    pub fn offer(&self, message: Down) {
        if self.outbox.capacity() > MAX_OUTBOX_MESSAGES / 2 {
            self.send(message);
        }
    }

    /// Ends the connection because another session of its key joined.
    pub fn replace(&self) {
        self.replaced.store(true, Ordering::Release);
        self.kill();
    }

    /// Whether another session of its key joined.
    pub fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }

    /// How long ago it joined.
    pub fn age(&self) -> Duration {
        self.joined.elapsed()
    }

    /// Ends the connection.
    pub fn kill(&self) {
        self.kill.notify_one();
    }
}
