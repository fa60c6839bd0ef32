//! Clients that are hostile, or clumsy: every one of them is told what is wrong, in OpenAI's shape, and nobody else notices.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{PATIENCE, World, config, get, request, request_bytes};
use crate::testing::decoder_package;
use crate::{Config, Coordinator};

async fn world(change: impl FnOnce(&mut Config)) -> World {
    let dir = tempfile::tempdir().unwrap();
    let package = decoder_package(dir.path(), "talker");
    let mut config = config(&dir.path().join("data"), &package);
    change(&mut config);
    World { handle: Coordinator::start(config).await.unwrap(), package, dir }
}

async fn post(address: SocketAddr, path: &str, body: &[u8]) -> (u16, Value) {
    let head = format!("POST /v1/{path} HTTP/1.1\r\ncontent-type: application/json");
    let (status, body) = request(address, &head, body).await;
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

/// A completion that is kept and not waited for, with these fields put in as they are written.
fn completion(more: &str) -> Vec<u8> {
    format!(r#"{{"model": "talker", "prompt": "w3", "lockstep": {{"wait": false}}{more}}}"#).into_bytes()
}

fn chat(messages: &str) -> Vec<u8> {
    format!(r#"{{"model": "talker", "lockstep": {{"wait": false}}, "messages": {messages}}}"#).into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_and_the_next_request_is_served() {
    let world = world(|_| {}).await;
    let http = world.handle.http_addr();
    let deep = |open: &str, close: &str| open.repeat(100_000) + &close.repeat(100_000);
    let completions: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"{\"model\": \"talker\"".to_vec(),
        b"{\"model\": \"talker\", \"prompt\": \"\xff\"}".to_vec(),
        deep("[", "]").into_bytes(),
        completion(&format!(r#", "x": {}"#, deep("[", "]"))),
        completion(&format!(r#", "logit_bias": {}"#, deep(r#"{"1":"#, "}"))),
        completion(r#", "n": -1"#),
        completion(r#", "n": 1.5"#),
        completion(r#", "n": 18446744073709551615"#),
        completion(r#", "n": 184467440737095516160"#),
        completion(r#", "n": 4611686018427387904, "max_tokens": 16"#),
        completion(r#", "max_tokens": 18446744073709551615"#),
        completion(r#", "max_tokens": -5"#),
        completion(r#", "max_tokens": "many""#),
        completion(r#", "max_tokens": 65"#),
        completion(r#", "temperature": "hot""#),
        completion(r#", "temperature": NaN"#),
        completion(r#", "temperature": Infinity"#),
        completion(r#", "temperature": 1e999"#),
        completion(r#", "temperature": -1e-3"#),
        completion(r#", "temperature": 1e300"#),
        completion(r#", "top_p": -0.5"#),
        completion(r#", "top_k": 16777216"#),
        completion(r#", "seed": 9223372036854775808"#),
        completion(r#", "stop": ["a", "b", "c", "d", "e"]"#),
        completion(r#", "stop": [["a"]]"#),
        completion(r#", "stop": 5"#),
        completion(r#", "logit_bias": {"1": 100.1}"#),
        completion(r#", "logit_bias": {"1": -100.1}"#),
        completion(r#", "logit_bias": {"-1": 1}"#),
        completion(r#", "logit_bias": {"99999999999999999999": 1}"#),
        completion(r#", "logit_bias": [[1, 1]]"#),
        completion(r#", "stop_token_ids": [4294967296]"#),
        completion(r#", "logprobs": -1"#),
        completion(r#", "stream": "yes""#),
        br#"{"model": 7, "prompt": "w3"}"#.to_vec(),
        br#"{"model": "talker", "prompt": {}}"#.to_vec(),
        br#"{"model": "talker", "prompt": []}"#.to_vec(),
        br#"{"model": "talker", "prompt": [1, "w3"]}"#.to_vec(),
        br#"{"model": "talker", "prompt": [-1]}"#.to_vec(),
        br#"{"model": "talker", "prompt": [[[1]]]}"#.to_vec(),
        br#"{"model": "talker"}"#.to_vec(),
    ];
    let chats = [
        "[]",
        "null",
        r#""hello""#,
        "[null]",
        "[{}]",
        r#"[{"role": 3, "content": "w3"}]"#,
        r#"[{"role": "user", "content": 3}]"#,
        r#"[{"role": "user", "content": [{"text": "no type"}]}]"#,
        r#"[{"role": "user"}]"#,
        r#"[{"role": "user", "content": null}]"#,
        r#"[{"role": "system", "content": [{"type": "text", "text": null}]}]"#,
        &format!(r#"[{{"role": "{}", "content": "w3"}}]"#, "r".repeat(10_000)),
        &format!(r#"[{}{{"role": "user"}}]"#, r#"{"role": "user", "content": ""},"#.repeat(50_000)),
        &format!(r#"[{{"role": "user", "content": "{}"}}]"#, "w3 ".repeat(500_000)),
        &format!("[{}]", deep(r#"{"role":"#, "}")),
    ];
    let bodies = completions.into_iter().map(|body| ("completions", body));
    for (path, body) in bodies.chain(chats.map(|messages| ("chat/completions", chat(messages)))) {
        let (status, answer) = post(http, path, &body).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
        assert_eq!(status, 400, "{shown}: {answer}");
        let error = &answer["error"];
        assert!(error["type"] == "invalid_request_error" && error["message"].is_string(), "{shown}: {answer}");
        let fields: Vec<_> = error.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["code", "message", "param", "type"], "{shown}");
    }
    let (status, answer) = post(http, "completions", &vec![b' '; 5 << 20]).await;
    assert_eq!((status, &answer["error"]["type"]), (413, &json!("invalid_request_error")));
    // What is unknown is ignored, and so is what is null.
    let odd = r#", "unknown": {"a": [1]}, "stop": null, "n": null, "logit_bias": null, "logprobs": null"#;
    for body in [completion(odd), chat(r#"[{"role": "user", "content": "", "name": null, "extra": 1}]"#)] {
        let path =
            if body.starts_with(b"{\"model\": \"talker\", \"prompt\"") { "completions" } else { "chat/completions" };
        let (status, answer) = post(http, path, &body).await;
        assert_eq!(status, 202, "{answer}");
    }
    assert_eq!(get(http, "/livez").await.0, 200);
    world.handle.shutdown().await.unwrap();
}

/// What serde would read by position is no object, wherever one is expected.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_no_object() {
    let world = world(|_| {}).await;
    let http = world.handle.http_addr();
    for list in ["[]", "[false]", "[null]", r#"["user", "w3"]"#, "[[]]"] {
        let zeros = "00".repeat(32);
        for (path, param, body) in [
            ("completions", "lockstep", format!(r#"{{"model": "talker", "prompt": "w3", "lockstep": {list}}}"#)),
            (
                "completions",
                "stream_options",
                format!(r#"{{"model": "talker", "prompt": "w3", "stream_options": {list}}}"#),
            ),
            (
                "chat/completions",
                "messages[1]",
                format!(r#"{{"model": "talker", "messages": [{{"role": "user"}}, {list}]}}"#),
            ),
            (
                "chat/completions",
                "messages[0].content[0]",
                format!(r#"{{"model": "talker", "messages": [{{"role": "user", "content": [{list}]}}]}}"#),
            ),
            ("embeddings", "lockstep", format!(r#"{{"model": "talker", "input": "w3", "lockstep": {list}}}"#)),
            ("challenges", "receipt", format!(r#"{{"job": "{zeros}", "receipt": {list}}}"#)),
            ("challenges", "receipt.receipt", format!(r#"{{"job": "{zeros}", "receipt": {{"receipt": {list}}}}}"#)),
            ("challenges", "logprobs", format!(r#"{{"job": "{zeros}", "logprobs": {list}}}"#)),
        ] {
            let body = body.as_bytes();
            let (status, answer) = post(http, path, body).await;
            let error = &answer["error"];
            assert_eq!((status, &error["param"]), (400, &json!(param)), "{list}: {answer}");
            let message = format!("{param} is a list; it has to be an object.");
            assert_eq!(error["message"], json!(message), "{list}");
        }
    }
    world.handle.shutdown().await.unwrap();
}

/// What is wrong inside a field, and what to do about it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_with_its_place() {
    let world = world(|_| {}).await;
    let http = world.handle.http_addr();
    let said = |message: &str| chat(&format!(r#"[{{"role": "user", "content": "w3"}}, {message}]"#));
    let seventeen = format!(r#"{{"model": "talker", "prompt": [{}"w3"]}}"#, r#""w3", "#.repeat(16)).into_bytes();
    let ids: Vec<String> = (0..2_000).map(|id: u32| id.to_string()).collect();
    for (body, param, message) in [
        (said(r#"{"role": "user"}"#), "messages[1].content", "messages[1].content is missing."),
        (said(r#"{"role": "assistant", "content": null}"#), "messages[1].content", "messages[1].content is missing."),
        (
            said(r#"{"role": "system", "content": [{"type": "text", "text": "w4"}, {"type": "text"}]}"#),
            "messages[1].content[1].text",
            "messages[1].content[1].text is missing.",
        ),
        (
            said(r#"{"role": "user", "content": [{"type": "text", "text": 5}]}"#),
            "messages[1].content[0].text",
            "messages[1].content[0].text is 5; it has to be a string.",
        ),
        (
            said(r#"{"role": "user", "content": 5}"#),
            "messages[1].content",
            "messages[1].content is 5; it has to be a text or a list of parts, each with its type.",
        ),
        (
            said(r#"{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}"#),
            "messages[1].content[0].type",
            "This coordinator does not serve content of type \"image_url\".",
        ),
        (
            said(r#"{"role": "tool", "content": "w4"}"#),
            "messages[1].role",
            "This coordinator does not serve calls of tools.",
        ),
        (
            said(r#"{"role": "assistant", "tool_calls": [{}]}"#),
            "messages[1].tool_calls",
            "This coordinator does not serve calls of tools.",
        ),
        (
            completion(&format!(r#", "stop_token_ids": [{}]"#, ids.join(","))),
            "stop_token_ids",
            "stop_token_ids makes 2000 tokens that stop, the model's own included; at most 256 are allowed.",
        ),
        (completion(r#", "temperature": 1e300"#), "temperature", "temperature is 1e300; 0 to 100 is allowed."),
        (
            completion(r#", "logit_bias": {"4": 100, "5": 101}"#),
            "logit_bias.5",
            "logit_bias.5 is 101; -100 to 100 is allowed.",
        ),
        (seventeen, "prompt", "prompt has 17 prompts; at most 16 answers are given to one request."),
        (
            completion(r#", "n": 17"#),
            "n",
            "n is 17; 1 to 16 are allowed, as at most 16 answers are given to one request.",
        ),
        (
            br#"{"model": "talker", "prompt": ["w3", "w4"], "n": 9}"#.to_vec(),
            "n",
            "n is 9; 1 to 8 are allowed for each of 2 prompts, as at most 16 answers are given to one request.",
        ),
        (
            completion(r#", "max_tokens": 65"#),
            "max_tokens",
            "This model's maximum context length is 64 tokens; the prompt has 1, which leaves 64 (the last one takes no \
             position), and 65 are asked for.",
        ),
    ] {
        let is_chat = body.windows(10).any(|bytes| bytes == b"\"messages\"");
        let (status, answer) = post(http, if is_chat { "chat/completions" } else { "completions" }, &body).await;
        let error = &answer["error"];
        assert_eq!((status, &error["param"], &error["message"]), (400, &json!(param), &json!(message)), "{answer}");
    }
    // No more than the model has positions, though clients may ask for 4,096.
    let (_, model) = get(http, "/v1/models/talker").await;
    assert_eq!(model["lockstep"]["max_generated_tokens"], 64, "{model}");
    world.handle.shutdown().await.unwrap();
}

/// How long to wait, as the head of an answer says it.
async fn retry_after(address: SocketAddr, body: &[u8]) -> Option<u64> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let mut reply = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut reply)).await.expect("an answer in time").unwrap();
    let reply = String::from_utf8_lossy(&reply).to_lowercase();
    let line = reply.lines().find_map(|line| line.strip_prefix("retry-after: "))?;
    line.trim().parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_one_client_are_counted() {
    const MINUTE: u64 = 32;
    let world = world(|config| config.caps.tokens_per_minute = MINUTE).await;
    let http = world.handle.http_addr();
    // One token of the prompt and 31 of the answer, or twice 16: all that a minute has.
    let whole = [completion(r#", "max_tokens": 31"#), completion(r#", "max_tokens": 15, "n": 2"#)];
    let (start, mut kept, mut refused) = (Instant::now(), 0, 0);
    while refused < 4 {
        let (status, answer) = post(http, "completions", &whole[refused % 2]).await;
        match status {
            202 => kept += 1,
            429 => {
                refused += 1;
                let error = &answer["error"];
                let shape = (&error["type"], &error["code"]);
                assert_eq!(shape, (&json!("rate_limit_error"), &json!("rate_limit_exceeded")), "{answer}");
                assert!(error["message"].as_str().unwrap().contains("comes to 32"), "{answer}");
            }
            other => panic!("{other}: {answer}"),
        }
        // However slow this machine is, no more are served than their time allows.
        assert!(kept <= 1 + start.elapsed().as_secs() / 60, "{kept}");
        assert!(start.elapsed() < Duration::from_secs(600), "nothing is refused");
    }
    assert!(kept >= 1);
    // More than a minute has will never be served, and says so.
    let (status, answer) = post(http, "completions", &completion(r#", "max_tokens": 32"#)).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("too_many_tokens")), "{answer}");
    let wait = retry_after(http, &whole[0]).await;
    assert!(wait.is_none_or(|wait| (1..=60).contains(&wait)), "{wait:?}");
    // Looking costs nothing, and neither does what is refused before.
    assert_eq!(get(http, "/v1/models").await.0, 200);
    let (status, _) = request_bytes(http, "POST /v1/completions HTTP/1.1", b"{}").await;
    assert_eq!(status, 400);
    world.handle.shutdown().await.unwrap();
}
