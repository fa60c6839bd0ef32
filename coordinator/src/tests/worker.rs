//! Workers for tests: they speak the real protocol over the real link, honestly or not.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::reference::Reference;
use lockstep_link::{Client, Frames, send};
use lockstep_model::dispute::{LayerCase, Trace};
use lockstep_model::rerun::rerun;
use lockstep_protocol::commitment::RunCommitment;
use lockstep_protocol::dispute::{MoveBody, Partial, Player, SignedMove};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{JobId, LeaseEpoch, NodeId, Place, Root, Salt};
use lockstep_protocol::job::Job;
use lockstep_protocol::limits::HEARTBEAT_MS;
use lockstep_protocol::messages::{
    Ask, Hello, JobMessage, JobResult, PROTOCOL_VERSION, RefusalCode, ToCoordinator, ToWorker, Welcome,
};
use lockstep_protocol::receipt::{Run, WorkerReceipt};
use lockstep_sim::adversary::{Change, Lie, LyingBackend, Target};
use quinn::{Connection, SendStream};
use tokio::sync::Mutex;

use crate::models::Model;
use crate::testing::LAYERS;

pub fn keys(number: u8) -> Keypair {
    Keypair::from_seed([number; 32])
}

/// A product of the second transformer layer is off by a bit, at the second token.
pub const LIE: Lie = Lie { layer: 2, op: 1, target: Target::Element { row: 1, col: 3 }, change: Change::Xor(4) };

/// Hides nothing: whoever reads these tests may know what their workers commit to.
const SALT: Salt = Salt::from_bytes([0x5a; 32]);

pub fn hello(model: &Model) -> Hello {
    Hello {
        offer: None,
        protocol: PROTOCOL_VERSION,
        software: "test".to_owned(),
        backend: "reference".to_owned(),
        threads: 1,
        memory_bytes: 1 << 30,
        macs_per_second: 1_000_000_000,
        max_in_flight: 4,
        models: vec![model.id()],
    }
}

/// Says that a worker is there, however long its test is busy with something else.
async fn keep_alive(up: Weak<Mutex<SendStream>>) {
    for sequence in 0.. {
        tokio::time::sleep(Duration::from_millis(HEARTBEAT_MS)).await;
        let Some(up) = up.upgrade() else { return };
        let heartbeat = ToCoordinator::Heartbeat { sequence, in_flight: 0 };
        if send(&mut *up.lock().await, &heartbeat).await.is_err() {
            return;
        }
    }
}

/// A connected worker.
pub struct Worker {
    pub keys: Keypair,
    pub model: Arc<Model>,
    /// What it computes with.
    pub backend: Arc<dyn Backend>,
    pub connection: Connection,
    /// Shared with the task that says that it is there.
    pub up: Arc<Mutex<SendStream>>,
    pub down: Frames<ToWorker>,
    /// What came while something else was waited for.
    heard: VecDeque<ToWorker>,
    /// Runs that are committed to and not revealed.
    committed: BTreeMap<(JobId, LeaseEpoch), (SendStream, JobResult, Job)>,
    _client: Client,
}

impl Worker {
    /// Connects and says hello; what comes back is the caller's to read.
    pub async fn connect(number: u8, coordinator: NodeId, address: SocketAddr, package: &Path) -> Self {
        let keys = keys(number);
        let model = Arc::new(Model::open(package).unwrap());
        let mut client = Client::new(&keys, coordinator);
        let connection = client.connect(address).await.unwrap();
        let (mut up, down) = connection.open_bi().await.unwrap();
        send(&mut up, &ToCoordinator::Hello(hello(&model))).await.unwrap();
        let up = Arc::new(Mutex::new(up));
        tokio::spawn(keep_alive(Arc::downgrade(&up)));
        let (heard, committed) = Default::default();
        Self {
            keys,
            model,
            backend: Arc::new(Reference),
            connection,
            up,
            down: Frames::new(down),
            heard,
            committed,
            _client: client,
        }
    }

    /// Sends a control message.
    pub async fn tell(&self, message: &ToCoordinator) {
        send(&mut *self.up.lock().await, message).await.unwrap();
    }

    pub async fn next(&mut self) -> ToWorker {
        if let Some(message) = self.heard.pop_front() {
            return message;
        }
        let next = tokio::time::timeout(super::PATIENCE, self.down.next());
        next.await.expect("a message in time").expect("a message").expect("no end")
    }

    pub async fn welcome(&mut self) -> Welcome {
        match self.next().await {
            ToWorker::Welcome(welcome) => welcome,
            other => panic!("{other:?}"),
        }
    }

    /// The first message that fits; what else comes is kept for later.
    async fn find<T>(&mut self, mut pick: impl FnMut(&ToWorker) -> Option<T>) -> T {
        let known = self.heard.iter().position(|message| pick(message).is_some());
        if let Some(message) = known.and_then(|at| self.heard.remove(at)) {
            return pick(&message).expect("it was just picked");
        }
        loop {
            let next = tokio::time::timeout(super::PATIENCE, self.down.next());
            let message = next.await.expect("a message in time").expect("a message").expect("no end");
            match pick(&message) {
                Some(found) => return found,
                None => self.heard.push_back(message),
            }
        }
    }

    /// The next assignment.
    pub async fn assignment(&mut self) -> (Job, LeaseEpoch) {
        let pick = |message: &ToWorker| match message {
            ToWorker::Assign { epoch, job, .. } => Some((job.clone(), *epoch)),
            _ => None,
        };
        self.find(pick).await
    }

    /// Runs a job; with `lie`, claims another root at that place of the stream, and signs it.
    pub fn run(&self, job: &Job, epoch: LeaseEpoch, lie: Option<usize>) -> JobResult {
        let right = rerun(self.model.package(), &*self.backend, &job.tokens).unwrap();
        let (mut roots, output) = (right.roots, right.output);
        if let Some(index) = lie {
            roots[index] = Root::from_bytes([0x66; 32]);
        }
        let run = Run {
            epoch,
            layers: LAYERS,
            roots,
            words: Vec::new(),
            output_count: output.len() as u32,
            work_units: self.model.package().program().macs(job.tokens.len() as u64, 0),
            saturations: 0,
        };
        let receipt = WorkerReceipt::of_run(&job.header(), run, self.keys.id()).unwrap();
        JobResult { receipt: receipt.sign(&self.keys), output }
    }

    /// Streams the roots of a result and commits to them. The result itself waits for [`Worker::reveal`].
    pub async fn commit(&mut self, job: &Job, epoch: LeaseEpoch, result: JobResult) {
        let mut stream = self.connection.open_uni().await.unwrap();
        let geometry = job.header().geometry(LAYERS).unwrap();
        let (id, roots) = (job.id(), &result.receipt.receipt.roots);
        send(&mut stream, &JobMessage::Begin { job: id, epoch }).await.unwrap();
        for (place, root) in geometry.places().zip(roots.iter().copied()) {
            send(&mut stream, &JobMessage::Layer { place, root }).await.unwrap();
        }
        let commitment = RunCommitment::of(id, epoch, self.keys.id(), &SALT, &result.receipt.receipt.head);
        send(&mut stream, &JobMessage::Commit { commitment }).await.unwrap();
        self.committed.insert((id, epoch), (stream, result, job.clone()));
    }

    /// Sends the result of a run that was committed to.
    pub async fn reveal(&mut self, job: JobId, epoch: LeaseEpoch) {
        let (mut stream, result, _) = self.committed.remove(&(job, epoch)).expect("it was committed to");
        send(&mut stream, &JobMessage::Result { result: Box::new(result), salt: SALT }).await.unwrap();
        stream.finish().unwrap();
        // Held until it has arrived: a dropped stream is finished all the same, but a dropped connection is not.
        let _ = stream.stopped().await;
    }

    /// Signs what it streamed of a run that is to stop.
    pub async fn halt(&mut self, id: JobId, epoch: LeaseEpoch, place: Place) {
        let (_, result, job) = self.committed.remove(&(id, epoch)).expect("it was streamed");
        let geometry = job.header().geometry(LAYERS).unwrap();
        let roots = &result.receipt.receipt.roots[..=geometry.index_of(place).unwrap()];
        let partial = Partial::of_roots(id, &geometry, epoch, roots, &[], self.keys.id()).unwrap().sign(&self.keys);
        let mut stream = self.connection.open_uni().await.unwrap();
        send(&mut stream, &JobMessage::Partial(partial)).await.unwrap();
        let _ = stream.finish();
        let _ = stream.stopped().await;
    }

    /// Waits until it is told to reveal a run.
    pub async fn expect_reveal(&mut self, job: JobId, epoch: LeaseEpoch) {
        let told = ToWorker::Reveal { job, epoch };
        self.find(|message| (*message == told).then_some(())).await;
    }

    /// Delivers a result as the protocol has it. What else comes meanwhile is kept for [`Worker::next`].
    pub async fn stream(&mut self, job: &Job, epoch: LeaseEpoch, result: JobResult) {
        self.commit(job, epoch, result).await;
        let told = async {
            while let Ok(Some(message)) = self.down.next().await {
                if message == (ToWorker::Reveal { job: job.id(), epoch }) {
                    return true;
                }
                self.heard.push_back(message);
            }
            false
        };
        if tokio::time::timeout(super::PATIENCE, told).await.expect("an answer to the commitment") {
            self.reveal(job.id(), epoch).await;
        }
    }

    /// Makes this a worker that computes one element wrong, consistently.
    pub fn lying(self) -> Self {
        self.lying_like(LIE)
    }

    /// The same, with another lie.
    pub fn lying_like(mut self, lie: Lie) -> Self {
        self.backend = Arc::new(LyingBackend::new("liar".to_owned(), Reference, &[lie]));
        self
    }

    /// The move that follows from this worker's own run, whatever that was.
    pub fn answer(&self, ask: &Ask) -> SignedMove {
        self.say(ask, None)
    }

    /// This move, or the one that follows from its run.
    pub fn say(&self, ask: &Ask, said: Option<MoveBody>) -> SignedMove {
        let package = self.model.package();
        let program = package.program();
        let case = LayerCase::of_terms(package.manifest(), &ask.terms).unwrap();
        let place = ask.terms.check().unwrap().place;
        let mut executor = self.backend.load(Arc::clone(program), package.params()).unwrap();
        let mut run = Trace::run(&mut *executor, program, package.params(), &ask.job.tokens, place).unwrap();
        let player = Player::new(&ask.terms, ask.side, &ask.moves, &case).unwrap();
        let body = said.unwrap_or_else(|| player.next(&mut run, &case).unwrap());
        player.sign(body, &self.keys, &[]).unwrap()
    }

    /// Sends a move.
    pub async fn make_move(&self, signed: SignedMove) {
        let mut stream = self.connection.open_uni().await.unwrap();
        send(&mut stream, &JobMessage::Move(signed)).await.unwrap();
        let _ = stream.finish();
        let _ = stream.stopped().await;
    }

    /// What it is asked next in a dispute.
    pub async fn asked(&mut self) -> Ask {
        let pick = |message: &ToWorker| match message {
            ToWorker::Asked(ask) => Some((**ask).clone()),
            _ => None,
        };
        self.find(pick).await
    }

    /// Plays its disputes until it is turned away, and says why.
    pub async fn serve_until_refused(mut self) -> RefusalCode {
        loop {
            match self.next().await {
                ToWorker::Asked(ask) => {
                    let signed = self.answer(&ask);
                    self.make_move(signed).await;
                }
                ToWorker::Refused { code, .. } => return code,
                _ => {}
            }
        }
    }

    /// Takes assignments until the connection ends.
    pub async fn serve(mut self, lie: Option<usize>) {
        loop {
            let message = match self.heard.pop_front() {
                Some(message) => message,
                None => match self.down.next().await {
                    Ok(Some(message)) => message,
                    _ => return,
                },
            };
            match message {
                ToWorker::Assign { epoch, job, .. } => {
                    let result = self.run(&job, epoch, lie);
                    self.commit(&job, epoch, result).await;
                }
                ToWorker::Reveal { job, epoch } => self.reveal(job, epoch).await,
                ToWorker::Halt { job, epoch, place } => self.halt(job, epoch, place).await,
                ToWorker::Asked(ask) => {
                    let signed = self.answer(&ask);
                    self.make_move(signed).await;
                }
                _ => {}
            }
        }
    }
}
