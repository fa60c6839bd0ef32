//! What others can't do to the sides of a dispute, and to the coordinator: bring it twice, repeat moves, look on.

use lockstep_protocol::canonical::to_bytes;
use lockstep_protocol::dispute::{MoveBody, SignedMove};
use lockstep_protocol::ids::LeaseEpoch;
use lockstep_protocol::limits::{ASK_AGAIN_MS, HTTP_MOVE_BURST, TICK_MS};
use lockstep_protocol::messages::{Ask, JobMessage, ToWorker};
use lockstep_protocol::receipt::{Receipt, StatementKind};
use serde_json::{Value, json};

use super::disputes::{acknowledged, disputed, done, join, judged};
use super::worker::{LIE, Worker, keys};
use super::{World, config, embed, get, request, request_bytes, wait_for, world};
use crate::engine::Message;
use crate::{Coordinator, Event};

/// A lie that was answered, with what its client was told.
async fn answered(lie: LieAt) -> (World, Worker, Value, Receipt) {
    let world = world(|_| {}).await;
    let mut liar = join(&world.handle, &world, 1).await;
    liar = match lie {
        LieAt::Layer2 => liar.lying(),
        LieAt::Layer1 => liar.lying_like(lockstep_sim::adversary::Lie { layer: 1, ..LIE }),
    };
    let body = json!({"model": "tiny", "input": "w3 w4 w5", "lockstep": {"wait": false}});
    let (_, kept) = embed(world.handle.http_addr(), &body).await;
    let (job, epoch) = liar.assignment().await;
    let wrong = liar.run(&job, epoch, None);
    liar.stream(&job, epoch, wrong).await;
    let receipt = done(&world, &kept).await;
    (world, liar, kept, receipt)
}

enum LieAt {
    Layer1,
    Layer2,
}

fn post(kept: &Value) -> String {
    format!("POST /v1/challenges HTTP/1.1\r\nlockstep-access: {}", kept["lockstep"]["access"].as_str().unwrap())
}

/// The challenge that a worker makes with a run of its own.
fn challenge(worker: &Worker, lie: &Receipt) -> Vec<u8> {
    let run = worker.run(&lie.job, LeaseEpoch::CHALLENGE, None);
    json!({"job": lie.job.id(), "receipt": run.receipt}).to_string().into_bytes()
}

/// However many would challenge a run, it falls once; then there is nothing to challenge.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_falls_once_and_is_not_challenged_again() {
    let (world, liar, kept, lie) = answered(LieAt::Layer2).await;
    let (http, post) = (world.handle.http_addr(), post(&kept));
    let mut events = world.handle.events();
    let first = join(&world.handle, &world, 2).await;
    let mut bodies = vec![challenge(&first, &lie)];
    let (status, opened) = request(http, &post, &bodies[0]).await;
    assert_eq!(status, 202, "{opened}");
    tokio::spawn(first.serve(None));
    let (status, again) = request(http, &post, &bodies[0]).await;
    assert!(status == 422 && again.contains("disputed before"), "{again}");
    bodies.push(challenge(&join(&world.handle, &world, 3).await, &lie));
    let (status, other) = request(http, &post, &bodies[1]).await;
    assert_eq!(status, 202, "others play beside it: {other}");
    tokio::spawn(liar.serve(None));
    assert_eq!(judged(&mut events).await.losers, [keys(1).id()]);
    bodies.push(challenge(&join(&world.handle, &world, 4).await, &lie));
    let (status, late) = request(http, &post, &bodies[2]).await;
    assert!(status == 422 && late.contains("refuted or taken back"), "{late}");
    let receipt = done(&world, &kept).await;
    assert!(receipt.check().unwrap().refuted.is_some());
    let refuted = |kind: &StatementKind| matches!(kind, StatementKind::Refuted { .. });
    assert_eq!(receipt.statements.iter().filter(|signed| refuted(&signed.statement.kind)).count(), 1);

    let (data, package) = (world.dir.path().join("data"), world.package.clone());
    world.handle.shutdown().await.unwrap();
    let second = Coordinator::start(config(&data, &package)).await.unwrap();
    let mut heard = Worker::connect(2, second.node_id(), second.quic_addr(), &package).await;
    heard.welcome().await;
    assert!(matches!(heard.next().await, ToWorker::Judged { .. }), "who was not there hears of the verdict");
    for body in &bodies {
        assert_eq!(request(second.http_addr(), &post, body).await.0, 422);
    }
    assert_eq!(get(second.http_addr(), "/readyz").await.0, 200);
    second.shutdown().await.unwrap();
}

/// Who repeats moves of others is not heard, and does not have them told.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_move_is_answered_to_who_brings_it() {
    let (world, mut liar, mut honest, _) = disputed().await;
    let ask = honest.asked().await;
    let signed = honest.answer(&ask);
    honest.make_move(signed.clone()).await;
    let entry = acknowledged(&mut honest).await;
    let head = format!("POST /v1/disputes/{}/moves HTTP/1.1", ask.terms.id());
    let mut statuses = Vec::new();
    for _ in 0..2 * HTTP_MOVE_BURST {
        statuses.push(request_bytes(world.handle.http_addr(), &head, &to_bytes(&signed)).await.0);
    }
    assert_eq!(statuses[..HTTP_MOVE_BURST as usize], [200; HTTP_MOVE_BURST as usize]);
    assert!(statuses.contains(&429), "{statuses:?}");
    honest.make_move(signed.clone()).await;
    assert_eq!(acknowledged(&mut honest).await, entry, "its own session hears of it again");
    let asked = liar.asked().await;
    liar.make_move(liar.answer(&asked)).await;
    assert!(matches!(honest.next().await, ToWorker::Asked(_)), "nothing else was said to it");

    // Over a session a key brings its own moves only.
    let mut stream = liar.connection.open_uni().await.unwrap();
    lockstep_link::send(&mut stream, &JobMessage::Move(signed)).await.unwrap();
    let _ = stream.finish();
    liar.connection.closed().await;
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_whose_clock_runs_is_asked_again() {
    let (world, mut liar, _honest, _) = disputed().await;
    let first = liar.asked().await;
    world.handle.engine().send(Message::Pass(ASK_AGAIN_MS + TICK_MS)).await.unwrap();
    assert_eq!(liar.asked().await, first);
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_job_runs_its_dispute_shows_no_side_and_no_place() {
    let (world, _liar, _honest, kept) = disputed().await;
    let http = world.handle.http_addr();
    let (_, list) = get(http, "/v1/disputes").await;
    let id = list["data"][0]["id"].as_str().unwrap().to_owned();
    let (_, hidden) = get(http, &format!("/v1/disputes/{id}")).await;
    let token = kept["lockstep"]["access"].as_str().unwrap();
    let (_, shown) = get(http, &format!("/v1/disputes/{id}?access={token}")).await;
    for field in ["job", "claimant", "challenger", "place", "narrowed"] {
        assert_eq!((&list["data"][0][field], &hidden[field]), (&Value::Null, &Value::Null), "{field}");
        assert!(!shown[field].is_null(), "{field}");
    }
    world.handle.shutdown().await.unwrap();
}

/// A dispute about layer 1 that ends before anything is opened has shown frontiers that follow from few tokens.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_after_the_row_of_layer_1_is_not_public() {
    let (world, mut liar, kept, lie) = answered(LieAt::Layer1).await;
    let http = world.handle.http_addr();
    let mut events = world.handle.events();
    let honest = join(&world.handle, &world, 2).await;
    let (status, opened) = request(http, &post(&kept), &challenge(&honest, &lie)).await;
    assert_eq!(status, 202, "{opened}");
    tokio::spawn(honest.serve(None));
    let opened: Value = serde_json::from_str(&opened).unwrap();
    let file = format!("/v1/disputes/{}/file", opened["dispute"].as_str().unwrap());
    let mut asked: Ask = liar.asked().await;
    loop {
        let signed: SignedMove = liar.answer(&asked);
        let is_past_row = !matches!(signed.made.body, MoveBody::Descend { .. });
        assert!(!matches!(signed.made.body, MoveBody::Open { .. }), "it ends before");
        liar.make_move(signed).await;
        asked = liar.asked().await;
        if is_past_row {
            break;
        }
    }
    liar.make_move(liar.say(&asked, Some(MoveBody::Concede))).await;
    wait_for(&mut events, |event| matches!(event, Event::DisputeJudged { .. }).then_some(())).await;
    let token = kept["lockstep"]["access"].as_str().unwrap();
    assert_eq!(get(http, &file).await.0, 403);
    assert_eq!(request_bytes(http, &format!("GET {file}?access={token} HTTP/1.1"), b"").await.0, 200);
    world.handle.shutdown().await.unwrap();
}
