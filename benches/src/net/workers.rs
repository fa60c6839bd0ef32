//! The workers of a real coordinator under test, in a process of their own, so that what they cost is not the
//! coordinator's. They compute nothing: what they stream is made and encoded before.
//!
//! The process says on its standard output when its idle workers have joined ([`JOINED`]), waits for a line, lets those
//! join that stream, says so ([`READY`]), and ends with its standard input.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lockstep_link::{Client, Frames, send};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{JobId, LeaseEpoch, ModelId, NodeId};
use lockstep_protocol::messages::{Hello, JobMessage, PROTOCOL_VERSION, ToCoordinator, ToWorker};
use quinn::{Connection, SendStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::run::{Premade, SALT, Shape, Signed, keys, model, spec};

/// What the process says once its idle workers have joined, with the seconds that it took.
pub(super) const JOINED: &str = "joined";
/// What it says once those have joined that stream.
pub(super) const READY: &str = "ready";

/// Who joins which coordinator.
#[derive(Clone, Copy, Debug)]
pub struct Workers {
    /// The coordinator's key.
    pub coordinator: NodeId,
    /// Where it takes workers.
    pub address: SocketAddr,
    /// Workers that have nothing to do.
    pub idle: usize,
    /// Workers that stream what they are given.
    pub streams: usize,
    /// Jobs that each of these takes at a time.
    pub in_flight: u32,
    /// Of each job.
    pub shape: Shape,
}

/// Handshakes that are under way at a time.
const JOINING: usize = 32;
/// A worker that was not welcome for want of time or room tries again so often.
const TRIES: u32 = 10;
/// The pause before that; each further one is as much longer.
const PAUSE: Duration = Duration::from_millis(500);
/// Idle workers that share a socket: few enough for what a socket holds that was not read yet.
const WORKERS_OF_A_SOCKET: usize = 50;

/// Joins, serves until standard input ends, and says so on standard output.
///
/// # Errors
/// A worker can't join, or loses its connection while it streams.
pub async fn serve(workers: Workers) -> Result<()> {
    let Workers { idle, streams, in_flight, shape, .. } = workers;
    let mut orders = orders();
    let start = Instant::now();
    let mut idling = JoinSet::new();
    for worker in workers.join_all(0..idle, WORKERS_OF_A_SOCKET, &hello(Vec::new(), 1)).await? {
        idling.spawn(worker.stay(None));
    }
    println!("{JOINED} {}", start.elapsed().as_secs_f64());
    orders.recv().await;
    let premade = Arc::new(Premade::new(&spec(0, shape).job, shape)?);
    let mut streaming = JoinSet::new();
    // Jobs go to those first who have their model.
    for worker in workers.join_all(idle..idle + streams, 1, &hello(vec![model()], in_flight)).await? {
        streaming.spawn(worker.stay(Some(Arc::clone(&premade))));
    }
    println!("{READY}");
    loop {
        tokio::select! {
            order = orders.recv() => if order.is_none() {
                return Ok(());
            },
            Some(ended) = streaming.join_next() => return ended?.context("a worker that streams was lost"),
        }
    }
}

/// The lines of standard input; the channel ends with it.
fn orders() -> mpsc::UnboundedReceiver<()> {
    let (sender, orders) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if line.is_err() || sender.send(()).is_err() {
                return;
            }
        }
    });
    orders
}

impl Workers {
    /// Workers join, many at a time and several of a socket; returns them once all are welcome.
    async fn join_all(&self, numbers: Range<usize>, of_a_socket: usize, hello: &Hello) -> Result<Vec<Worker>> {
        let turns = Arc::new(Semaphore::new(JOINING));
        let mut joining = JoinSet::new();
        let mut socket = Client::new(&keys(0), self.coordinator);
        for (index, number) in numbers.enumerate() {
            if index % of_a_socket == 0 {
                socket = Client::new(&keys(0), self.coordinator);
                socket.bind(self.address)?;
            }
            let (turns, hello, address) = (Arc::clone(&turns), hello.clone(), self.address);
            let client = socket.beside(&keys(number));
            joining.spawn(async move {
                let _turn = turns.acquire_owned().await?;
                Seat { number, client, address, hello }.join().await
            });
        }
        let mut workers = Vec::new();
        while let Some(worker) = joining.join_next().await {
            workers.push(worker??);
        }
        Ok(workers)
    }
}

/// Who joins, and how.
struct Seat {
    number: usize,
    client: Client,
    address: SocketAddr,
    hello: Hello,
}

impl Seat {
    /// Joins. On a starved machine a handshake may take longer than the coordinator waits: then it tries again.
    async fn join(mut self) -> Result<Worker> {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            if let Ok(session) = self.try_join().await {
                return Ok(Worker { seat: self, session });
            }
            tokio::time::sleep(pause).await;
            pause += PAUSE;
        }
        let session = self.try_join().await?;
        Ok(Worker { seat: self, session })
    }

    async fn try_join(&mut self) -> Result<Session> {
        let connection = self.client.connect(self.address).await?;
        let (mut up, down) = connection.open_bi().await?;
        send(&mut up, &ToCoordinator::Hello(self.hello.clone())).await?;
        let mut down = Frames::new(down);
        match down.next().await? {
            Some(ToWorker::Welcome(welcome)) => {
                let heartbeat = Duration::from_millis(welcome.heartbeat_ms);
                Ok(Session { connection, up, down, heartbeat })
            }
            other => bail!("no welcome, but {other:?}"),
        }
    }
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
    seat: Seat,
    session: Session,
}

impl Worker {
    /// Serves, and joins again whenever the connection ends: as one that streams where it has something to stream.
    async fn stay(mut self, premade: Option<Arc<Premade>>) -> Result<()> {
        loop {
            let ended = match &premade {
                Some(premade) => self.session.serve(&keys(self.seat.number), Arc::clone(premade)).await,
                None => self.session.idle().await,
            };
            if let Err(error) = ended {
                eprintln!("worker {} joins again: {error:#}", self.seat.number);
            }
            self = self.seat.join().await?;
        }
    }
}

/// What a worker has while it is connected.
struct Session {
    connection: Connection,
    up: SendStream,
    down: Frames<ToWorker>,
    heartbeat: Duration,
}

impl Session {
    /// Says that it lives until the connection ends.
    async fn idle(mut self) -> Result<()> {
        let mut beat = tokio::time::interval(self.heartbeat);
        let mut sequence = 0;
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    send(&mut self.up, &ToCoordinator::Heartbeat { sequence, in_flight: 0 }).await?;
                    sequence += 1;
                }
                message = self.down.next() => if message?.is_none() {
                    return Ok(());
                },
            }
        }
    }

    /// Takes jobs until the connection ends.
    async fn serve(mut self, keys: &Keypair, premade: Arc<Premade>) -> Result<()> {
        let mut beat = tokio::time::interval(self.heartbeat);
        let mut sequence = 0;
        let mut committed: BTreeMap<(JobId, LeaseEpoch), (SendStream, Signed)> = BTreeMap::new();
        let mut streaming = JoinSet::new();
        loop {
            let message = tokio::select! {
                _ = beat.tick() => {
                    send(&mut self.up, &ToCoordinator::Heartbeat { sequence, in_flight: 0 }).await?;
                    sequence += 1;
                    continue;
                }
                Some(streamed) = streaming.join_next() => {
                    let (key, stream, signed) = streamed??;
                    committed.insert(key, (stream, signed));
                    continue;
                }
                message = self.down.next() => message?,
            };
            match message {
                Some(ToWorker::Assign { epoch, job, .. }) => {
                    let signed = premade.sign(keys, &job, epoch)?;
                    streaming.spawn(stream(self.connection.clone(), (job.id(), epoch), Arc::clone(&premade), signed));
                }
                Some(ToWorker::Reveal { job, epoch }) => {
                    // The order may come before the task that wrote the commitment has said so.
                    while !committed.contains_key(&(job, epoch)) {
                        let (key, stream, signed) =
                            streaming.join_next().await.context("a run is to be shown that was not streamed")???;
                        committed.insert(key, (stream, signed));
                    }
                    let (mut stream, signed) = committed.remove(&(job, epoch)).context("it is there")?;
                    send(&mut stream, &JobMessage::Result { result: Box::new(signed.result), salt: SALT }).await?;
                    stream.finish()?;
                }
                Some(_) => {}
                None => return Ok(()),
            }
        }
    }
}

/// Streams a run and commits to it.
async fn stream(
    connection: Connection,
    key: (JobId, LeaseEpoch),
    premade: Arc<Premade>,
    signed: Signed,
) -> Result<((JobId, LeaseEpoch), SendStream, Signed)> {
    let mut stream = connection.open_uni().await?;
    send(&mut stream, &JobMessage::Begin { job: key.0, epoch: key.1 }).await?;
    stream.write_chunk(premade.frames.clone()).await?;
    send(&mut stream, &JobMessage::Commit { commitment: signed.commitment }).await?;
    Ok((key, stream, signed))
}
