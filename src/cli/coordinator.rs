//! `lockstep coordinator`

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{anyhow, bail};
use clap::Args;
use lockstep_coordinator::{Allow, ApiKey, Config, Coordinator};
use lockstep_protocol::ids::NodeId;
use lockstep_protocol::machine::AuditPolicy;
use serde::Deserialize;

use crate::exit::{Exit, OrExit, Outcome};
use crate::secret::{self, Secret};
use crate::signals::Signals;
use crate::{config, paths};

/// Arguments of `lockstep coordinator`.
#[derive(Args)]
#[command(
    after_help = "Every option can also come from the environment (LOCKSTEP_...) or from a TOML file with the same \
    names in snake_case. Flags win over the environment, the environment over the file.\n\
    SIGTERM or Ctrl-C shuts down in order: requests under way are answered for some seconds. A second signal ends it at once."
)]
pub struct CoordinatorArgs {
    /// Configuration file [default: ~/.config/lockstep/coordinator.toml, if there].
    #[arg(long, env = "LOCKSTEP_COORDINATOR_CONFIG", value_name = "FILE")]
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
    #[serde(deserialize_with = "secret::list")]
    api_keys: Option<Vec<Secret>>,
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
        let api_keys = self.api_keys.unwrap_or_default();
        if api_keys.iter().any(|key| key.expose().is_empty()) {
            bail!("an API key is empty: leave the option out to serve everybody");
        }
        let mut config = Config::local(data_dir);
        config.quic_bind = self.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7420)));
        config.http_bind = self.http.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8420)));
        config.packages = packages;
        config.allow = allow;
        config.audit = AuditPolicy {
            per_mille: per_mille(self.audit_probability.unwrap_or(0.1))?,
            auditors: self.auditors.unwrap_or(1),
            hold: self.audit_hold.unwrap_or(true),
        };
        config.api_keys = api_keys.iter().map(|key| ApiKey::from_secret(key.expose())).collect();
        Ok(config)
    }
}

/// A probability as the policy counts it. One between two steps is refused: rounded, it would be another, perhaps none.
fn per_mille(probability: f64) -> anyhow::Result<u16> {
    if !(0.0..=1.0).contains(&probability) {
        bail!("the audit probability must be from 0 to 1, not {probability}");
    }
    let steps = probability * 1_000.0;
    if (steps - steps.round()).abs() > 1e-9 {
        bail!("the audit probability must be a multiple of 0.001, not {probability}");
    }
    Ok(steps.round() as u16)
}

/// Runs a coordinator until a signal ends it.
pub fn run(args: CoordinatorArgs) -> Outcome {
    let file = config::from_file(args.config.as_deref(), "coordinator").or_exit(Exit::Configuration)?;
    let config = args.options.or(file).resolve().or_exit(Exit::Configuration)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(serve(config));
    // After a second signal nothing is waited for.
    runtime.shutdown_background();
    ended
}

/// The first signal shuts down in order, the second cuts that short.
async fn serve(config: Config) -> Outcome {
    let handle = Coordinator::start(config).await.or_exit(Exit::Configuration)?;
    let mut signals = Signals::listen()?;
    for (id, name) in handle.models() {
        println!("serving {name}, model id {id}");
    }
    println!("clients: http://{}/v1", handle.http_addr());
    println!("workers: lockstep worker --coordinator {}@{}", handle.node_id(), handle.quic_addr());
    signals.next().await?;
    println!("going down; everything acknowledged is kept; a second signal ends it at once");
    tokio::select! {
        ended = handle.shutdown() => ended.or_exit(Exit::Failed),
        signal = signals.next() => {
            signal?;
            Err(anyhow!("the shutdown was cut short; everything acknowledged is kept")).or_exit(Exit::DrainForced)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::per_mille;

    #[test]
    fn probabilities_are_counted_exactly_or_refused() {
        for steps in 0..=1_000_u16 {
            let written = format!("{}.{:03}", steps / 1_000, steps % 1_000);
            assert_eq!(per_mille(written.parse().expect("a number")).expect("a multiple"), steps);
        }
        for wrong in [0.0004, 0.0015, 0.99999, -0.001, 1.001, f64::NAN, f64::INFINITY] {
            assert!(per_mille(wrong).is_err(), "{wrong}");
        }
    }
}
