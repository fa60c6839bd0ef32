//! `lockstep coordinator`

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use lockstep_coordinator::{Allow, ApiKey, ClientCaps, Config, Coordinator, WorkerCaps};
use lockstep_protocol::ids::NodeId;
use lockstep_protocol::limits::{
    DEFAULT_GRANT_CREDITS, DEFAULT_GRANTS_PER_HOUR, DEFAULT_MAX_CHOICES, DEFAULT_MAX_TOKENS,
    DEFAULT_PENDING_CONNECTIONS, DEFAULT_REQUEST_BURST, DEFAULT_REQUESTS_PER_SECOND, DEFAULT_TOKENS_PER_MINUTE,
    DEFAULT_WORKER_WAIT_MS, HELLO_MS, MAX_GENERATED_TOKENS, MAX_HELLO_MS, MAX_REQUEST_INPUTS,
};
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
    /// Key of a worker that may join, with the name of who operates it where that is known; may be repeated.
    #[arg(long = "allow-worker", env = "LOCKSTEP_ALLOW_WORKERS", value_delimiter = ',', value_name = "KEY[=OPERATOR]")]
    allow_workers: Option<Vec<AllowedWorker>>,
    /// Let every worker join.
    #[arg(long, env = "LOCKSTEP_ALLOW_ANY_WORKER", num_args = 0..=1, default_missing_value = "true")]
    allow_any_worker: Option<bool>,
    /// Share of jobs that are audited, 0 to 1 in steps of 0.001 [default: 0.1].
    #[arg(long, env = "LOCKSTEP_AUDIT_PROBABILITY", value_name = "P")]
    audit_probability: Option<f64>,
    /// Auditors of an audited job [default: 1].
    #[arg(long, env = "LOCKSTEP_AUDITORS", value_name = "N")]
    auditors: Option<u8>,
    /// Fail a job that is drawn for an audit and finds too few auditors, instead of answering it with a receipt that
    /// shows fewer audits. A client can ask for that by itself [default: false].
    #[arg(long, env = "LOCKSTEP_AUDIT_HOLD", num_args = 0..=1, default_missing_value = "true")]
    audit_hold: Option<bool>,
    /// Take as auditors only workers of other operators than the first one's; those without an operator are none
    /// [default: false].
    #[arg(long, env = "LOCKSTEP_AUDIT_OTHER_OPERATORS", num_args = 0..=1, default_missing_value = "true")]
    audit_other_operators: Option<bool>,
    /// Let auditors run beside the first worker, so that a job stops at the first layer that differs [default: false].
    #[arg(long, env = "LOCKSTEP_AUDIT_BESIDE", num_args = 0..=1, default_missing_value = "true")]
    audit_beside: Option<bool>,
    /// Share of audited jobs that are run again under another name, to see whether workers answer as before, 0 to 1 in
    /// steps of 0.001 [default: 0].
    #[arg(long, env = "LOCKSTEP_PLANTED_PROBABILITY", value_name = "P")]
    planted_probability: Option<f64>,
    /// Credits that a worker gets when it joins for the first time, for its bonds.
    #[arg(long, env = "LOCKSTEP_GRANT_CREDITS", value_name = "N", help = format!("Credits that a worker gets when it \
        joins for the first time, for its bonds [default: {DEFAULT_GRANT_CREDITS}]"))]
    grant_credits: Option<u64>,
    #[arg(long, env = "LOCKSTEP_WORKER_GRANTS_PER_HOUR", value_name = "N", help = format!("Most workers that get these \
        credits in an hour; the others wait. Where every key may join, it keeps somebody with many keys from filling the \
        ledger [default: {DEFAULT_GRANTS_PER_HOUR}]"))]
    worker_grants_per_hour: Option<u32>,
    #[arg(long, env = "LOCKSTEP_WORKER_CONNECTIONS_PER_ADDRESS", value_name = "N", help = format!("Most connections from \
        one address that have not said hello; more for many workers behind one address [default: \
        {DEFAULT_PENDING_CONNECTIONS}]"))]
    worker_connections_per_address: Option<usize>,
    #[arg(long, env = "LOCKSTEP_WORKER_HELLO_SECONDS", value_name = "N", help = format!("Seconds that a new connection of \
        a worker may take until it has said hello, up to {} [default: {}]", MAX_HELLO_MS / 1_000, HELLO_MS / 1_000))]
    worker_hello_seconds: Option<u64>,
    #[arg(long, env = "LOCKSTEP_WORKER_WAIT_SECONDS", value_name = "N", help = format!("Seconds that a client waits while no \
        worker is connected that can run its job; then it is told to come back [default: {}]", DEFAULT_WORKER_WAIT_MS / 1_000))]
    worker_wait_seconds: Option<u64>,
    #[arg(long, env = "LOCKSTEP_CLIENT_REQUESTS_PER_SECOND", value_name = "N", help = format!("Requests for work that a \
        client may go on sending each second; a client is an API key, or an address where there are no keys; 0 counts \
        nothing [default: {DEFAULT_REQUESTS_PER_SECOND}]"))]
    client_requests_per_second: Option<u64>,
    #[arg(long, env = "LOCKSTEP_CLIENT_REQUEST_BURST", value_name = "N", help = format!("Requests for work that a client \
        may send at once [default: {DEFAULT_REQUEST_BURST}]"))]
    client_request_burst: Option<u64>,
    #[arg(long, env = "LOCKSTEP_CLIENT_TOKENS_PER_MINUTE", value_name = "N", help = format!("Tokens that a client may ask \
        for each minute, those of its prompts and those that its answers may come to; 0 counts nothing [default: \
        {DEFAULT_TOKENS_PER_MINUTE}]"))]
    client_tokens_per_minute: Option<u64>,
    #[arg(long, env = "LOCKSTEP_MAX_TOKENS", value_name = "N", help = format!("Most tokens of one generated answer, up to \
        {MAX_GENERATED_TOKENS}; an answer whose client names no number ends there too [default: {DEFAULT_MAX_TOKENS}]"))]
    max_tokens: Option<u32>,
    #[arg(long, env = "LOCKSTEP_MAX_CHOICES", value_name = "N", help = format!("Most answers to one request for \
        generation, over all its prompts, up to {MAX_REQUEST_INPUTS} [default: {DEFAULT_MAX_CHOICES}]"))]
    max_choices: Option<u32>,
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

/// A worker on the list, written `KEY` or `KEY=OPERATOR`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct AllowedWorker {
    key: NodeId,
    operator: Option<String>,
}

impl FromStr for AllowedWorker {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (key, operator) = text.split_once('=').map_or((text, None), |(key, operator)| (key, Some(operator)));
        if operator.is_some_and(str::is_empty) {
            bail!("{text:?} names no operator after its =");
        }
        let key = key.parse().with_context(|| format!("{key:?} is not a worker's key"))?;
        Ok(Self { key, operator: operator.map(str::to_owned) })
    }
}

impl TryFrom<String> for AllowedWorker {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        text.parse()
    }
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
            audit_other_operators: self.audit_other_operators.or(file.audit_other_operators),
            audit_beside: self.audit_beside.or(file.audit_beside),
            planted_probability: self.planted_probability.or(file.planted_probability),
            grant_credits: self.grant_credits.or(file.grant_credits),
            worker_grants_per_hour: self.worker_grants_per_hour.or(file.worker_grants_per_hour),
            worker_connections_per_address: self.worker_connections_per_address.or(file.worker_connections_per_address),
            worker_hello_seconds: self.worker_hello_seconds.or(file.worker_hello_seconds),
            worker_wait_seconds: self.worker_wait_seconds.or(file.worker_wait_seconds),
            client_requests_per_second: self.client_requests_per_second.or(file.client_requests_per_second),
            client_request_burst: self.client_request_burst.or(file.client_request_burst),
            client_tokens_per_minute: self.client_tokens_per_minute.or(file.client_tokens_per_minute),
            max_tokens: self.max_tokens.or(file.max_tokens),
            max_choices: self.max_choices.or(file.max_choices),
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
        let listed = self.allow_workers.unwrap_or_default();
        let keys: BTreeMap<_, _> = listed.into_iter().map(|worker| (worker.key, worker.operator)).collect();
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
            per_mille: per_mille("audit probability", self.audit_probability.unwrap_or(0.1))?,
            auditors: self.auditors.unwrap_or(1),
            hold: self.audit_hold.unwrap_or(false),
            distinct_operators: self.audit_other_operators.unwrap_or(false),
            lockstep: self.audit_beside.unwrap_or(false),
        };
        config.planted_per_mille = per_mille("planted probability", self.planted_probability.unwrap_or(0.0))?;
        config.caps = ClientCaps {
            requests_per_second: self.client_requests_per_second.unwrap_or(DEFAULT_REQUESTS_PER_SECOND),
            request_burst: self.client_request_burst.unwrap_or(DEFAULT_REQUEST_BURST),
            tokens_per_minute: self.client_tokens_per_minute.unwrap_or(DEFAULT_TOKENS_PER_MINUTE),
            max_tokens: self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS),
            max_choices: self.max_choices.unwrap_or(DEFAULT_MAX_CHOICES),
        };
        config.grant = self.grant_credits.unwrap_or(DEFAULT_GRANT_CREDITS);
        config.workers = WorkerCaps {
            grants_per_hour: self.worker_grants_per_hour.unwrap_or(DEFAULT_GRANTS_PER_HOUR),
            pending_per_address: self.worker_connections_per_address.unwrap_or(DEFAULT_PENDING_CONNECTIONS),
            hello: self.worker_hello_seconds.map_or(Duration::from_millis(HELLO_MS), Duration::from_secs),
        };
        config.worker_wait = self.worker_wait_seconds.map_or(config.worker_wait, Duration::from_secs);
        config.api_keys = api_keys.iter().map(|key| ApiKey::from_secret(key.expose())).collect();
        Ok(config)
    }
}

/// A probability as the policy counts it. One between two steps is refused: rounded, it would be another, perhaps none.
fn per_mille(what: &str, probability: f64) -> anyhow::Result<u16> {
    if !(0.0..=1.0).contains(&probability) {
        bail!("the {what} must be from 0 to 1, not {probability}");
    }
    let steps = probability * 1_000.0;
    if (steps - steps.round()).abs() > 1e-9 {
        bail!("the {what} must be a multiple of 0.001, not {probability}");
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
    for (index, (id, name)) in handle.models().iter().enumerate() {
        let is_taken = handle.models()[..index].iter().any(|(_, earlier)| earlier == name);
        let by_id = if is_taken { " (asked for by this id alone: the name is that of one above)" } else { "" };
        println!("serving {name}, model id {id}{by_id}");
    }
    println!("clients: http://{}/v1", handle.http_addr());
    println!("workers: lockstep worker --coordinator {}@{}", handle.node_id(), handle.quic_addr());
    let ended = tokio::select! {
        signal = signals.next() => signal.map(|_| false)?,
        () = handle.engine().ended() => true,
    };
    if ended {
        // It has said why.
        return handle.shutdown().await.or_exit(Exit::Failed);
    }
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
    use super::{AllowedWorker, per_mille};

    #[test]
    fn a_listed_worker_may_have_an_operator() {
        let key = "6e7a1cdd29b0b78fd13af4c5598feff4ef2a97166e3ca6f2e4fbfccd80505bf1";
        let read = |text: &str| text.parse::<AllowedWorker>();
        assert_eq!(read(key).expect("a key").operator, None);
        let with = read(&format!("{key}=Ada & Co.")).expect("a key with an operator");
        assert_eq!((with.key.to_string().as_str(), with.operator.as_deref()), (key, Some("Ada & Co.")));
        for wrong in ["", "=Ada", &key[1..], &format!("{key}=")] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn probabilities_are_counted_exactly_or_refused() {
        for steps in 0..=1_000_u16 {
            let written = format!("{}.{:03}", steps / 1_000, steps % 1_000);
            assert_eq!(per_mille("share", written.parse().expect("a number")).expect("a multiple"), steps);
        }
        for wrong in [0.0004, 0.0015, 0.99999, -0.001, 1.001, f64::NAN, f64::INFINITY] {
            assert!(per_mille("share", wrong).is_err(), "{wrong}");
        }
    }
}
