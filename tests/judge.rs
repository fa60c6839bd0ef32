//! `lockstep judge` on a dispute that ended in silence: everything signed holds, and the rest is somebody's word.

mod common;

use std::fs;

use common::{lockstep, run, run_json};
use lockstep_kernels::backend::Backend;
use lockstep_kernels::reference::Reference;
use lockstep_model::dispute::{LayerCase, export};
use lockstep_model::package::Package;
use lockstep_model::rerun::rerun;
use lockstep_protocol::dispute::{Claim, Input, Referee, Terms};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{LeaseEpoch, Millis, Nonce, Seed};
use lockstep_protocol::job::{Job, JobKind, RequestInput, SPEC_VERSION};
use lockstep_protocol::limits::{GRACE_MS, MOVE_MIN_MS};
use lockstep_protocol::receipt::{Run, WorkerReceipt};
use lockstep_sim::adversary::{Change, Lie, LyingBackend, Target};
use lockstep_sim::models;
use serde_json::json;

fn claim(package: &Package, job: &Job, backend: &dyn Backend, keys: &Keypair) -> Claim {
    let ran = rerun(package, backend, &job.tokens).expect("it runs");
    let run = Run {
        epoch: LeaseEpoch(1),
        layers: (package.program().layers.len() - 2) as u16,
        roots: ran.roots,
        words: Vec::new(),
        output_count: ran.output.len() as u32,
        work_units: package.program().macs(job.tokens.len() as u64, 0),
        saturations: ran.saturations,
    };
    WorkerReceipt::of_run(&job.header(), run, keys.id()).expect("its shape is right").sign(keys).into()
}

#[test]
fn a_timeout_is_told_from_a_proof() {
    let package = &models::all()[0];
    let [coordinator, claimant, challenger] = [1, 2, 3].map(|seed| Keypair::from_seed([seed; 32]));
    let (tokens, nonce) = (vec![1, 2, 3], Nonce::from_bytes([7; 32]));
    let request = RequestInput::Tokens(tokens.clone()).hash(&nonce);
    let (model, seed) = (package.model_id(), Seed::from_bytes([8; 32]));
    let job = Job { spec_version: SPEC_VERSION, model, kind: JobKind::Embedding, request, seed, nonce, tokens };
    let target = Target::Element { row: 1, col: 3 };
    let lie = Lie { layer: 1, op: 0, target, change: Change::Set(77) };
    let liar = LyingBackend::new("liar".into(), Reference, &[lie]);
    let claims = [claim(package, &job, &liar, &claimant), claim(package, &job, &Reference, &challenger)];
    let [first, second] = claims;
    let layers = (package.program().layers.len() - 2) as u16;
    let terms = Terms::between(coordinator.id(), job.header(), layers, [first, second], Vec::new(), [MOVE_MIN_MS; 2]);
    let terms = terms.expect("the runs differ");
    let case = LayerCase::of_terms(package.manifest(), &terms).expect("the program can be disputed");
    let (mut referee, _) = Referee::open(terms, Millis(1), coordinator.clone(), &case).expect("the terms hold");
    // Nobody moves: both get notice, and then both have lost.
    for now in [1 + MOVE_MIN_MS, 1 + MOVE_MIN_MS + GRACE_MS] {
        referee.handle(Millis(now), Input::Tick, &case);
    }
    assert!(referee.verdict().is_some());
    let temp = tempfile::tempdir().expect("a folder");
    let file = temp.path().join("dispute");
    fs::write(&file, export(package.manifest_bytes().to_vec(), referee.entries().to_vec())).expect("a file");

    let told = run_json(lockstep().args(["judge", "--json"]).arg(&file));
    assert_eq!((&told["kind"], &told["element"]), (&json!("timeout"), &json!(null)), "{told}");
    let both = [claimant.id(), challenger.id()].map(|key| key.to_string());
    assert_eq!(told["losers"], json!(both), "{told}");
    let output = run(lockstep().arg("judge").arg(&file));
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("TIMEOUT") && shown.contains("the coordinator's word alone"), "{shown}");
    assert!(!shown.contains("PROVEN"), "{shown}");
}
