//! A coordinator as plain as can be, a small model, and workers for it.
#![allow(dead_code, reason = "each test file uses another part")]

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::conformance::{Case, DecoderShape, OwnedParams, decoder, encoder};
use lockstep_kernels::program::ParamId;
use lockstep_kernels::reference::Reference;
use lockstep_kernels::value::{Batch, ParamData, Params};
use lockstep_link::{Frames, send, server};
use lockstep_model::embed::embed;
use lockstep_model::output::Wanted;
use lockstep_model::package::{BlobInfo, Manifest, Package, SPEC_VERSION, WeightMode, write};
use lockstep_model::rerun::rerun_job;
use lockstep_protocol::commitment::RunCommitment;
use lockstep_protocol::generation::words_of;
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Digest, JobId, LeaseEpoch, ModelId, NodeId, Nonce, Place, Root, Salt, Seed};
use lockstep_protocol::job::{Job, JobKind, RequestInput};
use lockstep_protocol::messages::{
    Hello, JobMessage, JobResult, PROTOCOL_VERSION, PackageReply, PackageRequest, ToCoordinator, ToWorker, Welcome,
};
use lockstep_protocol::openings::{Outboard, open_range};
use lockstep_protocol::trace::root_of_rows;
use lockstep_worker::{Config, Event, Handle, Pipeline, Worker};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::broadcast::Receiver;
use tokio::time::timeout;

/// Far longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Longest input of the small model.
pub const POSITIONS: usize = 32;
/// Transformer layers of the small model.
pub const LAYERS: u16 = 3;

/// A small encoder as a package. `filler` is the length of its last blob, so that a pull takes several ranges.
pub fn package(dir: &Path, width: usize, filler: usize) -> Package {
    let package = write_package(dir, width, filler, |_, _| {});
    package.prove().unwrap();
    package
}

/// A package whose digests are right, but whose bounds can't be proven: some scale is far out of its range.
pub fn unbounded(dir: &Path) -> Package {
    let package = write_package(dir, 32, 1, |name, blob| {
        if name.ends_with(".mantissa") {
            blob.fill(0);
        }
        if name.ends_with(".shift") {
            blob.fill(0x80);
        }
    });
    package.prove().unwrap_err();
    package
}

/// A small decoder as a package.
pub fn decoder_package(dir: &Path) -> Package {
    let package = write_case(dir, &decoder(DecoderShape::SMALL, &[1]), "decoder", 1, |_, _| {});
    package.prove().unwrap();
    package
}

fn write_package(dir: &Path, width: usize, filler: usize, alter: impl Fn(&str, &mut [u8])) -> Package {
    let case = encoder(width, 4, 2 * width, LAYERS.into(), false, &[POSITIONS]);
    write_case(dir, &case, &format!("small-{width}"), filler, alter)
}

fn write_case(dir: &Path, case: &Case, name: &str, filler: usize, alter: impl Fn(&str, &mut [u8])) -> Package {
    let mut blobs: Vec<Vec<u8>> = (0..case.program.params.len()).map(|i| bytes_of(&case.params, i)).collect();
    for (param, blob) in case.program.params.iter().zip(&mut blobs) {
        alter(&param.name, blob);
    }
    let last: Vec<u8> = (0..filler).map(|i| (i * 7 + i / 253) as u8).collect();
    let manifest = Manifest {
        spec_version: SPEC_VERSION,
        name: name.into(),
        family: "bert".into(),
        weights: WeightMode::W16,
        program: Arc::clone(&case.program),
        output_frac: 30,
        params: blobs.iter().map(|bytes| BlobInfo::of(bytes)).collect(),
        tokenizer: BlobInfo::of(&last),
        template: None,
        stop_tokens: Vec::new(),
        sources: vec![],
        calibration: case.program.is_decoder().then(|| Digest::from_bytes([0; 32])),
    };
    let path = dir.join(format!("{name}-{filler}.lsp"));
    write(&path, &manifest, |i| blobs.get(i).unwrap_or(&last).clone()).unwrap();
    let package = Package::open(&path).unwrap();
    package.verify(NonZeroUsize::MIN).unwrap();
    package
}

fn bytes_of(params: &OwnedParams, index: usize) -> Vec<u8> {
    match params.param(ParamId(index as u16)) {
        ParamData::I8(v) => v.iter().map(|x| *x as u8).collect(),
        ParamData::I16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ParamData::U16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ParamData::I32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

pub fn job(model: ModelId, number: u8, tokens: usize) -> Job {
    let nonce = Nonce::from_bytes([number; 32]);
    let tokens: Vec<u32> = (0..tokens).map(|t| (t * 5 + usize::from(number)) as u32 % 29).collect();
    let request = RequestInput::Tokens(tokens.clone()).hash(&nonce);
    let seed = Seed::from_bytes([9; 32]);
    Job { spec_version: 1, model, kind: JobKind::Embedding, tokens, request, seed, nonce }
}

/// What the reference backend commits to, alone: roots and output.
pub fn expected(package: &Package, job: &Job) -> (Vec<Root>, Vec<i32>) {
    let mut executor = Reference.load(Arc::clone(package.program()), package.params()).unwrap();
    let mut roots = Vec::new();
    let run = embed(&mut *executor, package.program(), &Batch::single(job.tokens.clone()), Wanted::Rows, |layer| {
        if layer.layer > 0 {
            roots.push(root_of_rows(layer.rows(0).unwrap(), layer.output.cols()));
        }
        std::ops::ControlFlow::Continue(())
    });
    (roots, run.unwrap().rows.remove(0))
}

pub fn keys() -> Keypair {
    Keypair::from_seed([1; 32])
}

/// A listening coordinator.
pub struct Coordinator {
    pub endpoint: Endpoint,
    pub address: SocketAddr,
}

impl Coordinator {
    pub fn new() -> Self {
        let endpoint = server(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &keys()).unwrap();
        let address = endpoint.local_addr().unwrap();
        Self { endpoint, address }
    }

    /// The next connection, hello read and nothing answered.
    pub async fn accept(&self) -> Peer {
        let incoming = within(self.endpoint.accept()).await.unwrap();
        let connection = within(incoming.accept().unwrap()).await.unwrap();
        let (control, up) = within(connection.accept_bi()).await.unwrap();
        let mut inbox = Frames::new(up);
        let hello = match within(inbox.next()).await.unwrap() {
            Some(ToCoordinator::Hello(hello)) => hello,
            other => panic!("{other:?}"),
        };
        Peer { connection, control, inbox, hello }
    }

    /// The next connection, welcome.
    pub async fn welcome(&self) -> Peer {
        let mut peer = self.accept().await;
        peer.say(welcome(vec![])).await;
        peer
    }

    /// A worker that takes part in pipelines, and its session, over which it gets the package.
    pub async fn pipeline_worker(&self, dir: &Path, package: &Package) -> (Handle, Peer) {
        let mut config = self.config(dir);
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config.pipeline = Some(Pipeline { listen, model_bytes: 1 << 20 });
        let worker = Worker::start(config, Arc::new(Reference)).unwrap();
        let peer = self.welcome().await;
        assert_eq!(peer.hello.offer.unwrap().model_bytes, 1 << 20);
        peer.serve(package, |_, reply| Some(reply));
        (worker, peer)
    }

    pub fn config(&self, dir: &Path) -> Config {
        let mut config = Config::new(keys().id(), self.address.to_string(), dir.to_path_buf(), NonZeroUsize::MIN);
        config.first_pause = Duration::from_millis(20);
        config.longest_pause = Duration::from_millis(100);
        // Tests count what a worker computes; those of the self-test turn it on.
        config.self_test = None;
        config
    }

    /// An honest worker that slows no test down.
    pub fn worker(&self, dir: &Path) -> Handle {
        Worker::start(self.config(dir), Arc::new(Reference)).unwrap()
    }
}

pub fn welcome(models: Vec<ModelId>) -> ToWorker {
    ToWorker::Welcome(Welcome { protocol: PROTOCOL_VERSION, software: "test".into(), heartbeat_ms: 200, models })
}

/// A worker's connection, from the coordinator's end.
pub struct Peer {
    pub connection: Connection,
    pub control: SendStream,
    pub inbox: Frames<ToCoordinator>,
    pub hello: Hello,
}

impl Peer {
    pub async fn say(&mut self, message: ToWorker) {
        within(send(&mut self.control, &message)).await.unwrap();
    }

    pub async fn assign(&mut self, job: &Job, epoch: u64) {
        self.assign_with(job, epoch, Vec::new()).await;
    }

    pub async fn assign_with(&mut self, job: &Job, epoch: u64, hint: Vec<u32>) {
        self.say(ToWorker::Assign { epoch: LeaseEpoch(epoch), job: job.clone(), hint }).await;
    }

    /// The next control message that is no heartbeat.
    pub async fn hear(&mut self) -> Option<ToCoordinator> {
        loop {
            match within(self.inbox.next()).await.unwrap() {
                Some(ToCoordinator::Heartbeat { .. }) => {}
                other => return other,
            }
        }
    }

    /// The next job stream, read to its end. Its worker is told to reveal as soon as it has committed.
    pub async fn run(&mut self) -> Run {
        let mut stream = self.stream().await;
        stream.read_to_commitment().await;
        if stream.run.commitment.is_some() {
            self.reveal(&stream.run).await;
        }
        stream.read_to_end().await
    }

    /// The one message of the next stream.
    pub async fn alone(&self) -> JobMessage {
        only(within(self.connection.accept_uni()).await.unwrap()).await
    }

    /// The next job stream, nothing read.
    pub async fn stream(&self) -> RunStream {
        let frames = Frames::new(within(self.connection.accept_uni()).await.unwrap());
        RunStream { frames, run: Run::default() }
    }

    pub async fn reveal(&mut self, run: &Run) {
        let (job, epoch) = run.begun[0];
        self.say(ToWorker::Reveal { job, epoch }).await;
    }

    /// Serves a package on every package stream. `spoil` may change or withhold the reply to a request.
    pub fn serve(
        &self,
        package: &Package,
        spoil: impl Fn(usize, PackageReply) -> Option<PackageReply> + Send + Sync + 'static,
    ) -> Arc<AtomicUsize> {
        let (connection, package, spoil) = (self.connection.clone(), package.clone(), Arc::new(spoil));
        let served = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&served);
        tokio::spawn(async move {
            while let Ok((mut down, up)) = connection.accept_bi().await {
                let (package, spoil, count) = (package.clone(), Arc::clone(&spoil), Arc::clone(&count));
                tokio::spawn(async move {
                    let mut requests = Frames::<PackageRequest>::new(up);
                    while let Ok(Some(request)) = requests.next().await {
                        let number = count.fetch_add(1, Ordering::SeqCst);
                        let Some(reply) = spoil(number, reply(&package, request)) else { return };
                        if send(&mut down, &reply).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        served
    }
}

fn reply(package: &Package, request: PackageRequest) -> PackageReply {
    match request {
        PackageRequest::GetManifest { model } if model == package.model_id() => {
            PackageReply::Manifest { bytes: package.manifest_bytes().to_vec() }
        }
        PackageRequest::GetBlob { model, blob, range } if model == package.model_id() => {
            let data = package.blob(blob as usize);
            let bytes = open_range(data, &Outboard::new(data).unwrap(), range).unwrap();
            PackageReply::Opening { bytes }
        }
        _ => PackageReply::NotFound,
    }
}

/// A job stream that is being read.
pub struct RunStream {
    pub frames: Frames<JobMessage>,
    pub run: Run,
}

impl RunStream {
    /// Reads to the commitment, or to the end where there is none.
    pub async fn read_to_commitment(&mut self) {
        while self.run.commitment.is_none() && self.read().await {}
    }

    /// Reads to the root of this layer.
    pub async fn read_layers(&mut self, layers: usize) {
        while self.run.layers.len() < layers && self.read().await {}
    }

    pub async fn read_to_end(mut self) -> Run {
        while self.read().await {}
        self.run
    }

    /// Says whether there may be more.
    async fn read(&mut self) -> bool {
        match within(self.frames.next()).await {
            Ok(Some(JobMessage::Begin { job, epoch })) => self.run.begun.push((job, epoch)),
            Ok(Some(JobMessage::Layer { place, root })) => self.run.layers.push((place, root)),
            Ok(Some(JobMessage::Commit { commitment })) => self.run.commitment = Some(commitment),
            Ok(Some(JobMessage::Result { result, salt })) => {
                assert!(self.run.commitment.is_some(), "a result without a commitment");
                (self.run.result, self.run.salt) = (Some(*result), Some(salt));
            }
            Ok(Some(JobMessage::Token { word, logprobs })) => {
                self.run.words.push((self.run.layers.len(), word));
                self.run.logprobs.extend(logprobs);
            }
            Ok(Some(JobMessage::Move(_) | JobMessage::Partial(_))) => panic!("what has a stream of its own"),
            Ok(Some(
                JobMessage::Received(_)
                | JobMessage::HandedOver(_)
                | JobMessage::Proof(_)
                | JobMessage::Ended { .. }
                | JobMessage::Segment(_),
            )) => {
                panic!("what belongs to a pipeline")
            }
            Ok(None) => return false,
            Err(_) => {
                self.run.broken = true;
                return false;
            }
        }
        true
    }
}

/// Everything that came on a job stream.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub begun: Vec<(JobId, LeaseEpoch)>,
    pub layers: Vec<(Place, Root)>,
    /// Each word of a generation, and how many roots came before it.
    pub words: Vec<(usize, u32)>,
    /// The log-probabilities that came with them.
    pub logprobs: Vec<i32>,
    pub commitment: Option<RunCommitment>,
    pub result: Option<JobResult>,
    pub salt: Option<Salt>,
    pub broken: bool,
}

impl Run {
    /// Checks that the stream is exactly what an honest run of the job gives.
    pub fn is_honest(&self, package: &Package, job: &Job, epoch: u64, worker: NodeId) {
        let (roots, output) = expected(package, job);
        assert!(self.words.is_empty(), "an embedding has no words");
        let work = package.program().macs(job.tokens.len() as u64, 0);
        self.shows(job, epoch, worker, LAYERS, (&roots, &output, work));
    }

    /// The same for a generation of [`decoder_package`].
    pub fn is_honest_generation(&self, package: &Package, job: &Job, epoch: u64, worker: NodeId) {
        let expected = rerun_job(package, &Reference, job, &[]).unwrap();
        let (words, logprobs) = expected.output.split_at(expected.roots.len() / 3);
        let words: Vec<(usize, u32)> = (0..).map(|point| 3 * point + 2).zip(words_of(words)).collect();
        assert_eq!(self.words, words, "a word comes before the root of the last layer");
        assert_eq!(self.logprobs, logprobs);
        self.shows(job, epoch, worker, 2, (&expected.roots, &expected.output, expected.work_units));
    }

    /// Checks what was streamed and what was signed against roots, output and work.
    fn shows(&self, job: &Job, epoch: u64, worker: NodeId, layers: u16, run: (&[Root], &[i32], u64)) {
        let (roots, output, work) = run;
        let geometry = job.header().geometry(layers).unwrap();
        assert_eq!(self.begun, [(job.id(), LeaseEpoch(epoch))]);
        assert_eq!(self.layers, geometry.places().zip(roots.iter().copied()).collect::<Vec<_>>());
        let result = self.result.as_ref().unwrap();
        result.receipt.check(&job.header(), Some(&result.output)).unwrap();
        let receipt = &result.receipt.receipt;
        let trail = geometry.trail(roots).unwrap();
        assert_eq!((&receipt.points, &receipt.roots, &*result.output), (&trail.points, &trail.roots, output));
        assert_eq!((receipt.epoch, receipt.worker, receipt.layers), (LeaseEpoch(epoch), worker, layers));
        let (id, salt) = (job.id(), self.salt.unwrap());
        assert_eq!(self.commitment, Some(RunCommitment::of(id, receipt.epoch, worker, &salt, &receipt.head)));
        assert_eq!(receipt.work_units, work);
        assert!(!self.broken);
    }
}

/// The one message of a stream.
async fn only(stream: RecvStream) -> JobMessage {
    let mut frames = Frames::<JobMessage>::new(stream);
    let message = within(frames.next()).await.unwrap().unwrap();
    assert_eq!(within(frames.next()).await.unwrap(), None);
    message
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

/// Waits for an event.
pub async fn event<T>(events: &mut Receiver<Event>, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    loop {
        if let Some(found) = wanted(within(events.recv()).await.unwrap()) {
            return found;
        }
    }
}

/// Puts a package where a worker holds it.
pub fn hold(dir: &Path, package: &Package, from: &Path) -> PathBuf {
    let packages = dir.join("packages");
    std::fs::create_dir_all(&packages).unwrap();
    let to = packages.join(format!("{}.lsp", package.model_id()));
    std::fs::copy(from, &to).unwrap();
    to
}
