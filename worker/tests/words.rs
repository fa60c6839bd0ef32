//! The first worker of a pipeline: which words it computes on from, and what it shows of them. The test has the last layers.

mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use common::{Coordinator, Peer, decoder_package, keys, within};
use lockstep_kernels::backend::Executor;
use lockstep_kernels::reference::Reference;
use lockstep_kernels::slice::Slice;
use lockstep_kernels::value::CacheId;
use lockstep_link::{Frames, peer_id, send, server};
use lockstep_model::generation::{Mark, StageRun};
use lockstep_model::package::Package;
use lockstep_model::rerun::rerun_job;
use lockstep_protocol::generation::{Generation, words_of};
use lockstep_protocol::hand_over::{HandOver, SignedHandOver};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{LeaseEpoch, NodeId, Place, Root};
use lockstep_protocol::job::{Job, JobKind};
use lockstep_protocol::messages::{FailureCode, JobMessage, Stage, StageMessage, ToCoordinator, ToWorker};
use lockstep_worker::Handle;
use quinn::{Connection, Endpoint, SendStream};

const EPOCH: LeaseEpoch = LeaseEpoch(7);
/// The last layer of the worker.
const LAST: u16 = 1;
const TOKENS: usize = 5;
const WORDS: u32 = 4;

fn lead_keys() -> Keypair {
    Keypair::from_seed([44; 32])
}

/// A worker that has the first layers of a generation, its coordinator, and the stream between it and the lead.
struct World {
    _coordinator: Coordinator,
    peer: Peer,
    _worker: Handle,
    package: Package,
    job: Job,
    _dir: tempfile::TempDir,
    _endpoint: Endpoint,
    _connection: Connection,
    up: SendStream,
    down: Frames<StageMessage>,
    run: StageRun,
    executor: Box<dyn Executor>,
    pass: u32,
}

async fn world(hint: &[u32]) -> World {
    let dir = tempfile::tempdir().unwrap();
    let package = decoder_package(dir.path());
    let coordinator = Coordinator::new();
    let (worker, mut peer) = coordinator.pipeline_worker(&dir.path().join("worker"), &package).await;
    let kind = JobKind::Generation(Box::new(Generation { temperature: 9_000, ..Generation::greedy(WORDS) }));
    let job = Job { kind, ..common::job(package.model_id(), 1, TOKENS) };
    let endpoint = server(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &lead_keys()).unwrap();
    let address = endpoint.local_addr().unwrap().to_string();
    let stage = |node: NodeId, first, last| Stage { node, address: address.clone(), first, last };
    let output = output_layer(&package);
    let crew = vec![stage(worker.id(), 1, LAST), stage(lead_keys().id(), LAST + 1, output)];
    peer.say(ToWorker::AssignStage { epoch: EPOCH, job: job.clone(), hint: hint.to_vec(), crew }).await;
    let connection = within(endpoint.accept()).await.unwrap().await.unwrap();
    assert_eq!(peer_id(&connection).unwrap(), worker.id());
    let (up, down) = within(connection.accept_bi()).await.unwrap();
    let mut down = Frames::new(down);
    let open = StageMessage::Open { job: job.id(), epoch: EPOCH };
    assert_eq!(within(down.next()).await.unwrap(), Some(open));
    let slice = Slice::of(package.program(), usize::from(LAST) + 1..=output.into()).unwrap();
    let executor = slice.load(&Reference, package.params()).unwrap();
    let run = StageRun::new(Arc::clone(package.program()), slice, &job, hint.to_vec(), CacheId(0)).unwrap();
    let (_coordinator, _worker, _dir, _endpoint, _connection) = (coordinator, worker, dir, endpoint, connection);
    World { _coordinator, peer, _worker, package, job, _dir, _endpoint, _connection, up, down, run, executor, pass: 0 }
}

fn output_layer(package: &Package) -> u16 {
    package.program().layers.len() as u16 - 1
}

impl World {
    /// Takes the rows of a pass, and gives the words at its points with what a lead signs of them.
    async fn draw(&mut self) -> Vec<(u32, SignedHandOver)> {
        let Some(StageMessage::Pass { count }) = within(self.down.next()).await.unwrap() else { panic!("a pass") };
        let (count, mut rows) = (count as usize, Vec::new());
        for _ in self.run.received_cuts(count) {
            let Some(StageMessage::Rows { values }) = within(self.down.next()).await.unwrap() else { panic!("rows") };
            rows.extend(values);
            let signed = within(self.down.next()).await.unwrap();
            assert!(matches!(signed, Some(StageMessage::HandedOver(_))), "{signed:?}");
        }
        let words = self.run.pass(&mut *self.executor, count, &rows).unwrap().words;
        let marks = self.run.word_marks(&words).unwrap();
        let sign = |mark: &Mark| self.said(mark).sign(&lead_keys());
        words.iter().copied().zip(marks.iter().map(sign)).collect()
    }

    fn said(&self, mark: &Mark) -> HandOver {
        let (coordinator, worker) = (keys().id(), lead_keys().id());
        let (job, epoch, layer, pass) = (self.job.id(), EPOCH, output_layer(&self.package), self.pass);
        let Mark { first, rows, before, values, root } = *mark;
        HandOver { coordinator, job, epoch, layer, pass, first, rows, before, values, root, worker }
    }

    async fn tell(&mut self, told: &[(u32, SignedHandOver)]) {
        for (word, signed) in told {
            let message = StageMessage::Word { word: *word, signed: Box::new(*signed) };
            // A worker that found something wrong does not read on.
            if send(&mut self.up, &message).await.is_err() {
                return;
            }
        }
    }
}

/// All passes of a generation. The words come back as they were signed, those after a wrong hint too.
async fn generate(world: &mut World) -> Vec<SignedHandOver> {
    let mut all = Vec::new();
    loop {
        let told = world.draw().await;
        world.tell(&told).await;
        let words: Vec<u32> = told.iter().map(|(word, _)| *word).collect();
        let ended = world.run.accept(&mut *world.executor, &words, &[], &mut |_| {}).unwrap();
        all.extend(told.into_iter().map(|(_, signed)| signed));
        world.pass += 1;
        if ended {
            return all;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_what_was_signed_of_each_word_before_what_it_computed_from_it() {
    let right = {
        let world = world(&[]).await;
        words_of(&rerun_job(&world.package, &Reference, &world.job, &[]).unwrap().output)
    };
    let mut wrong = right.clone();
    wrong[1] ^= 1;
    for hint in [vec![], right.clone(), wrong] {
        let mut world = world(&hint).await;
        let expected = rerun_job(&world.package, &Reference, &world.job, &[]).unwrap();
        let signed = generate(&mut world).await;
        let mut frames = Frames::<JobMessage>::new(within(world.peer.connection.accept_uni()).await.unwrap());
        let (job, epoch) = (world.job.id(), EPOCH);
        assert_eq!(within(frames.next()).await.unwrap(), Some(JobMessage::Begin { job, epoch }));
        let per_point = usize::from(output_layer(&world.package));
        let points = expected.roots.len() / per_point;
        let mut pass = 0;
        for index in 0..=points {
            if index > 0 {
                // The one of the pass in which its own rows of that point were.
                let point = (TOKENS - 2 + index) as u32;
                let right =
                    signed.iter().find(|signed| (signed.hand_over.pass, signed.hand_over.first) == (pass, point));
                let shown = within(frames.next()).await.unwrap();
                assert_eq!(shown, Some(JobMessage::Received(Box::new(*right.unwrap()))), "{index}");
            }
            if index == points {
                break;
            }
            let Some(JobMessage::HandedOver(own)) = within(frames.next()).await.unwrap() else { panic!("{index}") };
            pass = own.hand_over.pass;
            let place = Place { point: (TOKENS - 1 + index) as u32, layer: LAST };
            let layer = JobMessage::Layer { place, root: expected.roots[index * per_point] };
            assert_eq!(within(frames.next()).await.unwrap(), Some(layer));
        }
        let ended = within(frames.next()).await.unwrap();
        assert!(matches!(ended, Some(JobMessage::Ended { .. })), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn words_that_are_not_what_the_lead_signed_or_none_of_the_job_are_not_taken() {
    type Change = fn(&World, &mut u32, &mut SignedHandOver);
    let bent: Change = |_, word, _| *word ^= 1;
    let unsigned: Change = |_, _, signed| signed.hand_over.root = Root::from_bytes([9; 32]);
    let forged: Change = |_, _, signed| *signed = signed.hand_over.sign(&Keypair::from_seed([45; 32]));
    // Signed, and not of this word, pass, point or lease.
    let other_root: Change = |_, _, signed| resign(signed, |said| said.root = Root::from_bytes([9; 32]));
    let other_values: Change = |_, _, signed| resign(signed, |said| said.values = Root::from_bytes([9; 32]));
    let other_state: Change = |_, _, signed| resign(signed, |said| said.before = Root::from_bytes([9; 32]));
    let other_pass: Change = |_, _, signed| resign(signed, |said| said.pass = 1);
    let other_point: Change =
        |_, _, signed| resign(signed, |said| (said.first, said.rows) = (said.rows, said.rows + 1));
    let other_layer: Change = |_, _, signed| resign(signed, |said| said.layer = LAST);
    let other_lease: Change = |_, _, signed| resign(signed, |said| said.epoch = LeaseEpoch(8));
    // Of the word that is said, which none of the job can be: no token, an end without a meaning, and one that comes too early.
    let no_token: Change = |world, word, signed| *signed = of_word(world, word, 61);
    let no_end: Change = |world, word, signed| *signed = of_word(world, word, 5 | 4 << 24);
    let early_end: Change = |world, word, signed| *signed = of_word(world, word, 5 | 3 << 24);
    let changes = [bent, unsigned, forged, other_root, other_values, other_state, other_pass, other_point];
    for change in changes.into_iter().chain([other_layer, other_lease, no_token, no_end, early_end]) {
        let mut world = world(&[]).await;
        let mut told = world.draw().await;
        let [(word, signed)] = &mut told[..] else { panic!("the prompt has one point") };
        change(&world, word, signed);
        world.tell(&told).await;
        is_given_back(&mut world).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_too_few_is_not_made_up() {
    let mut world = world(&[]).await;
    world.draw().await;
    send(&mut world.up, &StageMessage::Pass { count: 1 }).await.unwrap();
    is_given_back(&mut world).await;
}

fn resign(signed: &mut SignedHandOver, change: impl Fn(&mut HandOver)) {
    change(&mut signed.hand_over);
    *signed = signed.hand_over.sign(&lead_keys());
}

fn of_word(world: &World, word: &mut u32, other: u32) -> SignedHandOver {
    *word = other;
    world.said(&Mark::of_word(TOKENS as u32 - 1, other)).sign(&lead_keys())
}

async fn is_given_back(world: &mut World) {
    loop {
        match world.peer.hear().await {
            Some(ToCoordinator::Failed { epoch, code, .. }) => {
                assert_eq!((epoch, code), (EPOCH, FailureCode::Downstream));
                return;
            }
            Some(ToCoordinator::HaveModel { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}
