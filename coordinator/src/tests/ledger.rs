//! The ledger: what workers have, over restarts and changed stores, and what nobody may see of it yet.

use lockstep_protocol::ledger::{Export, Ledger, price_of_work};
use rusqlite::Connection;
use serde_json::json;

use super::worker::{Worker, keys};
use super::{ALWAYS, World, ask, config, embed, get, wait_for, world};
use crate::store::STORE_FILE;
use crate::{Coordinator, Event, Handle};

async fn join(world: &World, number: u8) -> Worker {
    Worker::connect(number, world.handle.node_id(), world.handle.quic_addr(), &world.package).await
}

/// The exported ledger, checked from its first posting on.
async fn export(handle: &Handle) -> Ledger {
    let (status, export) = get(handle.http_addr(), "/v1/ledger?history=65536").await;
    assert_eq!(status, 200, "{export}");
    let export = Export::from_json(&export.to_string()).unwrap();
    assert_eq!(export.coordinator, handle.node_id());
    export.check(None).unwrap()
}

/// Runs a job to its end.
async fn run(world: &World) -> u64 {
    let mut events = world.handle.events();
    let (status, answer) = embed(world.handle.http_addr(), &ask("w1 w2")).await;
    assert_eq!(status, 200, "{answer}");
    wait_for(&mut events, |event| matches!(event, Event::Done { .. }).then_some(())).await;
    answer["lockstep"]["receipts"][0]["worker"]["receipt"]["work_units"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn work_is_paid_and_the_ledger_is_the_same_after_a_restart() {
    let world = world(|config| config.grant = 1_000_000_000).await;
    let mut worker = join(&world, 1).await;
    worker.welcome().await;
    let serving = tokio::spawn(worker.serve(None));
    let work = run(&world).await;
    let ledger = export(&world.handle).await;
    let node = keys(1).id();
    assert_eq!(ledger.free(&node), 1_000_000_000 + price_of_work(work));
    assert_eq!((ledger.totals().held, ledger.totals().burned), (0, 0), "the bond is free again");

    let (data, package) = (world.dir.path().join("data"), world.package.clone());
    world.handle.shutdown().await.unwrap();
    serving.await.unwrap();
    let second = Coordinator::start(config(&data, &package)).await.unwrap();
    assert_eq!(export(&second).await, ledger);
    let (status, few) = get(second.http_addr(), "/v1/ledger?history=1").await;
    assert_eq!((status, few["history"].as_array().unwrap().len()), (200, 1));
    assert_eq!(few["history"][0]["index"], json!(ledger.postings() - 1));
    for bad in ["?history=65537", "?history=-1", "?histories=1"] {
        assert_eq!(get(second.http_addr(), &format!("/v1/ledger{bad}")).await.0, 400, "{bad}");
    }
    second.shutdown().await.unwrap();
}

/// A worker that saw another bond for its job would know that it is audited.
#[tokio::test(flavor = "multi_thread")]
async fn bonds_of_unfinished_jobs_are_shown_to_nobody() {
    let world = world(|config| config.audit = ALWAYS).await;
    tokio::spawn(join(&world, 1).await.serve(None));
    let mut events = world.handle.events();
    let body = json!({"model": "tiny", "input": "w1", "lockstep": {"wait": false}});
    assert_eq!(embed(world.handle.http_addr(), &body).await.0, 202);
    wait_for(&mut events, |event| matches!(event, Event::AuditDrawn { .. }).then_some(())).await;
    let ledger = export(&world.handle).await;
    assert_eq!((ledger.postings(), ledger.totals().held), (1, 0));
    tokio::spawn(join(&world, 2).await.serve(None));
    wait_for(&mut events, |event| matches!(event, Event::Done { .. }).then_some(())).await;
    let ledger = export(&world.handle).await;
    assert!(ledger.postings() >= 8 && ledger.account(&keys(2).id()).is_some(), "{ledger:?}");
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_ledger_is_not_gone_on_with() {
    let world = world(|_| {}).await;
    let serving = tokio::spawn(join(&world, 1).await.serve(None));
    run(&world).await;
    let (data, package) = (world.dir.path().join("data"), world.package.clone());
    world.handle.shutdown().await.unwrap();
    serving.await.unwrap();
    for (change, reason) in [
        // The bond is held before it is granted.
        ("UPDATE postings SET bytes = (SELECT bytes FROM postings WHERE seq = 2) WHERE seq = 1", "posting 1: "),
        ("DELETE FROM postings WHERE seq = 2", "missing"),
        ("UPDATE postings SET bytes = x'0900' WHERE seq = 3", "posting 3: "),
    ] {
        let copy = world.dir.path().join("copy");
        super::snapshot(&data, &copy);
        let connection = Connection::open(copy.join(STORE_FILE)).unwrap();
        connection.execute_batch(change).unwrap();
        drop(connection);
        let error = Coordinator::start(config(&copy, &package)).await.unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("ledger"), "{change}: {error}");
        std::fs::remove_dir_all(&copy).unwrap();
    }
}
