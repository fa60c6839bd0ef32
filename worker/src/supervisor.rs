//! One connection after the other, with pauses that grow.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lockstep_kernels::backend::Backend;
use lockstep_link::{Client, Close, LinkError, close};
use lockstep_model::generation::Limits;
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::limits::{MAX_NAME_BYTES, WORKER_KEPT_RESULTS, WORKER_KEPT_RUNS_MS};
use lockstep_protocol::messages::{Hello, Offer, PROTOCOL_VERSION, RefusalCode};
use quinn::Connection;
use tokio::sync::watch;

use crate::assignment::Kept;
use crate::backoff::Backoff;
use crate::batch::Key;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::dispute::Disputes;
use crate::engine::Engine;
use crate::error::WorkerError;
use crate::event::{Event, Events};
use crate::handle::Stop;
use crate::heads::Heads;
use crate::kept::KeptRuns;
use crate::memory::{Memory, devices};
use crate::preflight;
use crate::selftest::SelfTest;
use crate::session::{End, Session};
use crate::stage::{Inputs, Links, Seats};
use crate::store::Store;
use crate::streams::Streams;

/// What outlives a connection.
#[derive(Debug)]
pub(crate) struct Shared {
    pub config: Config,
    pub events: Events,
    pub store: Store,
    pub engine: Engine,
    pub heads: Heads,
    pub streams: Streams,
    pub disputes: Arc<Disputes>,
    pub self_test: SelfTest,
    pub keys: Keypair,
    /// Of pipelines: the layers on the device, the streams to other workers, and what was received.
    pub seats: Seats,
    pub links: Arc<Links>,
    pub inputs: Inputs,
    /// Results whose acknowledgement has not come.
    results: Mutex<BTreeMap<Key, Kept>>,
}

impl Shared {
    /// Keeps a result until it is acknowledged. Of too many, those of the oldest leases are dropped.
    pub fn keep_result(&self, key: Key, result: Kept) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.insert(key, result);
        if results.len() > WORKER_KEPT_RESULTS
            && let Some(oldest) = results.keys().min_by_key(|(_, epoch)| *epoch).copied()
        {
            results.remove(&oldest);
        }
    }

    /// Forgets a run of which the coordinator wants no more. Returns its result, if there was one.
    pub fn forget(&self, key: &Key) -> Option<Kept> {
        self.streams.forget(key);
        self.forget_result(key)
    }

    /// Forgets a result, if there was one.
    pub fn forget_result(&self, key: &Key) -> Option<Kept> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).remove(key)
    }

    /// All results whose acknowledgement has not come.
    pub fn kept_results(&self) -> Vec<(Key, Kept)> {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.iter().map(|(key, result)| (*key, result.clone())).collect()
    }
}

/// A worker's life, before it begins.
pub(crate) struct Supervisor {
    pub config: Config,
    pub dir: DataDir,
    pub heads: Heads,
    pub backend: Arc<dyn Backend>,
    pub events: Events,
    pub stop: watch::Receiver<Stop>,
}

impl Supervisor {
    /// From the first check to the end. Returns when nothing computes any more.
    pub async fn run(self) -> Result<(), WorkerError> {
        let Self { mut config, dir, heads, backend, events, mut stop } = self;
        if let (Some(pipeline), Some(bytes)) = (&mut config.pipeline, backend.memory_bytes()) {
            // Layers that do not fit the device are of no use.
            pipeline.model_bytes = pipeline.model_bytes.min(bytes);
        }
        let memory = Memory::of(&devices(&config, &*backend), config.generation_bytes)?;
        let links = Links::open(dir.keys.clone(), config.pipeline.map(|pipeline| pipeline.listen));
        let links = links.map_err(|error| match error {
            LinkError::Bind { .. } => WorkerError::Config(format!("--pipeline-listen: {error}")),
            other => other.into(),
        })?;
        let (checked, told) = (Arc::clone(&backend), events.clone());
        let macs_per_second = tokio::select! {
            checked = blocking(move || preflight::check(&*checked, &told)) => checked??,
            () = stopped(&mut stop, Stop::Abort) => return Err(WorkerError::Aborted),
        };
        let offer = config.pipeline.zip(links.port());
        let hello = Hello {
            offer: offer.map(|(pipeline, port)| Offer { model_bytes: pipeline.model_bytes, port }),
            protocol: PROTOCOL_VERSION,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            backend: name_of(&*backend),
            threads: u32::try_from(config.threads.get()).unwrap_or(u32::MAX),
            memory_bytes: memory.total,
            macs_per_second,
            max_in_flight: config.max_in_flight.get(),
            models: Vec::new(),
        };
        let kept = KeptRuns::new(config.kept_runs_bytes, Duration::from_millis(WORKER_KEPT_RUNS_MS));
        let kept = Arc::new(kept);
        let (limits, tokens) = (Limits::within(memory.generations), config.batch_tokens);
        let seats = Seats::new(Arc::clone(&backend), memory.generations);
        let inputs = Inputs::new(dir.stages.clone());
        let engine = Engine::start(Arc::clone(&backend), dir.keys.clone(), tokens, Arc::clone(&kept), limits);
        let engine = engine.map_err(|error| WorkerError::Internal(format!("no thread to compute on: {error}")))?;
        let store = Store::new(dir.packages.clone(), &config, memory, events.clone());
        let client = Client::new(&dir.keys, config.coordinator);
        let backoff = Backoff::new(config.first_pause, config.longest_pause);
        let (keys, seen) = (dir.keys.clone(), events.clone());
        let known = (kept, inputs.clone());
        let disputes = Disputes::new(dir.disputes.clone(), Arc::clone(&backend), known, keys, config.coordinator, seen);
        let disputes = Arc::new(disputes);
        let (streams, results) = (Streams::new(dir.keys.clone()), Mutex::default());
        let self_test = SelfTest::new(Arc::clone(&backend), events.clone());
        let keys = dir.keys.clone();
        let shared = Shared {
            config,
            events,
            store,
            engine,
            heads,
            streams,
            disputes,
            self_test,
            keys,
            seats,
            links,
            inputs,
            results,
        };
        let shared = Arc::new(shared);
        let mut service = Service { shared, backend, hello, client, backoff, stop };
        let ended = service.serve().await;
        if let Err(WorkerError::Refused { code: RefusalCode::Quarantined, .. }) = ended {
            // Whoever looks into it should know whether a damaged file was the reason.
            let mut stop = service.stop.clone();
            tokio::select! {
                _ = service.shared.store.check_all() => {}
                () = stopped(&mut stop, Stop::Abort) => {}
            }
        }
        service.shared.links.close();
        service.client.wait_idle().await;
        let shared = service.shared;
        shared.disputes.stop().await;
        blocking(move || shared.engine.stop()).await?;
        ended
    }
}

/// The backend's name as a hello can carry it.
fn name_of(backend: &dyn Backend) -> String {
    let mut name = backend.name();
    name.truncate(name.floor_char_boundary(MAX_NAME_BYTES));
    name
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, WorkerError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| WorkerError::Internal(error.to_string()))
}

struct Service {
    shared: Arc<Shared>,
    backend: Arc<dyn Backend>,
    hello: Hello,
    client: Client,
    backoff: Backoff,
    stop: watch::Receiver<Stop>,
}

impl Service {
    /// Connects again and again, until the worker is to end.
    async fn serve(&mut self) -> Result<(), WorkerError> {
        loop {
            match *self.stop.borrow() {
                Stop::No => {}
                // Without a connection there is nothing that runs.
                Stop::Drain => return Ok(()),
                Stop::Abort => return Err(WorkerError::Aborted),
            }
            let mut stop = self.stop.clone();
            let ended = tokio::select! {
                ended = self.attempt() => ended?,
                () = stopped(&mut stop, Stop::Abort) => return Err(WorkerError::Aborted),
            };
            let (reason, retry_in) = match ended {
                // An abort may have come just before the end.
                End::Drained if *self.stop.borrow() == Stop::Abort => return Err(WorkerError::Aborted),
                End::Drained => return Ok(()),
                // What ran is lost with the connection, so there is nothing left to finish.
                End::Lost(_) | End::Replaced(_) | End::Faulty(_) if *self.stop.borrow() != Stop::No => continue,
                End::Lost(reason) => (reason, self.backoff.pause()),
                End::Replaced(said) => {
                    let reason = format!(
                        "another worker uses this key and took over ({said}); each worker needs a data directory of its own"
                    );
                    tracing::warn!("{reason}");
                    (reason, Backoff::spread(self.shared.config.replaced_pause))
                }
                End::Faulty(said) => {
                    tokio::select! {
                        tested = self.test_again(&said) => tested?,
                        () = stopped(&mut stop, Stop::Drain) => continue,
                    }
                    let reason =
                        format!("the coordinator set this worker aside ({said}); its machine passed the tests");
                    (reason, Backoff::spread(self.shared.config.replaced_pause))
                }
            };
            self.shared.events.emit(Event::Disconnected { reason, retry_in });
            tokio::select! {
                () = tokio::time::sleep(retry_in) => {}
                () = stopped(&mut stop, Stop::Drain) => {}
            }
        }
    }

    /// Tests what may have made a run wrong: the packages in use, and the backend.
    async fn test_again(&self, said: &str) -> Result<(), WorkerError> {
        self.shared.events.emit(Event::Faulty { reason: said.to_owned() });
        self.shared.store.check_all().await;
        let (backend, events) = (Arc::clone(&self.backend), self.shared.events.clone());
        blocking(move || preflight::check(&*backend, &events)).await??;
        Ok(())
    }

    /// One connection, from look-up to end.
    async fn attempt(&mut self) -> Result<End, WorkerError> {
        let address = self.shared.config.address.clone();
        self.shared.events.emit(Event::Connecting { address: address.clone() });
        let found: Vec<SocketAddr> = match tokio::net::lookup_host(&address).await {
            Ok(found) => found.collect(),
            Err(error) => return Ok(End::Lost(format!("can't look up {address}: {error}"))),
        };
        let mut reason = format!("{address} has no address");
        for socket in found {
            // A drain does not wait for a coordinator that is not there.
            let mut stop = self.stop.clone();
            let connected = tokio::select! {
                connected = self.client.connect(socket) => connected,
                () = stopped(&mut stop, Stop::Drain) => return Ok(End::Drained),
            };
            match connected {
                Ok(connection) => return self.session(connection).await,
                Err(error @ (LinkError::WrongKey { .. } | LinkError::NoKey | LinkError::Tls(_))) => {
                    return Err(error.into());
                }
                Err(error) => reason = format!("can't connect to {socket}: {error}"),
            }
        }
        Ok(End::Lost(reason))
    }

    async fn session(&mut self, connection: Connection) -> Result<End, WorkerError> {
        // Dropped early, by an abort, it still says good-bye.
        let guard = CloseOnDrop(connection.clone());
        self.hello.models = self.shared.store.held();
        let session = Session::open(&self.shared, connection, &self.hello, self.stop.clone()).await?;
        let ended = match session {
            Ok(session) => {
                let start = Instant::now();
                let ended = session.serve().await;
                if start.elapsed() >= self.shared.config.good_session {
                    self.backoff.reset();
                }
                ended
            }
            Err(end) => Ok(end),
        };
        drop(guard);
        ended
    }
}

struct CloseOnDrop(Connection);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        // A connection that is closed already stays as it is.
        close(&self.0, Close::Done, "the worker ends");
    }
}

/// Waits until the worker is told to stop, at least so far.
async fn stopped(stop: &mut watch::Receiver<Stop>, far: Stop) {
    // A handle that is dropped has told the worker to abort before.
    let _ = stop.wait_for(|told| *told >= far).await;
}
