//! Leases, audits and settlements with real workers.

use lockstep_protocol::machine::AuditPolicy;
use lockstep_protocol::messages::{RefusalCode, ToWorker};
use lockstep_protocol::openings::{ChunkRange, verify_range};
use lockstep_protocol::receipt::Receipt;
use serde_json::Value;

use super::worker::{Worker, keys};
use super::{HOLD, World, ask, embed, wait_for, world};
use crate::{Allow, Event};

async fn join(world: &World, number: u8) -> Worker {
    Worker::connect(number, world.handle.node_id(), world.handle.quic_addr(), &world.package).await
}

fn receipt(answer: &Value) -> Receipt {
    Receipt::from_json(&answer["lockstep"]["receipts"][0].to_string()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audited_job_has_both_runs_in_its_receipt() {
    let world = world(|config| config.audit = HOLD).await;
    for number in [1, 2] {
        tokio::spawn(join(&world, number).await.serve(None));
    }
    let mut events = world.handle.events();
    let (status, answer) = embed(world.handle.http_addr(), &ask("w1 w2")).await;
    assert_eq!(status, 200, "{answer}");
    let standing = receipt(&answer).check().unwrap();
    assert_eq!((standing.matched, standing.mismatched, standing.refuted), (1, 0, None));
    let mut streamed = 0;
    let matched = wait_for(&mut events, |event| match event {
        Event::Committed { differs, .. } => {
            assert!(!differs);
            streamed += 1;
            None
        }
        Event::Audited { matched, .. } => Some(matched),
        _ => None,
    });
    assert!(matched.await);
    assert_eq!(streamed, 2 * 3);
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_goes_loses_its_lease_at_once_and_another_finishes() {
    let world = world(|_| {}).await;
    let mut first = join(&world, 1).await;
    first.welcome().await;
    let asked = tokio::spawn({
        let http = world.handle.http_addr();
        async move { embed(http, &ask("w1 w2")).await }
    });
    let (job, epoch) = first.assignment().await;
    let mut second = join(&world, 2).await;
    second.welcome().await;
    drop(first);
    let (again, later) = second.assignment().await;
    assert!(again == job && later > epoch);
    let result = second.run(&job, later, None);
    second.stream(&job, later, result).await;
    let (status, answer) = asked.await.unwrap();
    assert_eq!((status, receipt(&answer).worker.receipt.epoch), (200, later));
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_session_of_a_key_takes_over() {
    let world = world(|_| {}).await;
    let mut first = join(&world, 1).await;
    first.welcome().await;
    let mut second = join(&world, 1).await;
    second.welcome().await;
    let quinn::ConnectionError::ApplicationClosed(closed) = first.connection.closed().await else { panic!("lost") };
    assert_eq!(&closed.reason[..], b"another session with this key joined");
    tokio::spawn(second.serve(None));
    assert_eq!(embed(world.handle.http_addr(), &ask("w1")).await.0, 200);
    assert_eq!(world.handle.engine().workers().await.unwrap().len(), 1);
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_listed_keys_come_in() {
    let world = world(|config| config.allow = Allow::keys([keys(2).id()])).await;
    let refused = join(&world, 1).await.next().await;
    assert!(matches!(refused, ToWorker::Refused { code: RefusalCode::NotAllowed, .. }), "{refused:?}");
    join(&world, 2).await.welcome().await;
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_is_served_in_verified_parts() {
    use lockstep_link::{Frames, send};
    use lockstep_protocol::ids::{ModelId, Root};
    use lockstep_protocol::messages::{PackageReply, PackageRequest};
    let world = world(|_| {}).await;
    let mut worker = join(&world, 1).await;
    let model = worker.welcome().await.models[0];
    let (mut up, down) = worker.connection.open_bi().await.unwrap();
    let mut replies = Frames::<PackageReply>::new(down);
    send(&mut up, &PackageRequest::GetManifest { model }).await.unwrap();
    let Some(PackageReply::Manifest { bytes }) = replies.next().await.unwrap() else { panic!("no manifest") };
    assert_eq!(ModelId::from(blake3::hash(&bytes)), model);
    let manifest = lockstep_model::package::Manifest::parse(&bytes).unwrap();
    for (index, blob) in manifest.blobs().enumerate() {
        let range = ChunkRange::next(0, blob.bytes).unwrap();
        send(&mut up, &PackageRequest::GetBlob { model, blob: index as u32, range }).await.unwrap();
        let Some(PackageReply::Opening { bytes }) = replies.next().await.unwrap() else { panic!("no opening") };
        let root = Root::from_bytes(*blob.digest.as_bytes());
        let data = verify_range(&root, blob.bytes, range, &bytes).unwrap();
        assert_eq!(data, worker.model.package().blob(index));
    }
    let nowhere = ChunkRange { first: 1 << 40, count: 1 };
    let missing = [
        PackageRequest::GetManifest { model: ModelId::from_bytes([0; 32]) },
        PackageRequest::GetBlob { model, blob: 0, range: nowhere },
        PackageRequest::GetBlob { model, blob: 9_999, range: ChunkRange { first: 0, count: 1 } },
    ];
    for request in missing {
        send(&mut up, &request).await.unwrap();
        assert_eq!(replies.next().await.unwrap(), Some(PackageReply::NotFound));
    }
    world.handle.shutdown().await.unwrap();
}

/// An auditor of the same operator proves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_auditor_is_of_another_operator_where_that_is_asked_for() {
    let operators = [(1, "acme"), (2, "acme"), (3, "other")];
    let world = world(|config| {
        config.audit = AuditPolicy { distinct_operators: true, ..HOLD };
        config.allow = Allow::Keys(operators.map(|(number, of)| (keys(number).id(), Some(of.to_owned()))).into());
    })
    .await;
    for (number, _) in operators {
        tokio::spawn(join(&world, number).await.serve(None));
    }
    let (status, answer) = embed(world.handle.http_addr(), &ask("w1 w2")).await;
    assert_eq!(status, 200, "{answer}");
    let receipt = receipt(&answer);
    let runs = [&receipt.worker, &receipt.audits[0]].map(|run| run.receipt.worker);
    assert!(runs.contains(&keys(3).id()), "{runs:?}");
    world.handle.shutdown().await.unwrap();
}

/// An audited job is run once more under another name, and no more than once.
#[tokio::test(flavor = "multi_thread")]
async fn an_audited_job_is_planted_again() {
    let world = world(|config| {
        config.audit = HOLD;
        config.planted_per_mille = 1_000;
    })
    .await;
    let mut events = world.handle.events();
    for number in [1, 2] {
        tokio::spawn(join(&world, number).await.serve(None));
    }
    assert_eq!(embed(world.handle.http_addr(), &ask("w1 w2")).await.0, 200);
    let mut submitted = Vec::new();
    let mut done = 0;
    wait_for(&mut events, |event| {
        match event {
            Event::JobSubmitted { job, tokens, .. } => submitted.push((job, tokens)),
            Event::Done { .. } => done += 1,
            _ => {}
        }
        (done == 2).then_some(())
    })
    .await;
    assert!(matches!(submitted[..], [(a, 2), (b, 2)] if a != b), "{submitted:?}");
    world.handle.shutdown().await.unwrap();
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event, Event::JobSubmitted { .. }), "a planted job was planted again");
    }
}
