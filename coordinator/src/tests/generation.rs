//! Generation as clients see it. The worker here says what a test tells it to say: what its words follow from is no
//! concern of the coordinator, which has no weights.

use std::net::SocketAddr;

use lockstep_protocol::commitment::RunCommitment;
use lockstep_protocol::generation::word_root;
use lockstep_protocol::ids::{LeaseEpoch, Root, Salt};
use lockstep_protocol::job::{Job, RequestInput};
use lockstep_protocol::logprobs;
use lockstep_protocol::messages::{JobMessage, JobResult, ToWorker};
use lockstep_protocol::receipt::{Receipt, Run, WorkerReceipt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::worker::Worker;
use super::{NEVER, PATIENCE, World, config, embed, get, get_job, request};
use crate::testing::{CONTEXT, LAYERS, STOP, decoder_package};
use crate::{Config, Coordinator};

const STOP_TOKEN: u32 = 1 << 24;
const STOP_STRING: u32 = 2 << 24;
const LENGTH: u32 = 3 << 24;
const SALT: Salt = Salt::from_bytes([0x77; 32]);

/// What a worker says to a job.
pub(super) type Script = fn(&Job) -> Vec<u32>;

pub(super) async fn world(change: impl FnOnce(&mut Config)) -> World {
    let dir = tempfile::tempdir().unwrap();
    let package = decoder_package(dir.path(), "talker");
    let mut config = config(&dir.path().join("data"), &package);
    config.audit = NEVER;
    change(&mut config);
    World { handle: Coordinator::start(config).await.unwrap(), package, dir }
}

pub(super) async fn worker(world: &World, number: u8) -> Worker {
    let mut worker = Worker::connect(number, world.handle.node_id(), world.handle.quic_addr(), &world.package).await;
    worker.welcome().await;
    worker
}

/// A world with a worker that serves this script.
pub(super) async fn talking(script: Script) -> World {
    let world = world(|_| {}).await;
    let worker = worker(&world, 1).await;
    tokio::spawn(serve(worker, script));
    world
}

/// The greatest number of tokens that a job may generate.
fn most(job: &Job) -> usize {
    job.kind.max_points() as usize
}

/// The log-probabilities of a word as the job asks for them: that of the word is 1/2, and those of tokens 6, 30, 7 and so
/// on are 1/2, 1/4 and so on.
fn row(job: &Job, word: u32) -> Vec<i32> {
    let asked = job.kind.generation().unwrap();
    if asked.logprobs == 0 {
        return Vec::new();
    }
    let halves = (1..).map(|n: i32| -(n << 20));
    logprobs::row(asked, -(1 << 20) - (word & 1) as i32, [6, 30, 7, STOP, 9].into_iter().zip(halves))
}

/// Streams words as they would come; gives the roots.
async fn say(worker: &Worker, job: &Job, epoch: LeaseEpoch, words: &[u32]) -> (quinn::SendStream, Vec<Root>) {
    let mut stream = worker.connection.open_uni().await.unwrap();
    let geometry = job.header().geometry(LAYERS).unwrap();
    lockstep_link::send(&mut stream, &JobMessage::Begin { job: job.id(), epoch }).await.unwrap();
    let mut roots = Vec::new();
    for place in geometry.places().take(words.len() * usize::from(LAYERS + 1)) {
        let word = words[roots.len() / usize::from(LAYERS + 1)];
        let is_output = place.layer > LAYERS;
        let root = if is_output { word_root(word) } else { Root::from_bytes([place.point as u8; 32]) };
        if is_output {
            lockstep_link::send(&mut stream, &JobMessage::Token { word, logprobs: row(job, word) }).await.unwrap();
        }
        lockstep_link::send(&mut stream, &JobMessage::Layer { place, root }).await.unwrap();
        roots.push(root);
    }
    (stream, roots)
}

/// Answers a job, to the end.
async fn answer(worker: &mut Worker, job: &Job, epoch: LeaseEpoch, words: Vec<u32>) {
    let (mut stream, roots) = say(worker, job, epoch, &words).await;
    let positions = (job.tokens.len() + words.len() - 1) as u64;
    let run = Run {
        epoch,
        layers: LAYERS,
        roots,
        output_count: words.len() as u32,
        work_units: worker.model.package().program().macs(positions, words.len() as u64),
        saturations: 0,
        words: words.clone(),
    };
    let receipt = WorkerReceipt::of_run(&job.header(), run, worker.keys.id()).unwrap();
    let rows: Vec<i32> = words.iter().flat_map(|word| row(job, *word)).collect();
    let receipt = receipt.with_logprobs(&rows);
    let commitment = RunCommitment::of(job.id(), epoch, worker.keys.id(), &SALT, &receipt.head);
    lockstep_link::send(&mut stream, &JobMessage::Commit { commitment }).await.unwrap();
    let output = words.into_iter().map(u32::cast_signed).chain(rows).collect();
    let result = JobResult { receipt: receipt.sign(&worker.keys), output };
    worker.expect_reveal(job.id(), epoch).await;
    lockstep_link::send(&mut stream, &JobMessage::Result { result: Box::new(result), salt: SALT }).await.unwrap();
    stream.finish().unwrap();
    let _ = stream.stopped().await;
}

async fn serve(mut worker: Worker, script: Script) {
    loop {
        let (job, epoch) = worker.assignment().await;
        let words = script(&job);
        answer(&mut worker, &job, epoch, words).await;
    }
}

pub(super) async fn post(address: SocketAddr, path: &str, body: &Value) -> (u16, Value) {
    let head = format!("POST /v1/{path} HTTP/1.1\r\ncontent-type: application/json");
    let (status, body) = request(address, &head, body.to_string().as_bytes()).await;
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

/// The events of a stream, the last one as a text.
pub(super) async fn events(address: SocketAddr, path: &str, body: &Value) -> (Vec<Value>, String) {
    // In HTTP/1.0 a stream has no framing of its own.
    let (status, text) = request(address, &format!("POST /v1/{path} HTTP/1.0"), body.to_string().as_bytes()).await;
    assert_eq!(status, 200, "{text}");
    let mut events: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    let last = events.pop().unwrap().to_owned();
    (events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect(), last)
}

fn chat(more: Value) -> Value {
    let mut body = json!({"model": "talker", "messages": [{"role": "user", "content": "w3 w4"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

pub(super) fn completion(more: Value) -> Value {
    let mut body = json!({"model": "talker", "prompt": "w3 w4", "max_tokens": 8});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Ends with the model's stop token.
fn polite(_: &Job) -> Vec<u32> {
    vec![5, 30, 31, 6, STOP | STOP_TOKEN]
}

/// Goes on until it is stopped.
fn endless(job: &Job) -> Vec<u32> {
    (1..=most(job) as u32).map(|at| (10 + at % 10) | if at as usize == most(job) { LENGTH } else { 0 }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_has_openais_shape_and_a_receipt_that_checks() {
    let world = talking(polite).await;
    let http = world.handle.http_addr();
    let (status, answer) = post(http, "chat/completions", &chat(json!({"seed": 9, "max_tokens": 9}))).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("talker")));
    let message = json!({"role": "assistant", "content": " w5🦀 w6", "refusal": null});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(answer["choices"], json!([choice]));
    assert_eq!(answer["usage"], json!({"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}));

    // What the receipt says is what the client can make of its own request.
    let ours = &answer["lockstep"];
    assert_eq!(ours["prompt"], "user w3 w4 w26");
    let receipt = Receipt::from_json(&ours["receipts"][0].to_string()).unwrap();
    receipt.check().unwrap();
    let job = &receipt.job;
    assert_eq!(job.tokens, [0, 3, 4, 26]);
    assert_eq!(job.request, RequestInput::Text("user w3 w4 w26".to_owned()).hash(&job.nonce));
    assert_eq!(ours["jobs"], json!([job.id()]));
    let generation = job.kind.generation().unwrap();
    assert_eq!((generation.max_tokens, generation.temperature), (9, 10_000));
    assert_eq!(generation.stop_tokens, [STOP]);
    let model = job.model.to_string();
    assert_eq!(answer["system_fingerprint"], model[..16]);
    assert_eq!(get_job(http, &answer, "/receipt").await, (200, ours["receipts"][0].clone()));

    // The date is the client's.
    let (_, dated) = post(http, "chat/completions", &chat(json!({"lockstep": {"date": "2025-01-09"}}))).await;
    assert_eq!(dated["lockstep"]["prompt"], "user w3 w4 w09");
    // Without a number there is what there is room for.
    let generation = dated["lockstep"]["receipts"][0]["job"]["kind"]["generation"].clone();
    assert_eq!(generation["max_tokens"], CONTEXT - 3);
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_shows_whole_characters_and_ends_with_the_receipts() {
    let world = talking(polite).await;
    let http = world.handle.http_addr();
    let (all, done) = events(http, "chat/completions", &chat(json!({"stream": true}))).await;
    assert_eq!(done, "[DONE]");
    assert!(all.iter().all(|event| event["object"] == "chat.completion.chunk" && event.get("usage").is_none()));
    let deltas: Vec<_> = all.iter().map(|event| event["choices"][0]["delta"].clone()).collect();
    let content = |text: &str| json!({"content": text});
    let opening = json!({"role": "assistant", "content": ""});
    assert_eq!(deltas, [opening, content(" w5"), content("🦀"), content(" w6"), json!({})]);
    let reasons: Vec<_> = all.iter().map(|event| event["choices"][0]["finish_reason"].clone()).collect();
    assert_eq!(reasons, [Value::Null, Value::Null, Value::Null, Value::Null, json!("stop")]);
    assert!(all[0]["lockstep"]["access"].is_string() && all[0]["lockstep"].get("receipts").is_none());
    let receipt = Receipt::from_json(&all[4]["lockstep"]["receipts"][0].to_string()).unwrap();
    receipt.check().unwrap();

    // With usage there is one more chunk.
    let body = completion(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let (all, _) = events(http, "completions", &body).await;
    let text: String = all.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    let (last, before) = all.split_last().unwrap();
    assert_eq!((text.as_str(), &last["choices"]), (" w5🦀 w6", &json!([])));
    assert_eq!(last["usage"], json!({"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}));
    assert!(before.iter().all(|event| event["usage"].is_null() && event["object"] == "text_completion"));
    assert!(last["lockstep"]["receipts"][0].is_object() && before.last().unwrap().get("lockstep").is_none());
    world.handle.shutdown().await.unwrap();
}

/// Half a probability, as the HTTP side writes it.
const HALF: f64 = -std::f64::consts::LN_2;

fn assert_near(value: &Value, expected: f64) {
    assert!((value.as_f64().unwrap() - expected).abs() < 1e-5, "{value}, not {expected}");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_probabilities_of_a_chat_have_openais_shape_whole_or_streamed() {
    let world = talking(polite).await;
    let http = world.handle.http_addr();
    let wish = json!({"logprobs": true, "top_logprobs": 4, "max_tokens": 9});
    let (status, answer) = post(http, "chat/completions", &chat(wish.clone())).await;
    assert_eq!(status, 200, "{answer}");
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["refusal"], Value::Null);
    let content = logprobs["content"].as_array().unwrap();
    // The token that stops is no part of the text.
    let tokens: Vec<_> = content.iter().map(|entry| (entry["token"].clone(), entry["bytes"].clone())).collect();
    let expected = [
        (json!(" w5"), json!([32, 119, 53])),
        (json!("bytes:\\xf0\\x9f"), json!([0xf0, 0x9f])),
        (json!("bytes:\\xa6\\x80"), json!([0xa6, 0x80])),
        (json!(" w6"), json!([32, 119, 54])),
    ];
    assert_eq!(tokens, expected);
    for entry in content {
        assert_near(&entry["logprob"], HALF);
        let top = entry["top_logprobs"].as_array().unwrap();
        let names: Vec<_> = top.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
        assert_eq!(names, [" w6", "bytes:\\xf0\\x9f", " w7", "</s>"]);
        (1..).zip(top).for_each(|(n, entry)| assert_near(&entry["logprob"], f64::from(n) * HALF));
    }
    let receipt = Receipt::from_json(&answer["lockstep"]["receipts"][0].to_string()).unwrap();
    receipt.check().unwrap();
    assert_eq!((receipt.words().len(), receipt.output.len(), receipt.logprobs().count()), (5, 5 * 10, 5));
    assert_eq!(receipt.job.kind.generation().unwrap().logprobs, 5);

    let mut streamed = chat(wish);
    streamed["stream"] = json!(true);
    let (all, done) = events(http, "chat/completions", &streamed).await;
    assert_eq!(done, "[DONE]");
    let pieces = all.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array()).flatten();
    assert_eq!(&pieces.cloned().collect::<Vec<_>>(), content);
    let text: String = all.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, answer["choices"][0]["message"]["content"]);

    // Without the list.
    let (_, answer) = post(http, "chat/completions", &chat(json!({"logprobs": true}))).await;
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert!(content.len() == 4 && content.iter().all(|entry| entry["top_logprobs"] == json!([])), "{content:?}");
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn log_probabilities_of_a_completion_have_the_older_shape_whole_or_streamed() {
    let world = talking(polite).await;
    let http = world.handle.http_addr();
    let (status, answer) = post(http, "completions", &completion(json!({"logprobs": 2}))).await;
    assert_eq!(status, 200, "{answer}");
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!([" w5", "bytes:\\xf0\\x9f", "bytes:\\xa6\\x80", " w6"]));
    assert_eq!(logprobs["text_offset"], json!([0, 3, 3, 4]));
    logprobs["token_logprobs"].as_array().unwrap().iter().for_each(|value| assert_near(value, HALF));
    for top in logprobs["top_logprobs"].as_array().unwrap() {
        assert_eq!(top.as_object().unwrap().len(), 2);
        assert_near(&top[" w6"], HALF);
        assert_near(&top["bytes:\\xf0\\x9f"], 2.0 * HALF);
    }
    let (all, _) = events(http, "completions", &completion(json!({"logprobs": 2, "stream": true}))).await;
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let pieces = all.iter().filter_map(|event| event["choices"][0]["logprobs"][key].as_array()).flatten();
        assert_eq!(&pieces.cloned().collect::<Vec<_>>(), logprobs[key].as_array().unwrap(), "{key}");
    }
    let (_, answer) = post(http, "completions", &completion(json!({"logprobs": 0}))).await;
    assert_eq!(answer["choices"][0]["logprobs"]["top_logprobs"], json!([{}, {}, {}, {}]));
    world.handle.shutdown().await.unwrap();
}

/// A worker that reports other log-probabilities than it has streamed breaks the rules; one that leaves them out, too.
#[tokio::test(flavor = "multi_thread")]
async fn log_probabilities_are_those_that_were_streamed() {
    let world = world(|_| {}).await;
    let http = world.handle.http_addr();
    let mut wrong = worker(&world, 1).await;
    let client = tokio::spawn(async move { post(http, "completions", &completion(json!({"logprobs": 1}))).await });
    let (job, epoch) = wrong.assignment().await;
    let mut stream = wrong.connection.open_uni().await.unwrap();
    lockstep_link::send(&mut stream, &JobMessage::Begin { job: job.id(), epoch }).await.unwrap();
    let geometry = job.header().geometry(LAYERS).unwrap();
    for place in geometry.places().take(usize::from(LAYERS)) {
        lockstep_link::send(&mut stream, &JobMessage::Layer { place, root: Root::from_bytes([1; 32]) }).await.unwrap();
    }
    // One of three values.
    lockstep_link::send(&mut stream, &JobMessage::Token { word: 5, logprobs: vec![-1] }).await.unwrap();
    let closed = tokio::time::timeout(PATIENCE, wrong.connection.closed()).await;
    assert!(closed.is_ok(), "the worker is still there");
    let right = worker(&world, 2).await;
    tokio::spawn(serve(right, polite));
    let (status, answer) = tokio::time::timeout(PATIENCE, client).await.unwrap().unwrap();
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 4);
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_text_is_cut_off() {
    let script: Script = |_| vec![5, 6, 7 | STOP_STRING];
    let world = talking(script).await;
    let http = world.handle.http_addr();
    for stop in [json!("6 w7"), json!(["zz", "6 w7"])] {
        let (_, answer) = post(http, "completions", &completion(json!({"stop": stop}))).await;
        let choice = &answer["choices"][0];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(" w5 w"), &json!("stop")));
        let (all, _) = events(http, "completions", &completion(json!({"stop": stop, "stream": true}))).await;
        let pieces: Vec<_> = all.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
        assert_eq!(pieces, ["", " w5", " w", ""]);
    }
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_choice_is_a_job_with_a_seed_of_its_own() {
    // Says its seed's last bytes and first.
    let script: Script = |job| {
        let seed = job.seed.as_bytes();
        vec![u32::from(seed[28]) + 3, u32::from(seed[0]) | LENGTH]
    };
    let world = talking(script).await;
    let http = world.handle.http_addr();
    let body = completion(json!({"n": 2, "seed": 8, "max_tokens": 2, "prompt": ["w3", "w4 w5"]}));
    let (status, answer) = post(http, "completions", &body).await;
    assert_eq!(status, 200, "{answer}");
    let choices: Vec<_> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| (choice["index"].clone(), choice["text"].clone()))
        .collect();
    let expected = [" w3 w8", " w4 w8", " w3 w8", " w4 w8"];
    assert_eq!(choices, expected.iter().enumerate().map(|(i, text)| (json!(i), json!(text))).collect::<Vec<_>>());
    assert_eq!(answer["usage"], json!({"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}));
    assert_eq!(answer["lockstep"]["receipts"].as_array().unwrap().len(), 4);

    let body = completion(json!({"n": 2, "seed": 8, "max_tokens": 2, "stream": true}));
    let (all, _) = events(http, "completions", &body).await;
    let mut texts = [String::new(), String::new()];
    for choice in all.iter().map(|event| &event["choices"][0]) {
        texts[choice["index"].as_u64().unwrap() as usize].push_str(choice["text"].as_str().unwrap());
    }
    assert_eq!(texts, expected[..2]);
    let with_receipts: Vec<_> = all.iter().filter(|event| event["lockstep"]["receipts"].is_array()).collect();
    assert_eq!((with_receipts.len(), with_receipts[0]), (1, all.last().unwrap()));
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_served_is_refused_by_name() {
    let world = world(|config| {
        config.packages.push(crate::testing::package(config.data_dir.parent().unwrap(), "tiny"));
        config.caps.max_tokens = 30;
    })
    .await;
    let http = world.handle.http_addr();
    let long = "w1 ".repeat(70);
    let cases = [
        (completion(json!({"model": "none"})), 404, "model_not_found", "model"),
        (completion(json!({"model": "tiny"})), 400, "wrong_kind_of_model", "model"),
        (completion(json!({"prompt": long})), 400, "context_length_exceeded", "prompt"),
        (completion(json!({"prompt": vec![1; 60], "max_tokens": 6})), 400, "context_length_exceeded", "max_tokens"),
        (completion(json!({"prompt": [40]})), 400, "", "prompt"),
        (completion(json!({"max_tokens": 31})), 400, "", "max_tokens"),
        (completion(json!({"max_tokens": 0})), 400, "", "max_tokens"),
        (completion(json!({"logprobs": 6})), 400, "", "logprobs"),
        (completion(json!({"logprobs": true})), 400, "", "logprobs"),
        (completion(json!({"echo": true})), 400, "unsupported_parameter", "echo"),
        (completion(json!({"suffix": "x"})), 400, "unsupported_parameter", "suffix"),
        (completion(json!({"best_of": 2})), 400, "unsupported_parameter", "best_of"),
        (completion(json!({"temperature": -0.1})), 400, "", "temperature"),
        (completion(json!({"top_p": 0})), 400, "", "top_p"),
        (completion(json!({"top_k": -2})), 400, "", "top_k"),
        (completion(json!({"min_p": 1.1})), 400, "", "min_p"),
        (completion(json!({"repetition_penalty": 0})), 400, "", "repetition_penalty"),
        (completion(json!({"presence_penalty": 10.1})), 400, "", "presence_penalty"),
        (completion(json!({"logit_bias": {"40": 1}})), 400, "", "logit_bias"),
        (completion(json!({"logit_bias": {"4": 1, "05": 101}})), 400, "", "logit_bias.5"),
        (completion(json!({"logit_bias": {"1": 1, "01": 2}})), 400, "", "logit_bias"),
        (completion(json!({"stop": ["1", "2", "3", "4", "5"]})), 400, "", "stop"),
        (completion(json!({"stop": ""})), 400, "", "stop"),
        (completion(json!({"stop": "x".repeat(33)})), 400, "", "stop"),
        (completion(json!({"stop_token_ids": [40]})), 400, "", "stop_token_ids"),
        (completion(json!({"stop_token_ids": (0..2_000).collect::<Vec<_>>()})), 400, "", "stop_token_ids"),
        (completion(json!({"n": 17})), 400, "", "n"),
        (completion(json!({"n": 9, "prompt": ["w1", "w2"]})), 400, "", "n"),
        (completion(json!({"n": 1, "prompt": vec!["w1"; 17]})), 400, "", "prompt"),
        (completion(json!({"stream_options": {"include_usage": true}})), 400, "", "stream_options"),
        (completion(json!({"stream": true, "lockstep": {"audit": "hold"}})), 400, "", "stream"),
        (completion(json!({"stream": true, "lockstep": {"wait": false}})), 400, "", "stream"),
        (completion(json!({"seed": 1, "lockstep": {"seed": "00".repeat(32)}})), 400, "", "seed"),
        (completion(json!({"n": 2, "lockstep": {"nonce": "00".repeat(32)}})), 400, "", "lockstep.nonce"),
        (completion(json!({"lockstep": {"dat": "2024-01-01"}})), 400, "", "lockstep.dat"),
        (completion(json!({"seed": 1.5})), 400, "", "seed"),
        (completion(json!({"max_tokens": -1})), 400, "", "max_tokens"),
        (completion(json!({"prompt": []})), 400, "", "prompt"),
        (completion(json!({"stop": 5})), 400, "", "stop"),
        (chat(json!({"messages": []})), 400, "", "messages"),
        (
            chat(json!({"messages": [{"role": "tool", "content": "x"}]})),
            400,
            "unsupported_parameter",
            "messages[0].role",
        ),
        (
            chat(json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})),
            400,
            "unsupported_parameter",
            "messages[0].content[0].type",
        ),
        (chat(json!({"tools": [{"type": "function"}]})), 400, "unsupported_parameter", "tools"),
        (chat(json!({"functions": [{"name": "f"}]})), 400, "unsupported_parameter", "functions"),
        (chat(json!({"response_format": {"type": "json_object"}})), 400, "unsupported_parameter", "response_format"),
        (chat(json!({"logprobs": true, "top_logprobs": 21})), 400, "", "top_logprobs"),
        (chat(json!({"top_logprobs": 1})), 400, "", "top_logprobs"),
        (chat(json!({"logprobs": 1})), 400, "", "logprobs"),
        (chat(json!({"modalities": ["text", "audio"]})), 400, "unsupported_parameter", "modalities"),
        (chat(json!({"max_tokens": 5, "max_completion_tokens": 6})), 400, "", "max_tokens"),
        (chat(json!({"lockstep": {"date": "2024-13-01"}})), 400, "", "lockstep.date"),
    ];
    for (body, status, code, param) in cases {
        let path = if body.get("prompt").is_some() { "completions" } else { "chat/completions" };
        let (found, error) = post(http, path, &body).await;
        let error = &error["error"];
        assert_eq!(found, status, "{body}: {error}");
        assert!(error["message"].is_string() && error["type"] == "invalid_request_error", "{error}");
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        assert_eq!((text("code").as_str(), text("param").as_str()), (code, param), "{body}: {error}");
    }
    let (status, error) = embed(http, &json!({"model": "talker", "input": "w1"})).await;
    assert_eq!((status, &error["error"]["code"]), (400, &json!("wrong_kind_of_model")));
    let (_, error) = post(http, "completions", &completion(json!({"prompt": long}))).await;
    assert!(error["error"]["message"].as_str().unwrap().contains("64 tokens, however your prompt has 70"), "{error}");
    let (_, models) = get(http, "/v1/models").await;
    let capabilities: Vec<_> =
        models["data"].as_array().unwrap().iter().map(|m| m["lockstep"]["capabilities"].clone()).collect();
    assert_eq!(capabilities, [json!(["completions", "chat.completions"]), json!(["embeddings"])]);
    assert_eq!(models["data"][0]["lockstep"]["max_generated_tokens"], 30);
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_cancels_its_jobs() {
    let world = world(|_| {}).await;
    let http = world.handle.http_addr();
    let mut worker = worker(&world, 1).await;
    for stream in [true, false] {
        let mut client = TcpStream::connect(http).await.unwrap();
        let body = completion(json!({"stream": stream})).to_string();
        let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        client.write_all((head + &body).as_bytes()).await.unwrap();
        let (job, epoch) = worker.assignment().await;
        let (held, _) = say(&worker, &job, epoch, &[5, 6]).await;
        if stream {
            let mut seen = String::new();
            while !seen.contains(" w6") {
                let mut part = [0; 4_096];
                let read = tokio::time::timeout(PATIENCE, client.read(&mut part)).await.unwrap().unwrap();
                assert!(read > 0, "{seen}");
                seen.push_str(&String::from_utf8_lossy(&part[..read]));
            }
        }
        drop(client);
        let cancelled = async {
            loop {
                if let ToWorker::Cancel { job: id, epoch: of } = worker.next().await {
                    return (id, of);
                }
            }
        };
        assert_eq!(tokio::time::timeout(PATIENCE, cancelled).await.unwrap(), (job.id(), epoch));
        drop(held);
    }
    world.handle.shutdown().await.unwrap();
}

/// The first worker says something wrong and is gone; the second one says what is right.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_text_was_wrong_does_not_end_as_if_nothing_were() {
    let world = world(|_| {}).await;
    let http = world.handle.http_addr();
    let mut wrong = worker(&world, 1).await;
    let body = completion(json!({"stream": true, "max_tokens": 3}));
    let client = tokio::spawn(async move { events(http, "completions", &body).await });
    let (job, epoch) = wrong.assignment().await;
    let mut seen = world.handle.events();
    let (stream, _) = say(&wrong, &job, epoch, &[5, 6]).await;
    // The prompt has two tokens: the second word comes at point 2.
    let is_second = |event| match event {
        crate::Event::Committed { place, .. } if (place.point, place.layer) == (2, LAYERS + 1) => Some(()),
        _ => None,
    };
    super::wait_for(&mut seen, is_second).await;
    let right = worker(&world, 2).await;
    tokio::spawn(serve(right, |_| vec![5, 7, 8 | LENGTH]));
    wrong.connection.close(0_u32.into(), b"");
    drop(stream);
    let (all, last) = tokio::time::timeout(PATIENCE, client).await.unwrap().unwrap();
    let text: String = all.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert!(text.starts_with(" w5") && !text.contains("w7"), "{text}");
    let error: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(error["error"]["code"], "streamed_text_revoked", "{error}");
    let (status, receipt) = get_job(http, &error, "/receipt").await;
    assert_eq!((status, &receipt["output"]), (200, &json!([5, 7, 8 | LENGTH])));
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_worker_a_stream_says_how_to_come_back() {
    let world = world(|config| config.http_wait = std::time::Duration::from_millis(200)).await;
    let http = world.handle.http_addr();
    let (all, last) = events(http, "completions", &completion(json!({"stream": true}))).await;
    let error: Value = serde_json::from_str(&last).unwrap();
    assert_eq!((all.len(), &error["error"]["code"]), (1, &json!("no_answer_yet")));
    assert_eq!(get_job(http, &error, "").await.1["status"], "queued");
    let (status, accepted) = post(http, "completions", &completion(json!({"lockstep": {"wait": false}}))).await;
    assert_eq!((status, &accepted["object"]), (202, &json!("lockstep.jobs")));
    // Both go on: neither client has gone away.
    let worker = worker(&world, 1).await;
    tokio::spawn(serve(worker, endless));
    for told in [error, accepted] {
        let done = async {
            while get_job(http, &told, "").await.1["status"] != "done" {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, done).await.unwrap();
    }
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests_of_one_client_are_refused() {
    let world = world(|config| {
        config.caps.request_burst = 3;
        config.caps.requests_per_second = 1;
    })
    .await;
    let http = world.handle.http_addr();
    let refused = (429, json!("rate_limit_exceeded"));
    let mut answered = 0;
    // Each second lets one more through, so a slow machine is refused later.
    loop {
        let (status, answer) = post(http, "completions", &completion(json!({"n": 0}))).await;
        if (status, answer["error"]["code"].clone()) == refused {
            break;
        }
        assert_eq!(status, 400, "{answer}");
        answered += 1;
        assert!(answered < 1_000, "nothing is refused");
    }
    assert!(answered >= 3, "the burst is {answered}");
    // Looking costs nothing.
    assert_eq!(get(http, "/v1/models").await.0, 200);
    world.handle.shutdown().await.unwrap();
}
