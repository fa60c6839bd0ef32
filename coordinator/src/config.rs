//! What a coordinator is told at its start.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::reference::Reference;
use lockstep_protocol::ids::NodeId;
use lockstep_protocol::limits::HTTP_WAIT_MS;
use lockstep_protocol::machine::AuditPolicy;

use crate::error::StartError;

/// Which workers may join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Every key.
    Any,
    /// These keys only.
    Keys(BTreeSet<NodeId>),
}

impl Allow {
    /// Whether a key may join.
    pub fn permits(&self, node: &NodeId) -> bool {
        match self {
            Self::Any => true,
            Self::Keys(keys) => keys.contains(node),
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
    /// What recomputes a job over which two workers differ.
    pub oracle: Arc<dyn Backend>,
    /// How long a client waits for an answer before it is told to come back.
    pub http_wait: Duration,
}

impl Config {
    /// Workers and clients on this machine only, one job in ten audited by one worker, every key allowed, the
    /// reference backend as oracle.
    pub fn local(data_dir: PathBuf) -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            data_dir,
            quic_bind: loopback,
            http_bind: loopback,
            packages: Vec::new(),
            allow: Allow::Any,
            audit: AuditPolicy { per_mille: 100, auditors: 1, hold: false },
            api_keys: Vec::new(),
            oracle: Arc::new(Reference),
            http_wait: Duration::from_millis(HTTP_WAIT_MS),
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
        Ok(())
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
            .field("oracle", &self.oracle.name())
            .field("http_wait", &self.http_wait)
            .finish()
    }
}
