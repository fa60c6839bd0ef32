//! The demo's network: a coordinator and three workers in this process, over real sockets.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use lockstep_coordinator::{Config, Coordinator, Event, Handle};
use lockstep_protocol::ids::{ModelId, NodeId};
use lockstep_protocol::machine::AuditPolicy;
use lockstep_sim::adversary::Lie;
use lockstep_worker::Worker;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::broadcast::error::RecvError;

use super::story::Story;
use crate::backend::Local;

/// How long workers may take to check themselves, join and fetch the model.
const JOIN_TIME: Duration = Duration::from_secs(300);
/// How long a request may take.
const ASK_TIME: Duration = Duration::from_secs(300);

/// A worker of the demo.
pub struct Member {
    /// What the story calls it.
    pub name: &'static str,
    /// Its key.
    pub node: NodeId,
    /// Whether it does what it should.
    pub honest: bool,
    handle: lockstep_worker::Handle,
}

/// What a network is started with.
pub struct Setup<'a> {
    /// The package that is served.
    pub package: &'a Path,
    /// What the cheat does.
    pub lie: Lie,
    /// How jobs are audited.
    pub policy: AuditPolicy,
}

/// Everything that runs.
pub struct Network {
    /// The model that is served.
    pub model: ModelId,
    /// The coordinator's key.
    pub node: NodeId,
    /// The workers.
    pub workers: Vec<Member>,
    coordinator: Handle,
    seen: Arc<Mutex<Vec<Event>>>,
    told: Mutex<usize>,
    /// Stores and keys; gone when the demo is over.
    _folder: TempDir,
}

impl Network {
    /// Starts a coordinator, two honest workers and one that tells the lie.
    pub async fn start(setup: &Setup<'_>, story: &Story) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder for the demo")?;
        let mut config = Config::local(folder.path().join("coordinator"));
        // Workers of its own are on their way.
        config.worker_wait = config.http_wait;
        config.packages = vec![setup.package.to_path_buf()];
        config.audit = setup.policy;
        let coordinator = Coordinator::start(config).await?;
        let (model, _) = coordinator.models().first().context("the coordinator serves nothing")?.clone();
        let seen = Arc::new(Mutex::new(Vec::new()));
        collect(coordinator.events(), Arc::clone(&seen));
        let mut network = Self {
            model,
            node: coordinator.node_id(),
            workers: Vec::new(),
            coordinator,
            seen,
            told: Mutex::new(0),
            _folder: folder,
        };
        for (name, honest) in [("Ada", true), ("Mallory", false), ("Emmy", true)] {
            network.join(name, honest, setup.lie)?;
        }
        story.cast(&model.to_string(), &network.workers, setup.lie.layer);
        story.say("each checks its kernels against the reference and fetches the model by its id ...");
        network.wait_until_ready().await?;
        Ok(network)
    }

    /// Starts one worker with a key and a folder of its own.
    fn join(&mut self, name: &'static str, honest: bool, lie: Lie) -> Result<()> {
        let threads = std::num::NonZeroUsize::MIN;
        let local = Local::open("cpu", threads, None).map_err(|f| f.error)?;
        let backend = if honest { local.honest() } else { local.lying(&[lie]) };
        let address = self.coordinator.quic_addr().to_string();
        let folder = self._folder.path().join(name);
        let mut config = lockstep_worker::Config::new(self.node, address, folder, threads);
        // Few at a time, so that all three get some of the jobs.
        config.max_in_flight = std::num::NonZeroU32::MIN.saturating_add(1);
        let handle = Worker::start(config, backend)?;
        self.workers.push(Member { name, node: handle.id(), honest, handle });
        Ok(())
    }

    /// Waits until all workers joined and hold the model.
    async fn wait_until_ready(&mut self) -> Result<()> {
        let ready = async {
            loop {
                let workers =
                    self.coordinator.engine().workers().await.map_err(|_| anyhow!("the coordinator stopped"))?;
                if workers.iter().filter(|w| w.view.models.contains(&self.model)).count() == self.workers.len() {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let wait = tokio::time::timeout(JOIN_TIME, ready).await;
        wait.unwrap_or_else(|_| bail!("the workers did not join within {} s", JOIN_TIME.as_secs()))
    }

    /// Where clients ask for something.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/v1/{path}", self.coordinator.http_addr())
    }

    /// POST of JSON below `/v1`, as any client does.
    pub async fn post(&self, path: &str, body: Value) -> Result<Value> {
        let url = self.url(path);
        let post = move || -> Result<Value> {
            let mut response = agent().post(&url).send_json(&body)?;
            let status = response.status();
            let answer: Value = response.body_mut().with_config().limit(64 << 20).read_json()?;
            if !status.is_success() {
                bail!("{url} answered {status}: {}", answer["error"]["message"]);
            }
            Ok(answer)
        };
        tokio::task::spawn_blocking(post).await?
    }

    /// GET below `/v1`, as whoever holds the access token.
    pub async fn get(&self, path: &str, access: &str, limit: usize) -> Result<Vec<u8>> {
        let url = self.url(path);
        let access = access.to_owned();
        let get = move || -> Result<Vec<u8>> {
            let mut response = agent().get(&url).header("lockstep-access", access).call()?;
            let status = response.status();
            ensure!(status.is_success(), "{url} answered {status}");
            Ok(response.body_mut().with_config().limit(limit as u64 + 1).read_to_vec()?)
        };
        tokio::task::spawn_blocking(get).await?
    }

    /// What the coordinator reported since the last call.
    pub fn new_events(&self) -> Vec<Event> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let new = seen[*told..].to_vec();
        *told = seen.len();
        new
    }

    /// Everything that the coordinator reported.
    pub fn events(&self) -> Vec<Event> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether some worker was put out.
    pub fn cheat_is_out(&self) -> bool {
        self.events().iter().any(|e| matches!(e, Event::Quarantined { .. }))
    }

    /// Takes everything down.
    pub async fn stop(self) -> Result<()> {
        for mut worker in self.workers {
            worker.handle.abort();
            // That it was aborted, or put out, is no news here.
            let _ = worker.handle.wait().await;
        }
        Ok(self.coordinator.shutdown().await?)
    }
}

/// Keeps every event for the verdict.
fn collect(mut events: tokio::sync::broadcast::Receiver<Event>, seen: Arc<Mutex<Vec<Event>>>) {
    tokio::spawn(async move {
        loop {
            match events.recv().await {
                Ok(event) => seen.lock().unwrap_or_else(PoisonError::into_inner).push(event),
                Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "the demo missed events"),
                Err(RecvError::Closed) => return,
            }
        }
    });
}

/// A client that waits long, and takes errors as answers.
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(ASK_TIME)).http_status_as_error(false).build().into()
}
