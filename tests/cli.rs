//! The program's edges: what `verify` checks and says, configuration, and signals.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{lockstep, minilm_package, run, run_json};
use lockstep_kernels::cpu::Cpu;
use lockstep_model::package::Package;
use lockstep_model::rerun::rerun;
use lockstep_model::tokenizer::TooLong;
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{LeaseEpoch, Millis, Nonce, Seed};
use lockstep_protocol::job::{Job, JobKind, RequestInput};
use lockstep_protocol::limits::HTTP_GRACE_MS;
use lockstep_protocol::receipt::{Receipt, Run, WorkerReceipt};
use serde_json::json;

const TEXT: &str = "Who computed this?";

/// A receipt for the text whose signatures hold, and whose run is the model's but for what `alter` changes.
fn receipt(package: &Path, alter: impl FnOnce(&mut Run)) -> Receipt {
    let package = Package::open(package).expect("a package");
    let tokens = package.tokenizer().expect("a tokenizer").encode(TEXT, TooLong::Refuse).expect("it fits");
    let nonce = Nonce::from_bytes([7; 32]);
    let job = Job {
        spec_version: 1,
        model: package.model_id(),
        kind: JobKind::Embedding,
        request: RequestInput::Text(TEXT.into()).hash(&nonce),
        seed: Seed::from_bytes([8; 32]),
        nonce,
        tokens,
    };
    let again = rerun(&package, &Cpu::new(None, 1).expect("a processor"), &job.tokens).expect("it runs");
    let mut run = Run {
        epoch: LeaseEpoch(1),
        layers: u16::try_from(again.roots.len() - 1).expect("few layers"),
        roots: again.roots,
        words: Vec::new(),
        output_count: again.output.len() as u32,
        work_units: package.program().macs(job.tokens.len() as u64, 0),
        saturations: again.saturations,
    };
    alter(&mut run);
    let keys = Keypair::from_seed([3; 32]);
    let signed = WorkerReceipt::of_run(&job.header(), run, keys.id()).expect("its shape is right");
    Receipt::accepted(job, signed.sign(&keys), again.output, &Keypair::from_seed([4; 32]), Millis(1))
}

/// `lockstep verify`, with packages looked for below `home` only.
fn verify(receipt: &Receipt, home: &Path, options: &[&str]) -> Command {
    let file = home.join("receipt.json");
    fs::write(&file, receipt.to_json()).expect("a file");
    let mut command = lockstep();
    command.env("XDG_DATA_HOME", home.join("data")).env("XDG_CACHE_HOME", home.join("cache"));
    command.args(["verify", "--threads", "1"]).args(options).arg(file);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn assert_fails(output: &Output, code: i32, says: &str) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(says), "{stderr}");
}

#[test]
fn a_text_is_checked_without_the_package_and_the_output_says_how_far() {
    let Some(package) = minilm_package() else { return };
    let home = tempfile::tempdir().expect("a folder");
    let receipt = receipt(package, |_| {});
    assert_fails(&run(&mut verify(&receipt, home.path(), &["--text", "Another"])), 7, "another question");
    let told = run_json(&mut verify(&receipt, home.path(), &["--json", "--text", TEXT]));
    let fields = ["rerun", "text_checked", "tokens_checked", "coordinator_pinned"];
    assert_eq!(fields.map(|f| told[f].clone()), [json!(false), json!(true), json!(false), json!(false)]);
    let told = text(&run(&mut verify(&receipt, home.path(), &["--text", TEXT])).stdout);
    for line in ["NOT run again", "the tokens are its own was NOT checked", "coordinator key not pinned"] {
        assert!(told.contains(line), "{told}");
    }
    let named = package.to_str().expect("UTF-8");
    let key = receipt.coordinator.to_string();
    let options = ["--json", "--text", TEXT, "--package", named, "--coordinator", &key];
    let told = run_json(&mut verify(&receipt, home.path(), &options));
    assert_eq!(fields.map(|f| told[f].clone()), [json!(true), json!(true), json!(true), json!(true)]);
    let told = text(&run(&mut verify(&receipt, home.path(), &options[1..])).stdout);
    assert!(told.contains("run again here") && !told.contains("not pinned") && !told.contains("NOT"), "{told}");
}

#[test]
fn work_and_saturations_are_compared_with_the_run() {
    let Some(package) = minilm_package() else { return };
    let home = tempfile::tempdir().expect("a folder");
    let named = ["--package", package.to_str().expect("UTF-8")];
    let work = receipt(package, |run| run.work_units += 1);
    assert_fails(&run(&mut verify(&work, home.path(), &named)), 7, "multiply-accumulates");
    let saturations = receipt(package, |run| run.saturations += 1);
    assert_fails(&run(&mut verify(&saturations, home.path(), &named)), 7, "saturated");
    assert!(run(&mut verify(&receipt(package, |_| {}), home.path(), &named)).status.success());
}

#[test]
fn a_damaged_package_refutes_nothing() {
    let Some(package) = minilm_package() else { return };
    let home = tempfile::tempdir().expect("a folder");
    let receipt = receipt(package, |_| {});
    let found = home.path().join("data/lockstep/packages");
    fs::create_dir_all(&found).expect("a folder");
    let damaged = found.join("damaged.lsp");
    let mut bytes = fs::read(package).expect("the package");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).expect("a file");
    let output = run(&mut verify(&receipt, home.path(), &[]));
    assert!(output.status.success() && text(&output.stdout).contains("NOT run again"));
    assert!(text(&output.stderr).contains("damaged.lsp is passed over"), "{}", text(&output.stderr));
    let named = ["--package", damaged.to_str().expect("UTF-8")];
    assert_fails(&run(&mut verify(&receipt, home.path(), &named)), 2, "digest differs");
    assert_fails(&run(&mut verify(&receipt, home.path(), &["--require-rerun"])), 2, "no sound package");
    // The next one is tried, in the other folder.
    let other = home.path().join("cache/lockstep/packages");
    fs::create_dir_all(&other).expect("a folder");
    fs::copy(package, other.join("sound.lsp")).expect("a file");
    assert_eq!(run_json(&mut verify(&receipt, home.path(), &["--json", "--require-rerun"]))["rerun"], true);
}

#[test]
fn no_mistake_in_the_configuration_prints_an_api_key() {
    let temp = tempfile::tempdir().expect("a folder");
    let file = temp.path().join("coordinator.toml");
    for (content, says) in [
        ("api_keys = \"hush-1\"\n", "line 1, column 12: a list of strings"),
        ("auditors = 1\napi_keys = [\"hush-1\", \"hush-2\"] x\n", "line 2, column"),
        ("api_keys = [\"hush-1\", 5]\n", "line 1, column 12: a list of strings"),
        ("api_keys = [\"hush-1\"]\nlisten = 5\n", "line 2, column 10"),
        ("api_keys = [\"hush-1\"]\nlistn = 5\n", "unknown field `listn`"),
        ("api_keys = [\"hush-1\"]\n", "no package to serve"),
    ] {
        fs::write(&file, content).expect("a file");
        let output = run(lockstep().env("LOCKSTEP_COORDINATOR_CONFIG", &file).arg("coordinator"));
        assert_fails(&output, 2, says);
        assert!(!text(&output.stderr).contains("hush"), "{}", text(&output.stderr));
    }
    for args in [&["coordinator", "--help"][..], &["coordinator", "--listen", "nowhere"], &["coordinator", "--api-key"]]
    {
        let mut command = lockstep();
        let output = run(command.env("LOCKSTEP_API_KEYS", "hush-1,hush-2").args(args));
        assert!(!format!("{}{}", text(&output.stdout), text(&output.stderr)).contains("hush"), "{args:?}");
    }
}

#[test]
fn configuration_that_would_do_something_else_is_refused() {
    let temp = tempfile::tempdir().expect("a folder");
    let coordinator = ["coordinator", "--allow-any-worker", "--package", "/nowhere.lsp"];
    let start = |options: &[&str]| run(lockstep().args(coordinator).arg("--data-dir").arg(temp.path()).args(options));
    assert_fails(&start(&["--audit-probability", "0.0004"]), 2, "multiple of 0.001");
    assert_fails(&start(&["--audit-probability", "1.5"]), 2, "from 0 to 1");
    assert_fails(&start(&["--api-key", ""]), 2, "API key is empty");
    // Each program has its own variable: the other's file, with other names in it, is none of its business.
    let file = temp.path().join("worker.toml");
    fs::write(&file, "max_package_bytes = 5\n").expect("a file");
    let output =
        run(lockstep().env("LOCKSTEP_WORKER_CONFIG", &file).args(["coordinator", "--package", "/nowhere.lsp"]));
    assert_fails(&output, 2, "no worker may join");
    assert_fails(&run(lockstep().env("LOCKSTEP_WORKER_CONFIG", &file).arg("worker")), 2, "there is no coordinator");
    fs::write(&file, "max_package_bytes = -5\n").expect("a file");
    assert_fails(&run(lockstep().env("LOCKSTEP_WORKER_CONFIG", &file).arg("worker")), 2, "line 1, column 21");
}

#[cfg(unix)]
#[test]
fn a_second_signal_cuts_the_shutdown_short() {
    let Some(package) = minilm_package() else { return };
    let temp = tempfile::tempdir().expect("a folder");
    let mut command = lockstep();
    command.args([
        "coordinator",
        "--allow-any-worker",
        "--listen",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--package",
    ]);
    command.arg(package).arg("--data-dir").arg(temp.path());
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
    let clients = lines.find_map(|l| l.split_once("http://").map(|(_, rest)| rest.to_owned())).expect("an address");
    lines.find(|l| l.contains("workers:")).expect("it is up");
    // Nobody runs the job, so the request is under way until the grace period is over.
    let mut client = TcpStream::connect(clients.trim_end_matches("/v1")).expect("it listens");
    let body = json!({ "model": "minilm", "input": TEXT }).to_string();
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n";
    write!(client, "{head}content-length: {}\r\n\r\n", body.len()).expect("it reads");
    // It answers this when the request is about to be handled.
    client.read_exact(&mut [0; 12]).expect("100 Continue");
    client.write_all(body.as_bytes()).expect("it reads");
    let signal = |child: &std::process::Child| {
        assert!(Command::new("kill").arg(child.id().to_string()).status().expect("kill runs").success());
    };
    signal(&child);
    lines.find(|l| l.contains("going down")).expect("it says so");
    let start = Instant::now();
    signal(&child);
    let code = child.wait().expect("it ends").code();
    assert_eq!(code, Some(6));
    let grace = Duration::from_millis(HTTP_GRACE_MS);
    assert!(start.elapsed() < grace, "{:?}", start.elapsed());
}

/// A machine without NVIDIA's driver is told what it lacks; one that has it computes with it.
#[test]
fn cuda_says_what_is_missing() {
    let on = |backend| run(lockstep().args(["conformance", "--quick", "--json", "--backend", backend]));
    let output = on("cuda");
    match output.status.code() {
        Some(0) => assert!(text(&output.stdout).contains("cuda/"), "{}", text(&output.stdout)),
        _ => assert_fails(&output, 3, "NVIDIA's driver"),
    }
    assert_fails(&on("cuda/tensor"), 2, "cuda/mma");
    assert_fails(
        &on("cuda/4294967295"),
        3,
        if output.status.success() { "there is no GPU" } else { "NVIDIA's driver" },
    );
}
