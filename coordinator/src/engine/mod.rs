//! The task that owns the job machine, the disputes and the draws.
//!
//! It drains inputs in batches, lets the machine take each, hands all records to the store as one commit, and goes on
//! with the next batch while the disk works. When the store says that a commit is durable, and only then, its effects
//! are carried out, in order. So acknowledgements, assignments, answers and events always speak of what is kept.

mod books;
mod challenges;
mod disputes;
mod draws;
mod effects;
mod handle;
mod peer;
mod perform;
mod planted;
mod show;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lockstep_protocol::dispute::SignedMove;
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{JobId, Millis, NodeId, Nonce};
#[cfg(test)]
use lockstep_protocol::limits::TICK_MS;
use lockstep_protocol::limits::{MAX_ENGINE_INPUTS, MAX_EVENT_LAG, MAX_PENDING_COMMITS, STORE_BATCH, TAKEOVER_MS};
use lockstep_protocol::machine::{
    self, Action, Capabilities, Challenge, DrawSubject, Input, JobSpec, Machine, Record, audit_draw, lockstep_draw,
};
use lockstep_protocol::messages::RefusalCode;
use lockstep_protocol::receipt::{Receipt, WorkerReceipt};
use tokio::sync::{Notify, broadcast, mpsc, oneshot};

pub use self::books::Books;
pub use self::challenges::{ChallengeOutcome, ChallengeReply};
pub use self::disputes::{DisputeStatus, Disputes, MoveOutcome, MoveReply};
use self::draws::Draws;
use self::effects::{Effect, Step};
pub use self::handle::{EngineHandle, JobStatus, Stopped, Submitted, WorkerStatus};
pub use self::peer::{Down, Peer, Share};
pub use self::watch::{Progress, Watch, WatchReply, Word};
use crate::clock::Clock;
use crate::events::Event;
use crate::models::Models;
use crate::store::{AccessDigest, Commit, OpenDispute, Restored, STORE_CLOSE, SharedStore, Write};

/// A key whose sessions replace each other within this time is likely used by two workers.
const TAKEOVER: Duration = Duration::from_millis(TAKEOVER_MS);

/// What happens to the engine.
pub enum Message {
    /// A worker said hello.
    Joined(Arc<Peer>, Capabilities),
    /// A session ended.
    Left(NodeId, u64),
    /// A session's worker said something; dropped where another session of the key took over.
    From(u64, NodeId, Input),
    /// What the engine tells itself.
    Own(Input),
    /// What the engine does because something is durable.
    Due(Due),
    /// A client submits a job.
    Submit(JobSpec, Box<SubmitRequest>),
    /// A move of a dispute, from a client that wants to hear how it went, or from the session of the key that signed it.
    Move(Box<SignedMove>, Option<MoveReply>),
    /// Somebody disputes a run of a job that has ended.
    Challenge(Box<Challenge>, ChallengeReply),
    /// Disputes see so many milliseconds pass.
    #[cfg(test)]
    Pass(u64),
    /// Somebody wants to hear what comes of a job.
    Watch(JobId, WatchReply),
    /// A client wants a job no more.
    Cancel(JobId),
    /// A question about the state.
    Ask(Box<dyn FnOnce(&View<'_>) + Send>),
}

/// What the engine does because something is durable.
#[derive(Debug)]
pub enum Due {
    /// Draw about a job: whatever the draw is made from is durable.
    Draw(JobId, DrawSubject, Nonce),
    /// Submit a job of its own.
    Plant(Box<JobSpec>),
}

/// The state, to look at.
pub struct View<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// The connected workers.
    pub peers: &'a BTreeMap<NodeId, Arc<Peer>>,
    /// The ledger as others may see it.
    pub books: &'a Books,
    /// The disputes that are being played.
    pub disputes: &'a Disputes,
    models: &'a Models,
    jobs: &'a BTreeMap<JobId, Live>,
}

/// How a client hears about its submission.
#[derive(Debug)]
pub struct SubmitRequest {
    /// How the submission went, once it is durable.
    pub reply: oneshot::Sender<Submission>,
    /// The answer, if the client waits for it.
    pub answer: Option<oneshot::Sender<JobEnd>>,
    /// The token that opens the job to this client, if it gets one.
    pub token: Option<AccessDigest>,
    /// Whether the client has shown a token of whoever submitted the job first.
    pub owner: bool,
}

/// How a submission went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submission {
    /// The job is kept.
    Kept,
    /// It was submitted before and is kept; its answer comes the same way.
    Known,
    /// It has ended before: the store has its end.
    Ended,
    /// Too many jobs wait.
    Busy,
    /// The job is not allowed.
    Refused(String),
}

/// What a client waits for.
#[derive(Clone, Debug)]
pub enum JobEnd {
    /// An answer, with its receipt.
    Answer(Arc<Receipt>),
    /// None, and why.
    Failed(String),
    /// It has not ended: nobody is there who could run it.
    Deserted,
}

/// An unfinished job, as far as clients and watchers are concerned.
#[derive(Debug)]
struct Live {
    spec: JobSpec,
    first_run: Option<WorkerReceipt>,
    waiters: Vec<oneshot::Sender<JobEnd>>,
    /// The words that watchers were told.
    words: Vec<Word>,
    watchers: Vec<mpsc::Sender<Progress>>,
}

impl Live {
    fn new(spec: JobSpec) -> Self {
        Self { spec, first_run: None, waiters: Vec::new(), words: Vec::new(), watchers: Vec::new() }
    }
}

/// Everything that the engine needs besides its inputs.
#[derive(Debug)]
pub struct Parts {
    /// The coordinator's key.
    pub keys: Keypair,
    /// The store.
    pub store: SharedStore,
    /// The models.
    pub models: Arc<Models>,
    /// The clock, started.
    pub clock: Clock,
    /// Credits that a worker gets when it joins for the first time.
    pub grant: u64,
    /// Most workers that get them in an hour.
    pub grants_per_hour: u32,
    /// Of 1,000 audited jobs, how many are planted again.
    pub planted_per_mille: u16,
    /// How long a client waits while nobody is connected who could run its job.
    pub worker_wait: Duration,
}

/// The engine's state.
#[derive(Debug)]
struct Engine {
    machine: Machine,
    clock: Clock,
    keys: Keypair,
    draws: Draws,
    books: Books,
    disputes: Disputes,
    /// Receipts whose last change is on its way to the disk, with how many changes are.
    amended: BTreeMap<JobId, (usize, Receipt)>,
    store: SharedStore,
    models: Arc<Models>,
    jobs: BTreeMap<JobId, Live>,
    peers: BTreeMap<NodeId, Arc<Peer>>,
    /// Effects of commits that are on their way to the disk, oldest first.
    pending: VecDeque<Vec<Effect>>,
    /// Of 1,000 audited jobs, how many are planted again.
    planted_per_mille: u16,
    /// How long a client waits while nobody is connected who could run its job.
    worker_wait: Duration,
    /// What follows from what is durable now.
    due: VecDeque<Due>,
    events: broadcast::Sender<Event>,
    durable: mpsc::UnboundedSender<bool>,
    stop: Arc<Notify>,
}

/// A started engine.
#[derive(Debug)]
pub struct Running {
    /// The way to it.
    pub handle: EngineHandle,
    /// Ends after `stop`, and says whether everything could be written.
    pub thread: std::thread::JoinHandle<bool>,
    /// No more inputs: finish what is pending, say goodbye, end. Not a message: those may be held up by a disk that
    /// refuses everything.
    pub stop: Arc<Notify>,
}

/// Restores the machine and starts the engine on a thread of its own.
///
/// # Errors
/// Records that don't fit together, or no thread.
pub fn start(parts: Parts, restored: Restored) -> Result<Running, crate::error::StartError> {
    let (inputs, messages) = mpsc::channel(MAX_ENGINE_INPUTS);
    let (durable, done) = mpsc::unbounded_channel();
    let events = broadcast::Sender::new(MAX_EVENT_LAG);
    let handle = EngineHandle::new(inputs, events.clone());
    let stop = Arc::new(Notify::new());
    let config =
        machine::Config { coordinator: parts.keys.id(), grant: parts.grant, grants_per_hour: parts.grants_per_hour };
    let mut engine = Engine {
        jobs: live_jobs(&restored),
        machine: Machine::restore(config, restored.records, restored.last_epoch, restored.ledger)?,
        draws: Draws::new(restored.draw_secret, restored.draws, restored.anchored),
        books: restored.books,
        disputes: Disputes::new(parts.keys.clone(), parts.clock.now(), restored.judged),
        amended: BTreeMap::new(),
        clock: parts.clock,
        keys: parts.keys,
        store: parts.store,
        models: parts.models,
        peers: BTreeMap::new(),
        pending: VecDeque::new(),
        planted_per_mille: parts.planted_per_mille,
        worker_wait: parts.worker_wait,
        due: VecDeque::new(),
        events,
        durable,
        stop: Arc::clone(&stop),
    };
    for model in engine.models.all() {
        engine.machine.know(model.id(), model.footprint());
    }
    engine.resume(restored.disputes, restored.alive);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(crate::error::StartError::Thread)?;
    let thread = std::thread::Builder::new()
        .name("lockstep-engine".into())
        .spawn(move || runtime.block_on(engine.run(messages, done)))
        .map_err(crate::error::StartError::Thread)?;
    Ok(Running { handle, thread, stop })
}

/// What the engine itself knows of unfinished jobs.
fn live_jobs(restored: &Restored) -> BTreeMap<JobId, Live> {
    let mut jobs = BTreeMap::new();
    for record in &restored.records {
        match record {
            Record::Submitted(spec) => {
                jobs.insert(record.job(), Live::new(spec.clone()));
            }
            Record::Ran { job, result, .. } => {
                if let Some(live) = jobs.get_mut(job) {
                    live.first_run.get_or_insert_with(|| result.receipt.receipt.clone());
                }
            }
            _ => {}
        }
    }
    jobs
}

impl Engine {
    fn resume(&mut self, disputes: Vec<OpenDispute>, alive: Millis) {
        let now = self.clock.now();
        let mut step = Step::default();
        self.draws.anchor(&mut step.writes);
        // Before the machine asks for them once more.
        self.resume_disputes(disputes, alive, &mut step);
        let output = self.machine.resume(now);
        self.plan(output, None, &mut step);
        self.commit(step);
    }

    /// Runs until the order to stop; says whether everything could be written.
    async fn run(mut self, mut messages: mpsc::Receiver<Message>, mut done: mpsc::UnboundedReceiver<bool>) -> bool {
        let mut batch = Vec::with_capacity(STORE_BATCH);
        let stop = Arc::clone(&self.stop);
        let mut stopping = false;
        while !stopping {
            let sleep = self.next_wake().map(|at| self.clock.until(at));
            tokio::select! {
                biased;
                Some(is_kept) = done.recv() => {
                    if is_kept {
                        self.perform_next();
                    } else {
                        // Nothing that was planned since is kept or acknowledged; the next start begins before it.
                        tracing::error!("the store has stopped, and so the coordinator does: start it again");
                        stopping = true;
                    }
                }
                () = stop.notified() => {
                    stopping = true;
                    // What came before the order.
                    let waiting: Vec<_> = (0..messages.len()).map_while(|_| messages.try_recv().ok()).collect();
                    self.take(waiting);
                }
                count = messages.recv_many(&mut batch, STORE_BATCH), if self.pending.len() < MAX_PENDING_COMMITS => {
                    stopping = count == 0;
                    self.take(batch.drain(..));
                    // Under constant load the branch below never comes to its turn.
                    if self.next_wake().is_some_and(|at| self.clock.until(at).is_zero()) {
                        self.take([Message::Own(Input::Tick)]);
                    }
                }
                // Only while messages are taken, and after those that are there: a worker's heartbeat that waits
                // in the queue must not come after the end of its silence.
                () = tokio::time::sleep(sleep.unwrap_or_default()),
                    if sleep.is_some() && self.pending.len() < MAX_PENDING_COMMITS =>
                {
                    self.take([Message::Own(Input::Tick)]);
                }
            }
            if !self.due.is_empty() {
                let due: Vec<_> = self.due.drain(..).map(Message::Due).collect();
                self.take(due);
            }
        }
        self.finish(&mut done).await;
        for peer in self.peers.values() {
            peer.send(Down::Shutdown);
        }
        self.pending.is_empty()
    }

    /// When to tick at the latest.
    fn next_wake(&self) -> Option<Millis> {
        self.machine.next_wake().into_iter().chain(self.disputes.next_wake()).min()
    }

    /// Waits until what is pending is written, or the store gives it up: then its channel has no senders any more. A
    /// disk that does not even fail is not waited for.
    async fn finish(&mut self, done: &mut mpsc::UnboundedReceiver<bool>) {
        self.store.close();
        self.durable = mpsc::unbounded_channel().0;
        let all = async {
            while !self.pending.is_empty() && done.recv().await == Some(true) {
                self.perform_next();
            }
        };
        if tokio::time::timeout(STORE_CLOSE, all).await.is_err() {
            tracing::error!("the disk does not answer; what it was given is not acknowledged");
        }
    }

    /// Takes a batch of messages in, and queues what they come to as one commit.
    fn take(&mut self, messages: impl IntoIterator<Item = Message>) {
        let mut step = Step::default();
        // First: what comes now has waited for as long as the coordinator stood still.
        self.tick_disputes(&mut step);
        for message in messages {
            self.message(message, &mut step);
        }
        self.commit(step);
    }

    fn commit(&mut self, mut step: Step) {
        if step.writes.is_empty() && step.effects.is_empty() {
            return;
        }
        if let Some(at) = self.clock.reserve(self.clock.now()) {
            step.writes.push(Write::Clock(at));
        }
        let durable = Durable(Some(self.durable.clone()));
        let then = Box::new(move || durable.tell());
        match self.store.submit(Commit { writes: step.writes, then }) {
            Ok(()) => self.pending.push_back(step.effects),
            Err(error) => tracing::error!(%error, "nothing can be kept any more; nothing is acknowledged"),
        }
    }

    fn message(&mut self, message: Message, step: &mut Step) {
        match message {
            Message::Joined(peer, capabilities) => self.joined(peer, capabilities, step),
            Message::Left(node, session) => self.left(node, session, step),
            Message::From(session, node, input) => {
                if self.is_current(&node, session) {
                    self.input(input, None, step);
                }
            }
            Message::Own(input) => self.input(input, None, step),
            Message::Due(Due::Draw(job, subject, nonce)) => self.draw(job, subject, &nonce, step),
            Message::Due(Due::Plant(spec)) => self.input(Input::Submit(*spec), None, step),
            Message::Move(signed, reply) => self.make_move(*signed, reply, step),
            Message::Challenge(challenge, reply) => self.challenge(*challenge, reply, step),
            Message::Submit(spec, request) => self.submit(spec, request, step),
            #[cfg(test)]
            Message::Pass(ms) => {
                for _ in 0..ms / TICK_MS {
                    self.clock.advance(TICK_MS);
                    self.tick_disputes(step);
                }
            }
            Message::Watch(job, reply) => self.watch(job, reply),
            Message::Cancel(job) => self.cancel(job, step),
            Message::Ask(question) => question(&self.view()),
        }
    }

    /// Draws. The secret's number is written in the transaction of what is drawn with it.
    fn draw(&mut self, job: JobId, subject: DrawSubject, nonce: &Nonce, step: &mut Step) {
        let secret = self.draws.take(&mut step.writes);
        let draw = match subject {
            DrawSubject::Lockstep(job) => lockstep_draw(&secret, job, nonce),
            DrawSubject::FirstRun(head) => audit_draw(&secret, &head, nonce),
        };
        self.input(Input::Drawn { job, draw }, None, step);
    }

    fn input(&mut self, input: Input, request: Option<Box<SubmitRequest>>, step: &mut Step) {
        let now = self.clock.now();
        let output = self.machine.handle(now, input);
        self.plan(output, request, step);
    }

    fn submit(&mut self, spec: JobSpec, request: Box<SubmitRequest>, step: &mut Step) {
        let awaited = request.answer.is_some().then(|| spec.job.id());
        self.input(Input::Submit(spec), Some(request), step);
        if let Some(job) = awaited {
            let patience_ms = u64::try_from(self.worker_wait.as_millis()).unwrap_or(u64::MAX);
            self.input(Input::Awaited { job, patience_ms }, None, step);
        }
    }

    fn view(&self) -> View<'_> {
        View {
            machine: &self.machine,
            peers: &self.peers,
            books: &self.books,
            disputes: &self.disputes,
            models: &self.models,
            jobs: &self.jobs,
        }
    }

    fn is_current(&self, node: &NodeId, session: u64) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.session == session)
    }

    fn joined(&mut self, peer: Arc<Peer>, capabilities: Capabilities, step: &mut Step) {
        let node = peer.node;
        let event = Event::WorkerJoined {
            node,
            backend: peer.hello.backend.clone(),
            macs_per_second: peer.hello.macs_per_second,
        };
        if let Some(old) = self.peers.insert(node, Arc::clone(&peer)) {
            if old.age() < TAKEOVER {
                tracing::warn!(
                    %node, old = %old.address, new = %peer.address,
                    "another session with this key joined soon after the last: do two workers use the same key?"
                );
            }
            step.effects.push(Effect::Replace(old));
        }
        let now = self.clock.now();
        let output = self.machine.handle(now, Input::WorkerJoined { node, capabilities });
        let refused = output
            .actions
            .iter()
            .any(|action| matches!(action, Action::RefuseWorker { node: other, .. } if *other == node));
        if !refused || self.disputes.has(&node) {
            // Before anything that the machine has for it.
            step.effects.push(Effect::Send(peer, Down::Welcome));
            step.effects.push(Effect::Emit(event));
        }
        self.disputes.turned_away.remove(&node);
        self.plan(output, None, step);
        self.tell_verdicts(&node, step);
        self.ask_again(&node, step);
    }

    fn left(&mut self, node: NodeId, session: u64, step: &mut Step) {
        if self.is_current(&node, session) {
            self.peers.remove(&node);
            self.disputes.turned_away.remove(&node);
            self.input(Input::WorkerLeft { node }, None, step);
            step.effects.push(Effect::Emit(Event::WorkerLeft { node }));
        }
    }
}

/// Tells the engine that a commit is durable, or, where the store drops it, that it never will be.
struct Durable(Option<mpsc::UnboundedSender<bool>>);

impl Durable {
    fn tell(mut self) {
        self.send(true);
    }

    fn send(&mut self, is_kept: bool) {
        if let Some(sender) = self.0.take() {
            // The receiver is gone only when the engine is.
            let _ = sender.send(is_kept);
        }
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        self.send(false);
    }
}

/// What a worker that is turned away is told.
pub fn refusal_reason(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::Version => "the coordinator speaks another protocol version: use the same release",
        RefusalCode::NotAllowed => "this key is not on the coordinator's list: ask its operator to add it",
        RefusalCode::Quarantined => "this key was caught with wrong results",
        RefusalCode::Full => "the coordinator has as many workers as it takes: try again later",
        RefusalCode::BadHello => "the hello is not acceptable",
        RefusalCode::Faulty => "this worker took a run back: test its machine, and come again later",
    }
}
