//! A worker in a pipeline: what it takes from its neighbours, what it pulls, and what it signs.

mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use common::{Coordinator, LAYERS, Peer, expected, job, keys, package, within};
use lockstep_kernels::reference::Reference;
use lockstep_kernels::slice::Slice;
use lockstep_kernels::value::CacheId;
use lockstep_link::{Client, Frames, send};
use lockstep_model::generation::{Mark, StageRun};
use lockstep_model::package::Package;
use lockstep_protocol::hand_over::{HandOver, HandOverProof, SignedHandOver};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{LeaseEpoch, Place, Root};
use lockstep_protocol::job::Job;
use lockstep_protocol::messages::{FailureCode, JobMessage, Stage, StageMessage, ToCoordinator, ToWorker};
use lockstep_worker::{ErrorKind, Handle, Pipeline, Worker};

const EPOCH: LeaseEpoch = LeaseEpoch(7);
/// The layers of the neighbour before: the worker has the rest.
const BEFORE: u16 = 2;

fn neighbour() -> Keypair {
    Keypair::from_seed([44; 32])
}

/// A worker that leads a pipeline of two, of which the test is the other, and the coordinator.
struct World {
    _coordinator: Coordinator,
    peer: Peer,
    worker: Handle,
    package: Package,
    job: Job,
    dir: tempfile::TempDir,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), 32, 1);
    let coordinator = Coordinator::new();
    let (worker, mut peer) = coordinator.pipeline_worker(&dir.path().join("worker"), &package).await;
    let job = job(package.model_id(), 1, 9);
    let stage = |node, first, last| Stage { node, address: "127.0.0.1:1".into(), first, last };
    let crew = vec![stage(neighbour().id(), 1, BEFORE), stage(worker.id(), BEFORE + 1, LAYERS + 1)];
    peer.say(ToWorker::AssignStage { epoch: EPOCH, job: job.clone(), hint: vec![], crew }).await;
    World { _coordinator: coordinator, peer, worker, package, job, dir }
}

/// What the neighbour computes: its rows, and what it signs of them.
fn rows(world: &World) -> (Vec<i32>, SignedHandOver) {
    let program = world.package.program();
    let slice = Slice::of(program, 0..=usize::from(BEFORE)).unwrap();
    let mut executor = slice.load(&Reference, world.package.params()).unwrap();
    let mut run = StageRun::new(Arc::clone(program), slice, &world.job, vec![], CacheId(0)).unwrap();
    let passed = run.pass(&mut *executor, world.job.tokens.len(), &[]).unwrap();
    let [mark] = passed.marks[..] else { panic!("a short embedding is handed over in one piece") };
    let Mark { first, rows, before, values, root } = mark;
    let (coordinator, worker) = (keys().id(), neighbour().id());
    let (job, epoch, layer, pass) = (world.job.id(), EPOCH, BEFORE, 0);
    let said = HandOver { coordinator, job, epoch, layer, pass, first, rows, before, values, root, worker };
    (passed.rows, said.sign(&neighbour()))
}

/// The neighbour hands its rows over.
async fn hand_over(world: &World, rows: Vec<i32>, signed: SignedHandOver) -> (Client, quinn::Connection) {
    let port = world.peer.hello.offer.unwrap().port;
    let mut client = Client::new(&neighbour(), world.worker.id());
    let connection = within(client.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))).await.unwrap();
    let (mut down, _up) = within(connection.open_bi()).await.unwrap();
    let (job, epoch) = (world.job.id(), EPOCH);
    let messages = [
        StageMessage::Open { job, epoch },
        StageMessage::Pass { count: world.job.tokens.len() as u32 },
        StageMessage::Rows { values: rows },
        StageMessage::HandedOver(Box::new(signed)),
    ];
    for message in &messages {
        // A worker that found something wrong does not read on.
        if send(&mut down, message).await.is_err() {
            break;
        }
    }
    (client, connection)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_streams_its_layers_and_signs_for_them() {
    let mut world = world().await;
    let (rows, signed) = rows(&world);
    let _link = hand_over(&world, rows, signed).await;
    let (roots, output) = expected(&world.package, &world.job);
    let mut frames = Frames::<JobMessage>::new(within(world.peer.connection.accept_uni()).await.unwrap());
    let (job, epoch) = (world.job.id(), EPOCH);
    let point = world.job.tokens.len() as u32 - 1;
    let layer = |layer: u16| JobMessage::Layer { place: Place { point, layer }, root: roots[usize::from(layer) - 1] };
    let said = [JobMessage::Begin { job, epoch }, JobMessage::Received(Box::new(signed)), layer(3), layer(4)];
    for expected in said {
        assert_eq!(within(frames.next()).await.unwrap(), Some(expected));
    }
    let Some(JobMessage::Ended { saturations }) = within(frames.next()).await.unwrap() else { panic!("it has ended") };
    // In two parts, as roots of a long run come.
    let (first, last) = roots.split_at(1);
    let more = |roots: &[Root], saturations| {
        let roots = roots.to_vec();
        ToWorker::Countersign { job, epoch, roots, saturations, logprobs: None }
    };
    world.peer.say(more(first, None)).await;
    world.peer.say(more(last, Some(saturations))).await;
    let committed = within(frames.next()).await.unwrap();
    assert!(matches!(committed, Some(JobMessage::Commit { .. })), "{committed:?}");
    world.peer.say(ToWorker::Reveal { job, epoch }).await;
    let Some(JobMessage::Result { result, .. }) = within(frames.next()).await.unwrap() else { panic!("a result") };
    assert_eq!(result.output, output);
    let header = world.job.header();
    result.receipt.check_share(&header, Some(&output), BEFORE + 1).unwrap();
    result.receipt.check(&header, Some(&output)).unwrap_err();
    // What it received is on disk, and of the package no more than its layers.
    let data = world.dir.path().join("worker");
    assert_eq!(names(&data.join("stages")), [format!("{job}-{}.rows", EPOCH.0)]);
    assert_eq!(names(&data.join("packages")), [format!("{}.3-4.lsp", world.job.model)]);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_not_what_their_sender_signed_are_not_taken() {
    type Change = fn(&mut Vec<i32>, &mut SignedHandOver);
    let bent: Change = |rows, _| rows[5] ^= 1;
    let short: Change = |rows, _| rows.truncate(rows.len() - 1);
    // Signed as it travels, and still not what was before it, or of this pass.
    let other_state: Change = |_, signed| {
        *signed = HandOver { before: Root::from_bytes([9; 32]), ..signed.hand_over }.sign(&neighbour());
    };
    let other_pass: Change = |_, signed| {
        *signed = HandOver { pass: 1, ..signed.hand_over }.sign(&neighbour());
    };
    let other_piece: Change = |_, signed| {
        *signed = HandOver { first: 1, ..signed.hand_over }.sign(&neighbour());
    };
    // A root that they do not have, unsigned: it could be anybody's.
    let other_root: Change = |_, signed| signed.hand_over.root = Root::from_bytes([9; 32]);
    let other_lease: Change = |_, signed| {
        *signed = HandOver { epoch: LeaseEpoch(8), ..signed.hand_over }.sign(&neighbour());
    };
    let forged: Change = |_, signed| *signed = signed.hand_over.sign(&Keypair::from_seed([45; 32]));
    for change in [bent, short, other_state, other_pass, other_piece, other_root, other_lease, forged] {
        let mut world = world().await;
        let (mut rows, mut signed) = rows(&world);
        change(&mut rows, &mut signed);
        let _link = hand_over(&world, rows, signed).await;
        match world.peer.hear().await {
            Some(ToCoordinator::Failed { epoch, code, .. }) => {
                assert_eq!((epoch, code), (EPOCH, FailureCode::Upstream));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_root_that_the_signed_rows_do_not_have_is_shown_to_the_coordinator() {
    type Change = fn(&mut Vec<i32>, &mut HandOver);
    let other_root: Change = |_, said| said.root = Root::from_bytes([9; 32]);
    // The root is that of the rows which it streamed, and what it hands over is something else.
    let other_rows: Change = |rows, said| {
        rows[5] ^= 1;
        said.values = HandOver::values_root(rows);
    };
    for change in [other_root, other_rows] {
        let mut world = world().await;
        let (mut rows, signed) = rows(&world);
        let mut said = signed.hand_over;
        change(&mut rows, &mut said);
        let signed = said.sign(&neighbour());
        let _link = hand_over(&world, rows.clone(), signed).await;
        let mut frames = Frames::<JobMessage>::new(within(world.peer.connection.accept_uni()).await.unwrap());
        let (job, epoch) = (world.job.id(), EPOCH);
        assert_eq!(within(frames.next()).await.unwrap(), Some(JobMessage::Begin { job, epoch }));
        let Some(JobMessage::Proof(proof)) = within(frames.next()).await.unwrap() else { panic!("a proof") };
        proof.check().unwrap();
        assert_eq!(*proof, HandOverProof::Rows { signed, state: Vec::new(), values: rows });
        assert_eq!(within(frames.next()).await.unwrap(), None, "nothing follows it");
        // Once the lease is over, the worker takes the next one.
        world.peer.say(ToWorker::Cancel { job, epoch }).await;
        let next = LeaseEpoch(EPOCH.0 + 1);
        world.peer.say(ToWorker::AssignStage { epoch: next, job: world.job.clone(), hint: vec![], crew: vec![] }).await;
        match world.peer.hear().await {
            Some(ToCoordinator::Failed { epoch, code, .. }) => {
                assert_eq!((epoch, code), (next, FailureCode::JobRefused));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_signs_for_nothing_but_what_it_streamed_and_received() {
    for at in 0..usize::from(LAYERS) + 1 {
        let mut world = world().await;
        let (rows, signed) = rows(&world);
        let _link = hand_over(&world, rows, signed).await;
        let (mut roots, _) = expected(&world.package, &world.job);
        let mut frames = Frames::<JobMessage>::new(within(world.peer.connection.accept_uni()).await.unwrap());
        let saturations = loop {
            match within(frames.next()).await.unwrap() {
                Some(JobMessage::Ended { saturations }) => break saturations,
                Some(_) => {}
                None => panic!("the stream ends early"),
            }
        };
        roots[at] = Root::from_bytes([3; 32]);
        let (job, epoch, saturations) = (world.job.id(), EPOCH, Some(saturations));
        let shown = ToWorker::Countersign { job, epoch, roots, saturations, logprobs: None };
        world.peer.say(shown).await;
        // Of the layer before its neighbour's last it knows nothing; there it signs for its own.
        if at + 1 < usize::from(BEFORE) {
            assert!(matches!(within(frames.next()).await, Ok(Some(JobMessage::Commit { .. }))));
        } else {
            assert!(matches!(world.peer.hear().await, Some(ToCoordinator::Failed { .. })), "{at}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crew_that_is_none_is_refused() {
    let mut world = world().await;
    let me = world.worker.id();
    let stage = |node, first, last| Stage { node, address: "127.0.0.1:1".into(), first, last };
    let other = neighbour().id();
    let crews = [
        vec![],
        vec![stage(other, 1, 2), stage(other, 3, 4)],
        vec![stage(other, 1, 2), stage(me, 4, 4)],
        vec![stage(other, 1, 2), stage(me, 3, 2)],
        vec![stage(me, 1, 2), stage(me, 3, 4)],
        vec![stage(other, 1, 2), stage(me, 3, 9)],
        vec![stage(other, 1, 2), stage(me, 3, 3)],
        vec![stage(other, 0, 2), stage(me, 3, 4)],
    ];
    for (number, crew) in (100..).zip(crews) {
        let epoch = LeaseEpoch(number);
        let assigned = ToWorker::AssignStage { epoch, job: world.job.clone(), hint: vec![], crew };
        world.peer.say(assigned).await;
        match world.peer.hear().await {
            Some(ToCoordinator::Failed { epoch: of, code, .. }) => {
                assert_eq!((of, code), (epoch, FailureCode::JobRefused));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_told_with_its_option() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut config = Coordinator::new().config(dir.path());
    config.pipeline = Some(Pipeline { listen: taken.local_addr().unwrap(), model_bytes: 1 << 20 });
    let mut worker = Worker::start(config, Arc::new(Reference)).unwrap();
    let error = within(worker.wait()).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Configuration && error.to_string().contains("--pipeline-listen"), "{error}");
}
