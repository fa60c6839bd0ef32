//! A real coordinator on this machine, with its store on disk, and workers over QUIC on the loopback, in a process of their
//! own: how many join a second, what those cost who are idle, and how many commitment records it takes in. Both processes
//! share the cores, and the processor time of each is told apart.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lockstep_coordinator::engine::{JobEnd, Submission};
use lockstep_coordinator::{Config, Coordinator, Handle};
use lockstep_protocol::limits::{MAX_IN_FLIGHT, MAX_WORKERS};
use tokio::runtime::Runtime;

use super::run::{GRANT, Shape, spec};
use super::usage::Usage;
use super::workers::{JOINED, READY};

/// What a coordinator is put through.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Workers that join and have nothing to do.
    pub idle: usize,
    /// Workers that join then, and stream.
    pub streams: usize,
    /// Jobs, given to whoever is free.
    pub jobs: usize,
    /// Of each job.
    pub shape: Shape,
    /// Times that all jobs run and count; they run once more to warm up.
    pub samples: usize,
    /// How long it is watched what idle workers cost.
    pub watch: Duration,
    /// Threads of each of both processes.
    pub threads: usize,
}

/// What an idle worker costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Idle {
    /// Seconds in which all of them joined, from the first packet to the last welcome.
    pub joining: f64,
    /// How many were there at the end of all.
    pub held: usize,
    /// Processor time of the coordinator for a handshake, in seconds; none where the system does not say.
    pub handshake: Option<f64>,
    /// Bytes of memory of the coordinator for each.
    pub bytes: Option<f64>,
    /// Processor time of the coordinator for each in a second, in seconds.
    pub share: Option<f64>,
}

/// What it did.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Of the idle workers, where there are any.
    pub idle: Option<Idle>,
    /// Seconds of each sample: from the first submission to the last receipt.
    pub runs: Vec<f64>,
    /// Processor time of each sample.
    pub used: Vec<Usage>,
}

/// How the process of the workers is started: the program and its first arguments, which lead to
/// [`super::workers::serve`].
pub type Launch<'a> = (&'a Path, &'a [&'a str]);

/// Runs the workload with a data folder of its own.
///
/// # Errors
/// The coordinator or its workers do not start, or something is turned away.
pub fn measure(workload: Workload, data: &Path, launch: Launch<'_>) -> Result<Measured> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workload.threads).enable_all().build()?;
    let mut config = Config::local(data.to_path_buf());
    // Workers of its own are on their way.
    config.worker_wait = config.http_wait;
    config.grant = GRANT;
    // All workers come at once, and from one address.
    config.workers.grants_per_hour = u32::MAX;
    config.workers.pending_per_address = MAX_WORKERS;
    let coordinator = runtime.block_on(Coordinator::start(config))?;
    let measured = drive(workload, &runtime, &coordinator, launch);
    runtime.block_on(coordinator.shutdown())?;
    measured
}

fn drive(workload: Workload, runtime: &Runtime, coordinator: &Handle, launch: Launch<'_>) -> Result<Measured> {
    let Workload { idle, streams, jobs, samples, shape, .. } = workload;
    // As many places as jobs, so that none waits and an idle worker gets one.
    let in_flight = u32::try_from(jobs.div_ceil(streams.max(1)))?;
    ensure!(
        in_flight <= MAX_IN_FLIGHT,
        "{jobs} jobs are too many for {streams} workers: {MAX_IN_FLIGHT} each at the most"
    );
    let before = Usage::now(None);
    let mut workers = Process::start(workload, coordinator, in_flight, launch)?;
    let joining: f64 = workers.says(JOINED)?.parse().context("the workers say how long they took")?;
    let joined = Usage::now(None);
    std::thread::sleep(if idle > 0 { workload.watch } else { Duration::ZERO });
    let watched = Usage::now(None);
    workers.go_on()?;
    workers.says(READY)?;
    let mut measured = Measured { idle: None, runs: Vec::new(), used: Vec::new() };
    for sample in 0..=samples {
        let (start, at) = (Instant::now(), Usage::now(Some(workers.id())));
        runtime.block_on(run_jobs(shape, coordinator, sample * jobs..(sample + 1) * jobs))?;
        if sample > 0 {
            measured.runs.push(start.elapsed().as_secs_f64());
            measured.used.push(Usage::now(Some(workers.id())) - at);
        }
    }
    let held = runtime.block_on(coordinator.engine().workers())?.len().saturating_sub(streams);
    if idle > 0 {
        let each = |amount: Option<f64>| amount.map(|amount| amount / idle as f64);
        let (seconds, joining_used, idle_used) = (workload.watch.as_secs_f64(), joined - before, watched - joined);
        measured.idle = Some(Idle {
            joining,
            held,
            handshake: each(joining_used.process),
            bytes: each(joining_used.memory),
            share: each(idle_used.process).filter(|_| seconds > 0.0).map(|used| used / seconds),
        });
    }
    Ok(measured)
}

/// Submits jobs and waits for their receipts.
async fn run_jobs(shape: Shape, coordinator: &Handle, numbers: std::ops::Range<usize>) -> Result<()> {
    let mut submitted = Vec::new();
    for number in numbers {
        submitted.push(coordinator.engine().submit(spec(number, shape), true).await?);
    }
    for job in submitted {
        let (outcome, end) = job.outcome().await?;
        ensure!(matches!(outcome, Submission::Kept), "a job was not kept: {outcome:?}");
        match end.await.context("a job has an end")? {
            JobEnd::Answer(_) => {}
            JobEnd::Failed(reason) => bail!("a job failed: {reason}"),
            JobEnd::Deserted => bail!("no worker is there for a job"),
        }
    }
    Ok(())
}

/// The process of the workers; dropped, it is ended.
struct Process {
    child: Child,
    says: BufReader<ChildStdout>,
}

impl Process {
    fn start(workload: Workload, coordinator: &Handle, in_flight: u32, launch: Launch<'_>) -> Result<Self> {
        let (program, arguments) = launch;
        let Workload { idle, streams, shape, threads, .. } = workload;
        let options = [
            ("--coordinator", coordinator.node_id().to_string()),
            ("--address", coordinator.quic_addr().to_string()),
            ("--idle", idle.to_string()),
            ("--streams", streams.to_string()),
            ("--in-flight", in_flight.to_string()),
            ("--layers", shape.layers.to_string()),
            ("--points", shape.points.to_string()),
            ("--threads", threads.to_string()),
        ];
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        for (name, value) in &options {
            command.args([name, value.as_str()]);
        }
        let mut child = command.spawn().context("the process of the workers does not start")?;
        let says = BufReader::new(child.stdout.take().context("its output is piped")?);
        Ok(Self { child, says })
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it says this, and returns what it says beside it.
    fn says(&mut self, what: &str) -> Result<String> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        let rest = line.strip_prefix(what).context("the process of the workers has ended; it has said why")?;
        Ok(rest.trim().to_owned())
    }

    fn go_on(&mut self) -> Result<()> {
        let input = self.child.stdin.as_mut().context("its input is piped")?;
        writeln!(input)?;
        Ok(input.flush()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It ends with its input; one that ended before is no fault.
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
