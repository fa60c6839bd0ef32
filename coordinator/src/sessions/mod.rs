//! Workers' connections: who is let in, and how much each may cost.
//!
//! A connection that breaks the protocol, floods or lies about its assignments is closed, and nothing else suffers:
//! its leases are over the moment it is gone, and their jobs go to others.

pub(crate) mod bucket;
mod cosign;
mod jobs;
mod packages;
mod session;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_protocol::limits::{GOODBYE_MS, MAX_WORKERS, OPENINGS_PER_CORE};
use quinn::{Endpoint, Incoming, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::config::{Allow, WorkerCaps};
use crate::engine::EngineHandle;
use crate::models::Models;
use crate::store::SharedStore;

/// What all sessions share.
#[derive(Debug)]
pub struct Sessions {
    engine: EngineHandle,
    models: Arc<Models>,
    store: SharedStore,
    allow: Allow,
    caps: WorkerCaps,
    last_session: AtomicU64,
    /// Connections at a time.
    connections: Arc<Semaphore>,
    /// Connections of each address that have not said hello.
    pending: Mutex<BTreeMap<IpAddr, usize>>,
    /// Openings that are made, and questions that are put to the store, at a time.
    openings: Arc<Semaphore>,
}

impl Sessions {
    /// Sessions that feed this engine and serve these models to these workers.
    pub fn new(
        engine: EngineHandle,
        models: Arc<Models>,
        store: SharedStore,
        (allow, caps): (Allow, WorkerCaps),
    ) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            engine,
            models,
            store,
            allow,
            caps,
            last_session: AtomicU64::new(0),
            connections: Arc::new(Semaphore::new(MAX_WORKERS + caps.pending_per_address)),
            pending: Mutex::new(BTreeMap::new()),
            openings: Arc::new(Semaphore::new(OPENINGS_PER_CORE * cores)),
        })
    }

    /// Accepts connections until `stop` turns true; then lets sessions say good-bye.
    pub async fn serve(self: Arc<Self>, endpoint: Endpoint, mut stop: watch::Receiver<bool>) {
        let mut sessions = JoinSet::new();
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                _ = sessions.join_next(), if !sessions.is_empty() => {}
                incoming = endpoint.accept() => match incoming {
                    None => break,
                    Some(incoming) => {
                        if let Some((incoming, entry)) = self.admit(incoming) {
                            sessions.spawn(session::serve(Arc::clone(&self), incoming, entry));
                        }
                    }
                },
            }
        }
        let grace = Duration::from_millis(GOODBYE_MS);
        let all = async { while sessions.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, all).await.is_err() {
            tracing::debug!("some workers did not say good-bye");
        }
        endpoint.close(VarInt::from_u32(lockstep_link::Close::Shutdown as u32), b"the coordinator goes down");
        let _ = tokio::time::timeout(grace, endpoint.wait_idle()).await;
    }

    /// Finds room for a connection before anything is spent on its handshake.
    fn admit(self: &Arc<Self>, incoming: Incoming) -> Option<(Incoming, Entry)> {
        let permit = Arc::clone(&self.connections).try_acquire_owned().ok();
        let address = incoming.remote_address().ip();
        let entry = permit.and_then(|permit| Entry::new(self, address, permit));
        match entry {
            Some(entry) if self.is_crowded() && !incoming.remote_address_validated() => {
                // Addresses may be forged: have this one prove itself before it takes a place.
                drop(entry);
                let _ = incoming.retry();
                None
            }
            Some(entry) => Some((incoming, entry)),
            None => {
                tracing::debug!(%address, "no room for another connection");
                incoming.refuse();
                None
            }
        }
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_crowded(&self) -> bool {
        self.pending().values().sum::<usize>() > self.caps.pending_per_address / 2
    }

    /// How many connections there are.
    fn connected(&self) -> usize {
        MAX_WORKERS + self.caps.pending_per_address - self.connections.available_permits()
    }

    fn next_session(&self) -> u64 {
        self.last_session.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A connection's place among those that have not said hello, and among all.
#[derive(Debug)]
struct Entry {
    sessions: Arc<Sessions>,
    address: IpAddr,
    permit: Option<OwnedSemaphorePermit>,
}

impl Entry {
    fn new(sessions: &Arc<Sessions>, address: IpAddr, permit: OwnedSemaphorePermit) -> Option<Self> {
        let mut pending = sessions.pending();
        let count = pending.entry(address).or_default();
        if *count >= sessions.caps.pending_per_address {
            return None;
        }
        *count += 1;
        Some(Self { sessions: Arc::clone(sessions), address, permit: Some(permit) })
    }

    /// The connection has said hello: only its place among all is kept.
    fn greeted(mut self) -> Option<OwnedSemaphorePermit> {
        self.permit.take()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut pending = self.sessions.pending();
        if let Some(count) = pending.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                pending.remove(&self.address);
            }
        }
    }
}
