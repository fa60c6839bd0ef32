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
use lockstep_model::template::ChatTemplate;
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
        (vec!["--prompt", "x", "--top-p", "1.5"], "'--top-p <X>': not from 0.0001 to 1"),
        (vec!["--prompt", "x", "--temperature", "-1"], "'--temperature <X>': not from 0 to 100"),
        (vec!["--prompt", "x", "--temperature", "nan"], "not from 0 to 100"),
        (vec!["--prompt", "x", "--repetition-penalty", "0.01"], "not from 0.1 to 10"),
        (vec!["--prompt", "x", "--stop", ""], "0 bytes; 1 to 32 are possible"),
        (vec!["--prompt", "x", "--seed", "1e3"], "neither a number of 64 bits"),
        (vec!["--prompt", "x", "--logprobs", "2"], "--json"),
        (vec!["--prompt", "x", "--threads", "100000"], "not a number from 1 to 1024"),
    ] {
        let output = run(&mut generate(&options));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(says), "{options:?}: {stderr}");
    }
}

#[test]
fn biases_and_stop_tokens_are_those_of_a_job() {
    let tokens = |options: &[&str]| {
        let told = run_json(generate(&["--prompt", PROMPT, "--max-tokens", "6", "--json"]).args(options));
        (told["tokens"].clone(), told["finish"].clone())
    };
    let (plain, _) = tokens(&[]);
    let first = plain[0].as_u64().expect("a token");
    // The likeliest token is forbidden, and another one forced.
    assert_ne!(tokens(&["--logit-bias", &format!("{first}:-100")]).0[0], plain[0]);
    assert_eq!(tokens(&["--logit-bias", "100:100,7:-0.5"]).0, json!([100, 100, 100, 100, 100, 100]));
    assert_eq!(tokens(&["--logit-bias", "100:100", "--stop-tokens", "100,7"]).1, json!("stop"));
    for (options, says) in [
        (["--logit-bias", "100:101"], "from -100 to 100"),
        (["--logit-bias", "100"], "a colon"),
        (["--logit-bias", "100:1,100:2"], "logit_bias"),
        (["--stop-tokens", "x"], "--stop-tokens"),
    ] {
        let output = run(generate(&["--prompt", PROMPT]).args(options));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(says), "{options:?}: {stderr}");
    }
}

#[test]
fn a_model_that_generates_text_embeds_none() {
    let output = run(program().args(["embed", "x", "--package"]).arg(package()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("lockstep generate"), "{stderr}");
}

#[test]
fn a_whole_answer_is_no_receipt() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("answer.json");
    fs::write(&file, json!({ "choices": [], "lockstep": { "receipts": [] } }).to_string()).expect("a file");
    let output = run(program().arg("verify").arg(&file));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("lockstep.receipts"), "{stderr}");
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

/// A receipt of a conversation with the model, as the coordinator asks for it, with log-probabilities.
fn conversation_receipt(rendered: &str, alter: impl FnOnce(&mut Vec<i32>)) -> Receipt {
    let package = Package::open(package()).expect("a package");
    let nonce = Nonce::from_bytes([9; 32]);
    let generation = Generation { temperature: 7_000, logprobs: 3, ..Generation::greedy(6) };
    let job = Job {
        spec_version: 1,
        model: package.model_id(),
        kind: JobKind::Generation(Box::new(generation)),
        request: RequestInput::Text(rendered.into()).hash(&nonce),
        seed: Seed::from_bytes([8; 32]),
        nonce,
        tokens: package.tokenizer().expect("a tokenizer").encode_rendered(rendered).expect("it fits"),
    };
    let again = rerun_job(&package, &Cpu::new(None, 1).expect("a processor"), &job, &[]).expect("it runs");
    let (words, values) = again.output.split_at(again.roots.len() / 7);
    let mut values = values.to_vec();
    alter(&mut values);
    let run = Run {
        epoch: LeaseEpoch(1),
        layers: 6,
        roots: again.roots,
        words: words_of(words),
        output_count: words.len() as u32,
        work_units: again.work_units,
        saturations: again.saturations,
    };
    let keys = Keypair::from_seed([3; 32]);
    let signed = WorkerReceipt::of_run(&job.header(), run, keys.id()).expect("its shape is right");
    let output = [words, &values].concat();
    let signed = signed.with_logprobs(&values).sign(&keys);
    Receipt::accepted(job, signed, output, &Keypair::from_seed([4; 32]), Millis(1))
}

#[test]
fn what_a_receipt_says_of_probabilities_is_checked_by_running_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let honest = conversation_receipt("Hello", |_| {});
    let told = run_json(&mut verify(&honest, folder.path(), &["--json"]));
    assert!(told["valid"] == true && told["rerun"] == true, "{told}");
    // That of a word, of a likely token, and the token itself: each signed as if it were so.
    for at in [0, 7, 16] {
        let lie = conversation_receipt("Hello", |values| values[at] -= 1);
        assert!(lie.check().is_ok(), "only the model tells");
        let output = run(&mut verify(&lie, folder.path(), &[]));
        let stderr = String::from_utf8_lossy(&output.stderr);
        let says = format!("log-probabilities at point {}", lie.job.tokens.len() - 1 + at / 5);
        assert!(output.status.code() == Some(7) && stderr.contains(&says), "{says}: {stderr}");
    }
    // What is not what was signed needs no model.
    let mut other = honest.clone();
    other.output[8] -= 1;
    assert!(other.check().is_err());
}

#[test]
fn the_probabilities_of_generate_are_those_of_the_receipt() {
    let honest = receipt(|_| {});
    let seed = honest.job.seed.to_string();
    let wish =
        ["--prompt", PROMPT, "--max-tokens", "20", "--temperature", "1", "--ignore-eos", "--seed", &seed, "--json"];
    let plain = run_json(&mut generate(&wish));
    assert!(plain.get("logprobs").is_none());
    for backend in ["cpu", "reference"] {
        let told = run_json(generate(&wish).args(["--logprobs", "2", "--backend", backend]));
        assert_eq!((&told["tokens"], &told["layer_roots"]), (&plain["tokens"], &plain["layer_roots"]));
        let rows = told["logprobs"].as_array().expect("a list");
        assert_eq!(rows.len(), plain["tokens"].as_array().expect("a list").len());
        for (row, token) in rows.iter().zip(plain["tokens"].as_array().expect("a list")) {
            let top = row["top"].as_array().expect("a list");
            assert!(top.len() == 2 && top[0][1].as_i64() >= top[1][1].as_i64(), "{row}");
            assert!(row["logprob"].as_i64() <= top[0][1].as_i64(), "{row}");
            let same = top.iter().find(|pair| pair[0] == *token);
            assert!(same.is_none_or(|pair| pair[1] == row["logprob"]), "{row}");
        }
    }
    let output = run(&mut generate(&["--prompt", "x", "--logprobs", "21"]));
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_receipt_is_compared_with_the_conversation_or_the_tokens_that_were_sent() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    };
    let conversation = json!([{"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "a closure?"}]}]);
    let package = Package::open(package()).expect("a package");
    let tokenizer = package.tokenizer().expect("a tokenizer");
    let template = ChatTemplate::of(&package, &tokenizer).expect("it can be read").expect("there is one");
    let rendered = lockstep_coordinator::conversation_text(&template, &conversation.to_string()).expect("a text");
    assert!(rendered.contains("What is\na closure?"), "{rendered}");
    // The template puts the first token there itself: the text is not tokenised as a prompt is.
    assert_ne!(tokenizer.encode(&rendered, TooLong::Refuse).ok(), tokenizer.encode_rendered(&rendered).ok());
    let receipt = conversation_receipt(&rendered, |_| {});
    let messages = file("messages.json", &conversation.to_string());
    let body = file("body.json", &json!({"model": "x", "messages": conversation, "temperature": 0.7}).to_string());
    let text = file("rendered.txt", &rendered);
    for (option, value) in [("--messages", &messages), ("--messages", &body), ("--rendered", &text)] {
        let told = run_json(&mut verify(&receipt, folder.path(), &["--json", option, value]));
        assert!(told["text_checked"] == true && told["tokens_checked"] == true, "{told}");
    }
    let other = file("other.json", &json!([{"role": "user", "content": "What is a closure?"}]).to_string());
    let broken = file("broken.json", "[{}]");
    for (option, value, code, says) in [
        ("--messages", &other, 7, "about another question"),
        ("--messages", &broken, 2, "role"),
        // The same text as the prompt of a completion has other tokens.
        ("--text", &rendered, 7, "the job's tokens are not those of the question"),
    ] {
        let output = run(&mut verify(&receipt, folder.path(), &[option, value]));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && stderr.contains(says), "{option}: {stderr}");
    }
    // Token ids are a request of their own kind.
    let ids = receipt.job.tokens.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let output = run(&mut verify(&receipt, folder.path(), &["--tokens", &ids]));
    assert_eq!(output.status.code(), Some(7), "the receipt is about a text");
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
