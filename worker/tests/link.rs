//! Connections: who is believed, what a hostile coordinator can do, and how the worker ends.

mod common;

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use common::{Coordinator, event, job, keys, package, welcome, within};
use lockstep_kernels::reference::Reference;
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{JobId, LeaseEpoch, ModelId};
use lockstep_protocol::messages::{FailureCode, RefusalCode, ToCoordinator, ToWorker};
use lockstep_worker::{Config, ErrorKind, Event, Worker, WorkerError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_coordinator_key_ends_the_worker() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::new();
    let mut config = coordinator.config(dir.path());
    config.coordinator = Keypair::from_seed([2; 32]).id();
    let accepting = tokio::spawn(async move { coordinator.endpoint.accept().await.unwrap().await.map(|_| ()) });
    let mut worker = Worker::start(config, Arc::new(Reference)).unwrap();
    let error = within(worker.wait()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Authentication);
    assert!(error.to_string().contains(&keys().id().to_string()), "{error}");
    assert!(accepting.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_end_the_worker_unless_they_may_pass() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::new();
    let mut worker = coordinator.worker(dir.path());
    let mut events = worker.subscribe();
    let mut peer = coordinator.accept().await;
    peer.say(ToWorker::Refused { code: RefusalCode::Full, reason: "later".into() }).await;
    event(&mut events, |event| matches!(event, Event::Disconnected { .. }).then_some(())).await;
    let mut peer = coordinator.welcome().await;
    peer.say(ToWorker::Shutdown).await;
    let mut peer = coordinator.welcome().await;
    let reason = "a result of yours was wrong".to_owned();
    peer.say(ToWorker::Refused { code: RefusalCode::Quarantined, reason: reason.clone() }).await;
    let error = within(worker.wait()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Authentication);
    assert!(error.to_string().contains(&reason));
    event(&mut events, |event| matches!(event, Event::Quarantined { .. }).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_messages_cost_the_connection_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::new();
    let mut worker = coordinator.worker(dir.path());
    let mut events = worker.subscribe();
    let huge = Vec::from(u32::MAX.to_le_bytes());
    let unknown_tag = [vec![4, 0, 0, 0], vec![0xff; 4]].concat();
    let trailing = [vec![3, 0, 0, 0], vec![6, 0, 0]].concat();
    let lying_count = {
        // An assignment whose token count says 131,072, in a frame that ends there.
        let mut body = vec![3, 0];
        body.extend([1; 8]);
        body.extend(1_u32.to_le_bytes());
        body.extend([7; 32]);
        body.extend([1, 0]);
        body.extend(131_072_u32.to_le_bytes());
        [(body.len() as u32).to_le_bytes().to_vec(), body].concat()
    };
    let noise: Vec<u8> = (0..100_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [huge, unknown_tag, trailing, lying_count, noise] {
        let mut peer = coordinator.welcome().await;
        // The worker may close before all of it is written.
        let _ = peer.control.write_all(&bytes).await;
        let reason = event(&mut events, |event| match event {
            Event::Disconnected { reason, .. } => Some(reason),
            _ => None,
        });
        let reason = reason.await;
        assert!(reason.contains("broke the protocol"), "{reason}");
        within(peer.connection.closed()).await;
    }
    // Messages out of order are no better.
    let mut peer = coordinator.welcome().await;
    peer.say(welcome(vec![])).await;
    within(peer.connection.closed()).await;
    let mut peer = coordinator.accept().await;
    peer.say(ToWorker::Accepted { job: JobId::from_bytes([1; 32]), epoch: LeaseEpoch(1) }).await;
    within(peer.connection.closed()).await;
    worker.drain();
    within(worker.wait()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_assignments_is_refused_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::new();
    let mut config = coordinator.config(dir.path());
    config.max_in_flight = NonZeroU32::MIN;
    let _worker = Worker::start(config, Arc::new(Reference)).unwrap();
    let mut peer = coordinator.welcome().await;
    // Nobody serves the model, so the first one waits for ever.
    let model = ModelId::from_bytes([5; 32]);
    for epoch in 1..=200 {
        peer.assign(&job(model, 1, 1_000), epoch).await;
    }
    for epoch in 2..=200 {
        let busy = peer.hear().await;
        assert!(
            matches!(busy, Some(ToCoordinator::Failed { epoch: e, code: FailureCode::Busy, .. }) if e == LeaseEpoch(epoch)),
            "{busy:?}"
        );
    }
    // Cancels and acknowledgements of what never was change nothing.
    for epoch in 500..600 {
        let (job, epoch) = (JobId::from_bytes([8; 32]), LeaseEpoch(epoch));
        peer.say(ToWorker::Cancel { job, epoch }).await;
        peer.say(ToWorker::Accepted { job, epoch }).await;
    }
    peer.assign(&job(model, 1, 1_000), 700).await;
    assert!(matches!(peer.hear().await, Some(ToCoordinator::Failed { code: FailureCode::Busy, .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_count_up() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::new();
    let _worker = coordinator.worker(dir.path());
    let mut peer = coordinator.welcome().await;
    for expected in 0..3 {
        let heard = within(peer.inbox.next()).await.unwrap();
        assert_eq!(heard, Some(ToCoordinator::Heartbeat { sequence: expected, in_flight: 0 }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_coordinator_it_tries_again_and_drains_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    let mut config = Config::new(keys().id(), address.to_string(), dir.path().to_path_buf(), NonZeroUsize::MIN);
    config.first_pause = Duration::from_millis(10);
    let mut worker = Worker::start(config, Arc::new(Reference)).unwrap();
    let mut events = worker.subscribe();
    event(&mut events, |event| matches!(event, Event::Connecting { .. }).then_some(())).await;
    worker.drain();
    within(worker.wait()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_serves_one_worker_at_a_time_and_keeps_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::new();
    let mut first = coordinator.worker(dir.path());
    let second = Worker::start(coordinator.config(dir.path()), Arc::new(Reference)).unwrap_err();
    assert_eq!(second.kind(), ErrorKind::Configuration);
    assert!(second.to_string().contains("another worker"), "{second}");
    first.abort();
    assert!(matches!(within(first.wait()).await, Err(WorkerError::Aborted)));
    let again = coordinator.worker(dir.path());
    assert_eq!(again.id(), first.id());
}

#[tokio::test]
async fn configurations_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::new();
    let good = coordinator.config(dir.path());
    let mut many = good.clone();
    many.max_in_flight = NonZeroU32::new(65).unwrap();
    let mut nowhere = good.clone();
    nowhere.address = "example.org".into();
    let mut port = good.clone();
    port.address = "example.org:0".into();
    let mut pause = good.clone();
    pause.longest_pause = Duration::ZERO;
    for config in [many, nowhere, port, pause] {
        let error = Worker::start(config, Arc::new(Reference)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
    }
    // A package that lies where the data directory should be.
    let file = package(dir.path(), 32, 10);
    let mut config = good;
    config.data_dir = dir.path().join("small-32-10.lsp");
    assert_eq!(Worker::start(config, Arc::new(Reference)).unwrap_err().kind(), ErrorKind::Configuration);
    drop(file);
}
