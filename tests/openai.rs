//! The official OpenAI client for Python works against a coordinator and a worker.

mod common;

use common::processes::Coordinator;
use common::{openai_client, run, shipped_package};

#[test]
fn the_openai_client_works() {
    let Some(mut client) = openai_client() else { return };
    let package = shipped_package();
    let dir = tempfile::tempdir().expect("a folder");
    let options = ["--api-key", "sesame", "--audit-probability", "0.2"];
    let coordinator = Coordinator::start(package, &dir.path().join("coordinator"), &options);
    let workers: Vec<_> = ["a", "b"].iter().map(|name| coordinator.worker(&dir.path().join(name))).collect();
    let output = run(client.args([&format!("{}/v1", coordinator.http), "shipped", "sesame"]));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{stdout}");
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stdout.lines().filter(|line| line.starts_with("ok ")).count(), 10, "{stdout}");
    drop(workers);
}
