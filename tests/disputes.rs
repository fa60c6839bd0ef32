//! Disputes from outside: a liar over QUIC against a coordinator that is a process of its own, and the file that anybody
//! can judge.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::liar::{LAYER, Liar};
use common::processes::{Coordinator, PATIENCE, Process};
use common::{lockstep, minilm_package, run, run_json};
use serde_json::{Value, json};

const OPTIONS: [&str; 2] = ["--audit-probability", "1"];

/// An honest worker and a liar, and a job that both have been given.
struct World {
    coordinator: Coordinator,
    package: PathBuf,
    data: PathBuf,
    liar: Liar,
    honest: Process,
    job: String,
    access: String,
    temp: tempfile::TempDir,
}

impl World {
    /// With `OPTIONS`, every job is audited, so that the two differ; without audits, whoever is drawn gives the answer. The
    /// liar waits in its first dispute until it is let go.
    fn new(options: &[&str]) -> Option<Self> {
        let package = minilm_package()?.to_path_buf();
        let temp = tempfile::tempdir().expect("a folder");
        let data = temp.path().join("c");
        let coordinator = Coordinator::start(&package, &data, options);
        let honest = coordinator.worker(&temp.path().join("honest"));
        honest.after("is here, verified");
        let liar = Liar::join(&coordinator.address, &temp.path().join("liar"));
        wait_for("two workers with the model", || {
            let workers: Value = serde_json::from_str(&coordinator.get("/v1/workers").1).expect("JSON");
            let ready = |worker: &&Value| worker["models"].as_array().is_some_and(|models| !models.is_empty());
            (workers["data"].as_array()?.iter().filter(ready).count() == 2).then_some(())
        });
        let (job, access) = submit(&coordinator);
        Some(Self { coordinator, package, data, liar, honest, job, access, temp })
    }

    /// The only dispute, once it is there and `until` says so.
    fn dispute(&self, what: &str, until: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || {
            let list = run_json(lockstep().args(["dispute", "list", "--json", "--url", &self.coordinator.http]));
            list["data"].as_array().and_then(|all| all.first().filter(|dispute| until(dispute)).cloned())
        })
    }

    /// `lockstep dispute SUB ID`, with or without the job's access token.
    fn about(&self, sub: &str, dispute: &Value, with_access: bool, options: &[&str]) -> std::process::Output {
        let id = dispute["id"].as_str().expect("an id");
        let mut command = lockstep();
        command.args(["dispute", sub, id, "--url", &self.coordinator.http]).args(options);
        command.args(with_access.then_some(["--access-token", &self.access]).iter().flatten());
        run(&mut command)
    }

    fn export(&self, dispute: &Value, name: &str) -> PathBuf {
        let file = self.temp.path().join(name);
        let output = self.about("export", dispute, true, &["--out", file.to_str().expect("UTF-8")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        file
    }

    fn ledger(&self) -> Value {
        run_json(lockstep().args(["ledger", "--history", "--json", "--url", &self.coordinator.http]))
    }
}

/// Submits a job: its id and its access token.
fn submit(coordinator: &Coordinator) -> (String, String) {
    let body = json!({ "model": "minilm", "input": "Who computed this?", "lockstep": { "wait": false } });
    let (code, kept) = coordinator.post("/v1/embeddings", &body);
    assert_eq!(code, 202, "{kept}");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    (text(&kept["lockstep"]["jobs"][0]), text(&kept["lockstep"]["access"]))
}

fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn judge(file: &Path) -> (Option<i32>, String) {
    let output = run(lockstep().arg("judge").arg(file));
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// That the file convicts the liar and nobody else, of what it did, by one number.
fn convicts(world: &World, file: &Path) -> Value {
    let told = run_json(lockstep().args(["judge", "--json"]).arg(file));
    let expected = (json!("proven"), json!([world.liar.key.to_string()]), json!(LAYER), json!("matmul.out"));
    let found = (&told["kind"], &told["losers"], &told["place"]["layer"], &told["element"]["step"]);
    assert_eq!(found, (&expected.0, &expected.1, &expected.2, &expected.3), "{told}");
    let element = &told["element"];
    assert_eq!((&element["row"], &element["column"]), (&json!(2), &json!(700)), "{told}");
    let side = usize::from(told["challenger"] == expected.1[0]);
    assert_eq!(element["claimed"][1 - side], element["computed"], "the honest side says what is computed: {told}");
    assert_ne!(element["claimed"][side], element["computed"], "{told}");
    assert!(told["rounds"].as_u64().is_some_and(|rounds| rounds <= 6), "{told}");
    assert!(told["referee_bytes"].as_u64().is_some_and(|bytes| bytes <= 128 << 10), "{told}");
    told
}

#[test]
fn a_dispute_is_exported_and_judged_and_every_changed_byte_is_noticed() {
    let Some(world) = World::new(&OPTIONS) else { return };
    world.liar.let_go();
    let dispute = world.dispute("verdict", |dispute| dispute["status"] == "judged");
    // The job still runs: it needs another auditor. Nobody else is told what it is about.
    assert_eq!(dispute["job"], Value::Null, "{dispute}");
    let denied = world.about("export", &dispute, false, &["--out", "/nowhere"]);
    let stderr = String::from_utf8_lossy(&denied.stderr);
    assert!(denied.status.code() == Some(1) && stderr.contains("access token"), "{stderr}");

    let file = world.export(&dispute, "dispute");
    let told = convicts(&world, &file);
    assert_eq!((&told["dispute"], &told["job"]), (&dispute["id"], &json!(world.job)));
    let shown = String::from_utf8_lossy(&run(lockstep().arg("judge").arg(&file)).stdout).into_owned();
    assert!(shown.contains("PROVEN") && shown.contains("computed again"), "{shown}");
    let other = "6e7a1cdd29b0b78fd13af4c5598feff4ef2a97166e3ca6f2e4fbfccd80505bf1";
    let pinned = run(lockstep().args(["judge", "--coordinator", other]).arg(&file));
    assert_eq!(pinned.status.code(), Some(7));

    let shown = String::from_utf8_lossy(&world.about("show", &dispute, true, &[]).stdout).into_owned();
    for line in ["lost (proven)", "(ops, ", "(reveal, ", "(open, ", "verdict"] {
        assert!(shown.contains(line), "{line:?} of {shown}");
    }

    // Every part of the file is covered: with one byte changed, cut short or extended, it holds no more.
    let bytes = fs::read(&file).expect("the file");
    let changed = world.temp.path().join("changed");
    let spread = (0..bytes.len()).step_by(bytes.len() / 97).chain([bytes.len() - 1]);
    for at in spread {
        let mut other = bytes.clone();
        other[at] ^= 1;
        fs::write(&changed, other).expect("a file");
        let (code, why) = judge(&changed);
        assert!(code == Some(7) && why.len() > 15, "byte {at} of {}: {code:?} {why}", bytes.len());
    }
    for other in [&bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat(), b""] {
        fs::write(&changed, other).expect("a file");
        let (code, why) = judge(&changed);
        assert!(code == Some(7) && why.len() > 15, "{why}");
    }
    assert_eq!(judge(Path::new("/nowhere")).0, Some(2));

    // Another honest worker, and the job ends well: its receipt says who was refuted, and credits went where they belong.
    let _third = world.coordinator.worker(&world.temp.path().join("third"));
    let receipt = world.coordinator.receipt(&world.job, &world.access);
    let path = world.temp.path().join("receipt.json");
    fs::write(&path, receipt.to_string()).expect("a file");
    let verified = run_json(lockstep().args(["verify", "--json", "--package"]).arg(&world.package).arg(&path));
    assert_eq!((&verified["rerun"], &verified["audits_matched"]), (&json!(true), &json!(1)), "{verified}");
    assert!(receipt.to_string().contains(dispute["id"].as_str().expect("an id")), "the receipt names the dispute");
    // Now everybody may see it.
    assert!(world.about("export", &dispute, false, &["--out", changed.to_str().expect("UTF-8")]).status.success());
    assert_eq!(fs::read(&changed).expect("the file"), bytes);
    pays(&world);
}

/// The ledger adds up, posting by posting; the honest were paid, and the liar lost its bond.
fn pays(world: &World) {
    let ledger = wait_for("pay", || Some(world.ledger()).filter(|ledger| ledger.to_string().contains("\"pay\"")));
    assert_eq!((&ledger["conserved"], &ledger["folded"]), (&json!(true), &json!(true)), "{ledger}");
    let history = ledger["history"].as_array().expect("a list");
    let liar = json!(world.liar.key.to_string());
    let of = |kind: &str, node: &str| history.iter().filter(|line| line["posting"][kind][node] == liar).count();
    assert!(of("forfeit", "node") > 0 && of("pay", "to") == 0, "{ledger}");
    assert_eq!(history.iter().filter(|line| line["posting"]["pay"].is_object()).count(), 2, "worker and auditor");
}

/// `kill -9` while the liar's clock runs, twice; the dispute goes on where it was, and ends as it would have.
#[test]
fn a_killed_coordinator_goes_on_with_its_disputes() {
    let Some(mut world) = World::new(&OPTIONS) else { return };
    let opened = world.dispute("dispute", |_| true);
    for _ in 0..2 {
        assert_eq!(world.dispute("dispute", |_| true)["status"], "open");
        world.coordinator = world.coordinator.restart(&world.package, &world.data, &OPTIONS);
    }
    world.liar.let_go();
    let judged = world.dispute("verdict", |dispute| dispute["status"] == "judged");
    assert_eq!(judged["id"], opened["id"], "one and the same dispute");
    let file = world.export(&judged, "dispute");
    convicts(&world, &file);
    let shown = String::from_utf8_lossy(&world.about("show", &judged, true, &[]).stdout).into_owned();
    assert!(shown.contains("the coordinator was down for"), "{shown}");
    assert_eq!(world.ledger()["folded"], true);
}

/// `kill -9` of a player after its first move, which it signed and sent and may not have delivered. Its dispute goes on
/// without it as far as that goes, and with it when it is there again: it loses nothing but the time.
#[test]
fn a_killed_player_goes_on_with_its_dispute() {
    let Some(mut world) = World::new(&OPTIONS) else { return };
    let opened = world.dispute("dispute", |_| true);
    world.honest.after(": moved in round 0 (descend)");
    // The liar has not moved: the dispute is in its first round, and stays there.
    world.honest.kill();
    let held = world.dispute("dispute", |_| true);
    assert_eq!((&held["id"], &held["status"], &held["round"]), (&opened["id"], &json!("open"), &json!(0)));
    world.liar.let_go();
    // What it had signed is on its disk, and is what it sends whenever it is asked again.
    let kept = world.temp.path().join("honest/disputes").join(opened["id"].as_str().expect("an id"));
    let first = fs::read(kept.join("move-00000")).expect("the move was kept before it was sent");
    world.honest = world.coordinator.worker(&world.temp.path().join("honest"));
    let judged = world.dispute("verdict", |dispute| dispute["status"] == "judged");
    assert_eq!(judged["id"], opened["id"], "one and the same dispute");
    convicts(&world, &world.export(&judged, "dispute"));
    assert_eq!(fs::read(kept.join("move-00000")).expect("it is kept"), first);
    assert!(kept.join("move-00001").exists(), "it went on after its restart");
    world.honest.after(": not lost");
}

/// An answer that nobody audited is disputed by its client, with a worker's key and a run of its own.
#[test]
fn a_wrong_answer_is_challenged_and_a_right_one_can_not_be() {
    let Some(mut world) = World::new(&["--audit-probability", "0"]) else { return };
    world.liar.let_go();
    let receipt = world.temp.path().join("receipt.json");
    let liar = json!(world.liar.key.to_string());
    let challenge = |world: &World| {
        let mut command = lockstep();
        command.args(["challenge", "--json", "--url", &world.coordinator.http, "--access-token", &world.access]);
        command.arg("--data-dir").arg(world.temp.path().join("honest"));
        run_json(command.arg("--package").arg(&world.package).arg(&receipt))
    };
    // Either of the two workers may be drawn for a job: until both were, jobs go out.
    let (mut right, mut wrong) = (false, None);
    let (job, access, dispute) = wait_for("wrong answer and a right one", || {
        let told = world.coordinator.receipt(&world.job, &world.access);
        fs::write(&receipt, told.to_string()).expect("a file");
        let by_liar = told["worker"]["receipt"]["worker"] == liar;
        if !by_liar || wrong.is_none() {
            let answer = challenge(&world);
            assert_eq!(answer["challenged"], by_liar, "{answer}");
            right |= !by_liar;
            if by_liar {
                wrong = Some((world.job.clone(), world.access.clone(), answer["dispute"].clone()));
            }
        }
        (world.job, world.access) = submit(&world.coordinator);
        wrong.clone().filter(|_| right)
    });
    (world.job, world.access) = (job, access);
    let judged = world.dispute("verdict", |judged| judged["id"] == dispute && judged["status"] == "judged");
    convicts(&world, &world.export(&judged, "dispute"));
    // The receipt that is fetched now says that the answer is wrong.
    let overturned = wait_for("statement", || {
        let told = world.coordinator.receipt(&world.job, &world.access);
        told.to_string().contains(dispute.as_str().expect("an id")).then_some(told)
    });
    fs::write(&receipt, overturned.to_string()).expect("a file");
    let output = run(lockstep().arg("verify").arg(&receipt));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(7) && stderr.contains("layer 3"), "{stderr}");
    assert_eq!(world.ledger()["folded"], true);
}
