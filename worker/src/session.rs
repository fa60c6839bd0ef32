//! One connection: hello, heartbeats, assignments, cancels.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep_link::{Close, Frames, LinkError, close, peer_id};
use lockstep_protocol::dispute::DisputeId;
use lockstep_protocol::ids::Place;
use lockstep_protocol::job::Job;
use lockstep_protocol::limits::{
    HELLO_MS, MAX_REASON_BYTES, WORKER_DISPUTES, WORKER_LAST_WAIT_MS, WORKER_OUTBOX_MESSAGES,
};
use lockstep_protocol::messages::{
    Ask, FailureCode, Hello, JobMessage, PROTOCOL_VERSION, RefusalCode, ToCoordinator, ToWorker, Welcome,
};
use quinn::{Connection, ConnectionError};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::assignment;
use crate::batch::{Failure, Key};
use crate::control::{greet, heartbeat_of, write_control};
use crate::dispute;
use crate::error::WorkerError;
use crate::event::Event;
use crate::handle::Stop;
use crate::heads;
use crate::running::{Order, Running};
use crate::stage::{self, Share};
use crate::supervisor::Shared;

/// What a close says that makes room for a newer session of the same key.
const REPLACED: &str = "another session";

/// How a connection ended, when the worker goes on or ends well.
#[derive(Debug)]
pub(crate) enum End {
    /// Everything is done.
    Drained,
    /// The connection is over; another is to be tried.
    Lost(String),
    /// The coordinator closed it because a worker with the same key joined; what it said.
    Replaced(String),
    /// The coordinator wants nothing of this worker until its machine was tested; what it said.
    Faulty(String),
}

impl End {
    fn lost(reason: impl Into<String>) -> Self {
        Self::Lost(reason.into())
    }
}

/// How a task of the session ended.
type Ended = (Option<Key>, Result<(), Failure>);

/// A connection on which the coordinator has said welcome.
pub(crate) struct Session {
    shared: Arc<Shared>,
    connection: Connection,
    inbox: Frames<ToWorker>,
    outbox: mpsc::Sender<ToCoordinator>,
    /// Assignments that are neither finished nor given back.
    running: Running,
    /// The last ask of each dispute.
    asked: BTreeMap<DisputeId, Asked>,
    /// Everything that runs for this connection ends with it.
    tasks: JoinSet<Ended>,
    stop: watch::Receiver<Stop>,
    /// When a drained worker no longer waits for acknowledgements.
    give_up: Option<Instant>,
    /// When the machine is tested next.
    next_test: Option<Instant>,
    /// Tells that a test failed.
    alarm: mpsc::UnboundedSender<WorkerError>,
    alarms: mpsc::UnboundedReceiver<WorkerError>,
}

/// An ask that was taken up.
struct Asked {
    /// How many moves it had.
    moves: usize,
    /// Set before the answer can arrive: whoever has it may ask again, and is answered again.
    answered: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Asked {
    fn is_open(&self) -> bool {
        !self.answered.load(Ordering::Relaxed) && !self.task.is_finished()
    }
}

impl Session {
    /// Says hello. The inner error is an end before the start.
    pub async fn open(
        shared: &Arc<Shared>,
        connection: Connection,
        hello: &Hello,
        stop: watch::Receiver<Stop>,
    ) -> Result<Result<Self, End>, WorkerError> {
        let greeted = timeout(Duration::from_millis(HELLO_MS), greet(&connection, hello)).await;
        let (control, inbox, answer) = match greeted {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(error)) => return Ok(Err(End::Lost(lost(&connection, &error)))),
            Err(_) => return Ok(Err(End::lost("the coordinator did not answer hello"))),
        };
        let welcome = match answer {
            ToWorker::Welcome(welcome) if welcome.protocol == PROTOCOL_VERSION => welcome,
            ToWorker::Refused { code, reason } => return turned_away(shared, code, reason).map(Err),
            ToWorker::Shutdown => return Ok(Err(End::lost("the coordinator goes down"))),
            _ => {
                close(&connection, Close::Protocol, "the first message is no welcome");
                return Ok(Err(End::lost("the coordinator's first message is no welcome")));
            }
        };
        let (outbox, letters) = mpsc::channel(WORKER_OUTBOX_MESSAGES);
        let running = Running::default();
        let (alarm, alarms) = mpsc::unbounded_channel();
        let next_test = shared.config.self_test.map(|period| Instant::now() + shared.self_test.due_in(period));
        let mut tasks = JoinSet::new();
        let writing = write_control(control, letters, heartbeat_of(&welcome), Arc::clone(running.in_flight()));
        tasks.spawn(async move {
            writing.await;
            (None, Ok(()))
        });
        let mut session = Self {
            shared: Arc::clone(shared),
            connection,
            inbox,
            outbox,
            running,
            asked: BTreeMap::new(),
            tasks,
            stop,
            give_up: None,
            next_test,
            alarm,
            alarms,
        };
        session.welcomed(welcome);
        Ok(Ok(session))
    }

    fn welcomed(&mut self, welcome: Welcome) {
        let coordinator = peer_id(&self.connection).unwrap_or(self.shared.config.coordinator);
        let address = self.connection.remote_address();
        self.shared.events.emit(Event::Connected { coordinator, address, software: welcome.software });
        for (key, kept) in self.shared.kept_results() {
            let (connection, tasks) = (self.connection.clone(), &mut self.tasks);
            self.running.resume(key, |orders| {
                tasks.spawn(async move {
                    // Where it fails the coordinator does not want the result, and says so, or the connection is at its
                    // end.
                    let _ = assignment::send_again(connection, orders, key, kept).await;
                    (Some(key), Ok(()))
                })
            });
        }
        if self.shared.config.prefetch && self.shared.config.pipeline.is_none() && !welcome.models.is_empty() {
            let (shared, connection, outbox) = (Arc::clone(&self.shared), self.connection.clone(), self.outbox.clone());
            self.tasks.spawn(async move {
                for model in welcome.models {
                    // An event has told what went wrong; an assignment will try again.
                    let _ = assignment::ensure(&shared, &connection, &outbox, model).await;
                }
                (None, Ok(()))
            });
        }
    }

    /// Serves until the connection is over, the worker drained or its machine failed a test.
    pub async fn serve(mut self) -> Result<End, WorkerError> {
        let ended = self.until_over().await;
        match self.alarms.try_recv() {
            // The connection ended in the same moment: that is no reason to go on with such a machine.
            Ok(failed) if ended.is_ok() => Err(self.take_back(failed).await),
            _ => ended,
        }
    }

    async fn until_over(&mut self) -> Result<End, WorkerError> {
        loop {
            if self.is_drained() {
                close(&self.connection, Close::Done, "drained");
                return Ok(End::Drained);
            }
            let (give_up, next_test) = (self.give_up, self.next_test);
            tokio::select! {
                message = self.inbox.next() => match message {
                    Ok(Some(message)) => match self.handle(message).await? {
                        None => {}
                        Some(end) => return Ok(end),
                    },
                    Ok(None) => return Ok(End::lost("the coordinator ended the control stream")),
                    Err(error) => return Ok(replaced(&self.connection).unwrap_or_else(|| End::Lost(lost(&self.connection, &error)))),
                },
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended).await,
                Some(error) = self.alarms.recv() => return Err(self.take_back(error).await),
                () = sleep_until(next_test.unwrap_or_else(Instant::now)), if next_test.is_some() => self.test(),
                () = told_to_drain(&mut self.stop), if give_up.is_none() => self.begin_drain().await,
                () = sleep_until(give_up.unwrap_or_else(Instant::now)), if give_up.is_some() && self.running.is_empty() => {
                    return Ok(End::Drained);
                }
            }
        }
    }

    fn is_drained(&self) -> bool {
        self.give_up.is_some() && self.running.is_empty() && self.shared.kept_results().is_empty()
    }

    async fn begin_drain(&mut self) {
        self.give_up = Some(last_wait());
        self.shared.events.emit(Event::Draining);
        let disputes = self.shared.disputes.live();
        if disputes > 0 {
            tracing::warn!(
                disputes,
                "disputes about this worker's runs are open: start it again before their time runs out"
            );
        }
        self.say(ToCoordinator::Draining).await;
    }

    /// Returns an end when the connection is over.
    async fn handle(&mut self, message: ToWorker) -> Result<Option<End>, WorkerError> {
        match message {
            ToWorker::Assign { epoch, job, hint } => {
                let key = (job.id(), epoch);
                self.assign(key, job, hint).await;
            }
            ToWorker::AssignStage { epoch, job, hint, crew } => {
                let key = (job.id(), epoch);
                self.assign_stage(key, Share { job, hint, crew }).await;
            }
            ToWorker::Countersign { job, epoch, roots, saturations, logprobs } => {
                self.running.order(&(job, epoch), Order::Countersign { roots, saturations, logprobs });
            }
            ToWorker::Accepted { job, epoch } => {
                self.shared.forget(&(job, epoch));
                // Its place is free from here on, even where its task's end has not been seen yet.
                self.running.remove(&(job, epoch));
                self.shared.events.emit(Event::Accepted { job, epoch });
            }
            ToWorker::Cancel { job, epoch } => self.cancel((job, epoch)),
            ToWorker::Reveal { job, epoch } => self.running.order(&(job, epoch), Order::Reveal),
            ToWorker::Cosign { head, from, path } => {
                if let Some(signed) = heads::answer(&self.shared, head, from, path).await {
                    self.say(ToCoordinator::Cosigned(signed)).await;
                }
            }
            ToWorker::Halt { job, epoch, place } => self.halt((job, epoch), place),
            ToWorker::Asked(ask) => self.play(ask),
            ToWorker::Acknowledged(entry) => self.shared.disputes.acknowledged(*entry).await,
            ToWorker::Judged { dispute, verdict } => {
                self.stop_playing(&dispute);
                self.shared.disputes.judged(dispute, verdict).await;
            }
            ToWorker::Shutdown => return Ok(Some(End::lost("the coordinator goes down"))),
            ToWorker::Refused { code, reason } => return turned_away(&self.shared, code, reason).map(Some),
            ToWorker::Welcome(_) => {
                close(&self.connection, Close::Protocol, "a second welcome");
                return Ok(Some(End::lost("the coordinator said welcome twice")));
            }
        }
        Ok(None)
    }

    async fn assign(&mut self, key: Key, job: Job, hint: Vec<u32>) {
        if !self.has_place(key, job.tokens.len()).await {
            return;
        }
        let (shared, connection, outbox) = (Arc::clone(&self.shared), self.connection.clone(), self.outbox.clone());
        let tasks = &mut self.tasks;
        self.running.start(key, |seat, orders, cancelled| {
            let at = (seat, orders, cancelled);
            tasks.spawn(
                async move { (Some(key), assignment::run(shared, connection, outbox, at, key, (job, hint)).await) },
            )
        });
    }

    async fn assign_stage(&mut self, key: Key, share: Share) {
        if !self.has_place(key, share.job.tokens.len()).await {
            return;
        }
        let (shared, connection) = (Arc::clone(&self.shared), self.connection.clone());
        let tasks = &mut self.tasks;
        // Its passes are short, and none begins once the task is aborted.
        self.running.start(key, |seat, orders, _| {
            let at = (seat, orders);
            tasks.spawn(async move { (Some(key), stage::run(shared, connection, at, key, share).await) })
        });
    }

    /// Whether an assignment is new and may start; or else it is given back.
    async fn has_place(&mut self, key: Key, tokens: usize) -> bool {
        if self.running.contains(&key) {
            return false;
        }
        if *self.stop.borrow() != Stop::No {
            self.give_back(key, Failure::new(FailureCode::Draining, "the worker is draining")).await;
            return false;
        }
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.ended(ended).await;
        }
        let in_flight = self.running.in_flight().load(Ordering::Relaxed);
        if in_flight >= self.shared.config.max_in_flight.get() {
            let reason = format!("{in_flight} assignments are running");
            self.give_back(key, Failure::new(FailureCode::Busy, reason)).await;
            return false;
        }
        self.shared.events.emit(Event::Assigned { job: key.0, epoch: key.1, tokens });
        true
    }

    fn cancel(&mut self, key: Key) {
        let known = self.shared.forget(&key).is_some();
        if let Some(task) = self.running.remove(&key) {
            task.abort();
        } else if !known {
            return;
        }
        self.shared.events.emit(Event::Cancelled { job: key.0, epoch: key.1 });
    }

    /// Stops a run, and sends what was streamed of it up to a place, signed.
    fn halt(&mut self, key: Key, place: Place) {
        let Some(partial) = self.shared.streams.halt(&key, place) else {
            tracing::warn!(job = %key.0, epoch = %key.1, "told to halt a run of which nothing was streamed");
            return;
        };
        if let Some(task) = self.running.remove(&key) {
            task.abort();
        }
        self.shared.forget_result(&key);
        let roots = partial.partial.roots.len();
        self.shared.events.emit(Event::Halted { job: key.0, epoch: key.1, roots });
        let connection = self.connection.clone();
        self.tasks.spawn(async move {
            // Where it does not arrive the connection is at its end, and on the next one the coordinator asks again.
            let _ = assignment::send_alone(&connection, &JobMessage::Partial(partial)).await;
            (None, Ok(()))
        });
    }

    /// Tests the machine beside everything else.
    fn test(&mut self) {
        self.next_test = self.shared.config.self_test.map(|period| Instant::now() + period);
        let (shared, alarm) = (Arc::clone(&self.shared), self.alarm.clone());
        self.tasks.spawn(async move {
            shared.self_test.test(&shared.store, &alarm).await;
            (None, Ok(()))
        });
    }

    /// The backend failed a test: takes back what may be wrong, gives back what runs, and waits until the coordinator has
    /// heard, within reason. Returns why the worker ends. A device that is lost says so, and leaves nothing wrong behind.
    async fn take_back(&mut self, error: WorkerError) -> WorkerError {
        self.asked.keys().copied().collect::<Vec<_>>().iter().for_each(|dispute| self.stop_playing(dispute));
        let is_lost = matches!(error, WorkerError::Backend(_));
        let unproven = if is_lost { Vec::new() } else { self.shared.self_test.take_unproven() };
        for (job, epoch) in unproven {
            self.shared.events.emit(Event::Retracted { job, epoch });
            self.say(ToCoordinator::Retract { job, epoch }).await;
        }
        for key in self.running.keys() {
            self.running.remove(&key).into_iter().for_each(|task| task.abort());
            self.shared.forget(&key);
            self.give_back(key, Failure::new(FailureCode::Backend, error.to_string())).await;
        }
        if is_lost {
            // So that nothing new comes.
            self.say(ToCoordinator::Draining).await;
        }
        let heard = async {
            while let Ok(Some(message)) = self.inbox.next().await {
                if matches!(message, ToWorker::Refused { .. } | ToWorker::Shutdown) {
                    return;
                }
            }
        };
        // A coordinator in which no such run stands any more says nothing.
        let _ = timeout(Duration::from_millis(WORKER_LAST_WAIT_MS), heard).await;
        error
    }

    /// Answers an ask, instead of one before it in the same dispute: each says everything. Before its first move the
    /// machine is tested: one that is broken does not dispute.
    fn play(&mut self, ask: Box<Ask>) {
        let (dispute, moves) = (ask.terms.id(), ask.moves.len());
        self.asked.retain(|_, asked| asked.is_open());
        if self.asked.get(&dispute).is_some_and(|asked| asked.moves == moves) {
            // It is asked again for the move that it is making.
            return;
        }
        self.stop_playing(&dispute);
        if self.asked.len() >= WORKER_DISPUTES {
            tracing::warn!(%dispute, "too many disputes at a time; the coordinator has to ask again");
            return;
        }
        let (shared, connection, outbox) = (Arc::clone(&self.shared), self.connection.clone(), self.outbox.clone());
        let answered = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&answered);
        let alarm = Some(self.alarm.clone()).filter(|_| moves == 0 && shared.config.self_test.is_some());
        let playing = async move {
            if let Some(alarm) = alarm
                && !shared.self_test.test(&shared.store, &alarm).await
            {
                return (None, Ok(()));
            }
            dispute::play(shared, connection, outbox, ask, flag).await;
            (None, Ok(()))
        };
        self.asked.insert(dispute, Asked { moves, answered, task: self.tasks.spawn(playing) });
    }

    fn stop_playing(&mut self, dispute: &DisputeId) {
        if let Some(asked) = self.asked.remove(dispute) {
            asked.task.abort();
        }
    }

    async fn ended(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (key, result) = match ended {
            Ok((_, (key, result))) => (key, result),
            Err(error) if error.is_cancelled() => return,
            Err(error) => {
                let key = self.running.find(error.id());
                (key, Err(Failure::new(FailureCode::Internal, error.to_string())))
            }
        };
        // An assignment that was cancelled meanwhile is not running any more, and owes nothing.
        let Some(key) = key.filter(|key| self.running.remove(key).is_some()) else { return };
        if self.give_up.is_some() {
            self.give_up = Some(last_wait());
        }
        if let Err(failure) = result {
            self.shared.forget(&key);
            if failure.is_of_device {
                // Either it passes, or the worker leaves it.
                self.test();
            }
            self.give_back(key, failure).await;
        }
    }

    async fn give_back(&mut self, (job, epoch): Key, failure: Failure) {
        let Failure { code, mut reason, .. } = failure;
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        self.shared.events.emit(Event::Failed { job, epoch, code, reason: reason.clone() });
        self.say(ToCoordinator::Failed { job, epoch, code, reason }).await;
    }

    async fn say(&self, message: ToCoordinator) {
        // Without a writer the connection is at its end, and the inbox says so.
        let _ = self.outbox.send(message).await;
    }
}

/// How long an acknowledgement is waited for from now on.
fn last_wait() -> Instant {
    Instant::now() + Duration::from_millis(WORKER_LAST_WAIT_MS)
}

async fn told_to_drain(stop: &mut watch::Receiver<Stop>) {
    // An abort drops the session from outside.
    if stop.wait_for(|told| *told == Stop::Drain).await.is_err() {
        std::future::pending().await
    }
}

/// Closes a connection whose peer broke the protocol, and says for people what happened.
fn lost(connection: &Connection, error: &LinkError) -> String {
    if let LinkError::Frame(_) = error {
        close(connection, Close::Protocol, "a frame that breaks the rules");
        return format!("the coordinator broke the protocol: {error}");
    }
    match connection.close_reason() {
        Some(reason) => reason.to_string(),
        None => error.to_string(),
    }
}

/// Whether the coordinator closed the connection because another session with this worker's key joined. Its close has
/// no code of its own for that, but says so.
fn replaced(connection: &Connection) -> Option<End> {
    let Some(ConnectionError::ApplicationClosed(closed)) = connection.close_reason() else { return None };
    let reason = String::from_utf8_lossy(&closed.reason);
    reason.contains(REPLACED).then(|| End::Replaced(reason.chars().take(MAX_REASON_BYTES).collect()))
}

/// A coordinator that is full may have room later, and one that set this worker aside may take it back; everything else
/// needs a person.
fn turned_away(shared: &Shared, code: RefusalCode, reason: String) -> Result<End, WorkerError> {
    match code {
        RefusalCode::Full => Ok(End::Lost(format!("the coordinator is full: {reason}"))),
        RefusalCode::Faulty => Ok(End::Faulty(reason)),
        RefusalCode::Quarantined => {
            shared.events.emit(Event::Quarantined { reason: reason.clone() });
            Err(WorkerError::Refused { code, reason })
        }
        RefusalCode::Version | RefusalCode::NotAllowed | RefusalCode::BadHello => {
            Err(WorkerError::Refused { code, reason })
        }
    }
}
