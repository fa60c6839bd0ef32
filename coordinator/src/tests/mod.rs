//! A coordinator as a whole: over HTTP on one side and QUIC on the other.

mod access;
mod attendance;
mod challenges;
mod clumsy;
mod disputes;
mod generation;
mod hostile;
mod http;
mod ledger;
mod log;
mod restart;
mod worker;
mod workers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_protocol::machine::AuditPolicy;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast;

use crate::testing::package;
use crate::{Config, Coordinator, Event, Handle};

/// Nothing in these tests takes so long.
const PATIENCE: Duration = Duration::from_secs(300);
const NEVER: AuditPolicy =
    AuditPolicy { per_mille: 0, auditors: 1, hold: false, distinct_operators: false, lockstep: false };
const ALWAYS: AuditPolicy =
    AuditPolicy { per_mille: 1_000, auditors: 1, hold: false, distinct_operators: false, lockstep: false };
const HOLD: AuditPolicy =
    AuditPolicy { per_mille: 1_000, auditors: 1, hold: true, distinct_operators: false, lockstep: false };

/// A coordinator with its directory and its model.
struct World {
    handle: Handle,
    package: PathBuf,
    dir: TempDir,
}

fn config(dir: &Path, package: &Path) -> Config {
    let mut config = Config::local(dir.to_path_buf());
    config.packages = vec![package.to_path_buf()];
    config.audit = NEVER;
    config.http_wait = PATIENCE;
    config.worker_wait = PATIENCE;
    config
}

async fn world(change: impl FnOnce(&mut Config)) -> World {
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), "tiny");
    let mut config = config(&dir.path().join("data"), &package);
    change(&mut config);
    World { handle: Coordinator::start(config).await.unwrap(), package, dir }
}

/// What a killed process leaves: the files as they are at this instant.
fn snapshot(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// The first event that fits.
async fn wait_for<T>(events: &mut broadcast::Receiver<Event>, mut pick: impl FnMut(Event) -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = pick(events.recv().await.expect("events go on")) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.expect("the event comes in time")
}

/// One HTTP request on a connection of its own: status and body.
async fn request(address: SocketAddr, head: &str, body: &[u8]) -> (u16, String) {
    let (status, body) = request_bytes(address, head, body).await;
    (status, String::from_utf8(body).unwrap())
}

async fn request_bytes(address: SocketAddr, head: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut reply = raw(address, head, body).await;
    let end = reply.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or_else(|| panic!("no answer: {reply:?}"));
    let body = reply.split_off(end + 4);
    let status = String::from_utf8(reply).unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    (status, body)
}

/// All that is answered, with its head.
async fn raw(address: SocketAddr, head: &str, body: &[u8]) -> Vec<u8> {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!("{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server that refuses a body may close before it was sent.
    let _ = stream.write_all(body).await;
    let mut reply = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut reply)).await.expect("an answer in time");
    reply
}

async fn get(address: SocketAddr, path: &str) -> (u16, Value) {
    let (status, body) = request(address, &format!("GET {path} HTTP/1.1"), b"").await;
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

/// What a client sees of one of its jobs; `answer` is what it was told when it submitted.
async fn get_job(address: SocketAddr, answer: &Value, rest: &str) -> (u16, Value) {
    let (id, token) = (answer["lockstep"]["jobs"][0].as_str().unwrap(), answer["lockstep"]["access"].as_str().unwrap());
    get(address, &format!("/v1/jobs/{id}{rest}?access={token}")).await
}

async fn embed(address: SocketAddr, body: &Value) -> (u16, Value) {
    let head = "POST /v1/embeddings HTTP/1.1\r\ncontent-type: application/json";
    let (status, body) = request(address, head, body.to_string().as_bytes()).await;
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

fn ask(input: &str) -> Value {
    json!({"model": "tiny", "input": input})
}
