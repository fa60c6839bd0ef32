//! What clients are told where nobody is there for a job, or nobody takes it; and which field of a request is wrong.

use std::time::Duration;

use lockstep_protocol::messages::{FailureCode, ToCoordinator};
use serde_json::{Value, json};

use super::generation::{completion, events, post, talking, worker, world};
use super::{PATIENCE, embed, get_job, request, wait_for};
use crate::Event;

/// Every job of these tests that fails, with the reason.
async fn failed(events: &mut tokio::sync::broadcast::Receiver<Event>) -> String {
    wait_for(events, |event| match event {
        Event::Failed { reason, .. } => Some(reason),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_worker_a_client_is_told_soon_and_its_job_is_cancelled_and_not_counted() {
    let world = world(|config| {
        config.worker_wait = Duration::ZERO;
        config.packages.push(crate::testing::package(config.data_dir.parent().unwrap(), "tiny"));
        // No two of these requests fit into a minute.
        config.caps.tokens_per_minute = 4;
    })
    .await;
    let (http, mut seen) = (world.handle.http_addr(), world.handle.events());
    let asked = completion(json!({"prompt": [3], "max_tokens": 3}));
    for _ in 0..3 {
        let (status, error) = post(http, "completions", &asked).await;
        let expected = (503, &json!("no_worker"), &Value::Null);
        assert_eq!((status, &error["error"]["code"], &error["lockstep"]), expected, "{error}");
        assert_eq!((&error["error"]["type"], &error["error"]["param"]), (&json!("server_error"), &Value::Null));
        assert_eq!(failed(&mut seen).await, "the client cancelled the job");
        let (status, error) = embed(http, &json!({"model": "tiny", "input": [1, 2, 3]})).await;
        assert_eq!((status, &error["error"]["code"]), (503, &json!("no_worker")), "{error}");
        assert_eq!(failed(&mut seen).await, "the client cancelled the job");
        let mut streamed = asked.clone();
        streamed["stream"] = json!(true);
        let (_, last) = events(http, "completions", &streamed).await;
        let error: Value = serde_json::from_str(&last).unwrap();
        assert_eq!((&error["error"]["code"], &error["lockstep"]), (&json!("no_worker"), &Value::Null));
        assert_eq!(failed(&mut seen).await, "the client cancelled the job");
    }
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_nonce_the_client_chose_is_kept_for_it() {
    let world = world(|config| config.worker_wait = Duration::ZERO).await;
    let http = world.handle.http_addr();
    for (number, stream) in [(1, false), (2, true)] {
        let asked =
            completion(json!({"stream": stream, "max_tokens": 3, "lockstep": {"nonce": format!("{number:064}")}}));
        let error = if stream {
            serde_json::from_str(&events(http, "completions", &asked).await.1).unwrap()
        } else {
            post(http, "completions", &asked).await.1
        };
        assert_eq!(error["error"]["code"], "no_worker", "{error}");
        assert_eq!(get_job(http, &error, "").await.1["status"], "queued");
    }
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_all_workers_refuse_fails_at_once_with_their_reason() {
    let world = world(|_| {}).await;
    let http = world.handle.http_addr();
    let mut workers = [worker(&world, 1).await, worker(&world, 2).await];
    let asked = tokio::spawn(async move { post(http, "completions", &completion(json!({}))).await });
    let [first, second] = &mut workers;
    // Whoever gets it gives it back; then the other one gets it.
    let (job, epoch) = tokio::select! {
        given = first.assignment() => given,
        given = second.assignment() => given,
    };
    let refusal = |epoch| ToCoordinator::Failed {
        job: job.id(),
        epoch,
        code: FailureCode::JobRefused,
        reason: "--generation-bytes must be at least 7".to_owned(),
    };
    // Of an assignment that it does not have a worker says in vain that it gives it back.
    for worker in [&*first, &*second] {
        worker.tell(&refusal(epoch)).await;
    }
    let (_, epoch) = tokio::select! {
        given = first.assignment() => given,
        given = second.assignment() => given,
    };
    for worker in [&*first, &*second] {
        worker.tell(&refusal(epoch)).await;
    }
    let (status, error) = asked.await.unwrap();
    let message = error["error"]["message"].as_str().unwrap();
    assert!(status == 500 && message.contains("refused the job: --generation-bytes must be at least 7"), "{error}");
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_has_an_id_of_its_own() {
    let world = talking(|_| vec![5, 3 << 24]).await;
    let http = world.handle.http_addr();
    let body = completion(json!({"max_tokens": 2})).to_string();
    let mut ids = std::collections::BTreeSet::new();
    let asked = [
        ("GET /livez", String::new()),
        ("GET /v1/nothing", String::new()),
        ("PUT /v1/models", String::new()),
        ("POST /v1/completions", body),
        ("POST /v1/completions", "[".into()),
    ];
    for (line, body) in &asked {
        let head = format!("{line} HTTP/1.1\r\ncontent-type: application/json");
        let reply = super::raw(http, &head, body.as_bytes()).await;
        let text = String::from_utf8_lossy(&reply).to_lowercase();
        let id = text.lines().find_map(|line| line.strip_prefix("x-request-id: req_")).map(str::to_owned);
        ids.insert(id.unwrap_or_else(|| panic!("{line}: {text}")));
    }
    assert!(ids.len() == asked.len() && ids.iter().all(|id| id.len() == 32), "{ids:?}");
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_nobody_knows_are_refused_by_name() {
    let world = world(|_| {}).await;
    let http = world.handle.http_addr();
    let messages = json!([{"role": "user", "content": "w3"}, {"role": "wizard", "content": "w4"}]);
    let body = json!({"model": "talker", "messages": messages}).to_string();
    let head = "POST /v1/chat/completions HTTP/1.1\r\ncontent-type: application/json";
    let asked = tokio::time::timeout(PATIENCE, request(http, head, body.as_bytes())).await.unwrap();
    let error: Value = serde_json::from_str(&asked.1).unwrap();
    assert_eq!((asked.0, &error["error"]["param"]), (400, &json!("messages[1].role")));
    assert!(error["error"]["message"].as_str().unwrap().starts_with("messages[1].role is \"wizard\""), "{error}");
    world.handle.shutdown().await.unwrap();
}
