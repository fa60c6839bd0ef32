//! `lockstep coordinator`

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use lockstep_coordinator::{Allow, ApiKey, Config, Coordinator};
use lockstep_protocol::ids::NodeId;
use lockstep_protocol::machine::AuditPolicy;
use serde::Deserialize;

use crate::exit::{Exit, OrExit, Outcome};
use crate::{config, paths, signals};

/// Arguments of `lockstep coordinator`.
#[derive(Args)]
#[command(
    after_help = "Every option can also come from the environment (LOCKSTEP_...) or from a TOML file with the same \
    names in snake_case. Flags win over the environment, the environment over the file."
)]
pub struct CoordinatorArgs {
    /// Configuration file [default: ~/.config/lockstep/coordinator.toml, if there].
    #[arg(long, env = "LOCKSTEP_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// What flags, environment and file can say.
#[derive(Args, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Folder of the key and the store [default: ~/.local/share/lockstep/coordinator].
    #[arg(long, env = "LOCKSTEP_COORDINATOR_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address for workers (QUIC, UDP) [default: 127.0.0.1:7420].
    #[arg(long, env = "LOCKSTEP_LISTEN", value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Address for clients (HTTP) [default: 127.0.0.1:8420].
    #[arg(long, env = "LOCKSTEP_HTTP", value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Packages to serve; may be repeated.
    #[arg(long = "package", env = "LOCKSTEP_PACKAGES", value_delimiter = ',', value_name = "FILE")]
    packages: Option<Vec<PathBuf>>,
    /// Key of a worker that may join; may be repeated.
    #[arg(long = "allow-worker", env = "LOCKSTEP_ALLOW_WORKERS", value_delimiter = ',', value_name = "KEY")]
    allow_workers: Option<Vec<NodeId>>,
    /// Let every worker join.
    #[arg(long, env = "LOCKSTEP_ALLOW_ANY_WORKER", num_args = 0..=1, default_missing_value = "true")]
    allow_any_worker: Option<bool>,
    /// Share of jobs that are audited, 0 to 1 in steps of 0.001 [default: 0.1].
    #[arg(long, env = "LOCKSTEP_AUDIT_PROBABILITY", value_name = "P")]
    audit_probability: Option<f64>,
    /// Auditors of an audited job [default: 1].
    #[arg(long, env = "LOCKSTEP_AUDITORS", value_name = "N")]
    auditors: Option<u8>,
    /// Answer an audited job only after its audit [default: true].
    #[arg(long, env = "LOCKSTEP_AUDIT_HOLD", num_args = 0..=1, default_missing_value = "true")]
    audit_hold: Option<bool>,
    /// API keys of clients; without any, HTTP is open. Better in the environment or the file than in a flag.
    #[arg(
        long = "api-key",
        env = "LOCKSTEP_API_KEYS",
        value_delimiter = ',',
        hide_env_values = true,
        value_name = "KEY"
    )]
    api_keys: Option<Vec<String>>,
}

impl Options {
    /// These, and where they say nothing, the file's.
    fn or(self, file: Self) -> Self {
        Self {
            data_dir: self.data_dir.or(file.data_dir),
            listen: self.listen.or(file.listen),
            http: self.http.or(file.http),
            packages: self.packages.or(file.packages),
            allow_workers: self.allow_workers.or(file.allow_workers),
            allow_any_worker: self.allow_any_worker.or(file.allow_any_worker),
            audit_probability: self.audit_probability.or(file.audit_probability),
            auditors: self.auditors.or(file.auditors),
            audit_hold: self.audit_hold.or(file.audit_hold),
            api_keys: self.api_keys.or(file.api_keys),
        }
    }
}

impl Options {
    /// What the coordinator is started with.
    fn resolve(self) -> anyhow::Result<Config> {
        let data_dir = match self.data_dir {
            Some(dir) => dir,
            None => paths::data_dir()?.join("coordinator"),
        };
        let packages = self.packages.unwrap_or_default();
        if packages.is_empty() {
            bail!("there is no package to serve: name one with --package, made by `lockstep import`");
        }
        let keys: BTreeSet<NodeId> = self.allow_workers.unwrap_or_default().into_iter().collect();
        let allow = match (self.allow_any_worker.unwrap_or(false), keys.is_empty()) {
            (true, true) => Allow::Any,
            (true, false) => bail!("--allow-any-worker and a list of workers exclude each other"),
            (false, true) => bail!("no worker may join: name keys with --allow-worker, or use --allow-any-worker"),
            (false, false) => Allow::Keys(keys),
        };
        let probability = self.audit_probability.unwrap_or(0.1);
        if !(0.0..=1.0).contains(&probability) {
            bail!("the audit probability must be from 0 to 1, not {probability}");
        }
        let mut config = Config::local(data_dir);
        config.quic_bind = self.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7420)));
        config.http_bind = self.http.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8420)));
        config.packages = packages;
        config.allow = allow;
        config.audit = AuditPolicy {
            per_mille: (probability * 1_000.0).round() as u16,
            auditors: self.auditors.unwrap_or(1),
            hold: self.audit_hold.unwrap_or(true),
        };
        config.api_keys = self.api_keys.unwrap_or_default().iter().map(|key| ApiKey::from_secret(key)).collect();
        Ok(config)
    }
}

/// Runs a coordinator until a signal ends it.
pub fn run(args: CoordinatorArgs) -> Outcome {
    let file = config::from_file(args.config.as_deref(), "coordinator").or_exit(Exit::Configuration)?;
    let config = args.options.or(file).resolve().or_exit(Exit::Configuration)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let handle = Coordinator::start(config).await.or_exit(Exit::Configuration)?;
        for (id, name) in handle.models() {
            println!("serving {name}, model id {id}");
        }
        println!("clients: http://{}/v1", handle.http_addr());
        println!("workers: lockstep worker --coordinator {}@{}", handle.node_id(), handle.quic_addr());
        signals::first().await?;
        tracing::info!("going down; everything acknowledged is kept");
        handle.shutdown().await;
        Ok(())
    })
}
