//! What a coordinator is told at its start.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lockstep_protocol::ids::NodeId;
use lockstep_protocol::limits::{
    DEFAULT_GRANT_CREDITS, DEFAULT_GRANTS_PER_HOUR, DEFAULT_MAX_CHOICES, DEFAULT_MAX_TOKENS,
    DEFAULT_PENDING_CONNECTIONS, DEFAULT_REQUEST_BURST, DEFAULT_REQUESTS_PER_SECOND, DEFAULT_TOKENS_PER_MINUTE,
    DEFAULT_WORKER_WAIT_MS, HELLO_MS, HTTP_WAIT_MS, MAX_GENERATED_TOKENS, MAX_HELLO_MS, MAX_REQUEST_INPUTS,
    MAX_WORKERS,
};
use lockstep_protocol::machine::AuditPolicy;

use crate::error::StartError;

/// Which workers may join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Every key. Nobody knows who operates it.
    Any,
    /// These keys only, each with the name of its operator where that is known.
    Keys(BTreeMap<NodeId, Option<String>>),
}

impl Allow {
    /// These keys only, of unknown operators.
    pub fn keys(keys: impl IntoIterator<Item = NodeId>) -> Self {
        Self::Keys(keys.into_iter().map(|key| (key, None)).collect())
    }

    /// Whether a key may join.
    pub fn permits(&self, node: &NodeId) -> bool {
        match self {
            Self::Any => true,
            Self::Keys(keys) => keys.contains_key(node),
        }
    }

    /// Who operates a key, where that is known.
    pub fn operator(&self, node: &NodeId) -> Option<&str> {
        match self {
            Self::Any => None,
            Self::Keys(keys) => keys.get(node)?.as_deref(),
        }
    }
}

/// An API key, kept as its BLAKE3 hash only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiKey(blake3::Hash);

impl ApiKey {
    /// From the key itself.
    pub fn from_secret(secret: &str) -> Self {
        Self(blake3::hash(secret.as_bytes()))
    }

    /// From the BLAKE3 hash of the key, in hexadecimal, as a configuration file holds it.
    ///
    /// # Errors
    /// [`StartError::Config`] when it is no such hash.
    pub fn from_hash(hex: &str) -> Result<Self, StartError> {
        let bytes: [u8; 32] = lockstep_protocol::hex::parse(hex)
            .map_err(|error| StartError::Config(format!("an API key's hash: {error}")))?;
        Ok(Self(blake3::Hash::from_bytes(bytes)))
    }

    /// Whether a secret is this key. Takes the same time whatever differs: hashes are compared, and in constant time.
    pub fn matches(&self, secret: &str) -> bool {
        self.0 == blake3::hash(secret.as_bytes())
    }
}

/// What one client may ask for. A client is an API key, or an address where no keys are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientCaps {
    /// Requests for work that may come at once, at least 1.
    pub request_burst: u64,
    /// Those that may come each second from then on; 0 counts nothing.
    pub requests_per_second: u64,
    /// Tokens of prompts and answers that may come each minute; 0 counts nothing.
    pub tokens_per_minute: u64,
    /// Most tokens of one generated answer, 1 to 16,384.
    pub max_tokens: u32,
    /// Most answers to one request for generation, over all its prompts: 1 to 256.
    pub max_choices: u32,
}

impl Default for ClientCaps {
    fn default() -> Self {
        Self {
            request_burst: DEFAULT_REQUEST_BURST,
            requests_per_second: DEFAULT_REQUESTS_PER_SECOND,
            tokens_per_minute: DEFAULT_TOKENS_PER_MINUTE,
            max_tokens: DEFAULT_MAX_TOKENS,
            max_choices: DEFAULT_MAX_CHOICES,
        }
    }
}

impl ClientCaps {
    fn check(&self) -> Result<(), StartError> {
        let is_valid = self.request_burst > 0
            && (1..=MAX_GENERATED_TOKENS).contains(&(self.max_tokens as usize))
            && (1..=MAX_REQUEST_INPUTS).contains(&(self.max_choices as usize));
        if is_valid {
            return Ok(());
        }
        let message = format!(
            "what a client may ask for is out of range: a burst of at least 1, 1 to {MAX_GENERATED_TOKENS} tokens, 1 to \
             {MAX_REQUEST_INPUTS} answers"
        );
        Err(StartError::Config(message))
    }
}

/// What workers may take of a coordinator before they have done anything for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerCaps {
    /// Most workers that get their first credits in an hour, without which they get no job.
    pub grants_per_hour: u32,
    /// Most connections from one address that have not said hello, 1 to 16,384. Many workers behind one address come at
    /// once when a coordinator starts; who finds no place tries again.
    pub pending_per_address: usize,
    /// How long a connection may take until it has said hello: 1 to 60 seconds.
    pub hello: Duration,
}

impl Default for WorkerCaps {
    fn default() -> Self {
        Self {
            grants_per_hour: DEFAULT_GRANTS_PER_HOUR,
            pending_per_address: DEFAULT_PENDING_CONNECTIONS,
            hello: Duration::from_millis(HELLO_MS),
        }
    }
}

impl WorkerCaps {
    fn check(&self) -> Result<(), StartError> {
        let longest = Duration::from_millis(MAX_HELLO_MS);
        if (1..=MAX_WORKERS).contains(&self.pending_per_address)
            && (Duration::from_secs(1)..=longest).contains(&self.hello)
        {
            return Ok(());
        }
        let message = format!(
            "what workers may take is out of range: 1 to {MAX_WORKERS} new connections of an address, 1 to {} seconds for a hello",
            longest.as_secs()
        );
        Err(StartError::Config(message))
    }
}

/// What a coordinator is told at its start.
#[derive(Clone)]
pub struct Config {
    /// Where key and store lie; made if it is not there.
    pub data_dir: PathBuf,
    /// Where workers connect (UDP). Port 0 takes a free one.
    pub quic_bind: SocketAddr,
    /// Where clients connect (TCP). Port 0 takes a free one.
    pub http_bind: SocketAddr,
    /// The packages to serve. Each is verified and its bounds are proven before anything starts.
    pub packages: Vec<PathBuf>,
    /// Which workers may join.
    pub allow: Allow,
    /// How jobs are audited whose clients do not ask for more.
    pub audit: AuditPolicy,
    /// Keys of clients; without any, every client is served.
    pub api_keys: Vec<ApiKey>,
    /// What one client may ask for.
    pub caps: ClientCaps,
    /// What workers may take before they have done anything.
    pub workers: WorkerCaps,
    /// Credits that a worker gets when it joins for the first time, for its bonds.
    pub grant: u64,
    /// Of 1,000 audited jobs that ended well, how many are run again under another name, to see whether workers answer
    /// as before: 0 to 1,000.
    pub planted_per_mille: u16,
    /// How long a client waits for an answer before it is told to come back.
    pub http_wait: Duration,
    /// How long a client waits while no worker is connected that could run its job.
    pub worker_wait: Duration,
}

impl Config {
    /// Workers and clients on this machine only, one job in ten audited by one worker, every key allowed, no planted
    /// jobs.
    pub fn local(data_dir: PathBuf) -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            data_dir,
            quic_bind: loopback,
            http_bind: loopback,
            packages: Vec::new(),
            allow: Allow::Any,
            audit: AuditPolicy { per_mille: 100, auditors: 1, hold: false, distinct_operators: false, lockstep: false },
            api_keys: Vec::new(),
            caps: ClientCaps::default(),
            workers: WorkerCaps::default(),
            grant: DEFAULT_GRANT_CREDITS,
            planted_per_mille: 0,
            http_wait: Duration::from_millis(HTTP_WAIT_MS),
            worker_wait: Duration::from_millis(DEFAULT_WORKER_WAIT_MS),
        }
    }

    /// What can be said without opening anything.
    ///
    /// # Errors
    /// [`StartError::Config`].
    pub fn check(&self) -> Result<(), StartError> {
        if !self.audit.is_valid() {
            return Err(StartError::Config(
                "the audit policy is out of range: 0 to 1000 per mille, 1 to 8 auditors".into(),
            ));
        }
        if self.planted_per_mille > 1_000 {
            return Err(StartError::Config("planted jobs are 0 to 1000 of 1000".into()));
        }
        self.caps.check()?;
        self.workers.check()
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("data_dir", &self.data_dir)
            .field("quic_bind", &self.quic_bind)
            .field("http_bind", &self.http_bind)
            .field("packages", &self.packages)
            .field("allow", &self.allow)
            .field("audit", &self.audit)
            .field("api_keys", &self.api_keys.len())
            .field("caps", &self.caps)
            .field("workers", &self.workers)
            .field("grant", &self.grant)
            .field("planted_per_mille", &self.planted_per_mille)
            .field("http_wait", &self.http_wait)
            .field("worker_wait", &self.worker_wait)
            .finish()
    }
}
