//! Putting a coordinator together, and taking it down.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{ModelId, NodeId};
use lockstep_protocol::machine::Record;
use quinn::Endpoint;
use tokio::net::TcpListener;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinHandle;

use crate::clock::{Clock, wall};
use crate::config::Config;
use crate::engine::{self, EngineHandle, Parts};
use crate::error::{ShutdownError, StartError};
use crate::events::Event;
use crate::http::{App, AppParts, router, serve};
use crate::models::{Model, Models};
use crate::sessions::Sessions;
use crate::store::{self, Commit, Restored, SharedStore, Store, Write};

/// The key's file in the data directory.
pub const KEY_FILE: &str = "coordinator.key";

/// Starts coordinators.
#[derive(Clone, Copy, Debug)]
pub struct Coordinator;

/// A running coordinator. It runs until [`Handle::shutdown`], or until its runtime ends: dropping the handle does not
/// stop it, and killing the process loses nothing that was acknowledged.
#[derive(Debug)]
pub struct Handle {
    node: NodeId,
    quic: SocketAddr,
    http: SocketAddr,
    models: Vec<(ModelId, String)>,
    engine: EngineHandle,
    thread: std::thread::JoinHandle<bool>,
    stop_engine: Arc<Notify>,
    store: SharedStore,
    stop_http: watch::Sender<bool>,
    stop_quic: watch::Sender<bool>,
    http_task: JoinHandle<()>,
    quic_task: JoinHandle<()>,
}

impl Coordinator {
    /// Opens key, packages and store, restores what was there, and starts to serve. Must be called inside a tokio
    /// runtime with all its drivers on.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start(config: Config) -> Result<Handle, StartError> {
        config.check()?;
        let opening = config.clone();
        let opened = tokio::task::spawn_blocking(move || Opened::new(&opening)).await;
        let opened = opened.map_err(|error| StartError::Thread(std::io::Error::other(error)))??;
        let endpoint = lockstep_link::server(config.quic_bind, &opened.keys)
            .map_err(|error| bind_error(config.quic_bind, "workers", error.to_string()))?;
        let listener = TcpListener::bind(config.http_bind)
            .await
            .map_err(|error| bind_error(config.http_bind, "HTTP", error.to_string()))?;
        Self::run(config, opened, endpoint, listener)
    }

    fn run(config: Config, opened: Opened, endpoint: Endpoint, listener: TcpListener) -> Result<Handle, StartError> {
        let Opened { keys, store, models, restored } = opened;
        let local = |found: std::io::Result<SocketAddr>, asked, what| {
            found.map_err(|error| bind_error(asked, what, error.to_string()))
        };
        let quic = local(endpoint.local_addr(), config.quic_bind, "workers")?;
        let http = local(listener.local_addr(), config.http_bind, "HTTP")?;
        let node = keys.id();
        let clock = Clock::start(restored.clock);
        let started = clock.now();
        let parts = Parts {
            keys,
            store: Arc::clone(&store),
            models: Arc::clone(&models),
            clock,
            grant: config.grant,
            grants_per_hour: config.workers.grants_per_hour,
            worker_wait: config.worker_wait,
            planted_per_mille: config.planted_per_mille,
        };
        let running = engine::start(parts, restored)?;
        let engine = running.handle;
        let (stop_http, http_stopped) = watch::channel(false);
        let (stop_quic, quic_stopped) = watch::channel(false);
        let app = App::new(AppParts {
            node,
            engine: engine.clone(),
            models: Arc::clone(&models),
            store: Arc::clone(&store),
            audit: config.audit,
            api_keys: config.api_keys,
            caps: config.caps,
            http_wait: config.http_wait,
            stopping: http_stopped.clone(),
            started,
        });
        let sessions =
            Sessions::new(engine.clone(), Arc::clone(&models), Arc::clone(&store), (config.allow, config.workers));
        Ok(Handle {
            node,
            quic,
            http,
            models: models.served().iter().map(|model| (model.id(), model.name().to_owned())).collect(),
            engine,
            thread: running.thread,
            stop_engine: running.stop,
            store,
            stop_http,
            stop_quic,
            http_task: tokio::spawn(serve(listener, router(app), http_stopped)),
            quic_task: tokio::spawn(sessions.serve(endpoint, quic_stopped)),
        })
    }
}

impl Handle {
    /// The coordinator's key, to which workers pin it.
    pub fn node_id(&self) -> NodeId {
        self.node
    }

    /// Where workers connect (UDP).
    pub fn quic_addr(&self) -> SocketAddr {
        self.quic
    }

    /// Where clients connect (TCP).
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// The served models: id and name.
    pub fn models(&self) -> &[(ModelId, String)] {
        &self.models
    }

    /// Watches from now on. A watcher that lags far behind loses the oldest events, and is told so.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.engine.events()
    }

    /// The way to the engine, for those who run a coordinator inside their own program.
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// Goes down: no new requests, those under way are answered within a grace period, workers are told, the store is
    /// closed. Jobs that are not finished go on at the next start.
    ///
    /// It takes a bounded time, also where the disk refuses everything or does not answer.
    ///
    /// # Errors
    /// [`ShutdownError`]: something could not be written, or failed. Nothing that was acknowledged is lost.
    pub async fn shutdown(self) -> Result<(), ShutdownError> {
        self.stop_http.send_replace(true);
        let http = self.http_task.await.map_err(|_| ShutdownError::Part("HTTP"));
        self.store.close();
        self.stop_engine.notify_one();
        let thread = tokio::task::spawn_blocking(move || self.thread.join());
        let engine = match thread.await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(ShutdownError::NotWritten),
            _ => Err(ShutdownError::Part("the engine")),
        };
        self.stop_quic.send_replace(true);
        let quic = self.quic_task.await.map_err(|_| ShutdownError::Part("the link to workers"));
        engine.and(http).and(quic)
    }
}

fn bind_error(address: SocketAddr, what: &'static str, reason: String) -> StartError {
    StartError::Bind { address, what, reason }
}

/// What is read before anything runs. Reading it blocks.
struct Opened {
    keys: Keypair,
    store: SharedStore,
    models: Arc<Models>,
    restored: Restored,
}

impl Opened {
    fn new(config: &Config) -> Result<Self, StartError> {
        store::create(&config.data_dir)?;
        let keys = lockstep_link::keyfile::load_or_create(&config.data_dir.join(KEY_FILE))?;
        let (store, restored) = Store::open(&config.data_dir, &keys, wall().0)?;
        let mut models = Models::open(&config.packages)?;
        keep_needed(&mut models, &restored);
        remember(&store, &models)?;
        Ok(Self { keys, store: Arc::new(store), models: Arc::new(models), restored })
    }
}

/// Reopens models that are not served any more but that unfinished jobs need. Without its model a job fails in the
/// end; that is no reason not to start.
fn keep_needed(models: &mut Models, restored: &Restored) {
    let needed = restored.records.iter().filter_map(|record| match record {
        Record::Submitted(spec) => Some(spec.job.model),
        _ => None,
    });
    for id in std::collections::BTreeSet::from_iter(needed) {
        if models.of_job(&id).is_some() {
            continue;
        }
        let path: Option<&PathBuf> = restored.models.iter().find(|(known, _)| *known == id).map(|(_, path)| path);
        match path.map(|path| Model::open(path)) {
            Some(Ok(model)) if model.id() == id => models.retire(model),
            Some(Err(error)) => tracing::warn!(model = %id, %error, "unfinished jobs need a model that is gone"),
            Some(Ok(_)) | None => tracing::warn!(model = %id, "unfinished jobs need a model that is gone"),
        }
    }
}

/// Writes down which models are served, and from where.
fn remember(store: &Store, models: &Models) -> Result<(), StartError> {
    let at = wall();
    let write = |model: &Arc<Model>| Write::Model {
        id: model.id(),
        name: model.name().to_owned(),
        path: model.path().to_string_lossy().into_owned(),
        manifest: model.package().manifest_bytes().to_vec(),
        at,
    };
    let writes = models.served().iter().map(write).collect();
    store.submit(Commit { writes, then: Box::new(|| {}) })?;
    Ok(())
}
