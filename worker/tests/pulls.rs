//! Packages: pulled range by range, resumed, never believed.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{Coordinator, event, hold, job, package, welcome, within};
use lockstep_model::package::Package;
use lockstep_protocol::messages::{FailureCode, PackageReply, ToCoordinator};
use lockstep_worker::{ErrorKind, Event, WorkerError};

/// Long enough for a dozen ranges of 1 MiB.
const FILLER: usize = 12 * (1 << 20) + 12_345;

fn packages(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("packages")).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_goes_on_where_a_killed_worker_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), 32, FILLER);
    let model = package.model_id();
    let coordinator = Coordinator::new();
    let home = dir.path().join("w");
    let mut worker = coordinator.worker(&home);
    let mut events = worker.subscribe();
    let mut peer = coordinator.accept().await;
    // Withheld after so many replies: the worker hangs in the middle of the long blob, and dies there.
    let blobs = package.blob_count();
    peer.serve(&package, move |number, reply| (number < blobs + 5).then_some(reply));
    peer.say(welcome(vec![model])).await;
    event(&mut events, |event| matches!(event, Event::Pulling { done, .. } if done > 3 << 20).then_some(())).await;
    worker.abort();
    assert!(matches!(within(worker.wait()).await, Err(WorkerError::Aborted)));
    drop(worker);
    assert_eq!(packages(&home), [format!("{model}.lsp.part"), format!("{model}.lsp.progress")]);

    let worker = coordinator.worker(&home);
    let mut events = worker.subscribe();
    let mut peer = coordinator.accept().await;
    assert!(peer.hello.models.is_empty());
    let served = peer.serve(&package, |_, reply| Some(reply));
    peer.say(welcome(vec![model])).await;
    let start = event(&mut events, |event| match event {
        Event::Pulling { done, .. } => Some(done),
        _ => None,
    });
    assert!(start.await > 3 << 20, "it starts from the beginning");
    assert_eq!(peer.hear().await, Some(ToCoordinator::HaveModel { model }));
    assert!(served.load(Ordering::SeqCst) < 12, "it asks for what it has");
    let path = home.join("packages").join(format!("{model}.lsp"));
    assert_eq!(
        std::fs::read(&path).unwrap(),
        std::fs::read(dir.path().join(format!("small-32-{FILLER}.lsp"))).unwrap()
    );
    assert_eq!(packages(&home).len(), 1);
    let job = job(model, 1, 5);
    peer.assign(&job, 1).await;
    peer.run().await.is_honest(&package, &job, 1, worker.id());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_lost_in_a_pull_costs_no_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), 32, FILLER);
    let model = package.model_id();
    let coordinator = Coordinator::new();
    let worker = coordinator.worker(&dir.path().join("w"));
    let mut events = worker.subscribe();
    let mut replies = 0;
    let mut sessions = 0;
    loop {
        let mut peer = coordinator.accept().await;
        sessions += 1;
        let connection = peer.connection.clone();
        let served = peer.serve(&package, move |number, reply| {
            if number == 6 {
                connection.close(9_u32.into(), b"the test pulls the plug");
            }
            Some(reply)
        });
        peer.say(welcome(vec![model])).await;
        let done = event(&mut events, |event| match event {
            Event::Disconnected { .. } => Some(false),
            Event::ModelReady { .. } => Some(true),
            _ => None,
        });
        let done = done.await;
        replies += served.load(Ordering::SeqCst);
        if done {
            break;
        }
    }
    assert!(sessions > 2);
    // Each break loses at most what was on its way.
    assert!(replies < package.blob_count() + 13 + sessions * 7, "{replies} in {sessions} sessions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_jobs_of_a_model_that_is_not_there_pull_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), 32, FILLER);
    let coordinator = Coordinator::new();
    let worker = coordinator.worker(&dir.path().join("w"));
    let mut peer = coordinator.welcome().await;
    let served = peer.serve(&package, |_, reply| Some(reply));
    let jobs: Vec<_> = (0..8).map(|number| job(package.model_id(), number, 7)).collect();
    for (epoch, job) in (1..).zip(&jobs) {
        peer.assign(job, epoch).await;
    }
    for _ in &jobs {
        let run = peer.run().await;
        let (id, epoch) = run.begun[0];
        run.is_honest(&package, jobs.iter().find(|job| job.id() == id).unwrap(), epoch.0, worker.id());
    }
    // The manifest, each short blob, and the ranges of the long one.
    assert_eq!(served.load(Ordering::SeqCst), 1 + package.blob_count() - 1 + 13);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_and_manifests_that_lie_are_refused_and_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let (package, other) = (package(dir.path(), 32, FILLER), package(dir.path(), 48, 100));
    let model = package.model_id();
    let coordinator = Coordinator::new();
    let home = dir.path().join("w");
    let worker = coordinator.worker(&home);
    let mut peer = coordinator.welcome().await;
    let foreign = other.manifest_bytes().to_vec();
    let lie: Arc<Mutex<Option<Lie>>> = Arc::default();
    let current = Arc::clone(&lie);
    peer.serve(&package, move |_, reply| match (*current.lock().unwrap(), reply) {
        (Some(Lie::Manifest), PackageReply::Manifest { .. }) => Some(PackageReply::Manifest { bytes: foreign.clone() }),
        (Some(Lie::Kind), PackageReply::Opening { bytes }) => Some(PackageReply::Manifest { bytes }),
        (Some(Lie::Flip), PackageReply::Opening { mut bytes }) => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Some(PackageReply::Opening { bytes })
        }
        (Some(Lie::Short), PackageReply::Opening { mut bytes }) => {
            bytes.pop();
            Some(PackageReply::Opening { bytes })
        }
        (Some(Lie::Long), PackageReply::Opening { mut bytes }) => {
            bytes.push(0);
            Some(PackageReply::Opening { bytes })
        }
        (Some(Lie::NotFound), PackageReply::Opening { .. }) => Some(PackageReply::NotFound),
        (Some(Lie::End), PackageReply::Opening { .. }) => None,
        (_, reply) => Some(reply),
    });
    let job = job(model, 1, 5);
    let lies = [Lie::Manifest, Lie::Kind, Lie::Flip, Lie::Short, Lie::Long, Lie::NotFound, Lie::End];
    for (epoch, each) in (1..).zip(lies) {
        *lie.lock().unwrap() = Some(each);
        peer.assign(&job, epoch).await;
        let heard = peer.hear().await;
        assert!(
            matches!(heard, Some(ToCoordinator::Failed { code: FailureCode::ModelUnavailable, .. })),
            "{each:?}: {heard:?}"
        );
    }
    *lie.lock().unwrap() = None;
    peer.assign(&job, 100).await;
    peer.run().await.is_honest(&package, &job, 100, worker.id());
    Package::open_checked(&home.join("packages").join(format!("{model}.lsp")), std::num::NonZeroUsize::MIN).unwrap();
}

#[derive(Clone, Copy, Debug)]
enum Lie {
    Manifest,
    Kind,
    Flip,
    Short,
    Long,
    NotFound,
    End,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_that_fails_its_bounds_proof_is_refused_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let package = common::unbounded(dir.path());
    let coordinator = Coordinator::new();
    let _worker = coordinator.worker(&dir.path().join("w"));
    let mut peer = coordinator.welcome().await;
    let served = peer.serve(&package, |_, reply| Some(reply));
    for epoch in 1..3 {
        peer.assign(&job(package.model_id(), 1, 5), epoch).await;
        match peer.hear().await {
            Some(ToCoordinator::Failed { code: FailureCode::ModelRefused, reason, .. }) => {
                assert!(reason.contains("bounds"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(served.load(Ordering::SeqCst), 1 + package.blob_count());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_on_disk_is_verified_before_use_and_pulled_again_where_it_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), 32, 5_000);
    let model = package.model_id();
    let coordinator = Coordinator::new();
    let home = dir.path().join("w");
    let file = hold(&home, &package, &dir.path().join("small-32-5000.lsp"));
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1_000;
    bytes[last] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    std::fs::write(home.join("packages").join("readme.txt"), "not a package").unwrap();
    let worker = coordinator.worker(&home);
    let mut peer = coordinator.welcome().await;
    assert_eq!(peer.hello.models, [model]);
    let asked = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&asked);
    peer.serve(&package, move |_, reply| {
        noted.store(true, Ordering::SeqCst);
        Some(reply)
    });
    let job = job(model, 1, 5);
    peer.assign(&job, 1).await;
    peer.run().await.is_honest(&package, &job, 1, worker.id());
    assert!(asked.load(Ordering::SeqCst));
    bytes[last] ^= 1;
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_does_not_take_the_package_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), 32, 5_000);
    let coordinator = Coordinator::new();
    let home = dir.path().join("w");
    std::fs::create_dir_all(home.join("packages")).unwrap();
    // Writing to /dev/full fails as a full disk does.
    std::os::unix::fs::symlink("/dev/full", home.join("packages").join(format!("{}.lsp.progress", package.model_id())))
        .unwrap();
    let _worker = coordinator.worker(&home);
    let mut peer = coordinator.welcome().await;
    peer.serve(&package, |_, reply| Some(reply));
    peer.assign(&job(package.model_id(), 1, 5), 1).await;
    match peer.hear().await {
        Some(ToCoordinator::Failed { code: FailureCode::ModelUnavailable, reason, .. }) => {
            assert!(reason.contains("No space left"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    let mut config = coordinator.config(&home);
    config.data_dir = "/dev/full/worker".into();
    let error = lockstep_worker::Worker::start(config, Arc::new(lockstep_kernels::reference::Reference)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
}
