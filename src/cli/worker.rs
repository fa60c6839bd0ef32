//! `lockstep worker`

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use indicatif::ProgressBar;
use lockstep_kernels::backend::Backend;
use lockstep_worker::{Config, ErrorKind, Event, Handle, Pipeline, Worker, WorkerError};
use serde::Deserialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::exit::{Exit, Failure, OrExit, Outcome};
use crate::signals::Signals;
use crate::{backend, config, paths, progress};

/// Arguments of `lockstep worker`.
#[derive(Args)]
#[command(
    after_help = "Every option can also come from the environment (LOCKSTEP_...) or from a TOML file with the same \
    names in snake_case. Flags win over the environment, the environment over the file.\n\
    Where another worker gets another result of a job, this one defends its own by itself, from its own run made once more; \
    what it signs for that is kept in its folder.\n\
    A backend that fails a test while it works is not used any more: results since the last good test are taken back, and \
    the worker ends.\n\
    SIGTERM or Ctrl-C drains: running jobs are finished, new ones refused. A second signal stops at once."
)]
pub struct WorkerArgs {
    /// Configuration file [default: ~/.config/lockstep/worker.toml, if there].
    #[arg(long, env = "LOCKSTEP_WORKER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// What flags, environment and file can say.
#[derive(Args, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Coordinator, as it prints itself when it starts: KEY@HOST:PORT.
    #[arg(long, env = "LOCKSTEP_COORDINATOR", value_name = "KEY@HOST:PORT")]
    coordinator: Option<String>,
    /// Folder of the key and the packages [default: ~/.local/share/lockstep].
    #[arg(long, env = "LOCKSTEP_WORKER_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Backend [default: cpu].
    #[arg(
        long,
        env = "LOCKSTEP_BACKEND",
        value_name = "NAME[,NAME...]",
        help = format!(
            "One of {}; or a list, of which the first is used that is here and exact, and the next where it fails or is \
             lost; auto stands for what `lockstep devices` says [default: cpu]",
            backend::NAMES
        ),
    )]
    backend: Option<String>,
    /// Threads to compute with [default: all].
    #[arg(long, env = "LOCKSTEP_THREADS", value_name = "N", value_parser = backend::threads)]
    threads: Option<NonZeroUsize>,
    /// Assignments to hold at a time [default: 16].
    #[arg(long, env = "LOCKSTEP_MAX_IN_FLIGHT", value_name = "N")]
    max_in_flight: Option<NonZeroU32>,
    /// Most bytes that packages may take on disk, all together [default: 68719476736, which is 64 GiB].
    #[arg(long, env = "LOCKSTEP_MAX_PACKAGE_BYTES", value_name = "BYTES")]
    max_package_bytes: Option<u64>,
    /// Most memory for the layer outputs of recent runs, in bytes, so that a dispute about one of them costs one layer; 0
    /// keeps none [default: 536870912, which is 512 MiB].
    #[arg(long, env = "LOCKSTEP_KEPT_RUNS_BYTES", value_name = "BYTES")]
    kept_runs_bytes: Option<u64>,
    /// Memory that each loaded model may take to generate text: keys and values of all that runs, kept prefixes and
    /// passes [default: a quarter of the device's, or of the machine's; where several are joined, of the smallest]. A model for
    /// which that is too little is not offered; the least is said.
    #[arg(long, env = "LOCKSTEP_GENERATION_BYTES", value_name = "BYTES")]
    generation_bytes: Option<u64>,
    /// Most memory to use, in bytes; of a device's own, where the backend is a device that tells how much it has, and of each
    /// where several are joined. A model that does not fit is refused [default: all that there is].
    #[arg(long, env = "LOCKSTEP_MEMORY_BYTES", value_name = "BYTES")]
    memory_bytes: Option<u64>,
    /// Minutes between tests of the machine while it works; one is made before each dispute about a run of this worker too.
    /// 0 makes none [default: 60].
    #[arg(long, env = "LOCKSTEP_SELF_TEST_MINUTES", value_name = "N")]
    self_test_minutes: Option<u32>,
    /// Takes part in pipelines: models that are too large for one worker are shared by several, which send each other rows.
    /// Other workers connect here, at the address from which this one connects to the coordinator; port 0 takes a free one.
    #[arg(long, env = "LOCKSTEP_PIPELINE_LISTEN", value_name = "IP:PORT")]
    pipeline_listen: Option<SocketAddr>,
    /// With --pipeline-listen: most bytes of parameters to hold; no model and no layers with more are taken [default: half
    /// of the machine's memory].
    #[arg(long, env = "LOCKSTEP_MAX_MODEL_BYTES", value_name = "BYTES")]
    max_model_bytes: Option<u64>,
}

impl Options {
    /// These, and where they say nothing, the file's.
    fn or(self, file: Self) -> Self {
        Self {
            coordinator: self.coordinator.or(file.coordinator),
            data_dir: self.data_dir.or(file.data_dir),
            backend: self.backend.or(file.backend),
            threads: self.threads.or(file.threads),
            max_in_flight: self.max_in_flight.or(file.max_in_flight),
            max_package_bytes: self.max_package_bytes.or(file.max_package_bytes),
            kept_runs_bytes: self.kept_runs_bytes.or(file.kept_runs_bytes),
            generation_bytes: self.generation_bytes.or(file.generation_bytes),
            memory_bytes: self.memory_bytes.or(file.memory_bytes),
            self_test_minutes: self.self_test_minutes.or(file.self_test_minutes),
            pipeline_listen: self.pipeline_listen.or(file.pipeline_listen),
            max_model_bytes: self.max_model_bytes.or(file.max_model_bytes),
        }
    }
}

impl Options {
    /// What the worker is started with, and the names of its backends.
    fn resolve(self) -> anyhow::Result<(Config, String)> {
        let coordinator = self.coordinator.ok_or_else(|| {
            anyhow!("there is no coordinator: give --coordinator KEY@HOST:PORT, as `lockstep coordinator` prints it")
        })?;
        let (key, address) = coordinator
            .split_once('@')
            .ok_or_else(|| anyhow!("{coordinator:?} is not KEY@HOST:PORT: the coordinator's key comes before an @"))?;
        let key = key.parse().with_context(|| format!("{key:?} is not a coordinator's key"))?;
        let data_dir = match self.data_dir {
            Some(dir) => dir,
            None => paths::data_dir()?,
        };
        let threads = self.threads.unwrap_or_else(backend::all_threads);
        let mut config = Config::new(key, address.to_owned(), data_dir, threads);
        if let Some(n) = self.max_in_flight {
            config.max_in_flight = n;
        }
        if let Some(bytes) = self.max_package_bytes {
            config.max_package_bytes = bytes;
        }
        if let Some(bytes) = self.kept_runs_bytes {
            config.kept_runs_bytes = bytes;
        }
        config.generation_bytes = self.generation_bytes;
        config.memory_bytes = self.memory_bytes;
        if let Some(minutes) = self.self_test_minutes {
            config.self_test = (minutes > 0).then(|| Duration::from_secs(60 * u64::from(minutes)));
        }
        config.pipeline = match (self.pipeline_listen, self.max_model_bytes) {
            (None, None) => None,
            (None, Some(_)) => return Err(anyhow!("--max-model-bytes is for pipelines: give --pipeline-listen too")),
            (Some(listen), most) => {
                let model_bytes = most.unwrap_or_else(|| lockstep_worker::machine_memory() / 2);
                Some(Pipeline { listen, model_bytes })
            }
        };
        Ok((config, self.backend.unwrap_or_else(|| "cpu".into())))
    }
}

/// Runs a worker until it is drained or turned away.
pub fn run(args: WorkerArgs) -> Outcome {
    let file = config::from_file(args.config.as_deref(), "worker").or_exit(Exit::Configuration)?;
    let (config, backend) = args.options.or(file).resolve().or_exit(Exit::Configuration)?;
    let names = backend::names(&backend);
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(serve(config, &names));
    // What was given up is not waited for.
    runtime.shutdown_background();
    ended
}

async fn serve(config: Config, names: &[String]) -> Outcome {
    let mut signals = Signals::listen()?;
    let on = async |name: &str| {
        let backend = backend::open_within(name, config.threads, config.memory_bytes)?;
        serve_on(config.clone(), backend, &mut signals).await
    };
    first_that_serves(names, on, |message| eprintln!("{message}")).await
}

/// Serves with the first backend that this machine has and that is exact, and with the next one where it is not, or not any
/// more. One that was left is not tried again.
async fn first_that_serves(
    names: &[String],
    mut serve_on: impl AsyncFnMut(&str) -> Outcome,
    mut say: impl FnMut(String),
) -> Outcome {
    let mut rest = names.iter().peekable();
    loop {
        let name = rest.next().map(String::as_str).unwrap_or_default();
        match (serve_on(name).await, rest.peek()) {
            (Err(Failure { exit: Exit::NoDevice, error }), Some(next)) => {
                say(format!("backend {name} is not used: {error:#}; going on with {next}"));
            }
            (ended, _) => return ended,
        }
    }
}

async fn serve_on(config: Config, backend: Arc<dyn Backend>, signals: &mut Signals) -> Outcome {
    let mut handle = Worker::start(config, backend).map_err(failure)?;
    println!("worker {}", handle.id());
    let events = handle.subscribe();
    let printing = tokio::spawn(print_events(events));
    let ended = wait_or_signal(&mut handle, signals).await;
    printing.abort();
    ended
}

/// The first signal drains, the second aborts.
async fn wait_or_signal(handle: &mut Handle, signals: &mut Signals) -> Outcome {
    tokio::select! {
        ended = handle.wait() => return ended.map_err(failure),
        signal = signals.next() => signal?,
    }
    tracing::info!("draining: running jobs are finished; a second signal stops at once");
    handle.drain();
    tokio::select! {
        ended = handle.wait() => return ended.map_err(failure),
        signal = signals.next() => signal?,
    }
    handle.abort();
    handle.wait().await.map_err(failure)
}

fn failure(error: WorkerError) -> Failure {
    let exit = match error.kind() {
        ErrorKind::Configuration => Exit::Configuration,
        ErrorKind::NoDevice => Exit::NoDevice,
        ErrorKind::Authentication => Exit::Authentication,
        ErrorKind::Aborted => Exit::DrainForced,
        ErrorKind::Failed => Exit::Failed,
    };
    Failure { exit, error: error.into() }
}

/// What an operator wants to see, one line each; the rest is in the log at -v.
async fn print_events(mut events: broadcast::Receiver<Event>) {
    let mut pull: Option<ProgressBar> = None;
    loop {
        let event = match events.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        match event {
            Event::Pulling { model, done, total } => {
                let bar = pull.get_or_insert_with(|| progress::bar(total, &format!("pulling {}", short(&model))));
                bar.set_position(done);
                continue;
            }
            Event::ModelReady { .. } | Event::ModelFailed { .. } => {
                if let Some(bar) = pull.take() {
                    bar.finish_and_clear();
                }
            }
            _ => {}
        }
        if let Some(line) = line(&event) {
            println!("{line}");
        }
    }
}

fn line(event: &Event) -> Option<String> {
    Some(match event {
        Event::Checked { backend, cases, macs_per_second, .. } => {
            let giga = *macs_per_second as f64 / 1e9;
            format!("{backend} is exact in {cases} cases, and does {giga:.1} billion multiply-accumulates a second")
        }
        Event::Connecting { address } => format!("connecting to {address}"),
        Event::Connected { coordinator, .. } => format!("connected to coordinator {coordinator}"),
        Event::Disconnected { reason, retry_in } => {
            format!("not connected: {reason}; trying again in {:.1} s", retry_in.as_secs_f64())
        }
        Event::ModelReady { model } => format!("model {model} is here, verified and proven"),
        Event::ModelFailed { model, reason } => format!("model {model} can't be used: {reason}"),
        Event::Finished { job, elapsed, .. } => {
            format!("job {} done in {:.1} ms", short(job), 1e3 * elapsed.as_secs_f64())
        }
        Event::Failed { job, reason, .. } => format!("job {} given back: {reason}", short(job)),
        Event::Halted { job, roots, .. } => {
            format!("job {} halted after {roots} roots: another worker has others", short(job))
        }
        Event::DisputeAsked { dispute, job, side, place } => {
            format!("dispute {} about job {} at {place}: this worker is its {side}", short(dispute), short(job))
        }
        Event::DisputeMoved { dispute, round, kind } => {
            format!("dispute {}: moved in round {round} ({kind})", short(dispute))
        }
        Event::DisputeFailed { dispute, reason, retry_in } => {
            let then = retry_in.map(|pause| format!("; trying again in {:.1} s", pause.as_secs_f64()));
            format!("dispute {}: no move: {reason}{}", short(dispute), then.unwrap_or_default())
        }
        Event::Conceded { dispute, job, .. } => format!(
            "dispute {}: this machine now gets another result for job {} than it signed, and takes that back: test it",
            short(dispute),
            short(job)
        ),
        Event::EquivocationSeen { dispute, round } => {
            format!("dispute {}: the other side signed two moves for round {round}; the proof is sent", short(dispute))
        }
        Event::DisputeJudged { dispute, verdict, lost } => {
            let outcome = match lost {
                Some(true) => "lost",
                Some(false) => "not lost",
                None => "over",
            };
            format!("dispute {}: {outcome} (the loser {})", short(dispute), verdict.reason)
        }
        Event::HeadRefused { size, reason } => {
            format!("WARNING: a head of the coordinator's log ({size} entries) was not cosigned: {reason}")
        }
        Event::SelfTested { damaged } if damaged.is_empty() => return None,
        Event::SelfTested { damaged } => format!("{} damaged packages were found on this machine", damaged.len()),
        Event::SelfTestFailed { reason } => {
            format!("THIS MACHINE FAILED A TEST and takes back what it signed since the last good one: {reason}")
        }
        Event::DeviceLost { backend, reason } => {
            format!("{backend} is lost, and is not used again before this worker is started anew: {reason}")
        }
        Event::Retracted { job, .. } => format!("job {}: its result may be wrong, and is taken back", short(job)),
        Event::Faulty { reason } => format!("set aside by the coordinator, testing this machine: {reason}"),
        Event::Quarantined { reason } => format!("the coordinator found this worker wrong: {reason}"),
        Event::Draining => "draining".into(),
        _ => return None,
    })
}

/// The first digits of an id.
fn short(id: &impl ToString) -> String {
    id.to_string().chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use lockstep_kernels::cpu::Cpu;
    use lockstep_protocol::identity::Keypair;
    use lockstep_sim::adversary::{Change, Lie, LyingBackend, Target};

    use super::*;

    /// A backend that is wrong in one element of the first op of the first layer, in whatever it runs.
    fn wrong() -> Arc<dyn Backend> {
        let cpu = Cpu::new(None, 1).expect("a path");
        let lie = Lie { layer: 1, op: 0, target: Target::Element { row: 0, col: 0 }, change: Change::Xor(1) };
        Arc::new(LyingBackend::new("wrong".into(), cpu.kernels().clone(), &[lie]))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_backend_that_is_wrong_is_left_with_its_op_and_element_for_the_next() {
        let folder = tempfile::tempdir().expect("a folder");
        let coordinator = Keypair::from_seed([7; 32]).id();
        let (data, threads) = (folder.path().join("w"), NonZeroUsize::MIN);
        let config = Config::new(coordinator, "127.0.0.1:1".into(), data, threads);
        let mut served = Vec::new();
        let on = async |name: &str| {
            served.push(name.to_owned());
            let backend = if name == "wrong" { wrong() } else { backend::open(name, threads)? };
            let mut handle = Worker::start(config.clone(), backend).map_err(failure)?;
            let mut events = handle.subscribe();
            loop {
                tokio::select! {
                    ended = handle.wait() => return ended.map_err(failure),
                    event = events.recv() => if matches!(event, Ok(Event::Checked { .. })) {
                        return Ok(());
                    },
                }
            }
        };
        let mut said = Vec::new();
        let names = ["wrong", "cpu"].map(str::to_owned);
        first_that_serves(&names, on, |message| said.push(message)).await.expect("cpu is exact");
        assert_eq!(served, names);
        let [message] = &said[..] else { panic!("{said:?}") };
        for part in ["backend wrong is not used", "op ", "tensor ", "[0, 0]: expected ", "going on with cpu"] {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
}
