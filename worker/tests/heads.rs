//! Cosignatures: what continues the log is signed, and nothing else, over restarts too.

mod common;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use common::{Coordinator, Peer, event, keys, within};
use lockstep_kernels::reference::Reference;
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Digest, Millis, NodeId};
use lockstep_protocol::log::{LogHead, SignedHead, Subtree, Tree, consistency_path};
use lockstep_protocol::messages::{RefusalCode, ToCoordinator, ToWorker};
use lockstep_worker::{ErrorKind, Event, Worker};

/// A log of made-up leaves.
#[derive(Clone, Default)]
struct Log {
    tree: Tree,
    nodes: BTreeMap<Subtree, Digest>,
}

impl Log {
    fn append(&mut self, leaf: u8) {
        let nodes = &mut self.nodes;
        let mut keep = |at, hash| {
            nodes.insert(at, hash);
            Ok::<(), Infallible>(())
        };
        self.tree.append(Digest::from_bytes([leaf; 32]), &mut keep).unwrap();
    }

    fn head(&self, time: u64) -> SignedHead {
        LogHead::of(&self.tree, keys().id(), Millis(time)).sign(&keys())
    }

    /// A request for a cosignature, with the path from an earlier size.
    fn ask(&self, time: u64, from: u64) -> ToWorker {
        let node = |at: Subtree| Ok::<Digest, Infallible>(self.nodes[&at]);
        let path = if from == 0 { vec![] } else { consistency_path(from, self.tree.size(), node).unwrap() };
        ToWorker::Cosign { head: self.head(time), from, path }
    }
}

/// The next message is a cosignature of this head by that worker.
async fn cosigned(peer: &mut Peer, head: &SignedHead, worker: NodeId) {
    match peer.hear().await {
        Some(ToCoordinator::Cosigned(signed)) => {
            signed.check(head).unwrap();
            assert_eq!(signed.worker, worker);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_follow_are_cosigned_over_restarts_and_others_never() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::new();
    let mut worker = coordinator.worker(dir.path());
    let mut peer = coordinator.welcome().await;
    let mut log = Log::default();
    (0..5).for_each(|leaf| log.append(leaf));
    peer.say(log.ask(1, 0)).await;
    cosigned(&mut peer, &log.head(1), worker.id()).await;
    // The same head again is the same cosignature; a later one follows by its path.
    peer.say(log.ask(1, 0)).await;
    cosigned(&mut peer, &log.head(1), worker.id()).await;
    let mut forked = log.clone();
    (5..9).for_each(|leaf| log.append(leaf));
    peer.say(log.ask(2, 5)).await;
    cosigned(&mut peer, &log.head(2), worker.id()).await;
    worker.abort();
    within(worker.wait()).await.unwrap_err();

    let worker = coordinator.worker(dir.path());
    let mut events = worker.subscribe();
    let mut peer = coordinator.welcome().await;
    // A coordinator that does not know where the worker stands is told.
    let before = log.head(2);
    (9..12).for_each(|leaf| log.append(leaf));
    peer.say(log.ask(3, 5)).await;
    cosigned(&mut peer, &before, worker.id()).await;
    // Another history, longer or shorter, is refused, and the evidence kept.
    (50..60).for_each(|leaf| forked.append(leaf));
    let mut shrunk = Log::default();
    shrunk.append(0);
    for (ask, size) in [(forked.ask(3, 9), 15), (shrunk.ask(4, 0), 1)] {
        peer.say(ask).await;
        let refused = |event| if let Event::HeadRefused { size, reason } = event { Some((size, reason)) } else { None };
        let (found, reason) = event(&mut events, refused).await;
        assert_eq!(found, size);
        assert!(!reason.is_empty());
    }
    let evidence = dir.path().join("heads").join(format!("{}.refused.json", keys().id()));
    let evidence = SignedHead::from_json(&std::fs::read_to_string(evidence).unwrap()).unwrap();
    assert_eq!(evidence, forked.head(3));
    // The true history goes on.
    peer.say(log.ask(5, 9)).await;
    cosigned(&mut peer, &log.head(5), worker.id()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_by_others_are_not_cosigned_and_leave_no_mark() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::new();
    let worker = coordinator.worker(dir.path());
    let mut events = worker.subscribe();
    let mut peer = coordinator.welcome().await;
    let mut log = Log::default();
    log.append(1);
    let other = Keypair::from_seed([7; 32]);
    let foreign = LogHead::of(&log.tree, other.id(), Millis(1)).sign(&other);
    let mut unsigned = log.head(1);
    unsigned.head.size += 1;
    for head in [foreign, unsigned] {
        peer.say(ToWorker::Cosign { head, from: 0, path: vec![] }).await;
        event(&mut events, |event| matches!(event, Event::HeadRefused { .. }).then_some(())).await;
    }
    assert_eq!(std::fs::read_dir(dir.path().join("heads")).unwrap().count(), 0);
    peer.say(log.ask(1, 0)).await;
    cosigned(&mut peer, &log.head(1), worker.id()).await;
}

#[test]
fn a_kept_head_that_is_damaged_stops_the_worker_before_it_vouches_for_anything() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let coordinator = runtime.block_on(async { Coordinator::new() });
    let heads = dir.path().join("heads");
    std::fs::create_dir_all(&heads).unwrap();
    std::fs::write(heads.join(format!("{}.json", keys().id())), "{}").unwrap();
    let error =
        runtime.block_on(async { Worker::start(coordinator.config(dir.path()), Arc::new(Reference)).unwrap_err() });
    assert_eq!(error.kind(), ErrorKind::Configuration);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_set_aside_tests_itself_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::new();
    let mut config = coordinator.config(dir.path());
    config.replaced_pause = config.first_pause;
    let worker = Worker::start(config, Arc::new(Reference)).unwrap();
    let mut events = worker.subscribe();
    let mut peer = coordinator.welcome().await;
    peer.say(ToWorker::Refused { code: RefusalCode::Faulty, reason: "it took a run back".into() }).await;
    event(&mut events, |event| matches!(event, Event::Faulty { .. }).then_some(())).await;
    event(&mut events, |event| matches!(event, Event::Checked { .. }).then_some(())).await;
    coordinator.welcome().await;
}
