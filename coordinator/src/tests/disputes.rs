//! Disputes between real workers, over crashes and by other ways.

use lockstep_model::dispute::judge;
use lockstep_protocol::canonical::{from_bytes, to_bytes};
use lockstep_protocol::dispute::{Reason, SignedEntry, SignedMove, VerdictKind, What};
use lockstep_protocol::ids::{DisputeId, LeaseEpoch, NodeId};
use lockstep_protocol::ledger::Export;
use lockstep_protocol::limits::{GRACE_MS, TICK_MS};
use lockstep_protocol::log::LogProof;
use lockstep_protocol::machine::AuditPolicy;
use lockstep_protocol::messages::{Ask, RefusalCode, ToCoordinator, ToWorker};
use lockstep_protocol::receipt::{Receipt, SignedStatement, StatementKind};
use serde_json::{Value, json};

use super::worker::{Worker, keys};
use super::{HOLD, PATIENCE, World, config, embed, get, get_job, request, request_bytes, snapshot, wait_for, world};
use crate::engine::Message;
use crate::events::DisputedElement;
use crate::{Coordinator, Event, Handle};

pub(super) async fn join(handle: &Handle, world: &World, number: u8) -> Worker {
    let mut worker = Worker::connect(number, handle.node_id(), handle.quic_addr(), &world.package).await;
    worker.welcome().await;
    worker
}

/// A job that a liar has run and an honest worker has audited: both are asked for their first moves.
pub(super) async fn disputed() -> (World, Worker, Worker, Value) {
    let world = world(|config| config.audit = HOLD).await;
    let mut liar = join(&world.handle, &world, 1).await.lying();
    let body = json!({"model": "tiny", "input": "w3 w4 w5", "lockstep": {"wait": false}});
    let (status, kept) = embed(world.handle.http_addr(), &body).await;
    assert_eq!(status, 202, "{kept}");
    let (job, epoch) = liar.assignment().await;
    let lie = liar.run(&job, epoch, None);
    liar.stream(&job, epoch, lie).await;
    let mut honest = join(&world.handle, &world, 2).await;
    let (job, epoch) = honest.assignment().await;
    let truth = honest.run(&job, epoch, None);
    let mut events = world.handle.events();
    honest.stream(&job, epoch, truth).await;
    let opened = |event| matches!(event, Event::DisputeOpened { .. }).then_some(());
    wait_for(&mut events, opened).await;
    (world, liar, honest, kept)
}

pub(super) struct Judged {
    dispute: DisputeId,
    kind: VerdictKind,
    pub losers: Vec<NodeId>,
    element: Option<DisputedElement>,
    rounds: u16,
}

pub(super) async fn judged(events: &mut tokio::sync::broadcast::Receiver<Event>) -> Judged {
    wait_for(events, |event| match event {
        Event::DisputeJudged { dispute, kind, losers, element, rounds, .. } => {
            Some(Judged { dispute, kind, losers, element, rounds })
        }
        _ => None,
    })
    .await
}

/// The liar lost, by the element that it computed wrong.
fn is_right(judged: &Judged) {
    assert_eq!((judged.kind, &judged.losers[..]), (VerdictKind::Proven, &[keys(1).id()][..]));
    let element = judged.element.as_ref().expect("it came down to one element");
    assert_eq!((&element.step[..], element.row, element.column), ("matmul.out", 1, 3));
    let [claimed, other] = element.claimed;
    assert_eq!((Some(other), claimed), (element.right, other ^ 4));
    assert!(judged.rounds <= 6, "{} rounds", judged.rounds);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lie_is_found_and_punished_before_the_client_is_answered() {
    let (world, liar, honest, kept) = disputed().await;
    let http = world.handle.http_addr();
    let mut events = world.handle.events();
    let (status, list) = get(http, "/v1/disputes").await;
    assert_eq!((status, &list["data"][0]["status"], &list["data"][0]["job"]), (200, &json!("open"), &Value::Null));
    let id = list["data"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(get(http, &format!("/v1/disputes/{id}/file")).await.0, 403, "its job has not ended");

    let mut liar = {
        tokio::spawn(honest.serve(None));
        let (moved, end) = (liar.keys.id(), tokio::spawn(liar.serve_until_refused()));
        let judged = judged(&mut events).await;
        is_right(&judged);
        assert_eq!(judged.losers, [moved]);
        assert_eq!(judged.dispute.to_string(), id);
        end
    };
    let told = tokio::time::timeout(PATIENCE, &mut liar).await.unwrap().unwrap();
    assert_eq!(told, RefusalCode::Quarantined);
    let again = Worker::connect(1, world.handle.node_id(), world.handle.quic_addr(), &world.package).await.next().await;
    assert!(matches!(again, ToWorker::Refused { code: RefusalCode::Quarantined, .. }), "{again:?}");

    // Another audit is asked for in the place of the one that was spent on the liar.
    tokio::spawn(join(&world.handle, &world, 3).await.serve(None));
    let receipt = done(&world, &kept).await;
    let standing = receipt.check().unwrap();
    assert_eq!((receipt.worker.receipt.worker, standing.refuted), (keys(2).id(), None));
    assert_eq!((standing.matched, standing.mismatched), (1, 1));

    // Now anybody has the evidence, and comes to the same verdict.
    let (_, shown) = get(http, &format!("/v1/disputes/{id}")).await;
    assert_eq!((&shown["status"], &shown["job"]), (&json!("judged"), &kept["lockstep"]["jobs"][0]));
    assert_eq!(shown["verdict"]["losers"], json!([keys(1).id()]));
    assert!(shown["entries"].as_array().unwrap().len() > 6, "{shown}");
    let (status, file) = request_bytes(http, &format!("GET /v1/disputes/{id}/file HTTP/1.1"), b"").await;
    assert_eq!(status, 200);
    let report = judge(&file).unwrap();
    assert!(matches!(report.verdict.reason, Reason::Recomputed { .. }) && report.verdict.losers == [true, false]);
    assert_eq!(report.coordinator, world.handle.node_id());

    // The liar's bond is lost, and no credit with it.
    let (_, export) = get(http, "/v1/ledger?history=65536").await;
    let ledger = Export::from_json(&export.to_string()).unwrap().check(None).unwrap();
    let totals = ledger.totals();
    assert!(totals.burned > 0 && totals.held == 0 && totals.free == totals.issued - totals.burned, "{totals:?}");
    world.handle.shutdown().await.unwrap();
}

/// The receipt of a job, once it has ended.
pub(super) async fn done(world: &World, kept: &Value) -> Receipt {
    let receipt = async {
        loop {
            let (status, receipt) = get_job(world.handle.http_addr(), kept, "/receipt").await;
            if status == 200 {
                return Receipt::from_json(&receipt.to_string()).unwrap();
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, receipt).await.expect("the job ends")
}

/// Killed after any move, the coordinator goes on where it was, with both sides and to the same verdict; the time in
/// which it was down is credited.
#[tokio::test(flavor = "multi_thread")]
async fn a_dispute_survives_a_crash_at_every_stage() {
    let (world, mut liar, mut honest, _) = disputed().await;
    let data = world.dir.path().join("data");
    let mut crashes = 0;
    let mut events = world.handle.events();
    for round in 0.. {
        for player in [&mut liar, &mut honest] {
            let copy = world.dir.path().join(format!("copy-{crashes}"));
            snapshot(&data, &copy);
            crashes += 1;
            is_finished_after_a_crash(&world, &copy).await;
            // Questions of the round before may have been asked again meanwhile.
            let ask = loop {
                let ask = player.asked().await;
                if ask.moves.len() == 2 * round {
                    break ask;
                }
            };
            player.make_move(player.answer(&ask)).await;
            let entry = acknowledged(player).await;
            assert!(matches!(&entry.entry.what, What::Moved { side, .. } if *side == ask.side));
            entry.check(&world.handle.node_id()).unwrap();
            // The claimant's opening ends it; the honest side is not asked for more.
            if ask.moves.len() >= 4
                && matches!(&entry.entry.what, What::Moved { signed, .. } if signed.made.body.name() == "open")
            {
                is_right(&judged(&mut events).await);
                assert!(crashes >= 6, "{crashes}");
                world.handle.shutdown().await.unwrap();
                return;
            }
        }
    }
}

pub(super) async fn acknowledged(worker: &mut Worker) -> SignedEntry {
    loop {
        // Whoever takes long is asked again, so that may be on its way before it.
        if let ToWorker::Acknowledged(entry) = worker.next().await {
            return *entry;
        }
    }
}

async fn is_finished_after_a_crash(world: &World, copy: &std::path::Path) {
    let second = Coordinator::start(config(copy, &world.package)).await.unwrap();
    let mut events = second.events();
    let (_, list) = get(second.http_addr(), "/v1/disputes").await;
    assert_eq!(list["data"][0]["status"], "open", "{list}");
    tokio::spawn(join(&second, world, 1).await.lying().serve(None));
    tokio::spawn(join(&second, world, 2).await.serve(None));
    let judged = judged(&mut events).await;
    is_right(&judged);
    let (_, shown) = get(second.http_addr(), &format!("/v1/disputes/{}", judged.dispute)).await;
    let entries = shown["entries"].as_array().unwrap();
    assert!(entries.iter().any(|entry| entry["what"] == "credited"), "{shown}");
    second.shutdown().await.unwrap();
}

/// A move is valid by its signature, whoever brings it; after the verdict none is.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_comes_through_anybody_and_not_after_the_verdict() {
    let (world, mut liar, mut honest, _) = disputed().await;
    let http = world.handle.http_addr();
    let mut events = world.handle.events();
    let ask = honest.asked().await;
    let (dispute, signed) = (ask.terms.id(), honest.answer(&ask));
    let post = |dispute: DisputeId| format!("POST /v1/disputes/{dispute}/moves HTTP/1.1");
    let bring = |signed: &SignedMove| to_bytes(signed);
    let (status, entry) = request_bytes(http, &post(dispute), &bring(&signed)).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&entry));
    let entry: SignedEntry = from_bytes(&entry).unwrap();
    entry.check(&world.handle.node_id()).unwrap();
    assert_eq!(acknowledged(&mut honest).await, entry, "its worker hears of it too");
    // Brought again it is the same, and what is no move is refused.
    let (status, again) = request_bytes(http, &post(dispute), &bring(&signed)).await;
    assert_eq!((status, from_bytes(&again)), (200, Ok(entry)));
    let mut forged = signed.clone();
    forged.made.round += 1;
    assert_eq!(request_bytes(http, &post(dispute), &bring(&forged)).await.0, 422);
    assert_eq!(request_bytes(http, &post(dispute), b"x").await.0, 400);
    let other = DisputeId::from_bytes([7; 32]);
    assert_eq!(request_bytes(http, &post(other), &bring(&signed)).await.0, 400, "it is a move of another dispute");
    let mut elsewhere = signed.clone();
    elsewhere.made.dispute = other;
    assert_eq!(request_bytes(http, &post(other), &bring(&elsewhere)).await.0, 404);

    let ask = liar.asked().await;
    let late = liar.answer(&ask);
    tokio::spawn(liar.serve(None));
    tokio::spawn(honest.serve(None));
    // The liar took the question above and does not answer it by itself.
    assert_eq!(request_bytes(http, &post(dispute), &bring(&late)).await.0, 200);
    is_right(&judged(&mut events).await);
    assert_eq!(request_bytes(http, &post(dispute), &bring(&late)).await.0, 409);
    world.handle.shutdown().await.unwrap();
}

/// The honest side moves and the liar does not: it is given notice, and a time of grace in which its move may still come
/// by another way.
async fn silent() -> (World, Worker, Ask, tokio::sync::broadcast::Receiver<Event>) {
    let (world, mut liar, mut honest, _) = disputed().await;
    let mut events = world.handle.events();
    let (asked, ask) = (liar.asked().await, honest.asked().await);
    honest.make_move(honest.answer(&ask)).await;
    acknowledged(&mut honest).await;
    tokio::spawn(honest.serve(None));
    world.handle.engine().send(Message::Pass(ask.terms.budgets_ms[0] + 2 * TICK_MS)).await.unwrap();
    let noticed = wait_for(&mut events, |event| match event {
        Event::DisputeNotice { node, .. } => Some(node),
        Event::DisputeJudged { .. } => panic!("judged without notice"),
        _ => None,
    });
    assert_eq!(noticed.await, liar.keys.id());
    (world, liar, asked, events)
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_loses_after_notice_and_grace_and_is_said_to_be_no_proof() {
    let (world, liar, _, mut events) = silent().await;
    world.handle.engine().send(Message::Pass(GRACE_MS + TICK_MS)).await.unwrap();
    let judged = judged(&mut events).await;
    assert_eq!((judged.kind, &judged.losers[..]), (VerdictKind::Timeout, &[liar.keys.id()][..]));
    assert_eq!((judged.element, judged.rounds), (None, 1));
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_move_counts_until_grace_is_over() {
    let (world, liar, asked, mut events) = silent().await;
    world.handle.engine().send(Message::Pass(GRACE_MS - 3 * TICK_MS)).await.unwrap();
    let post = format!("POST /v1/disputes/{}/moves HTTP/1.1", asked.terms.id());
    let (status, _) = request_bytes(world.handle.http_addr(), &post, &to_bytes(&liar.answer(&asked))).await;
    assert_eq!(status, 200);
    tokio::spawn(liar.serve(None));
    is_right(&judged(&mut events).await);
    world.handle.shutdown().await.unwrap();
}

/// An answer that nobody audited: its client has it checked, and wins.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_challenges_a_run_of_an_ended_job() {
    let world = world(|_| {}).await;
    let http = world.handle.http_addr();
    tokio::spawn(join(&world.handle, &world, 1).await.lying().serve(None));
    let mut events = world.handle.events();
    let body = json!({"model": "tiny", "input": "w3 w4 w5", "lockstep": {"wait": false}});
    let (_, kept) = embed(http, &body).await;
    let lie = done(&world, &kept).await;
    let honest = join(&world.handle, &world, 2).await;
    let run = honest.run(&lie.job, LeaseEpoch::CHALLENGE, None);
    let challenge = json!({"job": lie.job.id(), "receipt": run.receipt});
    let token = kept["lockstep"]["access"].as_str().unwrap();
    let post = format!("POST /v1/challenges HTTP/1.1\r\nlockstep-access: {token}");
    let plain = "POST /v1/challenges HTTP/1.1";
    assert_eq!(request(http, plain, challenge.to_string().as_bytes()).await.0, 404, "it tells the prompt");
    let none = json!({"job": lie.job.id(), "receipt": lie.worker});
    assert_eq!(request(http, &post, none.to_string().as_bytes()).await.0, 422, "a run does not differ from itself");
    assert_eq!(request(http, &post, b"{}").await.0, 400);
    tokio::spawn(honest.serve(None));
    let (status, opened) = request(http, &post, challenge.to_string().as_bytes()).await;
    assert_eq!(status, 202, "{opened}");
    is_right(&judged(&mut events).await);
    wait_for(&mut events, |event| matches!(event, Event::Overturned { .. }).then_some(())).await;
    let later = done(&world, &kept).await;
    assert!(later.check().unwrap().refuted.is_some(), "{later:?}");
    let proof = get(http, &format!("/v1/log/proof?job={}&access={token}", lie.job.id())).await.1;
    let proof = LogProof::from_json(&proof.to_string()).unwrap();
    proof.check().unwrap();
    proof.check_receipt(&later).unwrap();
    world.handle.shutdown().await.unwrap();
}

/// Who was found wrong gets no job, but plays its other disputes to their end, also over a new session.
#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_worker_may_still_play() {
    let world = world(|config| config.audit = HOLD).await;
    let mut events = world.handle.events();
    let mut liar = join(&world.handle, &world, 1).await.lying();
    for text in ["w3 w4 w5", "w5 w4 w3"] {
        let body = json!({"model": "tiny", "input": text, "lockstep": {"wait": false}});
        assert_eq!(embed(world.handle.http_addr(), &body).await.0, 202);
        let (job, epoch) = liar.assignment().await;
        let lie = liar.run(&job, epoch, None);
        liar.stream(&job, epoch, lie).await;
    }
    tokio::spawn(join(&world.handle, &world, 2).await.serve(None));
    for _ in 0..2 {
        wait_for(&mut events, |event| matches!(event, Event::DisputeOpened { .. }).then_some(())).await;
    }
    let first = liar.asked().await.terms.id();
    // It plays one of the two only.
    let mut again = Worker::connect(1, world.handle.node_id(), world.handle.quic_addr(), &world.package).await.lying();
    let lost = loop {
        tokio::select! {
            message = again.next() => if let ToWorker::Asked(ask) = message
                && ask.terms.id() == first
            {
                again.make_move(again.answer(&ask)).await;
            },
            judged = judged(&mut events) => break judged,
        }
    };
    is_right(&lost);
    assert_eq!(lost.dispute, first);
    drop(again);
    let mut third = join(&world.handle, &world, 1).await.lying();
    let ask = third.asked().await;
    assert_ne!(ask.terms.id(), first);
    third.make_move(third.answer(&ask)).await;
    let told = tokio::spawn(third.serve_until_refused());
    is_right(&judged(&mut events).await);
    assert_eq!(tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap(), RefusalCode::Quarantined);
    world.handle.shutdown().await.unwrap();
}

/// Auditors that run beside the first worker stop the job at the first root that differs.
#[tokio::test(flavor = "multi_thread")]
async fn a_lockstep_audit_stops_the_job_at_the_first_difference() {
    let world = world(|config| config.audit = AuditPolicy { lockstep: true, ..HOLD }).await;
    let mut events = world.handle.events();
    tokio::spawn(join(&world.handle, &world, 1).await.lying().serve(None));
    tokio::spawn(join(&world.handle, &world, 2).await.serve(None));
    let body = json!({"model": "tiny", "input": "w3 w4 w5", "lockstep": {"wait": false}});
    let (_, kept) = embed(world.handle.http_addr(), &body).await;
    let place = wait_for(&mut events, |event| match event {
        Event::Diverged { place, .. } => Some(place),
        Event::Accepted { .. } => panic!("a result was taken"),
        _ => None,
    });
    assert_eq!(place.await.layer, 2);
    let judged = judged(&mut events).await;
    assert_eq!((judged.kind, &judged.losers[..]), (VerdictKind::Proven, &[keys(1).id()][..]));
    tokio::spawn(join(&world.handle, &world, 3).await.serve(None));
    let receipt = done(&world, &kept).await;
    assert_ne!(receipt.worker.receipt.worker, keys(1).id());
    world.handle.shutdown().await.unwrap();
}

/// A worker that finds its own run wrong says so before anybody else does: it is set aside and not ruined.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_taken_back_by_its_own_worker() {
    let world = world(|config| config.audit = HOLD).await;
    let mut events = world.handle.events();
    let mut faulty = join(&world.handle, &world, 1).await.lying();
    let body = json!({"model": "tiny", "input": "w3 w4 w5", "lockstep": {"wait": false}});
    let (_, kept) = embed(world.handle.http_addr(), &body).await;
    let (job, epoch) = faulty.assignment().await;
    let wrong = faulty.run(&job, epoch, None);
    faulty.stream(&job, epoch, wrong).await;
    wait_for(&mut events, |event| matches!(event, Event::AuditDrawn { .. }).then_some(())).await;
    faulty.tell(&ToCoordinator::Retract { job: job.id(), epoch }).await;
    assert_eq!(faulty.serve_until_refused().await, RefusalCode::Faulty);
    for number in [2, 3] {
        tokio::spawn(join(&world.handle, &world, number).await.serve(None));
    }
    let receipt = done(&world, &kept).await;
    let standing = receipt.check().unwrap();
    assert_eq!((standing.matched, standing.mismatched, standing.refuted), (1, 1, None));
    let withdrawn = |signed: &SignedStatement| matches!(signed.statement.kind, StatementKind::Withdrawn { .. });
    assert!(receipt.statements.iter().any(withdrawn), "{receipt:?}");
    world.handle.shutdown().await.unwrap();
}
