//! Challenges of generated texts, by the command: anybody who has a receipt and a stake has a lie convicted, whatever the
//! coordinator let pass.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::liar::{LAYER, Liar};
use common::processes::{Coordinator, PATIENCE, Process};
use common::{lockstep, run, run_json, second_judge, shipped_package};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::Op;
use lockstep_model::package::Package;
use lockstep_model::rerun::rerun_job;
use lockstep_protocol::generation::{Generation, word_token, words_of};
use lockstep_protocol::ids::{Nonce, Seed};
use lockstep_protocol::job::{Job, JobKind, RequestInput, SPEC_VERSION};
use lockstep_sim::adversary::{Change, Lie, Target};
use serde_json::{Value, json};

const PROMPT: &str = "# Closures\n\nA closure is";
const WORDS: u32 = 12;
/// A position of the answer: words before it are right.
const POSITION: usize = 14;
const COLUMN: usize = 7;

/// One number of the feed-forward part's last product, at one position.
fn lie() -> Lie {
    let package = Package::open(shipped_package()).expect("a package");
    let layer = &package.program().layers[LAYER];
    let op = layer.ops.iter().rposition(|op| matches!(op, Op::MatMul { .. })).expect("a product");
    let target = Target::Element { row: POSITION, col: COLUMN };
    Lie { layer: LAYER, op, target, change: Change::Xor(1 << 24) }
}

/// A coordinator that has nothing audited.
struct World {
    coordinator: Coordinator,
    temp: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let temp = tempfile::tempdir().expect("a folder");
        let options = ["--audit-probability", "0"];
        Self { coordinator: Coordinator::start(shipped_package(), &temp.path().join("c"), &options), temp }
    }

    /// Once it has the model.
    fn honest(&self) -> Process {
        let worker = self.coordinator.worker(&self.temp.path().join("honest"));
        worker.after("is here, verified");
        worker
    }

    /// Waits until somebody has the model.
    fn has_worker(&self) {
        let deadline = Instant::now() + PATIENCE;
        let ready = |worker: &Value| worker["models"].as_array().is_some_and(|models| !models.is_empty());
        while !self.coordinator.workers().iter().any(ready) {
            assert!(Instant::now() < deadline, "no worker with the model");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A text is asked for, and its receipt kept in a file: whose it is, and the access token.
    fn receipt(&self, file: &Path, extra: &Value) -> (String, String) {
        let mut wish = json!({
            "model": "shipped", "prompt": PROMPT, "max_tokens": WORDS, "temperature": 0, "lockstep": { "wait": false },
        });
        wish.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        let (code, kept) = self.coordinator.post("/v1/completions", &wish);
        assert_eq!(code, 202, "{kept}");
        let (job, access) = (text(&kept["lockstep"]["jobs"][0]), text(&kept["lockstep"]["access"]));
        let receipt = self.coordinator.receipt(&job, &access);
        fs::write(file, receipt.to_string()).expect("a file");
        (text(&receipt["worker"]["receipt"]["worker"]), access)
    }

    fn challenge(&self, receipt: &Path, access: &str) -> Value {
        let mut command = lockstep();
        command.args(["challenge", "--json", "--url", &self.coordinator.http, "--access-token", access, "--data-dir"]);
        command.arg(self.temp.path().join("honest")).arg("--package").arg(shipped_package());
        run_json(command.arg(receipt))
    }

    /// The file of a dispute, once it has its verdict.
    fn judged(&self, dispute: &str, access: &str) -> PathBuf {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let list = run_json(lockstep().args(["dispute", "list", "--json", "--url", &self.coordinator.http]));
            let all = list["data"].as_array().expect("a list");
            if all.iter().any(|one| one["id"] == dispute && one["status"] == "judged") {
                break;
            }
            assert!(Instant::now() < deadline, "no verdict: {list}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let file = self.temp.path().join("dispute");
        let mut export = lockstep();
        export.args(["dispute", "export", dispute, "--url", &self.coordinator.http, "--access-token", access, "--out"]);
        let output = run(export.arg(&file));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        file
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

#[test]
fn a_lie_in_the_middle_of_a_text_is_convicted_by_a_challenge_and_a_right_text_is_not_challenged() {
    let world = World::new();
    let liar = Liar::telling(lie(), &world.coordinator.address, &world.temp.path().join("liar"));
    liar.let_go();
    world.has_worker();
    let receipt = world.temp.path().join("receipt.json");
    // The liar is the only worker, so that the text is its own.
    let (author, access) = world.receipt(&receipt, &json!({ "logprobs": 2 }));
    assert_eq!(author, liar.key.to_string());
    let _honest = world.honest();
    let told = world.challenge(&receipt, &access);
    assert_eq!(told["challenged"], true, "{told}");
    let file = world.judged(&text(&told["dispute"]), &access);
    let told = run_json(lockstep().args(["judge", "--json"]).arg(&file));
    assert_eq!((&told["kind"], &told["losers"]), (&json!("proven"), &json!([author])), "{told}");
    assert_eq!((&told["place"]["layer"], &told["element"]["step"]), (&json!(LAYER), &json!("matmul.out")), "{told}");
    assert_eq!((&told["element"]["row"], &told["element"]["column"]), (&json!(POSITION), &json!(COLUMN)), "{told}");
    if let Some(mut other) = second_judge() {
        assert_eq!(run_json(other.arg(&file))["kind"], "proven");
    }
    // The liar is out, and the next text is the honest worker's.
    let (author, access) = world.receipt(&receipt, &json!({ "temperature": 0.8, "seed": 7 }));
    assert_ne!(author, liar.key.to_string());
    let told = world.challenge(&receipt, &access);
    assert_eq!((&told["challenged"], &told["dispute"]), (&json!(false), &Value::Null), "{told}");
}

/// A lie about the logits of one position that shows in log-probabilities alone: greedy sampling takes the likeliest token
/// however much likelier it is made.
fn quiet_lie(prompt: &[u32]) -> Lie {
    let package = Package::open(shipped_package()).expect("a package");
    let nonce = Nonce::from_bytes([1; 32]);
    let job = Job {
        spec_version: SPEC_VERSION,
        model: package.model_id(),
        kind: JobKind::Generation(Box::new(Generation::greedy(WORDS))),
        tokens: prompt.to_vec(),
        request: RequestInput::Tokens(prompt.to_vec()).hash(&nonce),
        seed: Seed::from_bytes([2; 32]),
        nonce,
    };
    let cpu = Cpu::new(None, 1).expect("a processor");
    let words = words_of(&rerun_job(&package, &cpu, &job, &[]).expect("a run").output);
    assert!(words.len() > QUIET, "{words:?}");
    let last = package.program().layers.len() - 1;
    let op = package.program().layers[last].ops.iter().rposition(|op| matches!(op, Op::MatMul { .. })).expect("logits");
    let target = Target::Element { row: prompt.len() - 1 + QUIET, col: word_token(words[QUIET]) as usize };
    Lie { layer: last, op, target, change: Change::Set(1 << 29) }
}

/// The word whose log-probability is lied about, counted from 0.
const QUIET: usize = 3;

#[test]
fn a_text_with_a_wrong_log_probability_and_nothing_else_wrong_is_convicted_by_a_challenge() {
    let world = World::new();
    let prompt: Vec<u32> = (300..312).collect();
    let lie = quiet_lie(&prompt);
    let liar = Liar::telling(lie, &world.coordinator.address, &world.temp.path().join("liar"));
    liar.let_go();
    world.has_worker();
    let receipt = world.temp.path().join("receipt.json");
    let (author, access) = world.receipt(&receipt, &json!({ "prompt": prompt, "logprobs": 2 }));
    assert_eq!(author, liar.key.to_string());
    let _honest = world.honest();
    let told = world.challenge(&receipt, &access);
    assert_eq!(told["challenged"], true, "{told}");
    let file = world.judged(&text(&told["dispute"]), &access);
    let told = run_json(lockstep().args(["judge", "--json"]).arg(&file));
    assert_eq!((&told["kind"], &told["losers"]), (&json!("proven"), &json!([author])), "{told}");
    let place = json!({ "point": prompt.len() - 1 + QUIET, "layer": lie.layer + 1 });
    assert_eq!((&told["place"], &told["element"]["step"]), (&place, &json!("matmul.out")), "{told}");
    if let Some(mut other) = second_judge() {
        let theirs = run_json(other.arg(&file));
        assert_eq!((&theirs["kind"], &theirs["place"]), (&json!("proven"), &place));
    }
}
