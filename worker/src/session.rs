//! One connection: hello, heartbeats, assignments, cancels.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lockstep_link::{Close, Frames, LinkError, close, peer_id, send};
use lockstep_protocol::job::Job;
use lockstep_protocol::limits::{HELLO_MS, MAX_REASON_BYTES, SILENCE_MS, WORKER_LAST_WAIT_MS, WORKER_OUTBOX_MESSAGES};
use lockstep_protocol::messages::{
    FailureCode, Hello, PROTOCOL_VERSION, RefusalCode, ToCoordinator, ToWorker, Welcome,
};
use quinn::{Connection, ConnectionError, SendStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::assignment;
use crate::batch::{Failure, Key};
use crate::error::WorkerError;
use crate::event::Event;
use crate::handle::Stop;
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
    running: BTreeMap<Key, AbortHandle>,
    /// Their number, for the heartbeat.
    in_flight: Arc<AtomicU32>,
    /// Everything that runs for this connection ends with it.
    tasks: JoinSet<Ended>,
    stop: watch::Receiver<Stop>,
    /// When a drained worker no longer waits for acknowledgements.
    give_up: Option<Instant>,
}

impl Session {
    /// Says hello. The inner error is a reason to try again later.
    pub async fn open(
        shared: &Arc<Shared>,
        connection: Connection,
        hello: &Hello,
        stop: watch::Receiver<Stop>,
    ) -> Result<Result<Self, String>, WorkerError> {
        let greeted = timeout(Duration::from_millis(HELLO_MS), greet(&connection, hello)).await;
        let (control, inbox, answer) = match greeted {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(error)) => return Ok(Err(lost(&connection, &error))),
            Err(_) => return Ok(Err("the coordinator did not answer hello".into())),
        };
        let welcome = match answer {
            ToWorker::Welcome(welcome) if welcome.protocol == PROTOCOL_VERSION => welcome,
            ToWorker::Refused { code, reason } => return turned_away(shared, code, reason).map(Err),
            ToWorker::Shutdown => return Ok(Err("the coordinator goes down".into())),
            _ => {
                close(&connection, Close::Protocol, "the first message is no welcome");
                return Ok(Err("the coordinator's first message is no welcome".into()));
            }
        };
        let (outbox, letters) = mpsc::channel(WORKER_OUTBOX_MESSAGES);
        let in_flight = Arc::new(AtomicU32::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(write_control(control, letters, heartbeat_of(&welcome), Arc::clone(&in_flight)));
        let mut session = Self {
            shared: Arc::clone(shared),
            connection,
            inbox,
            outbox,
            running: BTreeMap::new(),
            in_flight,
            tasks,
            stop,
            give_up: None,
        };
        session.welcomed(welcome);
        Ok(Ok(session))
    }

    fn welcomed(&mut self, welcome: Welcome) {
        let coordinator = peer_id(&self.connection).unwrap_or(self.shared.config.coordinator);
        let address = self.connection.remote_address();
        self.shared.events.emit(Event::Connected { coordinator, address, software: welcome.software });
        for (key, result) in self.shared.kept_results() {
            let connection = self.connection.clone();
            self.tasks.spawn(async move {
                // Where it fails the coordinator does not want the result, and says so, or the connection is at its end.
                let _ = assignment::send_again(connection, key, result).await;
                (None, Ok(()))
            });
        }
        if self.shared.config.prefetch && !welcome.models.is_empty() {
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

    /// Serves until the connection is over or the worker drained.
    pub async fn serve(mut self) -> Result<End, WorkerError> {
        loop {
            if self.is_drained() {
                close(&self.connection, Close::Done, "drained");
                return Ok(End::Drained);
            }
            let give_up = self.give_up;
            tokio::select! {
                message = self.inbox.next() => match message {
                    Ok(Some(message)) => match self.handle(message).await? {
                        None => {}
                        Some(reason) => return Ok(End::Lost(reason)),
                    },
                    Ok(None) => return Ok(End::Lost("the coordinator ended the control stream".into())),
                    Err(error) => return Ok(replaced(&self.connection).unwrap_or_else(|| End::Lost(lost(&self.connection, &error)))),
                },
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended).await,
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
        self.give_up = Some(Instant::now() + Duration::from_millis(WORKER_LAST_WAIT_MS));
        self.shared.events.emit(Event::Draining);
        self.say(ToCoordinator::Draining).await;
    }

    /// Returns a reason when the connection is over.
    async fn handle(&mut self, message: ToWorker) -> Result<Option<String>, WorkerError> {
        match message {
            ToWorker::Assign { epoch, job } => {
                let key = (job.id(), epoch);
                self.assign(key, job).await;
            }
            ToWorker::Accepted { job, epoch } => {
                self.shared.forget_result(&(job, epoch));
                // Its place is free from here on, even where its task's end has not been seen yet.
                self.running.remove(&(job, epoch));
                self.count();
                self.shared.events.emit(Event::Accepted { job, epoch });
            }
            ToWorker::Cancel { job, epoch } => self.cancel((job, epoch)),
            ToWorker::Shutdown => return Ok(Some("the coordinator goes down".into())),
            ToWorker::Refused { code, reason } => return turned_away(&self.shared, code, reason).map(Some),
            ToWorker::Welcome(_) => {
                close(&self.connection, Close::Protocol, "a second welcome");
                return Ok(Some("the coordinator said welcome twice".into()));
            }
        }
        Ok(None)
    }

    async fn assign(&mut self, key: Key, job: Job) {
        if self.running.contains_key(&key) {
            return;
        }
        if *self.stop.borrow() != Stop::No {
            return self.give_back(key, Failure::new(FailureCode::Draining, "the worker is draining")).await;
        }
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.ended(ended).await;
        }
        if self.running.len() >= self.shared.config.max_in_flight.get() as usize {
            let reason = format!("{} assignments are running", self.running.len());
            return self.give_back(key, Failure::new(FailureCode::Busy, reason)).await;
        }
        self.shared.events.emit(Event::Assigned { job: key.0, epoch: key.1, tokens: job.tokens.len() });
        let (shared, connection, outbox) = (Arc::clone(&self.shared), self.connection.clone(), self.outbox.clone());
        let run = async move { (Some(key), assignment::run(shared, connection, outbox, key, job).await) };
        self.running.insert(key, self.tasks.spawn(run));
        self.count();
    }

    fn cancel(&mut self, key: Key) {
        let known = self.shared.forget_result(&key).is_some();
        if let Some(task) = self.running.remove(&key) {
            task.abort();
            self.count();
        } else if !known {
            return;
        }
        self.shared.events.emit(Event::Cancelled { job: key.0, epoch: key.1 });
    }

    async fn ended(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (key, result) = match ended {
            Ok((_, (key, result))) => (key, result),
            Err(error) if error.is_cancelled() => return,
            Err(error) => {
                let key = self.running.iter().find(|(_, task)| task.id() == error.id()).map(|(key, _)| *key);
                (key, Err(Failure::new(FailureCode::Internal, error.to_string())))
            }
        };
        // An assignment that was cancelled meanwhile is not running any more, and owes nothing.
        let Some(key) = key.filter(|key| self.running.remove(key).is_some()) else { return };
        self.count();
        if let Err(failure) = result {
            self.shared.forget_result(&key);
            self.give_back(key, failure).await;
        }
    }

    async fn give_back(&mut self, (job, epoch): Key, failure: Failure) {
        let Failure { code, mut reason } = failure;
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        self.shared.events.emit(Event::Failed { job, epoch, code, reason: reason.clone() });
        self.say(ToCoordinator::Failed { job, epoch, code, reason }).await;
    }

    async fn say(&self, message: ToCoordinator) {
        // Without a writer the connection is at its end, and the inbox says so.
        let _ = self.outbox.send(message).await;
    }

    fn count(&self) {
        self.in_flight.store(u32::try_from(self.running.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }
}

async fn greet(connection: &Connection, hello: &Hello) -> Result<(SendStream, Frames<ToWorker>, ToWorker), LinkError> {
    let (mut control, down) = connection.open_bi().await?;
    let mut inbox = Frames::new(down);
    send(&mut control, &ToCoordinator::Hello(hello.clone())).await?;
    match inbox.next().await? {
        Some(answer) => Ok((control, inbox, answer)),
        None => Err(LinkError::Connection(connection.closed().await)),
    }
}

/// Writes the control stream: what the session says, and a heartbeat in between.
async fn write_control(
    mut control: SendStream,
    mut letters: mpsc::Receiver<ToCoordinator>,
    heartbeat: Duration,
    in_flight: Arc<AtomicU32>,
) -> Ended {
    let mut beat = interval(heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sequence = 0;
    loop {
        let message = tokio::select! {
            letter = letters.recv() => match letter {
                Some(message) => message,
                None => return (None, Ok(())),
            },
            _ = beat.tick() => {
                sequence += 1;
                ToCoordinator::Heartbeat { sequence: sequence - 1, in_flight: in_flight.load(Ordering::Relaxed) }
            }
        };
        if send(&mut control, &message).await.is_err() {
            // The connection is at its end, and the inbox says why.
            return (None, Ok(()));
        }
    }
}

/// As the coordinator wishes, but neither in a hurry nor so slow that it takes the worker for dead.
fn heartbeat_of(welcome: &Welcome) -> Duration {
    Duration::from_millis(welcome.heartbeat_ms.clamp(100, SILENCE_MS / 3))
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

/// A coordinator that is full may have room later; everything else needs a person.
fn turned_away(shared: &Shared, code: RefusalCode, reason: String) -> Result<String, WorkerError> {
    match code {
        RefusalCode::Full => Ok(format!("the coordinator is full: {reason}")),
        RefusalCode::Quarantined => {
            shared.events.emit(Event::Quarantined { reason: reason.clone() });
            Err(WorkerError::Refused { code, reason })
        }
        RefusalCode::Version | RefusalCode::NotAllowed | RefusalCode::BadHello => {
            Err(WorkerError::Refused { code, reason })
        }
    }
}
