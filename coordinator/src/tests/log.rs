//! The transparency log as clients see it, and over crashes and changed stores.

use std::path::Path;

use lockstep_link::keyfile::load_or_create;
use lockstep_protocol::canonical::{from_bytes, to_bytes};
use lockstep_protocol::ids::{Digest, JobId};
use lockstep_protocol::log::{Cosignature, Coverage, Entry, LogError, LogProof, SignedHead, check_consistency, cosign};
use lockstep_protocol::machine::Record;
use lockstep_protocol::messages::{ToCoordinator, ToWorker};
use lockstep_protocol::receipt::Receipt;
use rusqlite::Connection;
use serde_json::{Value, json};

use super::worker::Worker;
use super::{ALWAYS, World, ask, config, embed, get, get_job, snapshot, wait_for, world};
use crate::start::KEY_FILE;
use crate::store::{STORE_FILE, Store};
use crate::{Coordinator, Event, Handle, StartError};

async fn head(handle: &Handle) -> SignedHead {
    let (status, head) = get(handle.http_addr(), "/v1/log/head").await;
    assert_eq!(status, 200, "{head}");
    let head = SignedHead::from_json(&head.to_string()).unwrap();
    head.check().unwrap();
    assert_eq!(head.head.log, handle.node_id());
    head
}

async fn proof(handle: &Handle, query: &str) -> LogProof {
    let (status, proof) = get(handle.http_addr(), &format!("/v1/log/proof?{query}")).await;
    assert_eq!(status, 200, "{proof}");
    let proof = LogProof::from_json(&proof.to_string()).unwrap();
    proof.check().unwrap();
    proof
}

/// What names a client's job when it asks for a proof; `answer` is what it was told when it submitted.
fn query_of(answer: &Value) -> String {
    let (job, token) = (&answer["lockstep"]["jobs"][0], &answer["lockstep"]["access"]);
    format!("job={}&access={}", job.as_str().unwrap(), token.as_str().unwrap())
}

/// Two workers, and one audited job that has ended, with the query for its proof.
async fn audited() -> (World, Receipt, String) {
    let world = world(|config| config.audit = ALWAYS).await;
    for number in [1, 2] {
        let worker = Worker::connect(number, world.handle.node_id(), world.handle.quic_addr(), &world.package).await;
        tokio::spawn(worker.serve(None));
    }
    let (receipt, query) = run(&world, "w1 w2").await;
    (world, receipt, query)
}

async fn run(world: &World, text: &str) -> (Receipt, String) {
    let mut events = world.handle.events();
    let (status, answer) = embed(world.handle.http_addr(), &ask(text)).await;
    assert_eq!(status, 200, "{answer}");
    wait_for(&mut events, |event| matches!(event, Event::Done { .. }).then_some(())).await;
    let (_, receipt) = get_job(world.handle.http_addr(), &answer, "/receipt").await;
    (Receipt::from_json(&receipt.to_string()).unwrap(), query_of(&answer))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_holder_of_a_receipt_gets_its_entries_and_anyone_can_follow_the_log() {
    let (world, receipt, query) = audited().await;
    let size = head(&world.handle).await.head.size;
    assert!(size > 10, "a head covers what was there when it was asked for, not {size} entries");
    let first = proof(&world.handle, &query).await;
    assert_eq!(first.check_receipt(&receipt), Ok(Coverage::default()));
    let kinds: Vec<_> = first.entries.iter().map(|leaf| to_bytes(&leaf.entry)[0]).collect();
    let expected = [8, 1, 2, 7, 3, 9, 2, 7, 3, 4, 4];
    assert_eq!(
        kinds, expected,
        "anchored; taken; assigned, committed to and run; drawn; the same by the auditor; stated"
    );

    let draws = first.check_draws(&receipt).unwrap();
    assert_eq!((draws.len(), draws[0].auditors, draws[0].lockstep), (1, 1, false));

    let (other, query) = run(&world, "w3").await;
    let from = first.head.head.size;
    let second = proof(&world.handle, &format!("{query}&from={from}")).await;
    assert_eq!(second.check_receipt(&other), Ok(Coverage::default()));
    second.check_follows(&first.head).unwrap();
    assert!(matches!(second.check_receipt(&receipt), Err(LogError::Missing { .. })));
    // Against the older head, the newer job is not there yet.
    let early = proof(&world.handle, &format!("{query}&size={from}")).await;
    assert_eq!((early.head, early.entries.len()), (first.head, 0));

    let newest = head(&world.handle).await;
    let (a, b) = (first.head.head, newest.head);
    let (status, path) =
        get(world.handle.http_addr(), &format!("/v1/log/consistency?from={}&to={}", a.size, b.size)).await;
    assert_eq!(status, 200, "{path}");
    let path: Vec<Digest> = serde_json::from_value(path["path"].clone()).unwrap();
    assert!(check_consistency(a.size, &a.root, b.size, &b.root, &path));
    first.head.followed_by(&newest, Some(&path)).unwrap();
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_refused_and_nothing_is_told_of_unanswered_jobs() {
    let world = world(|_| {}).await;
    let http = world.handle.http_addr();
    let body = json!({"model": "tiny", "input": "w1", "lockstep": {"wait": false}});
    let (_, kept) = embed(http, &body).await;
    let (job, query) = (kept["lockstep"]["jobs"][0].as_str().unwrap(), query_of(&kept));
    for (path, status) in [
        (format!("proof?{query}"), 409),
        (format!("proof?job={job}"), 404),
        (format!("proof?job={job}&access=00"), 404),
        (format!("proof?{query}&other=1"), 400),
        (format!("proof?job={}", "0".repeat(64)), 404),
        ("proof?job=xyz".to_owned(), 404),
        ("proof".to_owned(), 400),
        ("consistency?from=1".to_owned(), 400),
        ("consistency?from=2&to=1".to_owned(), 404),
        ("consistency?from=0&to=18446744073709551615".to_owned(), 404),
        ("consistency?from=-1&to=2".to_owned(), 400),
    ] {
        let (found, error) = get(http, &format!("/v1/log/{path}")).await;
        assert_eq!(found, status, "{path}: {error}");
        assert!(error["error"]["message"].is_string(), "{path}: {error}");
    }
    let mut worker = Worker::connect(1, world.handle.node_id(), world.handle.quic_addr(), &world.package).await;
    let (assigned, epoch) = worker.assignment().await;
    assert_eq!(get(http, &format!("/v1/log/proof?job={job}")).await.0, 404, "its worker knows the id");
    assert_eq!(get(http, &format!("/v1/log/proof?{query}")).await.0, 409, "it has no answer");
    let mut events = world.handle.events();
    let result = worker.run(&assigned, epoch, None);
    worker.stream(&assigned, epoch, result).await;
    wait_for(&mut events, |event| matches!(event, Event::Done { .. }).then_some(())).await;
    assert_eq!(proof(&world.handle, &query).await.entries.len(), 7);
    assert_eq!(get(http, &format!("/v1/log/proof?job={job}")).await.0, 404, "the log is opened to its client alone");
    for query in [format!("{query}&size=3999"), format!("{query}&from=3999")] {
        assert_eq!(get(http, &format!("/v1/log/proof?{query}")).await.0, 404, "{query}");
    }
    world.handle.shutdown().await.unwrap();
}

/// While a job is audited nobody is shown its entries: they would tell an auditor that it is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_pending_audit_is_told_to_nobody() {
    let world = world(|config| config.audit = ALWAYS).await;
    let mut events = world.handle.events();
    let worker = Worker::connect(1, world.handle.node_id(), world.handle.quic_addr(), &world.package).await;
    tokio::spawn(worker.serve(None));
    let http = world.handle.http_addr();
    let body = json!({"model": "tiny", "input": "w1", "lockstep": {"nonce": "0e".repeat(32), "wait": false}});
    let (_, answer) = embed(http, &body).await;
    wait_for(&mut events, |event| matches!(event, Event::Accepted { .. }).then_some(())).await;
    let mut auditor = Worker::connect(2, world.handle.node_id(), world.handle.quic_addr(), &world.package).await;
    let (job, epoch) = auditor.assignment().await;
    assert_eq!(get(http, &format!("/v1/log/proof?{}", query_of(&answer))).await.0, 409);

    // The auditor can submit the same again, and learns no more from the token that it gets.
    let (status, mine) = embed(http, &body).await;
    assert_eq!(status, 202, "{mine}");
    let path = format!("/v1/log/proof?{}", query_of(&mine));
    assert_eq!(get(http, &path).await.0, 409);
    let result = auditor.run(&job, epoch, None);
    auditor.stream(&job, epoch, result).await;
    wait_for(&mut events, |event| matches!(event, Event::Done { .. }).then_some(())).await;
    assert_eq!(proof(&world.handle, &query_of(&mine)).await.entries.len(), 11);
    world.handle.shutdown().await.unwrap();
}

/// Workers vouch for the heads that they followed, and whoever asks for a proof against such a head sees it.
#[tokio::test(flavor = "multi_thread")]
async fn workers_cosign_heads_and_proofs_carry_their_signatures() {
    let world = world(|_| {}).await;
    let mut worker = Worker::connect(1, world.handle.node_id(), world.handle.quic_addr(), &world.package).await;
    worker.welcome().await;
    let body = json!({"model": "tiny", "input": "w1", "lockstep": {"wait": false}});
    let (_, kept) = embed(world.handle.http_addr(), &body).await;
    let (job, epoch) = worker.assignment().await;
    let result = worker.run(&job, epoch, None);
    worker.stream(&job, epoch, result).await;
    let mut seen: Option<SignedHead> = None;
    while seen.is_none_or(|seen| seen.head.size < 8) {
        if let ToWorker::Cosign { head, from, path } = worker.next().await {
            assert_eq!(from, seen.map_or(0, |seen| seen.head.size));
            let signed = cosign(&worker.keys, world.handle.node_id(), seen.as_ref(), &head, from, &path).unwrap();
            worker.tell(&ToCoordinator::Cosigned(signed)).await;
            seen = Some(head);
        }
    }
    let seen = seen.unwrap();
    let signatures = async {
        loop {
            let proof = proof(&world.handle, &format!("{}&size={}", query_of(&kept), seen.head.size)).await;
            if !proof.cosignatures.is_empty() {
                return proof.cosignatures;
            }
        }
    };
    let signatures = tokio::time::timeout(super::PATIENCE, signatures).await.unwrap();
    assert_eq!((signatures.len(), signatures[0].worker), (1, worker.keys.id()));
    signatures[0].check(&seen).unwrap();

    // In somebody else's name it costs the connection.
    let other = Cosignature::of(&seen, &super::worker::keys(2));
    worker.tell(&ToCoordinator::Cosigned(other)).await;
    assert!(tokio::time::timeout(super::PATIENCE, worker.connection.closed()).await.is_ok());
    world.handle.shutdown().await.unwrap();
}

fn entries(dir: &Path) -> Vec<Entry> {
    let connection = Connection::open(dir.join(STORE_FILE)).unwrap();
    let mut query = connection.prepare("SELECT entry FROM log ORDER BY seq").unwrap();
    let rows = query.query_map((), |row| row.get::<_, Vec<u8>>(0)).unwrap();
    rows.map(|bytes| from_bytes(&bytes.unwrap()).unwrap()).collect()
}

/// Killed at any instant, the log has exactly what the records and receipts have.
#[tokio::test(flavor = "multi_thread")]
async fn after_every_crash_the_log_equals_the_records() {
    let (world, ..) = audited().await;
    let before = head(&world.handle).await;
    for round in 0..8 {
        for number in 0..5 {
            let body = json!({"model": "tiny", "input": format!("w{} w{}", round + 1, number + 1), "lockstep": {"wait": false}});
            assert_eq!(embed(world.handle.http_addr(), &body).await.0, 202);
        }
        let copy = world.dir.path().join(format!("copy-{round}"));
        snapshot(&world.dir.path().join("data"), &copy);
        let (_store, restored) = Store::open(&copy, &load_or_create(&copy.join(KEY_FILE)).unwrap(), 0).unwrap();
        let logged = entries(&copy);
        // Records of unfinished jobs, in order, and nothing else about these jobs but statements.
        let unfinished: Vec<_> = restored.records.iter().filter_map(Entry::of_record).collect();
        let is_open = |job: JobId| {
            restored.records.iter().any(|record| matches!(record, Record::Submitted(_)) && record.job() == job)
        };
        let open: Vec<_> = logged.iter().filter(|entry| entry.job().is_some_and(is_open)).collect();
        let (stated, from_records): (Vec<&Entry>, Vec<_>) =
            open.into_iter().partition(|entry| matches!(entry, Entry::Statement { .. }));
        assert!(from_records.into_iter().eq(&unfinished), "round {round}");
        assert!(stated.is_empty(), "something was stated about a job that has not ended: {stated:?}");
    }
    let (_, query) = run(&world, "w9").await;
    let from = before.head.size;
    let after = proof(&world.handle, &format!("{query}&from={from}")).await;
    after.check_follows(&before).unwrap();
    world.handle.shutdown().await.unwrap();
}

/// Changes a stopped coordinator's store, and gives what it says when it is started.
async fn restart_after(change: &str) -> String {
    let (world, ..) = audited().await;
    head(&world.handle).await;
    let (data, package) = (world.dir.path().join("data"), world.package.clone());
    world.handle.shutdown().await.unwrap();
    // Signs what is not signed yet.
    Coordinator::start(config(&data, &package)).await.unwrap().shutdown().await.unwrap();
    let connection = Connection::open(data.join(STORE_FILE)).unwrap();
    connection.execute_batch(change).unwrap();
    drop(connection);
    match Coordinator::start(config(&data, &package)).await {
        Ok(_) => panic!("started after {change}"),
        Err(error) => {
            assert!(matches!(error, StartError::Store(_)), "{error}");
            error.to_string()
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_log_is_not_gone_on_with() {
    for (change, reason) in [
        ("UPDATE log SET entry = (SELECT entry FROM log WHERE seq = 0) WHERE seq = 2", "entry 2 is another one"),
        ("UPDATE log SET entry = x'0100' WHERE seq = 1", "entry 1"),
        ("DELETE FROM log WHERE seq = 3", "entry 3 is missing"),
        ("DELETE FROM log WHERE seq >= 5", "nodes without entries"),
        ("DELETE FROM log; DELETE FROM log_nodes", "were signed, 0 are there"),
        ("DELETE FROM log_nodes WHERE level = 1 AND seq = 0", "node 0 of level 1 is missing"),
        ("DELETE FROM log_heads", "no head was ever signed"),
        ("UPDATE meta SET value = zeroblob(32) WHERE key = 'log secret'", "another one"),
    ] {
        let error = restart_after(change).await;
        assert!(error.contains(reason) && error.contains("transparency log"), "{change}: {error}");
    }
}
