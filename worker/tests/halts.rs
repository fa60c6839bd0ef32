//! Runs that the coordinator halts: they stop, and what was streamed is signed, once and for all.

mod common;
#[path = "common/stuck.rs"]
mod stuck;

use std::sync::Arc;

use common::{Coordinator, Peer, event, expected, job, package, within};
use lockstep_kernels::reference::Reference;
use lockstep_protocol::dispute::{Claim, SignedPartial};
use lockstep_protocol::ids::{LeaseEpoch, Place};
use lockstep_protocol::job::Job;
use lockstep_protocol::messages::{JobMessage, ToWorker};
use lockstep_worker::{Event, Worker};
use stuck::Stuck;

/// Halts a run at its second layer.
async fn halt(peer: &mut Peer, job: &Job, epoch: u64) -> SignedPartial {
    halt_at(peer, job, epoch, 2).await
}

async fn halt_at(peer: &mut Peer, job: &Job, epoch: u64, layer: u16) -> SignedPartial {
    let place = Place { point: job.tokens.len() as u32 - 1, layer };
    peer.say(ToWorker::Halt { job: job.id(), epoch: LeaseEpoch(epoch), place }).await;
    match peer.alone().await {
        JobMessage::Partial(partial) => partial,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halted_run_stops_and_what_it_streamed_is_signed_over_connections_too() {
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), 32, 100);
    let coordinator = Coordinator::new();
    let stuck = Stuck::at(3, 9);
    let worker = Worker::start(coordinator.config(&dir.path().join("w")), Arc::new(stuck.clone())).unwrap();
    let mut events = worker.subscribe();
    let mut peer = coordinator.welcome().await;
    peer.serve(&package, |_, reply| Some(reply));
    let job = job(package.model_id(), 1, 9);
    peer.assign(&job, 4).await;
    let mut stream = peer.stream().await;
    stream.read_layers(2).await;
    let partial = halt(&mut peer, &job, 4).await;
    assert_eq!(
        event(&mut events, |event| if let Event::Halted { roots, .. } = event { Some(roots) } else { None }).await,
        2
    );
    let (roots, _) = expected(&package, &job);
    assert_eq!(partial.partial.roots, roots[..2]);
    assert_eq!((partial.partial.worker, partial.partial.epoch), (worker.id(), LeaseEpoch(4)));
    Claim::from(partial.clone()).check(&job.header(), common::LAYERS).unwrap();
    stuck.let_go();
    let run = stream.read_to_end().await;
    assert!(run.broken && run.result.is_none() && run.layers.len() == 2, "{run:?}");
    // It runs something else now, and says the same about the halted run whenever it is asked.
    let other = common::job(package.model_id(), 2, 5);
    peer.assign(&other, 5).await;
    peer.run().await.is_honest(&package, &other, 5, worker.id());
    assert!(stuck.layers() < usize::from(common::LAYERS) + 2, "the halted run went on to its end");
    assert_eq!(halt(&mut peer, &job, 4).await, partial);
    peer.connection.close(9_u32.into(), b"the test pulls the plug");
    let mut peer = coordinator.welcome().await;
    // What was not acknowledged is offered again first.
    let mut again = peer.stream().await;
    again.read_to_commitment().await;
    assert_eq!(again.run.begun[0].0, other.id());
    assert_eq!(halt(&mut peer, &job, 4).await, partial);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_waits_to_be_revealed_can_be_halted_and_is_kept_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), 32, 100);
    let coordinator = Coordinator::new();
    let mut worker = Worker::start(coordinator.config(&dir.path().join("w")), Arc::new(Reference)).unwrap();
    let mut peer = coordinator.welcome().await;
    peer.serve(&package, |_, reply| Some(reply));
    let job = job(package.model_id(), 1, 9);
    peer.assign(&job, 1).await;
    let mut stream = peer.stream().await;
    stream.read_to_commitment().await;
    // A halt of what it never ran is not answered.
    let place = Place { point: 8, layer: common::LAYERS + 1 };
    peer.say(ToWorker::Halt { job: job.id(), epoch: LeaseEpoch(2), place }).await;
    let partial = halt_at(&mut peer, &job, 1, common::LAYERS + 1).await;
    assert_eq!(partial.partial.roots, expected(&package, &job).0);
    let run = stream.read_to_end().await;
    assert!(run.broken && run.result.is_none(), "{run:?}");
    worker.drain();
    within(worker.wait()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_connection_broke_can_still_be_halted() {
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), 32, 100);
    let coordinator = Coordinator::new();
    let stuck = Stuck::at(3, 9);
    let worker = Worker::start(coordinator.config(&dir.path().join("w")), Arc::new(stuck.clone())).unwrap();
    let mut events = worker.subscribe();
    let mut peer = coordinator.welcome().await;
    peer.serve(&package, |_, reply| Some(reply));
    let job = job(package.model_id(), 1, 9);
    peer.assign(&job, 1).await;
    let mut stream = peer.stream().await;
    stream.read_layers(2).await;
    peer.connection.close(9_u32.into(), b"the test pulls the plug");
    event(&mut events, |event| matches!(event, Event::Disconnected { .. }).then_some(())).await;
    stuck.let_go();
    let mut peer = coordinator.welcome().await;
    let partial = halt(&mut peer, &job, 1).await;
    assert_eq!(partial.partial.roots, expected(&package, &job).0[..2]);
}
