//! Packages on a worker's disk: how much room they get, and what happens when they change while in use.

mod common;

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Coordinator, Peer, event, hold, job, package, within};
use lockstep_kernels::reference::Reference;
use lockstep_model::package::Package;
use lockstep_protocol::ids::ModelId;
use lockstep_protocol::messages::{FailureCode, RefusalCode, ToCoordinator, ToWorker};
use lockstep_worker::{ErrorKind, Event, Worker};

/// Changes one byte of a parameter in place, as a failing disk would.
fn damage(file: &Path, package: &Package) {
    let bytes = std::fs::read(file).unwrap();
    let blob = package.blob(0);
    let at = bytes.windows(blob.len()).position(|window| window == blob).unwrap() as u64;
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 0x40]).unwrap();
}

async fn refused(peer: &mut Peer) -> (FailureCode, String) {
    match peer.hear().await {
        Some(ToCoordinator::Failed { code, reason, .. }) => (code, reason),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_damaged_while_in_use_is_found_and_pulled_again() {
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), 32, 5_000);
    let model = package.model_id();
    let coordinator = Coordinator::new();
    let home = dir.path().join("w");
    let file = hold(&home, &package, &dir.path().join("small-32-5000.lsp"));
    let mut config = coordinator.config(&home);
    config.recheck = Duration::ZERO;
    let worker = Worker::start(config, Arc::new(Reference)).unwrap();
    let mut events = worker.subscribe();
    let mut peer = coordinator.welcome().await;
    let served = peer.serve(&package, |_, reply| Some(reply));
    let first = job(model, 1, 5);
    peer.assign(&first, 1).await;
    peer.run().await.is_honest(&package, &first, 1, worker.id());
    assert_eq!(served.load(Ordering::SeqCst), 0, "it lies on disk");
    damage(&file, &package);
    let second = job(model, 2, 5);
    peer.assign(&second, 2).await;
    peer.run().await.is_honest(&package, &second, 2, worker.id());
    assert!(served.load(Ordering::SeqCst) > 0, "it was pulled again");
    let reason = event(&mut events, |event| match event {
        Event::ModelFailed { reason, .. } => Some(reason),
        _ => None,
    });
    assert!(reason.await.contains("damaged since"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_found_wrong_says_whether_its_package_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), 32, 5_000);
    let coordinator = Coordinator::new();
    let home = dir.path().join("w");
    let file = hold(&home, &package, &dir.path().join("small-32-5000.lsp"));
    let mut worker = coordinator.worker(&home);
    let mut events = worker.subscribe();
    let mut peer = coordinator.welcome().await;
    let job = job(package.model_id(), 1, 5);
    peer.assign(&job, 1).await;
    peer.run().await.is_honest(&package, &job, 1, worker.id());
    damage(&file, &package);
    peer.say(ToWorker::Refused { code: RefusalCode::Quarantined, reason: "wrong".into() }).await;
    assert_eq!(within(worker.wait()).await.unwrap_err().kind(), ErrorKind::Authentication);
    event(&mut events, |event| matches!(event, Event::ModelFailed { .. }).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packages_take_no_more_room_than_they_may() {
    let dir = tempfile::tempdir().unwrap();
    let (small, large) = (package(dir.path(), 32, 5_000), package(dir.path(), 32, 500_000));
    let coordinator = Coordinator::new();
    let home = dir.path().join("w");
    let mut config = coordinator.config(&home);
    let small_bytes = std::fs::metadata(dir.path().join("small-32-5000.lsp")).unwrap().len();
    config.max_package_bytes = small_bytes + 1_000;
    let worker = Worker::start(config, Arc::new(Reference)).unwrap();
    let mut peer = coordinator.welcome().await;
    peer.serve(&large, |_, reply| Some(reply));
    for epoch in 1..3 {
        peer.assign(&job(large.model_id(), 1, 5), epoch).await;
        let (code, reason) = refused(&mut peer).await;
        assert_eq!(code, FailureCode::ModelRefused);
        assert!(reason.contains(&format!("at most {}", small_bytes + 1_000)), "{reason}");
    }
    assert_eq!(std::fs::read_dir(home.join("packages")).unwrap().count(), 0, "nothing was written");
    peer.say(ToWorker::Shutdown).await;
    let mut peer = coordinator.welcome().await;
    peer.serve(&small, |_, reply| Some(reply));
    let job = job(small.model_id(), 1, 5);
    peer.assign(&job, 3).await;
    peer.run().await.is_honest(&small, &job, 3, worker.id());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_that_nobody_has_are_not_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), 32, 5_000);
    let coordinator = Coordinator::new();
    let worker = coordinator.worker(&dir.path().join("w"));
    let mut peer = coordinator.welcome().await;
    peer.serve(&package, |_, reply| Some(reply));
    // More than a worker keeps in mind at a time.
    for number in 0..1_100_u32 {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_le_bytes());
        peer.assign(&job(ModelId::from_bytes(id), 1, 2), u64::from(number) + 1).await;
        let (code, reason) = refused(&mut peer).await;
        assert_eq!(code, FailureCode::ModelUnavailable);
        assert!(reason.contains("no manifest"), "{reason}");
    }
    let job = job(package.model_id(), 1, 5);
    peer.assign(&job, 5_000).await;
    peer.run().await.is_honest(&package, &job, 5_000, worker.id());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_key_is_used_twice_says_so_and_waits_long() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::new();
    let mut config = coordinator.config(dir.path());
    config.replaced_pause = Duration::from_secs(1_000);
    let worker = Worker::start(config, Arc::new(Reference)).unwrap();
    let mut events = worker.subscribe();
    // A session that ends early leaves the pauses growing.
    let mut pauses = Vec::new();
    for _ in 0..4 {
        let peer = coordinator.welcome().await;
        event(&mut events, |event| matches!(event, Event::Connected { .. }).then_some(())).await;
        lockstep_link::close(&peer.connection, lockstep_link::Close::Protocol, "the coordinator ended this session");
        pauses.push(disconnected(&mut events).await.1);
    }
    assert!(pauses[3] >= Duration::from_millis(50), "{pauses:?}");
    let peer = coordinator.welcome().await;
    event(&mut events, |event| matches!(event, Event::Connected { .. }).then_some(())).await;
    let said = "another session with this key joined";
    lockstep_link::close(&peer.connection, lockstep_link::Close::Protocol, said);
    let (reason, pause) = disconnected(&mut events).await;
    assert!(reason.contains("another worker uses this key") && reason.contains(said), "{reason}");
    assert!(pause >= Duration::from_secs(500), "{pause:?}");
}

async fn disconnected(events: &mut tokio::sync::broadcast::Receiver<Event>) -> (String, Duration) {
    event(events, |event| match event {
        Event::Disconnected { reason, retry_in } => Some((reason, retry_in)),
        _ => None,
    })
    .await
}
