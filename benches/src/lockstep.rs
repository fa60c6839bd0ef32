//! What an auditor that runs beside the worker adds to the time of a generation, through a real coordinator and two workers
//! over QUIC on this machine.
//!
//! Three things are measured in turn. A job alone; two jobs at once, of which nobody audits any, so that two workers compute
//! at the same time and share what this machine has; and one job with an auditor in lockstep. What the third takes longer than
//! the second is the audit's own: its draw, roots that are compared, a second run that has to be shown before the end. What the second
//! takes longer than the first is the machine's, and nothing where the two workers have a machine each.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lockstep_coordinator::engine::{JobEnd, Progress, Submission};
use lockstep_coordinator::{Config, Coordinator, Handle};
use lockstep_kernels::backend::Backend;
use lockstep_model::package::Package;
use lockstep_protocol::generation::{Generation, SAMPLING_ONE};
use lockstep_protocol::ids::{ModelId, Nonce, Seed};
use lockstep_protocol::job::{Job, JobKind, RequestInput, SPEC_VERSION};
use lockstep_protocol::machine::{AuditPolicy, JobSpec, Work};
use lockstep_worker::Worker;

use crate::report::{Figure, Row};
use crate::samples::Samples;
use crate::watch::{Seen, Watch};

/// How long the workers may take to test themselves, join and fetch the model.
const JOIN_TIME: Duration = Duration::from_secs(600);

/// What to generate.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens to generate.
    pub tokens: u32,
    /// Times that count; everything runs once more to warm up.
    pub samples: usize,
}

/// What runs at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One job, and nobody audits it.
    Alone,
    /// Two jobs, and nobody audits them.
    TwoJobs,
    /// One job, with an auditor beside the worker.
    Lockstep,
}

impl Mode {
    /// In the order in which they are measured.
    pub const ALL: [Self; 3] = [Self::Alone, Self::TwoJobs, Self::Lockstep];

    const fn name(self) -> &'static str {
        match self {
            Self::Alone => "one job, no audit",
            Self::TwoJobs => "two jobs, no audits",
            Self::Lockstep => "one job, audited in lockstep",
        }
    }
}

/// Seconds from a submission, of each sample.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// To the first word that the client is told.
    pub first_word: Vec<f64>,
    /// To the last one.
    pub last_word: Vec<f64>,
    /// To the receipt.
    pub receipt: Vec<f64>,
}

/// The times of each mode, in the order of [`Mode::ALL`].
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Of each mode.
    pub times: [Times; 3],
    /// What was to be seen meanwhile; the modes take turns, so it is that of all.
    pub seen: Seen,
}

impl Measured {
    /// One row for each mode.
    pub fn rows(&self) -> Vec<Row> {
        let row = |(mode, times): (Mode, &Times)| {
            let of = |seconds: &Vec<f64>| Samples(seconds.clone());
            Row::new([("what", mode.name().into())])
                .figure(Figure::of("first_word_seconds", "first word s", &of(&times.first_word)))
                .figure(Figure::of("last_word_seconds", "last word s", &of(&times.last_word)))
                .figure(Figure::of("receipt_seconds", "receipt s", &of(&times.receipt)))
                .detail("last_word_samples", times.last_word.clone())
                .detail("receipt_samples", times.receipt.clone())
                .seen(&self.seen)
        };
        Mode::ALL.into_iter().zip(&self.times).map(row).collect()
    }

    /// Median seconds that the audit adds to the last word and to the receipt beside two workers that compute anyway, and that two
    /// workers add to those of one because they share this machine.
    pub fn added(&self) -> [[f64; 2]; 2] {
        let median = |seconds: &Vec<f64>| Samples(seconds.clone()).median();
        let [alone, two, audited] = [0, 1, 2].map(|mode| {
            let times: &Times = &self.times[mode];
            [median(&times.last_word), median(&times.receipt)]
        });
        [[0, 1].map(|what| audited[what] - two[what]), [0, 1].map(|what| two[what] - alone[what])]
    }
}

/// Measures. `backends` compute for one worker each; `data` is an empty folder.
///
/// # Errors
/// The coordinator or a worker does not start, or a job does not end as it should.
pub async fn measure(
    package: &Path,
    backends: [Arc<dyn Backend>; 2],
    workload: Workload,
    data: &Path,
) -> Result<Measured> {
    let mut config = Config::local(data.join("coordinator"));
    // Workers of its own are on their way.
    config.worker_wait = config.http_wait;
    config.packages = vec![package.to_path_buf()];
    let coordinator = Coordinator::start(config).await?;
    let mut workers = Vec::new();
    for (number, backend) in backends.into_iter().enumerate() {
        let (address, folder) = (coordinator.quic_addr().to_string(), data.join(format!("worker {number}")));
        let one = std::num::NonZeroUsize::MIN;
        let mut config = lockstep_worker::Config::new(coordinator.node_id(), address, folder, one);
        // So that two runs are never on one worker.
        config.max_in_flight = std::num::NonZeroU32::MIN;
        workers.push(Worker::start(config, backend)?);
    }
    let measured = drive(&Package::open(package)?, workload, &coordinator).await;
    for mut worker in workers {
        worker.abort();
        // That it was aborted is no news.
        let _ = worker.wait().await;
    }
    coordinator.shutdown().await?;
    measured
}

async fn drive(package: &Package, workload: Workload, coordinator: &Handle) -> Result<Measured> {
    joined(coordinator, package.model_id()).await?;
    let (mut measured, mut number) = (Measured::default(), 0);
    // Coordinator, workers and what computes have more threads than cores.
    let watch = Watch::crowded();
    for sample in 0..=workload.samples {
        for (mode, times) in Mode::ALL.into_iter().zip(&mut measured.times) {
            let count = if mode == Mode::TwoJobs { 2 } else { 1 };
            let specs: Vec<_> = (number..number + count).map(|number| spec(package, workload, mode, number)).collect();
            number += count;
            let start = Instant::now();
            let mut jobs = Vec::new();
            for spec in specs {
                jobs.push(tokio::spawn(timed(coordinator.engine().clone(), spec, start)));
            }
            let (mut words, mut receipts) = ([f64::INFINITY; 2], 0.0_f64);
            for job in jobs {
                let [first, last, receipt] = job.await??;
                // As of a run with its auditor: the client is told the words of whoever is faster, and the end waits for both.
                words = [words[0].min(first), words[1].min(last)];
                receipts = receipts.max(receipt);
            }
            if sample > 0 {
                times.first_word.push(words[0]);
                times.last_word.push(words[1]);
                times.receipt.push(receipts);
            }
        }
    }
    measured.seen = watch.seen();
    Ok(measured)
}

/// Waits until both workers hold the model.
async fn joined(coordinator: &Handle, model: ModelId) -> Result<()> {
    let joined = async {
        loop {
            let workers = coordinator.engine().workers().await?;
            if workers.iter().filter(|worker| worker.view.models.contains(&model)).count() == 2 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(JOIN_TIME, joined).await.context("the workers do not join")?
}

/// All of a job's words differ from those of no other job but in the nonce, so all do the same work.
fn spec(package: &Package, workload: Workload, mode: Mode, number: u64) -> JobSpec {
    let (program, prompt) = (package.program(), workload.prompt as u64);
    let tokens: Vec<u32> = (0..workload.prompt as u32).map(|at| (17 + 31 * at) % program.vocab_size).collect();
    let mut nonce = [0x33; 32];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    let nonce = Nonce::from_bytes(nonce);
    let job = Job {
        spec_version: SPEC_VERSION,
        model: package.model_id(),
        kind: JobKind::Generation(Box::new(Generation {
            temperature: SAMPLING_ONE,
            ..Generation::greedy(workload.tokens)
        })),
        request: RequestInput::Tokens(tokens.clone()).hash(&nonce),
        tokens,
        seed: Seed::from_bytes([7; 32]),
        nonce,
    };
    let is_audited = mode == Mode::Lockstep;
    let per_mille = if is_audited { 1_000 } else { 0 };
    JobSpec {
        job: Arc::new(job),
        layers: (program.layers.len() - 2) as u16,
        output_count: workload.tokens,
        work: Work::of_points([1, 2, 3].map(|points| program.macs(prompt + points - 1, points))),
        policy: AuditPolicy { per_mille, auditors: 1, hold: true, distinct_operators: false, lockstep: is_audited },
        planted: None,
    }
}

/// Seconds from `start` to the first word of a job, its last one, and its receipt.
async fn timed(engine: lockstep_coordinator::engine::EngineHandle, spec: JobSpec, start: Instant) -> Result<[f64; 3]> {
    let (job, audits) = (spec.job.id(), usize::from(spec.policy.lockstep));
    let words = spec.output_count;
    let (outcome, _) = engine.submit(spec, false).await?.outcome().await?;
    ensure!(matches!(outcome, Submission::Kept), "a job was not kept: {outcome:?}");
    let mut watch = engine.watch(job).await?.context("a job that has begun can be watched")?;
    let (mut first, mut last) = (None, None);
    while let Some(progress) = watch.recv().await {
        let now = start.elapsed().as_secs_f64();
        match progress {
            Progress::Word { index, .. } => {
                first.get_or_insert(now);
                last = (index + 1 == words).then_some(now);
            }
            Progress::Ended(JobEnd::Answer(receipt)) => {
                ensure!(receipt.audits.len() == audits, "a job ended with {} audits", receipt.audits.len());
                let [first, last] = [first, last].map(|time| time.context("a job ended without all its words"));
                return Ok([first?, last?, now]);
            }
            Progress::Ended(JobEnd::Failed(reason)) => bail!("a job failed: {reason}"),
            Progress::Ended(JobEnd::Deserted) => bail!("no worker is there for a job"),
        }
    }
    bail!("the coordinator ended before the job")
}
