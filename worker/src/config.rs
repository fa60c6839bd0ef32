//! What a worker is told at its start.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use lockstep_protocol::ids::NodeId;
use lockstep_protocol::limits::{MAX_IN_FLIGHT, WORKER_KEPT_RUNS_BYTES};

use crate::error::WorkerError;

/// How a worker takes part in pipelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// Where it takes connections of other workers. They find it at the address from which it connects to the
    /// coordinator, so nothing may translate that.
    pub listen: SocketAddr,
    /// Bytes of parameters that it can hold. It gets no model and no layers with more.
    pub model_bytes: u64,
}

/// What a worker is told at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The coordinator's key.
    pub coordinator: NodeId,
    /// Where it listens, as `HOST:PORT`. The name is looked up again for each connection.
    pub address: String,
    /// Where key and packages lie; made if it is not there. One worker at a time.
    pub data_dir: PathBuf,
    /// Threads that the backend computes with: told to the coordinator, and used to verify packages.
    pub threads: NonZeroUsize,
    /// Memory that the worker may use, in bytes: no more than its device has, or where it computes in the machine's, what the
    /// machine has; of several devices that are joined, on each. The coordinator is told the sum. `None` takes all of it.
    pub memory_bytes: Option<u64>,
    /// Assignments that it takes at a time, at most [`MAX_IN_FLIGHT`].
    pub max_in_flight: NonZeroU32,
    /// Assignments of one model that wait are run together up to so many tokens. One assignment runs whatever its
    /// length.
    pub batch_tokens: usize,
    /// Most bytes of memory for the layer outputs of recent runs. A dispute about a run that is still kept costs one layer,
    /// about another one the run up to the disputed layer. 0 keeps none.
    pub kept_runs_bytes: u64,
    /// Memory in bytes that each loaded model may take to generate text: keys and values of what runs, kept prefixes, and
    /// passes. `None` takes a quarter of the memory that the worker may use, on the smallest of several devices.
    pub generation_bytes: Option<u64>,
    /// Whether to pull the models that the coordinator serves before they are needed. Not where the worker takes part in
    /// pipelines: it may need a part of each only.
    pub prefetch: bool,
    /// Whether it shares models with others that are too large for one worker, and how much it holds of them.
    pub pipeline: Option<Pipeline>,
    /// Most bytes that packages may take on disk, all together, pulls under way included. A model that would go beyond
    /// is refused before anything of it is written.
    pub max_package_bytes: u64,
    /// A package that is in use is hashed again before it is used when its last check is older than this.
    pub recheck: Duration,
    /// How often the machine is tested while it works, and whether before each dispute about one of its runs; `None` never.
    pub self_test: Option<Duration>,
    /// The pause after the first connection that fails; it doubles with each further one.
    pub first_pause: Duration,
    /// The longest pause between connections.
    pub longest_pause: Duration,
    /// A session that lasted so long was good: pauses start again at the first.
    pub good_session: Duration,
    /// The pause after another worker with this worker's key took over the session: two that share a key must not keep
    /// putting each other out. Also the pause after the coordinator set this worker aside as faulty.
    pub replaced_pause: Duration,
}

impl Config {
    /// Sixteen assignments at a time in batches of up to 4,096 tokens, 512 MiB of kept runs, models pulled ahead, 64 GiB of
    /// packages, these and the machine checked again every hour, pauses of half a second to half a minute, and of five minutes where two share a key.
    pub fn new(coordinator: NodeId, address: String, data_dir: PathBuf, threads: NonZeroUsize) -> Self {
        Self {
            coordinator,
            address,
            data_dir,
            threads,
            memory_bytes: None,
            max_in_flight: NonZeroU32::MIN.saturating_add(15),
            batch_tokens: 4_096,
            kept_runs_bytes: WORKER_KEPT_RUNS_BYTES,
            generation_bytes: None,
            prefetch: true,
            pipeline: None,
            max_package_bytes: 64 << 30,
            recheck: Duration::from_secs(3_600),
            self_test: Some(Duration::from_secs(3_600)),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            good_session: Duration::from_secs(60),
            replaced_pause: Duration::from_secs(300),
        }
    }

    /// What can be said without opening anything.
    pub(crate) fn check(&self) -> Result<(), WorkerError> {
        if self.max_in_flight.get() > MAX_IN_FLIGHT {
            let found = self.max_in_flight;
            return Err(WorkerError::Config(format!(
                "{found} assignments at a time: at most {MAX_IN_FLIGHT} are allowed"
            )));
        }
        if self.pipeline.is_some_and(|pipeline| pipeline.model_bytes == 0) {
            return Err(WorkerError::Config("a worker of pipelines has to hold at least one byte of a model".into()));
        }
        if self.first_pause.is_zero() || self.longest_pause < self.first_pause {
            return Err(WorkerError::Config("pauses between connections must be positive and growing".into()));
        }
        let port = self.address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) {
            return Err(WorkerError::Config(format!("the coordinator's address {:?} is not HOST:PORT", self.address)));
        }
        Ok(())
    }
}
