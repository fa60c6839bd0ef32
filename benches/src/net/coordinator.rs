//! A real coordinator on this machine, with its store on disk, and workers over QUIC on the loopback: how many join a
//! second, how many it holds, and how many commitment records it takes in. Both sides share the cores.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lockstep_coordinator::engine::{JobEnd, Submission};
use lockstep_coordinator::{Config, Coordinator, Handle};
use lockstep_link::{Client, Frames, send};
use lockstep_protocol::ids::{JobId, LeaseEpoch, ModelId};
use lockstep_protocol::job::Job;
use lockstep_protocol::limits::MAX_IN_FLIGHT;
use lockstep_protocol::messages::{Hello, JobMessage, PROTOCOL_VERSION, ToCoordinator, ToWorker};
use quinn::{Connection, SendStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::run::{GRANT, SALT, Shape, Signed, geometry, keys, model, roots, sign, spec, words};

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
}

/// What it did.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Seconds in which the idle workers joined, from the first packet to the last welcome.
    pub joining: f64,
    /// Idle workers that were still there at the end.
    pub held: usize,
    /// Bytes of memory that an idle worker takes on both sides together; none where the system does not say.
    pub worker_bytes: Option<f64>,
    /// Seconds of each sample: from the first submission to the last receipt.
    pub runs: Vec<f64>,
}

/// Handshakes that are under way at a time.
const JOINING: usize = 16;

/// Runs the workload with a data folder of its own.
///
/// # Errors
/// The coordinator does not start, or turns something away.
pub async fn measure(workload: Workload, data: &Path) -> Result<Measured> {
    let mut config = Config::local(data.to_path_buf());
    config.grant = GRANT;
    let coordinator = Coordinator::start(config).await?;
    let measured = drive(workload, &coordinator).await;
    coordinator.shutdown().await?;
    measured
}

async fn drive(workload: Workload, coordinator: &Handle) -> Result<Measured> {
    let Workload { idle, streams, jobs, samples, .. } = workload;
    // As many places as jobs, so that none waits and an idle worker gets one.
    let in_flight = u32::try_from(jobs.div_ceil(streams.max(1)))?;
    ensure!(
        in_flight <= MAX_IN_FLIGHT,
        "{jobs} jobs are too many for {streams} workers: {MAX_IN_FLIGHT} each at the most"
    );
    let mut measured = Measured::default();
    let before = resident();
    let start = Instant::now();
    let idle_workers = join_all(coordinator, 0..idle, &hello(Vec::new(), 1)).await?;
    measured.joining = start.elapsed().as_secs_f64();
    let grown = resident().zip(before).map(|(after, before)| after - before);
    measured.worker_bytes = grown.map(|bytes| bytes / idle.max(1) as f64);
    let mut idling = JoinSet::new();
    for worker in idle_workers {
        idling.spawn(worker.idle());
    }
    let mut streaming = JoinSet::new();
    // Jobs go to those first who have their model.
    for worker in join_all(coordinator, idle..idle + streams, &hello(vec![model()], in_flight)).await? {
        streaming.spawn(worker.serve(workload.shape));
    }
    for sample in 0..=samples {
        let start = Instant::now();
        let jobs = run_jobs(workload, coordinator, sample * workload.jobs);
        tokio::select! {
            done = jobs => done?,
            ended = streaming.join_next() => bail!("a streaming worker ended: {:?}", ended.map(|e| e.map(|e| e.err()))),
        }
        if sample > 0 {
            measured.runs.push(start.elapsed().as_secs_f64());
        }
    }
    measured.held = coordinator.engine().workers().await?.len().saturating_sub(streams);
    Ok(measured)
}

/// Submits jobs and waits for their receipts.
async fn run_jobs(workload: Workload, coordinator: &Handle, first: usize) -> Result<()> {
    let mut submitted = Vec::new();
    for number in first..first + workload.jobs {
        submitted.push(coordinator.engine().submit(spec(number, workload.shape), true).await?);
    }
    for job in submitted {
        let (outcome, end) = job.outcome().await?;
        ensure!(matches!(outcome, Submission::Kept), "a job was not kept: {outcome:?}");
        match end.await.context("a job has an end")? {
            JobEnd::Answer(_) => {}
            JobEnd::Failed(reason) => bail!("a job failed: {reason}"),
        }
    }
    Ok(())
}

/// Workers join, many at a time; returns them once all are welcome.
async fn join_all(coordinator: &Handle, numbers: Range<usize>, hello: &Hello) -> Result<Vec<Worker>> {
    let (id, address) = (coordinator.node_id(), coordinator.quic_addr());
    let turns = Arc::new(Semaphore::new(JOINING));
    let mut joining = JoinSet::new();
    for number in numbers {
        let (turns, hello) = (Arc::clone(&turns), hello.clone());
        joining.spawn(async move {
            let _turn = turns.acquire_owned().await?;
            let mut client = Client::new(&keys(number), id);
            let connection = client.connect(address).await?;
            let (mut up, down) = connection.open_bi().await?;
            send(&mut up, &ToCoordinator::Hello(hello)).await?;
            let mut down = Frames::new(down);
            match down.next().await? {
                Some(ToWorker::Welcome(welcome)) => {
                    let heartbeat = Duration::from_millis(welcome.heartbeat_ms);
                    Ok::<_, anyhow::Error>(Worker { number, connection, up, down, heartbeat, _client: client })
                }
                other => bail!("no welcome, but {other:?}"),
            }
        });
    }
    let mut workers = Vec::new();
    while let Some(worker) = joining.join_next().await {
        workers.push(worker??);
    }
    Ok(workers)
}

fn hello(models: Vec<ModelId>, max_in_flight: u32) -> Hello {
    Hello {
        offer: None,
        protocol: PROTOCOL_VERSION,
        software: "bench".to_owned(),
        backend: "none".to_owned(),
        threads: 1,
        memory_bytes: 1 << 30,
        macs_per_second: 1_000_000_000,
        max_in_flight,
        models,
    }
}

/// A worker that computes nothing.
struct Worker {
    number: usize,
    connection: Connection,
    up: SendStream,
    down: Frames<ToWorker>,
    heartbeat: Duration,
    /// Its socket.
    _client: Client,
}

impl Worker {
    /// Says that it lives until the connection ends.
    async fn idle(mut self) {
        let mut beat = tokio::time::interval(self.heartbeat);
        let mut sequence = 0;
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    if send(&mut self.up, &ToCoordinator::Heartbeat { sequence, in_flight: 0 }).await.is_err() {
                        return;
                    }
                    sequence += 1;
                }
                message = self.down.next() => if !matches!(message, Ok(Some(_))) {
                    return;
                },
            }
        }
    }

    /// Takes jobs until the connection ends.
    async fn serve(mut self, shape: Shape) -> Result<()> {
        let mut beat = tokio::time::interval(self.heartbeat);
        let mut sequence = 0;
        let mut committed: BTreeMap<(JobId, LeaseEpoch), (SendStream, Signed)> = BTreeMap::new();
        let roots = roots(shape);
        loop {
            let message = tokio::select! {
                _ = beat.tick() => {
                    send(&mut self.up, &ToCoordinator::Heartbeat { sequence, in_flight: 0 }).await?;
                    sequence += 1;
                    continue;
                }
                message = self.down.next() => message?,
            };
            match message {
                Some(ToWorker::Assign { epoch, job, .. }) => {
                    let signed = sign(&keys(self.number), &job, epoch, shape, roots.clone())?;
                    let stream = self.stream(&job, epoch, shape, (&roots, &signed)).await?;
                    committed.insert((job.id(), epoch), (stream, signed));
                }
                Some(ToWorker::Reveal { job, epoch }) => {
                    let Some((mut stream, signed)) = committed.remove(&(job, epoch)) else { continue };
                    send(&mut stream, &JobMessage::Result { result: Box::new(signed.result), salt: SALT }).await?;
                    stream.finish()?;
                }
                Some(_) => {}
                None => return Ok(()),
            }
        }
    }

    /// Streams a run and commits to it.
    async fn stream(
        &self,
        job: &Job,
        epoch: LeaseEpoch,
        shape: Shape,
        (roots, signed): (&[lockstep_protocol::ids::Root], &Signed),
    ) -> Result<SendStream> {
        let mut stream = self.connection.open_uni().await?;
        send(&mut stream, &JobMessage::Begin { job: job.id(), epoch }).await?;
        let words = words(shape);
        let last = shape.layers + 1;
        let geometry = geometry(job, shape)?;
        for (index, (place, root)) in geometry.places().zip(roots).enumerate() {
            if place.layer == last {
                send(&mut stream, &JobMessage::Token { word: words[index / usize::from(last)], logprobs: Vec::new() })
                    .await?;
            }
            send(&mut stream, &JobMessage::Layer { place, root: *root }).await?;
        }
        send(&mut stream, &JobMessage::Commit { commitment: signed.commitment }).await?;
        Ok(stream)
    }
}

/// Bytes of memory of this program.
fn resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kilobytes| 1024.0 * kilobytes)
}
