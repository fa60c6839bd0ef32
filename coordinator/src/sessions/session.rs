//! One connection of a worker, from hello to good-bye.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_link::{Close, Frames, LinkError, close, peer_id, send};
use lockstep_protocol::dispute::SignedMove;
use lockstep_protocol::ids::{JobId, LeaseEpoch, NodeId};
use lockstep_protocol::limits::{
    CONTROL_BURST_MESSAGES, CONTROL_MESSAGES_PER_SECOND, HEARTBEAT_MS, LAST_WORD_MS, MAX_HELD_MODELS, MOVE_BURST,
    MOVES_PER_SECOND, STRAY_BURST_STREAMS, STRAY_STREAMS_PER_SECOND,
};
use lockstep_protocol::machine::{Capabilities, Input};
use lockstep_protocol::messages::{Hello, Offer, PROTOCOL_VERSION, RefusalCode, ToCoordinator, ToWorker, Welcome};
use quinn::{Connection, Incoming, SendStream};
use tokio::sync::mpsc;

use super::bucket::Bucket;
use super::{Entry, Sessions, cosign, jobs, packages};
use crate::engine::{Down, EngineHandle, Message, Peer, Share, refusal_reason};
use crate::store::Cosign;

/// Why a session is over.
#[derive(Debug)]
pub(super) enum End {
    /// The connection or its control stream ended.
    Gone,
    /// The worker broke the protocol.
    Protocol(String),
    /// It was told to go.
    Refused,
    /// The coordinator goes down.
    Shutdown,
    /// The engine had enough of it.
    Killed,
    /// Another session of its key took over.
    Replaced,
}

impl From<LinkError> for End {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Frame(error) => Self::Protocol(error.to_string()),
            _ => Self::Gone,
        }
    }
}

/// What the tasks of one session share.
#[derive(Debug)]
pub(super) struct Session {
    pub sessions: Arc<Sessions>,
    pub node: NodeId,
    number: u64,
    /// Live assignments, and whether each has its stream.
    assigned: Mutex<BTreeMap<(JobId, LeaseEpoch), bool>>,
    strays: Mutex<Bucket>,
    moves: Mutex<Bucket>,
}

/// Whose assignment a job stream is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// A live one of this session, now taken by the stream.
    Live,
    /// A live one that has a stream already.
    Twice,
    /// None that is live.
    Stray,
}

impl Session {
    /// Feeds the engine.
    pub async fn tell(&self, input: Input) -> Result<(), End> {
        let message = Message::From(self.number, self.node, input);
        self.sessions.engine.send(message).await.map_err(|_| End::Shutdown)
    }

    /// Brings a move of a dispute, of this session's key: those of others come over HTTP. A worker needs a few a dispute,
    /// and each costs the coordinator a signature's check.
    pub async fn make_move(&self, signed: SignedMove) -> Result<(), End> {
        if !self.moves.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(End::Protocol("it makes too many moves".to_owned()));
        }
        if signed.check(&self.node).is_err() {
            return Err(End::Protocol("it brings a move that it has not signed".to_owned()));
        }
        let message = Message::Move(Box::new(signed), None);
        self.sessions.engine.send(message).await.map_err(|_| End::Shutdown)
    }

    fn assigned(&self) -> MutexGuard<'_, BTreeMap<(JobId, LeaseEpoch), bool>> {
        self.assigned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn claim(&self, job: JobId, epoch: LeaseEpoch) -> Claim {
        match self.assigned().get_mut(&(job, epoch)) {
            None => Claim::Stray,
            Some(taken) if *taken => Claim::Twice,
            Some(taken) => {
                *taken = true;
                Claim::Live
            }
        }
    }

    pub fn is_live(&self, job: JobId, epoch: LeaseEpoch) -> bool {
        self.assigned().contains_key(&(job, epoch))
    }

    pub fn may_stray(&self) -> bool {
        self.strays.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn assign(&self, job: JobId, epoch: LeaseEpoch) {
        self.assigned().insert((job, epoch), false);
    }

    fn unassign(&self, job: JobId, epoch: LeaseEpoch) {
        self.assigned().remove(&(job, epoch));
    }
}

/// A connection that has said hello.
struct Greeted {
    connection: Connection,
    address: SocketAddr,
    node: NodeId,
    up: Frames<ToCoordinator>,
    down: SendStream,
    hello: Hello,
}

/// Serves one connection.
pub(super) async fn serve(sessions: Arc<Sessions>, incoming: Incoming, entry: Entry) {
    let address = incoming.remote_address();
    let greeted = match tokio::time::timeout(sessions.caps.hello, greet(incoming)).await {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(end)) => return tracing::debug!(%address, ?end, "a connection ended before it said hello"),
        // Dropping it closes the connection.
        Err(_) => return tracing::debug!(%address, "a connection said no hello in time"),
    };
    if let Err((code, reason)) = check(&sessions, &greeted) {
        let Greeted { connection, node, mut down, .. } = greeted;
        tracing::info!(%node, %address, reason, "a worker is turned away");
        last_word(&mut down, &ToWorker::Refused { code, reason }).await;
        return close(&connection, Close::Refused, "refused");
    }
    let _permit = entry.greeted();
    run(sessions, greeted).await;
}

/// Takes the connection and reads its first message.
async fn greet(incoming: Incoming) -> Result<Greeted, End> {
    let address = incoming.remote_address();
    let connection = incoming.await.map_err(|_| End::Gone)?;
    let node = peer_id(&connection)?;
    let (down, up) = connection.accept_bi().await.map_err(|_| End::Gone)?;
    let mut up = Frames::new(up);
    match up.next().await {
        Ok(Some(ToCoordinator::Hello(hello))) => Ok(Greeted { connection, address, node, up, down, hello }),
        Ok(Some(_)) => Err(broken(&connection, "the first message is no hello".to_owned())),
        Ok(None) => Err(End::Gone),
        Err(error) => Err(broken(&connection, error.to_string())),
    }
}

fn broken(connection: &Connection, reason: String) -> End {
    close(connection, Close::Protocol, &reason);
    End::Protocol(reason)
}

fn check(sessions: &Sessions, greeted: &Greeted) -> Result<(), (RefusalCode, String)> {
    let refuse = |code| Err((code, refusal_reason(code).to_owned()));
    if greeted.hello.protocol != PROTOCOL_VERSION {
        return refuse(RefusalCode::Version);
    }
    if !sessions.allow.permits(&greeted.node) {
        return refuse(RefusalCode::NotAllowed);
    }
    if greeted.hello.max_in_flight == 0 {
        return Err((RefusalCode::BadHello, "it takes no assignment".to_owned()));
    }
    Ok(())
}

/// A worker that was let in: everything that goes on until one part of it ends.
async fn run(sessions: Arc<Sessions>, greeted: Greeted) {
    let Greeted { connection, address, node, up, down, mut hello } = greeted;
    let mut capabilities = Capabilities::from(&hello);
    capabilities.operator = sessions.allow.operator(&node).map(str::to_owned);
    let at = |offer: Offer| (offer.model_bytes, SocketAddr::new(address.ip().to_canonical(), offer.port).to_string());
    capabilities.pipeline = hello.offer.map(at);
    hello.models = Vec::new();
    let number = sessions.next_session();
    let (peer, messages, kill) = Peer::new(node, number, hello, address);
    let told = Arc::clone(&peer);
    let engine = sessions.engine.clone();
    if engine.send(Message::Joined(peer, capabilities)).await.is_err() {
        return close(&connection, Close::Shutdown, "the coordinator goes down");
    }
    let session = Arc::new(Session {
        sessions,
        node,
        number,
        assigned: Mutex::new(BTreeMap::new()),
        strays: Mutex::new(Bucket::new(STRAY_BURST_STREAMS, STRAY_STREAMS_PER_SECOND)),
        moves: Mutex::new(Bucket::new(MOVE_BURST, MOVES_PER_SECOND)),
    });
    let end = tokio::select! {
        end = talk_up(&session, up) => end,
        end = talk_down(&session, down, messages) => end,
        end = jobs::accept(&session, &connection) => end,
        end = packages::accept(&session, &connection) => end,
        end = cosign::ask(&session, &told) => end,
        () = kill.notified() => End::Killed,
        _ = connection.closed() => End::Gone,
    };
    let end = if told.is_replaced() { End::Replaced } else { end };
    leave(&engine, &connection, node, number, end).await;
}

async fn leave(engine: &EngineHandle, connection: &Connection, node: NodeId, number: u64, end: End) {
    match end {
        End::Gone => close(connection, Close::Done, "bye"),
        End::Refused => close(connection, Close::Refused, "refused"),
        End::Shutdown => close(connection, Close::Shutdown, "the coordinator goes down"),
        End::Replaced => close(connection, Close::Refused, "another session with this key joined"),
        End::Killed => close(connection, Close::Protocol, "the coordinator ended this session"),
        End::Protocol(reason) => {
            tracing::warn!(%node, reason, "a worker broke the protocol");
            close(connection, Close::Protocol, &reason);
        }
    }
    // An engine that has stopped does not need to know.
    let _ = engine.send(Message::Left(node, number)).await;
}

/// What the worker says.
async fn talk_up(session: &Session, mut up: Frames<ToCoordinator>) -> End {
    let mut allowance = Bucket::new(CONTROL_BURST_MESSAGES, CONTROL_MESSAGES_PER_SECOND);
    loop {
        let message = match up.next().await {
            Ok(Some(message)) => message,
            Ok(None) => return End::Gone,
            Err(error) => return error.into(),
        };
        if !allowance.take() {
            return End::Protocol("it sends too many control messages".to_owned());
        }
        let node = session.node;
        let input = match message {
            ToCoordinator::Hello(_) => return End::Protocol("it says hello twice".to_owned()),
            ToCoordinator::Heartbeat { .. } => Input::Heartbeat { node },
            ToCoordinator::HaveModel { model } => Input::ModelHeld { node, model },
            ToCoordinator::Draining => Input::Draining { node },
            ToCoordinator::Cosigned(cosignature) => match cosign::take(session, cosignature).await {
                Ok(()) => Input::Heartbeat { node },
                Err(end) => return end,
            },
            ToCoordinator::Retract { job, epoch } => {
                tracing::warn!(%node, %job, %epoch, "a worker says that its own run is wrong");
                Input::Retracted { node, job, epoch }
            }
            ToCoordinator::Failed { job, epoch, code, reason } => {
                tracing::info!(%node, %job, %epoch, ?code, reason, "a worker gives an assignment back");
                session.unassign(job, epoch);
                Input::Failed { node, job, epoch, code, reason }
            }
        };
        if let Err(end) = session.tell(input).await {
            return end;
        }
    }
}

/// What the worker is told.
async fn talk_down(session: &Session, mut down: SendStream, mut messages: mpsc::Receiver<Down>) -> End {
    while let Some(message) = messages.recv().await {
        let (message, end) = match message {
            Down::Welcome => (welcome(session), None),
            Down::Refused(code) => {
                (ToWorker::Refused { code, reason: refusal_reason(code).to_owned() }, Some(End::Refused))
            }
            Down::Assign(epoch, job, hint) => {
                session.assign(job.id(), epoch);
                (ToWorker::Assign { epoch, job: (*job).clone(), hint }, None)
            }
            Down::AssignStage(share) => {
                let Share { epoch, job, hint, crew } = *share;
                session.assign(job.id(), epoch);
                (ToWorker::AssignStage { epoch, job: (*job).clone(), hint, crew }, None)
            }
            Down::Countersign(job, epoch, roots, saturations, logprobs) => {
                (ToWorker::Countersign { job, epoch, roots, saturations, logprobs }, None)
            }
            Down::Accepted(job, epoch) => {
                session.unassign(job, epoch);
                (ToWorker::Accepted { job, epoch }, None)
            }
            Down::Cancel(job, epoch) => {
                session.unassign(job, epoch);
                (ToWorker::Cancel { job, epoch }, None)
            }
            Down::Reveal(job, epoch) => (ToWorker::Reveal { job, epoch }, None),
            Down::Halt(job, epoch, place) => (ToWorker::Halt { job, epoch, place }, None),
            Down::Asked(ask) => (ToWorker::Asked(ask), None),
            Down::Acknowledged(entry) => (ToWorker::Acknowledged(entry), None),
            Down::Judged(dispute, verdict) => (ToWorker::Judged { dispute, verdict }, None),
            Down::Cosign(asked) => {
                let Cosign { head, from, path } = *asked;
                (ToWorker::Cosign { head, from, path }, None)
            }
            Down::Shutdown => (ToWorker::Shutdown, Some(End::Shutdown)),
        };
        if let Some(end) = end {
            last_word(&mut down, &message).await;
            return end;
        }
        if let Err(error) = send(&mut down, &message).await {
            return error.into();
        }
    }
    End::Killed
}

fn welcome(session: &Session) -> ToWorker {
    ToWorker::Welcome(Welcome {
        protocol: PROTOCOL_VERSION,
        software: concat!("lockstep ", env!("CARGO_PKG_VERSION")).to_owned(),
        heartbeat_ms: HEARTBEAT_MS,
        models: session.sessions.models.served().iter().map(|model| model.id()).take(MAX_HELD_MODELS).collect(),
    })
}

/// Sends a message after which the connection is closed, and waits until it has arrived, within reason.
async fn last_word(down: &mut SendStream, message: &ToWorker) {
    let sent = async {
        if send(down, message).await.is_ok() && down.finish().is_ok() {
            let _ = down.stopped().await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(LAST_WORD_MS), sent).await;
}
