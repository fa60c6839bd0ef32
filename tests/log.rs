//! The transparency log from outside: a coordinator that rewrites history is caught by whoever kept an old head.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::processes::Coordinator;
use common::{lockstep, minilm_package, run, run_json};
use lockstep_protocol::canonical::{from_bytes, to_bytes};
use lockstep_protocol::hex;
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Digest, Millis};
use lockstep_protocol::log::{Blind, Entry, LogHead, LogProof, SignedHead, Tree, leaf_hash};
use rusqlite::Connection;
use serde_json::{Value, json};

/// A coordinator with two audited jobs in its log, the receipts of these, and what a client kept.
struct World {
    coordinator: Option<Coordinator>,
    package: PathBuf,
    data: PathBuf,
    receipts: [PathBuf; 2],
    /// The head after the first job.
    old: PathBuf,
    /// The proof of the second, which has the head after it.
    proof: PathBuf,
    temp: tempfile::TempDir,
}

const OPTIONS: [&str; 2] = ["--audit-probability", "1"];

impl World {
    fn new() -> Option<Self> {
        let package = minilm_package()?.to_path_buf();
        let temp = tempfile::tempdir().expect("a folder");
        let file = |name: &str| temp.path().join(name);
        let data = file("c");
        let coordinator = Coordinator::start(&package, &data, &OPTIONS);
        let workers = ["a", "b"].map(|name| coordinator.worker(&file(name)));
        workers.iter().for_each(|worker| drop(worker.after("is here, verified")));
        let receipts = [file("first.json"), file("second.json")];
        let (old, proof) = (file("old.head"), file("second.proof"));
        let world = Self { coordinator: Some(coordinator), package, data, receipts, old, proof, temp };
        world.answer("The first text.", &world.receipts[0]);
        assert!(world.head(&world.old).status.success());
        world.answer("The second text.", &world.receipts[1]);
        let made = world.prove(&world.receipts[1], &world.proof, Some(&world.old));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Some(world)
    }

    fn coordinator(&self) -> &Coordinator {
        self.coordinator.as_ref().expect("it runs")
    }

    /// Asks, waits until the job is done, and saves its receipt, with its access token beside it.
    fn answer(&self, text: &str, at: &Path) {
        let (code, answer) = self.coordinator().post("/v1/embeddings", &json!({ "model": "minilm", "input": text }));
        assert_eq!(code, 200, "{answer}");
        let job = answer["lockstep"]["jobs"][0].as_str().expect("an id");
        let access = answer["lockstep"]["access"].as_str().expect("a token");
        fs::write(at, self.coordinator().receipt(job, access).to_string()).expect("a file");
        fs::write(at.with_extension("access"), access).expect("a file");
    }

    fn head(&self, out: &Path) -> Output {
        run(lockstep().args(["log", "head", "--coordinator-url", &self.coordinator().http, "--out"]).arg(out))
    }

    fn prove(&self, receipt: &Path, out: &Path, old: Option<&Path>) -> Output {
        let mut command = lockstep();
        command.args(["log", "prove", "--url", &self.coordinator().http, "--out"]).arg(out).arg(receipt);
        let access = fs::read_to_string(receipt.with_extension("access")).expect("a token");
        command.args(["--access-token", &access]);
        run(command.args(old.map(|_| "--old-head")).args(old))
    }

    /// Stops the coordinator, lets its operator rewrite the store with everything that is his, key and secrets
    /// included, and starts it again: it has no reason not to.
    fn rewrite(&mut self, change: impl FnOnce(&mut Vec<Entry>)) {
        drop(self.coordinator.take());
        rewrite(&self.data, change);
        self.coordinator = Some(Coordinator::start(&self.package, &self.data, &OPTIONS));
    }
}

fn reason(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn verify(proof: &Path, old: Option<&Path>, receipt: Option<&Path>) -> (Option<i32>, String) {
    let mut command = lockstep();
    command.args(["log", "verify"]).arg(proof);
    command.args(old.map(|_| "--old-head")).args(old).args(receipt.map(|_| "--receipt")).args(receipt);
    reason(&run(&mut command))
}

/// Replaces the log by another history, consistent in itself and signed with the coordinator's key.
fn rewrite(data: &Path, change: impl FnOnce(&mut Vec<Entry>)) {
    let text = fs::read_to_string(data.join("coordinator.key")).expect("the key");
    let keys = Keypair::from_seed(hex::parse(text.trim_end()).expect("a key"));
    let mut connection = Connection::open(data.join("coordinator.db")).expect("the store");
    let store = connection.transaction().expect("a transaction");
    let secret = store.query_row("SELECT value FROM meta WHERE key = 'log secret'", (), |row| row.get(0));
    let secret: [u8; 32] = secret.expect("the secret");
    let mut query = store.prepare("SELECT entry FROM log ORDER BY seq").expect("the log");
    let rows = query.query_map((), |row| row.get::<_, Vec<u8>>(0)).expect("entries");
    let mut entries: Vec<Entry> = rows.map(|row| from_bytes(&row.expect("an entry")).expect("an entry")).collect();
    drop(query);
    change(&mut entries);
    store.execute_batch("DELETE FROM log; DELETE FROM log_nodes; DELETE FROM log_heads").expect("empty");
    let mut tree = Tree::new();
    for entry in &entries {
        let index = tree.size();
        let row = (index as i64, entry.job().map(|job| job.as_bytes().to_vec()), to_bytes(entry));
        store.execute("INSERT INTO log VALUES (?1, ?2, ?3)", row).expect("written");
        let node = |at: lockstep_protocol::log::Subtree, hash: Digest| {
            let row = (at.level, at.index as i64, hash.as_bytes().to_vec());
            store.execute("INSERT INTO log_nodes VALUES (?1, ?2, ?3)", row).map(drop)
        };
        tree.append(leaf_hash(&Blind::derive(&secret, index), entry), node).expect("written");
    }
    let head = LogHead::of(&tree, keys.id(), Millis(4_000_000_000_000)).sign(&keys);
    let digest = head.head.digest();
    let row = (tree.size() as i64, to_bytes(&head), digest.as_bytes().to_vec());
    store.execute("INSERT INTO log_heads (size, head, digest) VALUES (?1, ?2, ?3)", row).expect("written");
    store.commit().expect("committed");
}

#[test]
fn a_receipt_is_proven_to_be_in_the_log_and_changes_are_found() {
    let Some(world) = World::new() else { return };
    assert_eq!(verify(&world.proof, None, None).0, Some(0));
    let [first, second] = &world.receipts;
    assert_eq!(verify(&world.proof, Some(&world.old), Some(second)).0, Some(0));
    let told = run_json(
        lockstep()
            .args(["log", "verify", "--json", "--old-head"])
            .arg(&world.old)
            .arg("--receipt")
            .arg(second)
            .arg(&world.proof),
    );
    assert_eq!((&told["valid"], &told["receipt"], &told["other_statements"]), (&json!(true), &json!(true), &json!(0)));
    assert_eq!(told["entries"], 11, "anchored, taken, drawn; assigned, committed, run and stated of two workers");
    assert_eq!(told["draws"].as_array().map(Vec::len), Some(1), "{told}");
    assert_eq!((&told["draws"][0]["number"], &told["draws"][0]["audits"]), (&json!(1), &json!(1)), "{told}");
    let (code, why) = verify(&world.proof, None, Some(first));
    assert!(code == Some(7) && why.contains("does not show the job"), "{why}");
    let other = "6e7a1cdd29b0b78fd13af4c5598feff4ef2a97166e3ca6f2e4fbfccd80505bf1";
    let (code, why) = reason(&run(lockstep().args(["log", "verify", "--coordinator", other]).arg(&world.proof)));
    assert!(code == Some(7) && why.contains("not of"), "{why}");

    // Only the token of its own submission opens a job.
    let stolen = world.temp.path().join("stolen.json");
    fs::copy(first, &stolen).expect("a copy");
    fs::copy(second.with_extension("access"), stolen.with_extension("access")).expect("a copy");
    let out = world.temp.path().join("stolen.proof");
    let (code, why) = reason(&world.prove(&stolen, &out, None));
    assert!(code == Some(1) && why.contains("needs the access token") && !out.exists(), "{why}");

    // A later proof continues the head in an earlier proof too.
    let later = world.temp.path().join("later.proof");
    assert!(world.prove(first, &later, Some(&world.proof)).status.success());
    assert_eq!(verify(&later, Some(&world.proof), Some(first)).0, Some(0));
    let (code, why) = verify(&later, Some(&world.old), None);
    assert!(code == Some(7) && why.contains("with the old head at hand"), "{why}");

    // One changed character of every kind of field.
    let proof: Value = serde_json::from_str(&fs::read_to_string(&world.proof).expect("the proof")).expect("JSON");
    let changed = world.temp.path().join("changed.proof");
    for pointer in [
        "/job",
        "/head/head/log",
        "/head/head/root",
        "/head/signature",
        "/entries/0/blind",
        "/entries/1/path/0",
        "/entries/0/entry/anchored/anchor",
        "/entries/2/entry/assigned/worker",
        "/entries/3/entry/committed/commitment",
        "/entries/4/entry/result/receipt",
        "/entries/5/entry/drawn/secret/secret",
        "/consistency/path/0",
    ] {
        let mut other = proof.clone();
        let leaf = other.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} of {proof}"));
        let text = leaf.as_str().expect("a text");
        let digit = if text.starts_with('0') { "1" } else { "0" };
        *leaf = json!(format!("{digit}{}", &text[1..]));
        fs::write(&changed, other.to_string()).expect("a file");
        let (code, why) = verify(&changed, Some(&world.old), Some(second));
        assert!(code == Some(7) && why.len() > 30, "{pointer}: {why}");
    }
}

#[test]
fn a_changed_entry_is_caught_as_equivocation() {
    let Some(mut world) = World::new() else { return };
    let receipt = world.receipts[1].clone();
    // The first job is said to have gone to another worker: nobody who has only the second one's receipt sees that.
    world.rewrite(|entries| {
        let assigned = entries.iter_mut().find_map(|entry| match entry {
            Entry::Assigned { worker, .. } => Some(worker),
            _ => None,
        });
        *assigned.expect("an assignment") = Keypair::from_seed([9; 32]).id();
    });
    let forged = world.temp.path().join("forged.proof");
    assert!(world.prove(&receipt, &forged, None).status.success());
    assert_eq!(verify(&forged, None, Some(&receipt)).0, Some(0), "in itself the new history is a log");
    // The head that came with the earlier proof has the same size and another root.
    let (code, why) = verify(&forged, Some(&world.proof), Some(&receipt));
    assert!(code == Some(7) && why.contains("equivocation"), "{why}");
    // The older head is not continued, whatever path the coordinator gives.
    let caught = reason(&world.prove(&receipt, &forged, Some(&world.old)));
    assert!(caught.0 == Some(7) && caught.1.contains("not consistent"), "{caught:?}");
    let (code, why) = verify(&forged, Some(&world.old), Some(&receipt));
    assert!(code == Some(7) && why.contains("history was rewritten"), "{why}");
}

#[test]
fn a_dropped_entry_is_caught_even_when_the_log_has_grown_since() {
    let Some(mut world) = World::new() else { return };
    world.rewrite(|entries| {
        let assigned = entries.iter().position(|entry| matches!(entry, Entry::Assigned { .. }));
        entries.remove(assigned.expect("an assignment"));
    });
    let forged = world.temp.path().join("forged.proof");
    // The log is now shorter than it was, with a later head.
    assert!(world.prove(&world.receipts[1], &forged, None).status.success());
    let (code, why) = verify(&forged, Some(&world.proof), None);
    assert!(code == Some(7) && why.contains("the log shrank"), "{why}");
    // It grows beyond the heads that were kept, and still does not continue them.
    let workers = ["a", "b"].map(|name| world.coordinator().worker(&world.temp.path().join(name)));
    workers.iter().for_each(|worker| drop(worker.after("is here, verified")));
    let third = world.temp.path().join("third.json");
    world.answer("The third text.", &third);
    for old in [&world.old, &world.proof] {
        let caught = reason(&world.prove(&third, &forged, Some(old)));
        assert!(caught.0 == Some(7) && caught.1.contains("not consistent"), "{caught:?}");
        let (code, why) = verify(&forged, Some(old), Some(&third));
        assert!(code == Some(7) && why.contains("not consistent"), "{why}");
    }
    // The receipt whose assignment was dropped is not shown any more.
    let (code, why) = reason(&world.prove(&world.receipts[0], &forged, None));
    assert!(code == Some(7) && why.contains("does not show the assignment"), "{why}");
}

#[test]
fn a_log_that_is_not_signed_as_it_is_stops_the_coordinator() {
    let Some(mut world) = World::new() else { return };
    drop(world.coordinator.take());
    let connection = Connection::open(world.data.join("coordinator.db")).expect("the store");
    connection.execute_batch("DELETE FROM log WHERE seq = 2").expect("changed");
    drop(connection);
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
    let (code, why) = reason(&run(command.arg(&world.package).arg("--data-dir").arg(&world.data)));
    assert!(code == Some(2) && why.contains("the transparency log was changed"), "{why}");
}

/// `kill -9` in the midst of jobs: heads and proofs from before hold afterwards.
#[test]
fn a_killed_coordinator_goes_on_with_the_same_log() {
    let Some(mut world) = World::new() else { return };
    let workers = ["c", "d"].map(|name| world.coordinator().worker(&world.temp.path().join(name)));
    workers.iter().for_each(|worker| drop(worker.after("is here, verified")));
    for round in 0..3 {
        let inputs: Vec<_> = (0..8).map(|number| format!("Round {round}, text {number}.")).collect();
        let body = json!({ "model": "minilm", "input": inputs, "lockstep": { "wait": false } });
        assert_eq!(world.coordinator().post("/v1/embeddings", &body).0, 202);
        let coordinator = world.coordinator.take().expect("it runs");
        world.coordinator = Some(coordinator.restart(&world.package, &world.data, &OPTIONS));
    }
    let again = world.temp.path().join("again.proof");
    for old in [&world.old, &world.proof] {
        let made = world.prove(&world.receipts[0], &again, Some(old));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        assert_eq!(verify(&again, Some(old), Some(&world.receipts[0])).0, Some(0));
    }
    let proof = LogProof::from_json(fs::read_to_string(&again).expect("the proof").trim()).expect("a proof");
    let old = fs::read_to_string(&world.old).expect("the head");
    assert!(proof.head.head.size > SignedHead::from_json(old.trim()).expect("a head").head.size);
}
