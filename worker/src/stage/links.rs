//! Connections between the workers of a pipeline: each takes those of whoever comes before it, and opens one to whoever
//! comes after it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_link::{Client, Frames, LinkError, peer_id, send, server};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::NodeId;
use lockstep_protocol::limits::{HELLO_MS, WORKER_STAGE_LINKS};
use lockstep_protocol::messages::{FailureCode, Stage, StageMessage};
use quinn::{Connection, Endpoint, Incoming, SendStream};
use tokio::sync::{Semaphore, oneshot};

use crate::batch::{Failure, Key};

/// The stream of one lease between two neighbours.
#[derive(Debug)]
pub(crate) struct Link {
    pub outbound: SendStream,
    pub inbound: Frames<StageMessage>,
    /// The stream ends with it.
    connection: Connection,
    /// Of a connection that was opened here: what it runs on.
    _client: Option<Client>,
}

impl Link {
    /// Ends the stream, and lets go of it once everything has arrived.
    pub fn settle(mut self) {
        tokio::spawn(async move {
            if self.outbound.finish().is_ok() {
                // Where the other side is gone it wants nothing any more.
                let _ = tokio::time::timeout(Duration::from_millis(HELLO_MS), self.outbound.stopped()).await;
            }
        });
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        lockstep_link::close(&self.connection, lockstep_link::Close::Done, "the run is over");
    }
}

/// Streams that are expected, and those that came before they were.
#[derive(Debug, Default)]
struct Board {
    expected: BTreeMap<Key, (NodeId, oneshot::Sender<Link>)>,
    early: BTreeMap<(Key, NodeId), Link>,
}

/// Takes the streams of other workers.
#[derive(Debug)]
pub(crate) struct Links {
    keys: Keypair,
    endpoint: Option<Endpoint>,
    board: Mutex<Board>,
}

impl Links {
    /// Listens, where the worker takes part in pipelines. Must be called inside a tokio runtime.
    pub fn open(keys: Keypair, listen: Option<SocketAddr>) -> Result<Arc<Self>, LinkError> {
        let endpoint = listen.map(|address| server(address, &keys)).transpose()?;
        let links = Arc::new(Self { keys, endpoint: endpoint.clone(), board: Mutex::default() });
        if let Some(endpoint) = endpoint {
            let accepting = Arc::downgrade(&links);
            let places = Arc::new(Semaphore::new(WORKER_STAGE_LINKS));
            tokio::spawn(async move {
                while let Some(incoming) = endpoint.accept().await {
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                        incoming.refuse();
                        continue;
                    };
                    let Some(links) = accepting.upgrade() else { return };
                    tokio::spawn(async move {
                        let _place = place;
                        let patience = Duration::from_millis(HELLO_MS);
                        if let Ok(Some((key, node, link))) = tokio::time::timeout(patience, greeted(incoming)).await {
                            links.arrived(key, node, link);
                        }
                    });
                }
            });
        }
        Ok(links)
    }

    /// The port that it listens at, if it does.
    pub fn port(&self) -> Option<u16> {
        Some(self.endpoint.as_ref()?.local_addr().ok()?.port())
    }

    /// Takes no connections any more.
    pub fn close(&self) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.close(0_u32.into(), b"the worker ends");
        }
    }

    /// The stream that the worker before this one opens for a lease.
    pub fn expect(self: &Arc<Self>, key: Key, node: NodeId) -> Expected {
        let (sender, arrives) = oneshot::channel();
        let mut board = self.board();
        match board.early.remove(&(key, node)) {
            // Whoever asked is there to take it.
            Some(link) => drop(sender.send(link)),
            None => {
                board.expected.insert(key, (node, sender));
            }
        }
        Expected { links: Arc::clone(self), key, arrives }
    }

    /// Opens the stream of a lease to the worker after this one.
    pub async fn connect(&self, key: Key, to: &Stage) -> Result<Link, Failure> {
        let broken =
            |error: String| Failure::new(FailureCode::Downstream, format!("{} at {}: {error}", to.node, to.address));
        let found = tokio::net::lookup_host(&to.address).await.map_err(|error| broken(error.to_string()))?;
        let mut reason = "it has no address".to_owned();
        for address in found {
            let mut client = Client::new(&self.keys, to.node);
            match client.connect(address).await {
                Ok(connection) => {
                    let (mut outbound, inbound) =
                        connection.open_bi().await.map_err(|error| broken(error.to_string()))?;
                    let (job, epoch) = key;
                    let open = StageMessage::Open { job, epoch };
                    send(&mut outbound, &open).await.map_err(|error| broken(error.to_string()))?;
                    return Ok(Link { outbound, inbound: Frames::new(inbound), connection, _client: Some(client) });
                }
                Err(error) => reason = error.to_string(),
            }
        }
        Err(broken(reason))
    }

    fn arrived(&self, key: Key, node: NodeId, link: Link) {
        let mut board = self.board();
        if board.expected.get(&key).is_some_and(|(expected, _)| *expected == node) {
            if let Some((_, sender)) = board.expected.remove(&key) {
                // Whoever expected it may be gone.
                let _ = sender.send(link);
            }
            return;
        }
        board.early.insert((key, node), link);
        while board.early.len() > WORKER_STAGE_LINKS {
            let oldest = board.early.keys().min_by_key(|((_, epoch), _)| *epoch).copied();
            oldest.map(|oldest| board.early.remove(&oldest));
        }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that is expected; dropped, it is not any more.
pub(crate) struct Expected {
    links: Arc<Links>,
    key: Key,
    arrives: oneshot::Receiver<Link>,
}

impl Expected {
    /// Waits for the stream. The lease ends where it does not come.
    pub async fn link(mut self) -> Option<Link> {
        (&mut self.arrives).await.ok()
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.links.board().expected.remove(&self.key);
    }
}

/// A connection with its one stream and what that is about.
async fn greeted(incoming: Incoming) -> Option<(Key, NodeId, Link)> {
    let connection = incoming.await.ok()?;
    let node = peer_id(&connection).ok()?;
    let (outbound, inbound) = connection.accept_bi().await.ok()?;
    let mut inbound = Frames::new(inbound);
    match inbound.next().await {
        Ok(Some(StageMessage::Open { job, epoch })) => {
            Some(((job, epoch), node, Link { outbound, inbound, connection, _client: None }))
        }
        _ => None,
    }
}
