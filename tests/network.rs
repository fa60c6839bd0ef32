//! Coordinator and workers as processes: answers with receipts, and nothing lost when either side is killed.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::processes::{Coordinator, Process};
use common::{lockstep, minilm_package, run, run_json, second_implementation};
use serde_json::{Value, json};

const TEXT: &str = "Who computed this?";

fn verify(receipt: &Value, at: &Path, package: &Path) -> (Option<i32>, String) {
    fs::write(at, receipt.to_string()).expect("a file");
    let output = run(lockstep().args(["verify", "--require-rerun", "--package"]).arg(package).arg(at));
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn an_answer_comes_with_a_receipt_that_verifies() {
    let Some(package) = minilm_package() else { return };
    let temp = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(package, &temp.path().join("c"), &["--audit-probability", "1"]);
    assert_eq!(coordinator.get("/livez").0, 200);
    assert_eq!(coordinator.get("/readyz").0, 200);
    let workers = ["a", "b"].map(|name| coordinator.worker(&temp.path().join(name)));
    workers.iter().for_each(|w| drop(w.after("is here, verified")));

    let (code, answer) = coordinator.post("/v1/embeddings", &json!({ "model": "minilm", "input": TEXT }));
    assert_eq!(code, 200, "{answer}");
    let local = run_json(lockstep().args(["embed", "--json", "--package"]).arg(package).arg(TEXT));
    let receipt = &answer["lockstep"]["receipts"][0];
    assert_eq!(receipt["output"], local["integers"][0], "the answer is what the model gives");
    assert_eq!(receipt["audits"].as_array().map(Vec::len), Some(1));
    let rounded = |v: &Value| {
        v.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number") as f32).collect::<Vec<_>>()
    };
    assert_eq!(rounded(&answer["data"][0]["embedding"]), rounded(&local["embeddings"][0]));

    let file = temp.path().join("receipt.json");
    assert_eq!(verify(receipt, &file, package).0, Some(0));
    let told = run_json(lockstep().args(["verify", "--json", "--text", TEXT, "--package"]).arg(package).arg(&file));
    assert_eq!((&told["valid"], &told["rerun"], &told["audits_matched"]), (&json!(true), &json!(true), &json!(1)));
    let other = run(lockstep().args(["verify", "--text", "Another text", "--package"]).arg(package).arg(&file));
    assert_eq!(other.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&other.stderr).contains("another question"));
    checked_by_the_second_implementation(receipt, &file, package);
    changed_receipts_are_refused(receipt, &file, package);
}

fn checked_by_the_second_implementation(receipt: &Value, file: &Path, package: &Path) {
    let Some(mut other) = second_implementation() else { return };
    let checked = run_json(other.arg("--package").arg(package).arg("--check-receipt").arg(file).arg(TEXT));
    assert_eq!(checked["receipt"]["job_id"], receipt["worker"]["receipt"]["job"]);
    assert_eq!(checked["receipt"]["signatures_checked"], true);
}

/// Changes one character of every leaf of the receipt, and each time expects the reason.
fn changed_receipts_are_refused(receipt: &Value, file: &Path, package: &Path) {
    let mut leaves = Vec::new();
    collect_leaves(receipt, &mut String::new(), &mut leaves);
    assert!(leaves.len() > 400, "the output alone has 384 numbers");
    for (i, pointer) in leaves.iter().enumerate() {
        // Of the many numbers of tokens and output, a spread is enough here; the protocol's own test takes all.
        if pointer.starts_with("/output/") && i % 29 != 0 {
            continue;
        }
        let mut changed = receipt.clone();
        let leaf = changed.pointer_mut(pointer).expect("it was just found");
        *leaf = change(leaf);
        let (code, reason) = verify(&changed, file, package);
        assert_eq!(code, Some(7), "{pointer}: {reason}");
        assert!(reason.starts_with("error: ") && reason.len() > 20, "{pointer}: {reason}");
    }
}

fn collect_leaves(value: &Value, at: &mut String, leaves: &mut Vec<String>) {
    let length = at.len();
    let mut step = |key: String, inner: &Value| {
        at.push('/');
        at.push_str(&key);
        collect_leaves(inner, at, leaves);
        at.truncate(length);
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(k, v)| step(k.clone(), v)),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| step(i.to_string(), v)),
        _ => leaves.push(at.clone()),
    }
}

fn change(leaf: &Value) -> Value {
    match leaf {
        Value::Bool(b) => json!(!b),
        Value::Number(n) => json!(n.as_i64().expect("an integer") ^ 1),
        Value::String(s) => {
            let middle = s.len() / 2;
            let other = if s.as_bytes()[middle] == b'0' { "1" } else { "0" };
            json!(format!("{}{other}{}", &s[..middle], &s[middle + 1..]))
        }
        // What is not there, like the log-probabilities of an embedding, is a root where it is.
        Value::Null => json!("0".repeat(64)),
        other => panic!("a receipt has no {other}"),
    }
}

/// Submits jobs without waiting: the id and the access token of each.
fn submit(coordinator: &Coordinator, count: usize) -> Vec<(String, String)> {
    let inputs: Vec<_> = (0..count).map(|i| format!("Text number {i}: {}", "word ".repeat(20 + i))).collect();
    let body = json!({ "model": "minilm", "input": inputs, "lockstep": { "wait": false } });
    let (code, kept) = coordinator.post("/v1/embeddings", &body);
    assert_eq!(code, 202, "{kept}");
    let jobs = kept["lockstep"]["jobs"].as_array().expect("a list").clone();
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    jobs.iter().map(|job| (text(job), text(&kept["lockstep"]["access"]))).collect()
}

#[test]
fn a_killed_worker_loses_no_job() {
    let Some(package) = minilm_package() else { return };
    let temp = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(package, &temp.path().join("c"), &["--audit-probability", "0"]);
    let mut doomed = coordinator.worker(&temp.path().join("doomed"));
    doomed.after("is here, verified");
    let jobs = submit(&coordinator, 24);
    doomed.after("done in");
    doomed.kill();
    let _other = coordinator.worker(&temp.path().join("other"));
    for (job, access) in &jobs {
        let receipt = coordinator.receipt(job, access);
        assert_eq!(verify(&receipt, &temp.path().join("receipt.json"), package).0, Some(0), "{job}");
    }
    // The id alone, which every worker of the job knows, opens nothing.
    assert_eq!(coordinator.get(&format!("/v1/jobs/{}/receipt", jobs[0].0)).0, 404);
}

#[test]
fn a_killed_coordinator_loses_no_acknowledged_job() {
    let Some(package) = minilm_package() else { return };
    let temp = tempfile::tempdir().expect("a folder");
    let (data, options) = (temp.path().join("c"), ["--audit-probability", "0.5"]);
    let mut coordinator = Coordinator::start(package, &data, &options);
    // Acknowledged with nobody there to run them.
    let mut jobs = submit(&coordinator, 4);
    coordinator = coordinator.restart(package, &data, &options);
    let workers = ["a", "b"].map(|name| coordinator.worker(&temp.path().join(name)));
    workers.iter().for_each(|w| drop(w.after("is here, verified")));
    // Killed at different moments of running jobs; workers come back by themselves.
    for milliseconds in [0, 15, 60] {
        jobs.extend(submit(&coordinator, 12));
        std::thread::sleep(Duration::from_millis(milliseconds));
        coordinator = coordinator.restart(package, &data, &options);
    }
    for (job, access) in &jobs {
        let receipt = coordinator.receipt(job, access);
        assert_eq!(verify(&receipt, &temp.path().join("receipt.json"), package).0, Some(0), "{job}");
    }
}

#[test]
fn a_worker_killed_while_it_pulls_goes_on_where_it_was() {
    let Some(package) = minilm_package() else { return };
    let temp = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(package, &temp.path().join("c"), &[]);
    let data = temp.path().join("w");
    for milliseconds in [150, 250, 400] {
        let mut worker = coordinator.worker(&data);
        worker.after("connected to");
        std::thread::sleep(Duration::from_millis(milliseconds / 10));
        worker.kill();
    }
    let mut worker = coordinator.worker(&data);
    worker.after("is here, verified");
    assert_eq!(worker.terminate(), Some(0), "SIGTERM drains");
    let held: Vec<_> = fs::read_dir(data.join("packages")).expect("the store").flatten().map(|e| e.path()).collect();
    let held: Vec<_> = held.iter().filter(|p| p.extension().is_some_and(|e| e == "lsp")).collect();
    assert_eq!(held.len(), 1);
    assert!(fs::read(held[0]).expect("the package") == fs::read(package).expect("the package"), "the same bytes");
}

#[test]
fn who_may_not_join_is_told_why() {
    let Some(package) = minilm_package() else { return };
    let temp = tempfile::tempdir().expect("a folder");
    let stranger = "6e7a1cdd29b0b78fd13af4c5598feff4ef2a97166e3ca6f2e4fbfccd80505bf1";
    // Configured by a file; only one key may join.
    let file = temp.path().join("coordinator.toml");
    let text = format!(
        "packages = [{package:?}]\nallow_workers = [{stranger:?}]\nlisten = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n\
         data_dir = {:?}\n",
        temp.path().join("c")
    );
    fs::write(&file, text).expect("a file");
    let coordinator = Process::start(lockstep().arg("coordinator").arg("--config").arg(&file));
    let address = coordinator.after("--coordinator ");
    // Configured by the environment.
    let worker = |coordinator: &str| {
        let mut command = lockstep();
        command.arg("worker").env("LOCKSTEP_COORDINATOR", coordinator);
        command.env("LOCKSTEP_WORKER_DATA_DIR", temp.path().join("w")).env("LOCKSTEP_THREADS", "1");
        Process::start(&mut command)
    };
    assert_eq!(worker(&address).ended(), Some(5), "a key that is not on the list");
    let wrong = format!("{stranger}@{}", address.split_once('@').expect("KEY@ADDR").1);
    assert_eq!(worker(&wrong).ended(), Some(5), "a coordinator with another key");
}

#[test]
fn a_bad_configuration_is_named() {
    let temp = tempfile::tempdir().expect("a folder");
    let file = temp.path().join("coordinator.toml");
    fs::write(&file, "pakages = []\n").expect("a file");
    for (args, says) in [
        (vec!["coordinator", "--config", file.to_str().expect("UTF-8")], "pakages"),
        (vec!["coordinator", "--config", "/nowhere.toml"], "/nowhere.toml"),
        (vec!["coordinator", "--allow-any-worker"], "--package"),
        (vec!["coordinator", "--package", "/nowhere.lsp"], "--allow-any-worker"),
        (vec!["worker"], "KEY@HOST:PORT"),
        (vec!["worker", "--coordinator", "127.0.0.1:1"], "KEY@HOST:PORT"),
    ] {
        let output = run(lockstep().args(&args).env("HOME", temp.path()).env_remove("XDG_CONFIG_HOME"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(says), "{args:?}: {stderr}");
    }
}
