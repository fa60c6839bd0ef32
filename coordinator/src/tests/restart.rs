//! Crashes: whatever was acknowledged goes on.

use std::collections::BTreeSet;

use lockstep_link::keyfile::load_or_create;
use lockstep_protocol::ids::JobId;
use lockstep_protocol::machine::{self, Machine, Record};
use lockstep_protocol::receipt::Receipt;
use serde_json::json;

use super::worker::{Worker, keys};
use super::{ALWAYS, config, embed, get_job, snapshot, wait_for, world};
use crate::start::KEY_FILE;
use crate::store::{Store, Stored};
use crate::{Config, Coordinator, Event, StartError};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_the_middle_of_its_run_is_finished_after_a_crash() {
    let world = world(|_| {}).await;
    let mut worker = Worker::connect(1, world.handle.node_id(), world.handle.quic_addr(), &world.package).await;
    let body = json!({"model": "tiny", "input": "w1 w2", "lockstep": {"wait": false}});
    let (status, kept) = embed(world.handle.http_addr(), &body).await;
    assert_eq!(status, 202);
    let (_, epoch) = worker.assignment().await;

    let copy = world.dir.path().join("copy");
    snapshot(&world.dir.path().join("data"), &copy);
    // The packages are not even named at the next start: the job still needs its model.
    let second = Coordinator::start(Config { packages: Vec::new(), ..config(&copy, &world.package) }).await.unwrap();
    assert_eq!(second.node_id(), world.handle.node_id());
    assert_eq!(get_job(second.http_addr(), &kept, "").await.1["status"], "queued");
    let mut events = second.events();
    let mut other = Worker::connect(2, second.node_id(), second.quic_addr(), &world.package).await;
    let (job, later) = other.assignment().await;
    assert!(later > epoch, "no epoch is given twice");
    let result = other.run(&job, later, None);
    other.stream(&job, later, result).await;
    wait_for(&mut events, |event| matches!(event, Event::Done { .. }).then_some(())).await;
    let (status, receipt) = get_job(second.http_addr(), &kept, "/receipt").await;
    assert_eq!(status, 200);
    Receipt::from_json(&receipt.to_string()).unwrap().check().unwrap();
    second.shutdown().await.unwrap();
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_and_its_pending_audit_survive_a_crash() {
    let world = world(|config| config.audit = ALWAYS).await;
    let mut events = world.handle.events();
    let worker = Worker::connect(1, world.handle.node_id(), world.handle.quic_addr(), &world.package).await;
    tokio::spawn(worker.serve(None));
    let body = |wait| json!({"model": "tiny", "input": "w1 w2", "lockstep": {"nonce": "ab".repeat(32), "wait": wait}});
    let (status, kept) = embed(world.handle.http_addr(), &body(false)).await;
    assert_eq!(status, 202, "{kept}");
    wait_for(&mut events, |event| matches!(event, Event::AuditDrawn { .. }).then_some(())).await;

    let copy = world.dir.path().join("copy");
    snapshot(&world.dir.path().join("data"), &copy);
    let second = Coordinator::start(config(&copy, &world.package)).await.unwrap();
    assert_eq!(get_job(second.http_addr(), &kept, "").await.1["status"], "auditing");
    let mut events = second.events();
    let auditor = Worker::connect(2, second.node_id(), second.quic_addr(), &world.package).await;
    tokio::spawn(auditor.serve(None));
    let (worker, matched) = wait_for(&mut events, |event| match event {
        Event::Done { worker, matched, .. } => Some((worker, matched)),
        _ => None,
    })
    .await;
    assert_eq!((worker, matched), (keys(1).id(), 1));
    let (status, ended) = embed(second.http_addr(), &body(true)).await;
    let receipt = Receipt::from_json(&ended["lockstep"]["receipts"][0].to_string()).unwrap();
    assert_eq!((status, receipt.check().unwrap().matched), (200, 1));
    second.shutdown().await.unwrap();
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_job_is_not_run_again_after_a_restart() {
    let world = world(|_| {}).await;
    let (data, package) = (world.dir.path().join("data"), world.package.clone());
    let worker = Worker::connect(1, world.handle.node_id(), world.handle.quic_addr(), &package).await;
    let serving = tokio::spawn(worker.serve(None));
    let body = json!({"model": "tiny", "input": "w1 w2", "lockstep": {"nonce": "cd".repeat(32)}});
    let mut events = world.handle.events();
    let (_, answer) = embed(world.handle.http_addr(), &body).await;
    wait_for(&mut events, |event| matches!(event, Event::Done { .. }).then_some(())).await;
    world.handle.shutdown().await.unwrap();
    serving.await.unwrap();

    // Nobody is there to run it, and nobody has to.
    let second = Coordinator::start(config(&data, &package)).await.unwrap();
    let (status, again) = embed(second.http_addr(), &body).await;
    assert_eq!((status, &again["lockstep"]["receipts"]), (200, &answer["lockstep"]["receipts"]));
    second.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_served_is_refused_at_the_start() {
    let world = world(|_| {}).await;
    let data = world.dir.path().join("data");
    let used = Coordinator::start(config(&data, &world.package)).await.unwrap_err();
    assert!(used.to_string().contains("another coordinator uses"), "{used}");

    // A weight was changed after the import.
    let mut bytes = std::fs::read(&world.package).unwrap();
    bytes[4_096 + 5] ^= 1;
    let damaged = world.dir.path().join("damaged.lsp");
    std::fs::write(&damaged, bytes).unwrap();
    let other = world.dir.path().join("other");
    let refused = Coordinator::start(config(&other, &damaged)).await.unwrap_err();
    assert!(matches!(refused, StartError::Package { .. }), "{refused}");
    assert!(refused.to_string().contains("damaged.lsp"), "{refused}");

    let mut taken = config(&other, &world.package);
    taken.http_bind = world.handle.http_addr();
    let taken = Coordinator::start(taken).await.unwrap_err();
    assert!(matches!(taken, StartError::Bind { what: "HTTP", .. }), "{taken}");
    assert_eq!(embed(world.handle.http_addr(), &json!({})).await.0, 400);
    world.handle.shutdown().await.unwrap();
}

/// While jobs come in, are run, audited and end, the files are copied again and again: each copy has every job that was
/// acknowledged before, unfinished or ended, and is one that a coordinator goes on with.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_acknowledged_is_in_every_later_crash() {
    let world = world(|config| config.audit = ALWAYS).await;
    for number in [1, 2] {
        let worker = Worker::connect(number, world.handle.node_id(), world.handle.quic_addr(), &world.package).await;
        tokio::spawn(worker.serve(None));
    }
    let mut acknowledged: Vec<JobId> = Vec::new();
    for round in 0..12 {
        for number in 0..5 {
            let input = format!("w{} w{}", round + 1, number + 1);
            let body = json!({"model": "tiny", "input": input, "lockstep": {"wait": false}});
            let (status, kept) = embed(world.handle.http_addr(), &body).await;
            assert_eq!(status, 202);
            acknowledged.push(kept["lockstep"]["jobs"][0].as_str().unwrap().parse().unwrap());
        }
        let copy = world.dir.path().join(format!("copy-{round}"));
        snapshot(&world.dir.path().join("data"), &copy);
        let (store, restored) = Store::open(&copy, &load_or_create(&copy.join(KEY_FILE)).unwrap(), 0).unwrap();
        let unfinished: BTreeSet<_> = restored.records.iter().map(Record::job).collect();
        for job in &acknowledged {
            let ended = matches!(store.job(job).unwrap(), Some(Stored::Done(_)));
            assert!(ended != unfinished.contains(job), "job {job} is lost, or half ended");
        }
        let of = machine::Config { coordinator: world.handle.node_id(), grant: 0, grants_per_hour: 0 };
        Machine::restore(of, restored.records, restored.last_epoch, restored.ledger).unwrap();
    }
    world.handle.shutdown().await.unwrap();
}

/// A disk that refuses everything holds up no shutdown, and what it refused was acknowledged to nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_whose_disk_refuses_everything_still_ends() {
    let world = world(|_| {}).await;
    let data = world.dir.path().join("data");
    let other = rusqlite::Connection::open(data.join(crate::store::STORE_FILE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let submitted = world.handle.engine().submit(crate::testing::spec(1), false).await.unwrap();
    let ended = tokio::time::timeout(super::PATIENCE, world.handle.shutdown()).await.expect("it ends");
    assert_eq!(ended, Err(crate::ShutdownError::NotWritten));
    assert!(submitted.outcome().await.is_err(), "it was not acknowledged");
}
