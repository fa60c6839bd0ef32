//! The official OpenAI client for Python works against a coordinator and a worker; and what a coordinator says of its models
//! when it starts.

mod common;

use std::path::Path;

use common::processes::{Coordinator, Process};
use common::{lockstep, openai_client, run, run_json, shipped_package};

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

/// Of two models of one name the second says that it goes by its id; one model given twice is a mistake.
#[test]
fn a_name_or_a_package_given_twice_is_told_at_start() {
    let dir = tempfile::tempdir().expect("a folder");
    let package = |file: &str, positions: &str| {
        let path = dir.path().join(file);
        let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-llama");
        let import = ["import", "--json", "--weights", "w8", "--name", "tiny", "--max-positions", positions, "--out"];
        let report = run_json(lockstep().args(import).arg(&path).arg(checkpoint));
        (path, report["model_id"].as_str().expect("an id").to_owned())
    };
    let ((first, first_id), (second, second_id)) = (package("first.lsp", "64"), package("second.lsp", "128"));
    let coordinator = |packages: &[&Path]| {
        let mut command = lockstep();
        command.args(["coordinator", "--allow-any-worker", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        command.arg("--data-dir").arg(dir.path().join("data"));
        packages.iter().for_each(|package| {
            command.arg("--package").arg(package);
        });
        command
    };
    let process = Process::start(&mut coordinator(&[&first, &second]));
    assert_eq!(process.after("serving tiny, model id "), first_id);
    let by_id = "(asked for by this id alone: the name is that of one above)";
    assert_eq!(process.after("serving tiny, model id "), format!("{second_id} {by_id}"));
    drop(process);

    let copy = dir.path().join("copy.lsp");
    std::fs::copy(&first, &copy).expect("a copy");
    for twice in [&first, &copy] {
        let output = run(&mut coordinator(&[&first, twice]));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains("given twice"), "{stderr}");
        assert!(stderr.contains(&twice.display().to_string()) && stderr.contains(&first_id), "{stderr}");
    }
}
