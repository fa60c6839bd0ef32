//! The shipped model through the program: text, roots, receipts checked by one prefill, perplexity, and what an audit
//! costs.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use common::{lockstep, run, run_json};
use lockstep_kernels::cpu::Cpu;
use lockstep_model::package::Package;
use lockstep_model::rerun::rerun_job;
use lockstep_model::tokenizer::TooLong;
use lockstep_protocol::generation::{Generation, words_of};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{LeaseEpoch, Millis, Nonce, Root, Seed};
use lockstep_protocol::job::{Job, JobKind, RequestInput};
use lockstep_protocol::receipt::{Receipt, Run, WorkerReceipt};
use serde_json::{Value, json};

const PROMPT: &str = "# Closures\n\nA closure is";

/// The program with a cache that the tests of this file share.
fn program() -> Command {
    let mut command = lockstep();
    command.env("XDG_CACHE_HOME", cache());
    command
}

fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("generate")
}

/// The package that the first use makes.
fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        let made = run_json(program().args(["generate", "--prompt", "x", "--max-tokens", "1", "--json"]));
        let id = made["model_id"].as_str().expect("an id").to_owned();
        let files = fs::read_dir(cache().join("lockstep/packages")).expect("the cache").flatten().map(|e| e.path());
        files.into_iter().find(|path| path.to_string_lossy().contains(&id)).expect("the package is kept")
    })
}

fn generate(options: &[&str]) -> Command {
    let mut command = program();
    command.args(["generate", "--package"]).arg(package()).args(options);
    command
}

#[test]
fn the_same_arguments_give_the_same_tokens_and_roots_everywhere() {
    let wish = ["--prompt", PROMPT, "--max-tokens", "24", "--temperature", "0.8", "--top-p", "0.95", "--seed", "7"];
    let told = |options: &[&str]| {
        let mut told = run_json(generate(&wish).args(["--json", "--points"]).args(options));
        let object = told.as_object_mut().expect("an object");
        object.retain(|key, _| !key.ends_with("seconds") && !key.ends_with("per_second") && key != "backend");
        told
    };
    let one = told(&["--threads", "1"]);
    assert_eq!(one, told(&["--threads", "2"]));
    assert_eq!(one, told(&["--backend", "cpu/portable"]));
    assert_eq!(one, told(&["--backend", "reference"]));
    let count = |key: &str| one[key].as_array().expect("a list").len();
    assert!(count("tokens") <= 24 && count("points") == count("tokens") && count("layer_roots") == 7, "{one}");
    assert!(!one["text"].as_str().expect("text").is_empty());
    // Without --json it is the text alone that goes to standard output.
    let streamed = run(&mut generate(&wish));
    assert_eq!(String::from_utf8_lossy(&streamed.stdout), format!("{}\n", one["text"].as_str().expect("text")));
    // Another seed says something else.
    let other = run_json(generate(&wish[..8]).args(["--seed", "8", "--json"]));
    assert_ne!(one["tokens"], other["tokens"]);
    // The tokens of the prompt are the prompt.
    let prompt = prompt_tokens().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let by_tokens = run_json(generate(&["--tokens", &prompt]).args(&wish[2..]).arg("--json"));
    assert_eq!(one["tokens"], by_tokens["tokens"]);
}

#[test]
fn stop_texts_and_limits_end_a_generation() {
    let free = run_json(&mut generate(&["--prompt", PROMPT, "--max-tokens", "30", "--ignore-eos", "--json"]));
    assert_eq!((free["finish"].clone(), free["tokens"].as_array().expect("a list").len()), (json!("length"), 30));
    let text = free["text"].as_str().expect("text");
    let stop: String = text.chars().skip(8).take(4).collect();
    let cut = run_json(&mut generate(&["--prompt", PROMPT, "--max-tokens", "30", "--stop", &stop, "--json"]));
    let said = cut["text"].as_str().expect("text");
    assert!(cut["finish"] == "stop" && text.starts_with(said) && said.contains(&stop), "{said:?} {stop:?}");
    for (options, says) in [
        (vec!["--prompt", "x", "--max-tokens", "0"], "max_tokens"),
        (vec!["--prompt", "x", "--max-tokens", "5000"], "1024 positions"),
        (vec!["--tokens", "1,4096"], "outside the vocabulary of 4096"),
        (vec!["--prompt", "x", "--top-p", "1.5"], "top_p"),
        (vec!["--prompt", "x", "--temperature=-1"], "temperature"),
    ] {
        let output = run(&mut generate(&options));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(says), "{options:?}: {stderr}");
    }
}

fn prompt_tokens() -> Vec<u32> {
    let package = Package::open(package()).expect("a package");
    package.tokenizer().expect("a tokenizer").encode(PROMPT, TooLong::Refuse).expect("it fits")
}

/// A receipt for the prompt whose signatures hold, and whose run is the model's but for what `alter` changes.
fn receipt(alter: impl FnOnce(&mut Run)) -> Receipt {
    let package = Package::open(package()).expect("a package");
    let nonce = Nonce::from_bytes([7; 32]);
    let generation = Generation { temperature: 10_000, ..Generation::greedy(20) };
    let job = Job {
        spec_version: 1,
        model: package.model_id(),
        kind: JobKind::Generation(Box::new(generation)),
        request: RequestInput::Text(PROMPT.into()).hash(&nonce),
        seed: Seed::from_bytes([8; 32]),
        nonce,
        tokens: prompt_tokens(),
    };
    let again = rerun_job(&package, &Cpu::new(None, 1).expect("a processor"), &job, &[]).expect("it runs");
    let mut run = Run {
        epoch: LeaseEpoch(1),
        layers: 6,
        roots: again.roots,
        words: words_of(&again.output),
        output_count: again.output.len() as u32,
        work_units: again.work_units,
        saturations: again.saturations,
    };
    alter(&mut run);
    let output = run.words.iter().map(|word| word.cast_signed()).collect();
    let keys = Keypair::from_seed([3; 32]);
    let signed = WorkerReceipt::of_run(&job.header(), run, keys.id()).expect("its shape is right");
    Receipt::accepted(job, signed.sign(&keys), output, &Keypair::from_seed([4; 32]), Millis(1))
}

fn verify(receipt: &Receipt, folder: &Path, options: &[&str]) -> Command {
    let file = folder.join("receipt.json");
    fs::write(&file, receipt.to_json()).expect("a file");
    let mut command = program();
    command.args(["verify", "--package"]).arg(package()).args(options).arg(file);
    command
}

#[test]
fn a_receipt_of_a_generation_is_checked_by_one_prefill_on_any_backend() {
    let folder = tempfile::tempdir().expect("a folder");
    let honest = receipt(|_| {});
    for backend in ["cpu", "cpu/portable", "reference"] {
        let told = run_json(&mut verify(&honest, folder.path(), &["--json", "--text", PROMPT, "--backend", backend]));
        let fields = ["valid", "rerun", "text_checked", "tokens_checked"];
        assert!(fields.iter().all(|field| told[field] == true), "{told}");
    }
    type Change = fn(&mut Run);
    let changes: [(&str, Change); 5] = [
        ("the digest of point", |run| run.roots[3] = Root::from_bytes([9; 32])),
        ("the root of layer 2 at point", |run| {
            let last = run.roots.len() - 6;
            run.roots[last] = Root::from_bytes([9; 32]);
        }),
        ("multiply-accumulates", |run| run.work_units += 1),
        ("saturated", |run| run.saturations += 1),
        // The words are claimed, and the run goes another way from there.
        ("not what the model gives", |run| run.words[4] ^= 1),
    ];
    for (says, change) in changes {
        let output = run(&mut verify(&receipt(change), folder.path(), &[]));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(7) && stderr.contains(says), "{says}: {stderr}");
    }
    let output = run(&mut verify(&honest, folder.path(), &["--text", "Another"]));
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn perplexity_is_the_same_everywhere_and_far_below_chance() {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/heldout.txt");
    let measure = |options: &[&str]| {
        let mut command = program();
        command.args(["perplexity", "--json", "--window", "64", "--windows", "3", "--package"]).arg(package());
        run_json(command.arg("--text").arg(&text).args(options))
    };
    let told = measure(&[]);
    let number = |told: &Value| told["perplexity"].as_f64().expect("a number");
    assert_eq!((told["scored_tokens"].clone(), told["windows"].clone()), (json!(189), json!(3)));
    assert!(number(&told) > 1.0 && number(&told) < 400.0, "{told}");
    assert_eq!(number(&told).to_bits(), number(&measure(&["--backend", "reference"])).to_bits());
}

#[test]
fn an_audit_is_cheaper_than_the_generation() {
    let mut command = program();
    command.args(["bench", "audit", "--json", "--prompt", "16", "--tokens", "96", "--samples", "1", "--package"]);
    let told = run_json(command.arg(package()));
    let number = |key: &str| told[key].as_f64().unwrap_or_else(|| panic!("{key}: {told}"));
    assert_eq!(told["tokens"], 96);
    assert!(number("audit_ratio") > 0.0 && number("audit_ratio") < 1.0, "{told}");
    assert!(number("commit_share") > 0.0 && number("audit_commit_share") > 0.0, "{told}");
}
