//! What a worker must not learn over HTTP about a job that it has.

use std::time::Duration;

use serde_json::json;

use super::worker::{Worker, keys};
use super::{ALWAYS, PATIENCE, embed, embed_again, get, get_job, world};

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
    let (status, first) = embed(http, &body(true)).await;
    assert_eq!(status, 200, "{first}");
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

    // The client sees it all, and whoever waited is answered when the audit has ended.
    let (status, seen) = get_job(http, &first, "").await;
    assert_eq!((status, &seen["status"]), (200, &json!("auditing")));
    assert!(seen.get("runs").is_none() && seen.get("leases").is_none(), "{seen}");
    let again = embed_again(http, &body(true), &first).await;
    assert_eq!((again.0, &again.1["lockstep"]["receipts"]), (200, &first["lockstep"]["receipts"]));
    let result = auditor.run(&job, epoch, None);
    auditor.stream(&job, epoch, result).await;
    let (status, late) = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert_eq!(status, 200, "{late}");
    let audit = &late["lockstep"]["receipts"][0]["audits"][0]["receipt"]["worker"];
    assert_eq!(audit, &json!(keys(2).id()));
    assert_eq!(get_job(http, &mine, "/receipt").await.0, 200);
    world.handle.shutdown().await.unwrap();
}
