//! Starting, watching and stopping a worker.

use std::sync::{Arc, Mutex, PoisonError};

use lockstep_kernels::backend::Backend;
use lockstep_protocol::ids::NodeId;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::data_dir::DataDir;
use crate::error::WorkerError;
use crate::event::{Event, Events};
use crate::heads::Heads;
use crate::supervisor::Supervisor;

/// How far a worker is told to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    /// Serve.
    No,
    /// Finish what runs.
    Drain,
    /// Drop what runs.
    Abort,
}

/// A worker.
#[derive(Debug)]
pub struct Worker;

impl Worker {
    /// Starts a worker in the background: it checks and measures the backend, then connects and serves until it is
    /// drained, aborted or turned away. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// Of kind [`Configuration`](crate::ErrorKind::Configuration): the configuration makes no sense, or data directory
    /// or key can't be used. Everything later comes out of [`Handle::wait`].
    pub fn start(config: Config, backend: Arc<dyn Backend>) -> Result<Handle, WorkerError> {
        config.check()?;
        let dir = DataDir::open(&config.data_dir)?;
        let id = dir.keys.id();
        let heads = Heads::open(&dir.heads, dir.keys.clone(), config.coordinator)?;
        let (events, first) = Events::new();
        let (stop, stopped) = watch::channel(Stop::No);
        let supervisor = Supervisor { config, dir, heads, backend, events: events.clone(), stop: stopped };
        let task = tokio::spawn(supervisor.run());
        Ok(Handle { id, events, first: Mutex::new(Some(first)), stop, task })
    }
}

/// A running worker. Dropping the handle aborts it.
#[derive(Debug)]
pub struct Handle {
    id: NodeId,
    events: Events,
    first: Mutex<Option<broadcast::Receiver<Event>>>,
    stop: watch::Sender<Stop>,
    task: JoinHandle<Result<(), WorkerError>>,
}

impl Handle {
    /// The worker's key.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// What happens from now on; for the first caller, from the start on. A receiver that is far behind misses events,
    /// and is told how many.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.unwrap_or_else(|| self.events.subscribe())
    }

    /// Tells the worker to finish what it has, take nothing new, and end.
    pub fn drain(&self) {
        self.stop_at_least(Stop::Drain);
    }

    /// Tells the worker to drop what it has, and end.
    pub fn abort(&self) {
        self.stop_at_least(Stop::Abort);
    }

    /// Waits for the worker's end. `Ok` after a drain. May be dropped and called again until it has returned.
    ///
    /// # Errors
    /// Why the worker ended; [`WorkerError::Aborted`] after an abort.
    pub async fn wait(&mut self) -> Result<(), WorkerError> {
        match (&mut self.task).await {
            Ok(result) => result,
            Err(error) => Err(WorkerError::Internal(error.to_string())),
        }
    }

    fn stop_at_least(&self, wanted: Stop) {
        self.stop.send_if_modified(|stop| {
            let more = *stop < wanted;
            *stop = (*stop).max(wanted);
            more
        });
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.abort();
    }
}
