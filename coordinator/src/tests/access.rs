//! What a worker must not learn over HTTP about a job that it has.

use std::time::Duration;

use serde_json::json;

use super::worker::{Worker, keys};
use super::{ALWAYS, PATIENCE, embed, get, get_job, wait_for, world};
use crate::Event;

#[tokio::test(flavor = "multi_thread")]
async fn an_auditor_learns_nothing_about_its_job_before_it_has_ended() {
    let world = world(|config| config.audit = ALWAYS).await;
    let http = world.handle.http_addr();
    let join = |number| Worker::connect(number, world.handle.node_id(), world.handle.quic_addr(), &world.package);
    tokio::spawn(join(1).await.serve(None));
    let body = |wait: bool| {
        let nonce = "0c".repeat(32);
        json!({"model": "tiny", "input": "w1 w2", "lockstep": {"nonce": nonce, "wait": wait}})
    };
    let mut events = world.handle.events();
    let (status, first) = embed(http, &body(false)).await;
    assert_eq!(status, 202, "{first}");
    wait_for(&mut events, |event| matches!(event, Event::Accepted { .. }).then_some(())).await;
    let mut auditor = join(2).await;
    let (job, epoch) = auditor.assignment().await;
    assert_eq!(json!(job.id()), first["lockstep"]["jobs"][0]);

    // It has the id, and can make a token of its own by submitting the same again.
    for path in [format!("/v1/jobs/{}", job.id()), format!("/v1/jobs/{}/receipt", job.id())] {
        for query in ["", "?access=", "?access=00"] {
            assert_eq!(get(http, &format!("{path}{query}")).await.0, 404);
        }
    }
    let (status, mine) = embed(http, &body(false)).await;
    assert_eq!(status, 202, "{mine}");
    let (status, seen) = get_job(http, &mine, "").await;
    let unfinished = json!({"id": job.id(), "object": "lockstep.job", "status": "unfinished", "answered": false});
    assert_eq!((status, seen), (200, unfinished));
    assert_eq!(get_job(http, &mine, "/receipt").await.0, 409);
    let mut waiting = tokio::spawn(async move { embed(http, &body(true)).await });
    let early = tokio::time::timeout(Duration::from_millis(300), &mut waiting).await;
    assert!(early.is_err(), "the first run was given away: {early:?}");

    // The client is told that it is being audited, and answered when that has ended, as is whoever waited.
    let (status, seen) = get_job(http, &first, "").await;
    assert_eq!((status, &seen["status"]), (200, &json!("auditing")));
    assert!(seen.get("runs").is_none() && seen.get("leases").is_none(), "{seen}");
    assert_eq!(get_job(http, &first, "/receipt").await.0, 409);
    let result = auditor.run(&job, epoch, None);
    auditor.stream(&job, epoch, result).await;
    let (status, late) = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert_eq!(status, 200, "{late}");
    let audit = &late["lockstep"]["receipts"][0]["audits"][0]["receipt"]["worker"];
    assert_eq!(audit, &json!(keys(2).id()));
    assert_eq!(get_job(http, &mine, "/receipt").await.0, 200);
    assert_eq!(get_job(http, &first, "/receipt").await, (200, late["lockstep"]["receipts"][0].clone()));
    world.handle.shutdown().await.unwrap();
}
