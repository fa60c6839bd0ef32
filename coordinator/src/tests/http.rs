//! What clients see.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lockstep_protocol::receipt::Receipt;
use serde_json::{Value, json};

use super::worker::Worker;
use super::{PATIENCE, World, ask, embed, get, get_job, request, world};
use crate::{ApiKey, Config};

async fn with_worker(change: impl FnOnce(&mut Config)) -> World {
    let world = world(change).await;
    let mut worker = Worker::connect(1, world.handle.node_id(), world.handle.quic_addr(), &world.package).await;
    let welcome = worker.welcome().await;
    assert_eq!(welcome.models, [world.handle.models()[0].0]);
    tokio::spawn(worker.serve(None));
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_have_openais_shape_and_a_receipt_that_checks() {
    let world = with_worker(|_| {}).await;
    let http = world.handle.http_addr();
    let (status, one) = embed(http, &ask("w1 w2 w3")).await;
    assert_eq!(status, 200, "{one}");
    assert_eq!((&one["object"], &one["model"]), (&json!("list"), &json!("tiny")));
    assert_eq!(one["usage"], json!({"prompt_tokens": 3, "total_tokens": 3}));
    assert_eq!((&one["data"][0]["object"], &one["data"][0]["index"]), (&json!("embedding"), &json!(0)));
    let vector: Vec<f64> = serde_json::from_value(one["data"][0]["embedding"].clone()).unwrap();
    let norm: f64 = vector.iter().map(|x| x * x).sum();
    assert!(vector.len() == 8 && (norm - 1.0).abs() < 1e-6, "{vector:?}");

    // As `jq .lockstep.receipts[0]` writes it.
    let receipt = Receipt::from_json(&serde_json::to_string_pretty(&one["lockstep"]["receipts"][0]).unwrap()).unwrap();
    receipt.check().unwrap();
    assert_eq!(one["lockstep"]["jobs"][0], json!(receipt.job.id()));
    assert_eq!(one["lockstep"]["request_nonces"][0], json!(receipt.job.nonce));
    assert_eq!(one["lockstep"]["model_id"], json!(receipt.job.model));

    // By id, several, as tokens, in base64.
    let model = one["lockstep"]["model_id"].clone();
    let body =
        json!({"model": model, "input": [[1, 2, 3], [4]], "encoding_format": "base64", "user": 7, "dimensions": 8});
    let (status, two) = embed(http, &body).await;
    assert_eq!(status, 200, "{two}");
    assert_eq!(two["usage"]["total_tokens"], 4);
    let floats: Vec<u8> = vector.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
    assert_eq!(two["data"][0]["embedding"], json!(STANDARD.encode(&floats)));
    assert_eq!(two["lockstep"]["receipts"].as_array().unwrap().len(), 2);
    let (status, texts) = embed(http, &json!({"model": "tiny", "input": ["w1", "w2 w3"]})).await;
    assert_eq!((status, texts["data"].as_array().unwrap().len()), (200, 2));

    // What is kept of it.
    let kept = tokio::time::timeout(PATIENCE, async {
        loop {
            let (status, job) = get_job(http, &one, "").await;
            assert_eq!(status, 200);
            if job["status"] == "done" {
                return get_job(http, &one, "/receipt").await;
            }
        }
    });
    assert_eq!(kept.await.unwrap(), (200, one["lockstep"]["receipts"][0].clone()));
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_openais_errors() {
    let world = world(|_| {}).await;
    let http = world.handle.http_addr();
    let cases = [
        (json!({"model": "other", "input": "w1"}), 404, "model_not_found"),
        (json!({"input": "w1"}), 400, ""),
        (json!({"model": "tiny"}), 400, ""),
        (json!({"model": "tiny", "input": ""}), 400, ""),
        (json!({"model": "tiny", "input": []}), 400, ""),
        (json!({"model": "tiny", "input": [40]}), 400, ""),
        (json!({"model": "tiny", "input": vec![1; 17]}), 400, "context_length_exceeded"),
        (json!({"model": "tiny", "input": "w1 ".repeat(17)}), 400, "context_length_exceeded"),
        (json!({"model": "tiny", "input": "w1", "dimensions": 7}), 400, ""),
        (json!({"model": "tiny", "input": "w1", "encoding_format": "hex"}), 400, ""),
        (json!({"model": "tiny", "input": "w1", "lockstep": {"nonce": "00"}}), 400, ""),
        (json!({"model": "tiny", "input": ["w1", "w2"], "lockstep": {"nonce": "00".repeat(32)}}), 400, ""),
        (json!({"model": "tiny", "input": "w1", "lockstep": {"audit": "never"}}), 400, ""),
    ];
    for (body, status, code) in cases {
        let (found, error) = embed(http, &body).await;
        assert_eq!(found, status, "{body}: {error}");
        assert!(error["error"]["message"].is_string() && error["error"]["type"] == "invalid_request_error", "{error}");
        assert_eq!(error["error"]["code"].as_str().unwrap_or_default(), code, "{error}");
    }
    let post = "POST /v1/embeddings HTTP/1.1";
    assert_eq!(request(http, post, b"{").await.0, 400);
    assert_eq!(request(http, post, &vec![b' '; (4 << 20) + 1]).await.0, 413);
    assert_eq!(get(http, "/v1/embeddings").await.0, 405);
    assert_eq!(get(http, "/v1/nothing").await.0, 404);
    assert_eq!(get(http, "/v1/jobs/xyz").await.0, 404);
    assert_eq!(get(http, &format!("/v1/jobs/{}", "0".repeat(64))).await.0, 404);
    assert_eq!(get(http, &format!("/v1/jobs/{}/receipt", "0".repeat(64))).await.0, 404);
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_asked_for_where_they_are_set_but_not_by_health_checks() {
    let world = world(|config| config.api_keys = vec![ApiKey::from_secret("a"), ApiKey::from_secret("sesame")]).await;
    let http = world.handle.http_addr();
    for bad in ["", "\r\nauthorization: Bearer b", "\r\nauthorization: sesame", "\r\nauthorization: Basic sesame"] {
        let (status, error) = request(http, &format!("GET /v1/models HTTP/1.1{bad}"), b"").await;
        let error: Value = serde_json::from_str(&error).unwrap();
        assert_eq!((status, &error["error"]["code"]), (401, &json!("invalid_api_key")));
    }
    assert_eq!(request(http, "GET /v1/models HTTP/1.1\r\nauthorization: Bearer sesame", b"").await.0, 200);
    assert_eq!(get(http, "/livez").await, (200, json!("ok\n")));
    assert_eq!(get(http, "/readyz").await, (200, json!("ready\n")));
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn models_and_workers_are_listed() {
    let world = with_worker(|_| {}).await;
    let http = world.handle.http_addr();
    let (_, models) = get(http, "/v1/models").await;
    let model = &models["data"][0];
    assert_eq!((&models["object"], &model["id"], &model["object"]), (&json!("list"), &json!("tiny"), &json!("model")));
    assert_eq!((&model["lockstep"]["dimensions"], &model["lockstep"]["max_tokens"]), (&json!(8), &json!(16)));
    assert_eq!(model["lockstep"]["weights"], "w16");
    let id = model["lockstep"]["model_id"].as_str().unwrap();
    assert_eq!(&get(http, &format!("/v1/models/{id}")).await.1, model);
    let (_, workers) = get(http, "/v1/workers").await;
    assert_eq!((&workers["data"][0]["backend"], &workers["data"][0]["models"]), (&json!("reference"), &json!([id])));
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_models_a_coordinator_is_not_ready() {
    let world = world(|config| config.packages.clear()).await;
    let http = world.handle.http_addr();
    assert_eq!(get(http, "/readyz").await, (503, json!("not ready: no model is served\n")));
    assert_eq!(get(http, "/livez").await.0, 200);
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_worker_the_job_is_kept_and_can_be_fetched_later() {
    let world = world(|config| config.http_wait = std::time::Duration::from_millis(100)).await;
    let http = world.handle.http_addr();
    let (status, error) = embed(http, &ask("w1")).await;
    assert_eq!((status, &error["error"]["code"]), (503, &json!("no_answer_yet")));
    let id = error["lockstep"]["jobs"][0].as_str().unwrap().to_owned();
    assert!(error["error"]["message"].as_str().unwrap().contains(&id));
    assert_eq!(get_job(http, &error, "").await.1["status"], "queued");
    let (status, early) = get_job(http, &error, "/receipt").await;
    assert_eq!((status, &early["error"]["code"]), (409, &json!("no_answer_yet")));

    let worker = Worker::connect(1, world.handle.node_id(), world.handle.quic_addr(), &world.package).await;
    tokio::spawn(worker.serve(None));
    let receipt = async {
        loop {
            let (status, receipt) = get_job(http, &error, "/receipt").await;
            if status == 200 {
                return receipt;
            }
        }
    };
    let receipt = tokio::time::timeout(PATIENCE, receipt).await.unwrap();
    Receipt::from_json(&receipt.to_string()).unwrap().check().unwrap();
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_nonce_is_the_same_job() {
    let world = with_worker(|_| {}).await;
    let http = world.handle.http_addr();
    let mut events = world.handle.events();
    let body = |wait: bool, nonce: &str| json!({"model": "tiny", "input": "w1 w2", "lockstep": {"wait": wait, "nonce": nonce.repeat(32)}});
    let (status, accepted) = embed(http, &body(false, "0a")).await;
    assert_eq!(status, 202, "{accepted}");
    let job = &accepted["lockstep"]["jobs"][0];
    for _ in 0..3 {
        let (status, again) = embed(http, &body(true, "0a")).await;
        assert_eq!((status, &again["lockstep"]["jobs"][0]), (200, job));
        assert_eq!(embed(http, &body(false, "0a")).await.0, 202);
    }
    let (_, other) = embed(http, &body(true, "0b")).await;
    assert_ne!(&other["lockstep"]["jobs"][0], job);
    world.handle.shutdown().await.unwrap();
    let mut submitted = 0;
    while let Ok(event) = events.try_recv() {
        submitted += usize::from(matches!(event, crate::Event::JobSubmitted { .. }));
    }
    assert_eq!(submitted, 2);
}

/// An ended job gets no audit any more, so a client that asks for one is told so instead of being given the old answer.
#[tokio::test(flavor = "multi_thread")]
async fn an_audit_of_an_ended_job_is_refused_and_not_pretended() {
    let world = with_worker(|_| {}).await;
    let http = world.handle.http_addr();
    let mut events = world.handle.events();
    let body = |extra: Value| {
        let mut lockstep = json!({"nonce": "0e".repeat(32)});
        lockstep.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"model": "tiny", "input": "w1 w2", "lockstep": lockstep})
    };
    assert_eq!(embed(http, &body(json!({}))).await.0, 200);
    super::wait_for(&mut events, |event| matches!(event, crate::Event::Done { .. }).then_some(())).await;
    for wish in ["always", "hold"] {
        let (status, error) = embed(http, &body(json!({"audit": wish}))).await;
        assert_eq!((status, &error["error"]["code"]), (409, &json!("ended_without_audit")), "{error}");
        assert!(error["error"]["message"].as_str().unwrap().contains("another nonce"), "{error}");
    }
    assert_eq!(embed(http, &body(json!({"audit": "default"}))).await.0, 200);
    world.handle.shutdown().await.unwrap();
}
