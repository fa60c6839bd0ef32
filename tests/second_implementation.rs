//! A second implementation, in Python and written from SPEC.md alone, gives the same roots and checks the same receipts.

mod common;
#[path = "../model/tests/dispute/decoder.rs"]
mod decoder;
#[path = "../model/tests/dispute/game.rs"]
#[allow(dead_code, reason = "the model's own tests use more of it")]
mod game;
#[path = "../model/tests/dispute/liar.rs"]
mod liar;
#[path = "../model/tests/dispute/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::Path;

use common::{lockstep, minilm, minilm_package, run, run_json, second_implementation, second_judge, small_packages};
use game::{keys, play, terms, trace};
use liar::{Liar, Lie};
use lockstep_kernels::conformance::encoder;
use lockstep_kernels::program::TensorKind;
use lockstep_kernels::reference::Reference;
use lockstep_model::dispute::{LayerCase, Trace, export, judge};
use lockstep_model::package::Package;
use lockstep_protocol::dispute::{
    Action, Entry, Input, MoveBody, Player, Reason, Referee, Side, SignedEntry, Tensor, Terms, What,
};
use lockstep_protocol::generation::Generation;
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Digest, DisputeId, LeaseEpoch, Millis, ModelId, Nonce, Place, Root, Seed, VerdictKind};
use lockstep_protocol::job::{Job, JobKind, RequestInput, SPEC_VERSION};
use lockstep_protocol::receipt::{Receipt, Refutation, Run, SignedReceipt, WorkerReceipt};
use lockstep_protocol::trace::root_of_rows;
use serde_json::{Value, json};
use world::World;

#[test]
fn it_gives_the_same_roots() {
    let (Some(dir), Some(w8)) = (minilm(), minilm_package()) else { return };
    let temp = tempfile::tempdir().expect("a folder");
    let w16 = temp.path().join("w16.lsp");
    run_json(lockstep().args(["import", "--json", "--weights", "w16", "--out"]).arg(&w16).arg(&dir));
    // One softmax block, and two.
    let long = "Integer addition is associative. ".repeat(50);
    let texts = ["Who computed this?", "Ein Satz, 短い文, короткая фраза", &long];
    for package in [w8, &w16] {
        let Some(mut other) = second_implementation() else { return };
        let theirs = run_json(other.arg("--package").arg(package).args(texts));
        let ours = run_json(lockstep().args(["embed", "--json", "--package"]).arg(package).args(texts));
        for key in ["model_id", "layer_roots", "integers"] {
            assert_eq!(theirs[key], ours[key], "{}: {key}", package.display());
        }
    }
}

#[test]
fn it_gives_the_golden_vectors() {
    let Some(mut other) = second_implementation() else { return };
    let output = run(other.arg("--vectors").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/vectors")));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for op in lockstep_kernels::program::OP_NAMES {
        assert!(text.contains(op), "{op} was not compared: {text}");
    }
}

/// The receipt of a known generation with one of its log-probabilities changed, signed as if it were so.
fn with_a_wrong_probability(receipt: &Receipt) -> Receipt {
    let mut output = receipt.output.clone();
    let count = receipt.words().len();
    output[count + 2] -= 1;
    let signed = receipt.worker.receipt.clone().with_logprobs(&output[count..]).sign(&Keypair::from_seed([5; 32]));
    Receipt::accepted(receipt.job.clone(), signed, output, &Keypair::from_seed([6; 32]), Millis(1))
}

#[test]
fn it_generates_the_known_answers() {
    let temp = tempfile::tempdir().expect("a folder");
    let (package, file) = (temp.path().join("w16.lsp"), temp.path().join("receipt.json"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let import = ["import", "--json", "--weights", "w16", "--name", "lockstep-tiny", "--out"];
    run_json(lockstep().args(import).arg(&package).arg(root.join("assets/tiny-llama")));
    let check = |receipt: &Receipt| {
        std::fs::write(&file, receipt.to_json()).expect("a file");
        second_implementation().map(|mut other| {
            run(other
                .arg("--package")
                .arg(&package)
                .arg("--check-receipt")
                .arg(&file)
                .arg("# Closures\n\nA closure is"))
        })
    };
    for name in ["greedy", "sampled"] {
        let stored = std::fs::read_to_string(root.join(format!("model/vectors/{name}.json"))).expect("a known answer");
        let receipt = Receipt::from_json(stored.trim()).expect("a receipt");
        let Some(output) = check(&receipt) else { return };
        let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        for says in ["\"rerun_matches\": true", "\"text_matches\": true", "\"signatures_checked\": true"] {
            assert!(output.status.success() && text.contains(says), "{name}: {says}: {text}{errors}");
        }
        if receipt.logprobs().next().is_some() {
            let lie = with_a_wrong_probability(&receipt);
            lie.check().expect("only the model tells");
            let output = check(&lie).expect("as before");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && errors.contains("the output is not the model's"), "{errors}");
        }
    }
}

/// A run of a small job, with a first layer of its own.
fn signed_run(job: &Job, worker: u8, layer: u8) -> SignedReceipt {
    let keys = Keypair::from_seed([worker; 32]);
    let roots = vec![Root::from_bytes([layer; 32]), root_of_rows(&[1, -1], 2)];
    let epoch = LeaseEpoch(worker.into());
    let run = Run { epoch, layers: 1, roots, words: Vec::new(), output_count: 2, work_units: 1_000, saturations: 0 };
    WorkerReceipt::of_run(&job.header(), run, keys.id()).expect("a run of the job").sign(&keys)
}

/// A receipt with every kind of statement: an audit that matched, one that lost a dispute, one that was taken back.
fn disputed_receipt() -> Receipt {
    let nonce = Nonce::from_bytes([2; 32]);
    let job = Job {
        spec_version: SPEC_VERSION,
        model: ModelId::from_bytes([1; 32]),
        kind: JobKind::Embedding,
        tokens: vec![101, 7592, 102],
        request: RequestInput::Text("hello".to_owned()).hash(&nonce),
        seed: Seed::from_bytes([3; 32]),
        nonce,
    };
    let (keys, time) = (Keypair::from_seed([6; 32]), Millis(1_700_000_000_000));
    let runs = [(11, 4), (12, 4), (13, 5), (14, 6)].map(|(worker, layer)| signed_run(&job, worker, layer));
    let [first, same, wrong, faulty] = runs;
    let (loser, digest, withdrawn) = (wrong.receipt.worker, wrong.receipt.digest(), faulty.receipt.digest());
    let mut receipt = Receipt::accepted(job, first, vec![1, -1], &keys, time);
    [same, wrong, faulty].into_iter().for_each(|run| receipt.add_audit(run, &keys, time));
    let (place, dispute) = (Place { point: 2, layer: 1 }, DisputeId::from_bytes([10; 32]));
    let refutation = Refutation { worker: loser, receipt: digest, place, dispute, kind: VerdictKind::Proven };
    receipt.add_refutation(&refutation, &keys, time);
    receipt.add_withdrawal(withdrawn, &keys, time);
    receipt
}

#[test]
fn it_checks_receipts_of_disputed_jobs() {
    let temp = tempfile::tempdir().expect("a folder");
    let file = temp.path().join("receipt.json");
    let check = |receipt: &Receipt| {
        std::fs::write(&file, receipt.to_json()).expect("a file");
        second_implementation().map(|mut other| run(other.arg("--check-receipt").arg(&file)))
    };
    let receipt = disputed_receipt();
    receipt.check().expect("a receipt that checks");
    let Some(output) = check(&receipt) else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("\"statements\": 6"), "{text}");
    let refused = |receipt: &Receipt| {
        assert!(receipt.check().is_err());
        check(receipt).is_some_and(|output| !output.status.success())
    };
    let (keys, time) = (Keypair::from_seed([6; 32]), Millis(1_700_000_000_000));
    // A run that is taken back twice, a dispute at a place that the job has not, a run that nobody made.
    let mut twice = receipt.clone();
    twice.add_withdrawal(receipt.audits[2].receipt.digest(), &keys, time);
    assert!(refused(&twice));
    for (run, layer) in [(receipt.audits[0].receipt.digest(), 3), (Digest::from_bytes([9; 32]), 1)] {
        let (place, dispute) = (Place { point: 2, layer }, DisputeId::from_bytes([10; 32]));
        let worker = receipt.worker.receipt.worker;
        let mut other = receipt.clone();
        other.add_refutation(
            &Refutation { worker, receipt: run, place, dispute, kind: VerdictKind::Timeout },
            &keys,
            time,
        );
        assert!(refused(&other));
    }
    // The answer itself was taken back.
    let mut withdrawn = receipt.clone();
    withdrawn.add_withdrawal(receipt.worker.receipt.digest(), &keys, time);
    assert!(withdrawn.check().expect("a receipt that checks").withdrawn);
    assert!(check(&withdrawn).is_some_and(|output| !output.status.success()));
}

/// Writes a dispute's file.
fn save(folder: &Path, name: usize, world: &World, entries: &[SignedEntry]) -> std::path::PathBuf {
    let file = folder.join(format!("{name}.dispute"));
    let bytes = export(world.package.manifest_bytes().to_vec(), entries.to_vec());
    std::fs::write(&file, bytes).expect("a file");
    file
}

/// A lie about each op of each layer, and about the exponents of what is quantized.
fn lies(world: &World) -> Vec<Lie> {
    let program = world.package.program();
    let mut lies = Vec::new();
    for (layer, declared) in program.layers.iter().enumerate() {
        for (op, kind) in declared.ops.iter().enumerate() {
            let (element, tensor) = (world.job.tokens.len() / 2, program.tensor(kind.out()));
            let cols = tensor.cols as usize;
            lies.push(Lie { layer, op, exponent: false, element: element * cols + (3 * op) % cols });
            if tensor.kind == TensorKind::Bfp {
                lies.push(Lie { layer, op, exponent: true, element });
            }
        }
    }
    lies
}

/// What both judges must say, from the report of the first.
fn summary(bytes: &[u8]) -> Value {
    let report = judge(bytes).expect("a file that holds");
    let verdict = report.verdict;
    let (reason, value) = match verdict.reason {
        Reason::Contradiction => ("contradiction", None),
        Reason::Equivocation => ("equivocation", None),
        Reason::Conceded => ("conceded", None),
        Reason::Recomputed { value } => ("recomputed", Some(value)),
        Reason::Perjury => ("perjury", None),
        Reason::Silence => ("silence", None),
    };
    let mut summary = json!({
        "dispute": report.dispute, "coordinator": report.coordinator, "players": report.players,
        "kind": verdict.kind, "losers": verdict.losers, "place": verdict.place, "reason": reason, "value": value,
        "chunk": verdict.chunk, "step": verdict.step, "element": verdict.element,
    });
    if let Some(element) = report.element {
        let more = json!({
            "step_name": element.step, "op_layer": element.layer, "op_index": element.op_index,
            "column": element.column, "claimed": element.claimed,
        });
        summary.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    }
    summary
}

/// Both judges say the same of these files. The names of the steps that were disputed.
fn same_verdicts(files: &[std::path::PathBuf]) -> Option<BTreeSet<String>> {
    let output = run(second_judge()?.args(files));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().count(), files.len());
    let mut steps = BTreeSet::new();
    for (line, file) in text.lines().zip(files) {
        let theirs: Value = serde_json::from_str(line).expect("JSON");
        let ours = summary(&std::fs::read(file).expect("a file"));
        for (key, value) in ours.as_object().expect("an object") {
            assert_eq!(&theirs[key], value, "{key} of {}: {theirs}", file.display());
        }
        steps.extend(ours["step_name"].as_str().map(str::to_owned));
    }
    Some(steps)
}

#[test]
fn its_judge_gives_the_same_verdict_about_a_lie_in_every_op() {
    if second_judge().is_none() {
        return;
    }
    let temp = tempfile::tempdir().expect("a folder");
    let mut worlds = vec![World::new(&encoder(16, 2, 24, 1, false, &[270]))];
    let job = worlds[0].job.clone();
    for path in small_packages(temp.path()) {
        let package = Package::open_checked(&path, NonZeroUsize::MIN).expect("a package");
        let program = package.program();
        let tokens: Vec<_> = (0..program.max_positions.min(9)).map(|i| i * 7 % program.vocab_size).collect();
        let job = Job { model: package.model_id(), tokens, ..job.clone() };
        worlds.push(World { package, job });
    }
    let mut files = Vec::new();
    for world in &worlds {
        for (number, lie) in lies(world).into_iter().enumerate() {
            let liar = Liar(lie);
            let claimant_lies = number % 2 == 0;
            let honest = &Reference as &dyn lockstep_kernels::backend::Backend;
            let backends = if claimant_lies { [&liar, honest] } else { [honest, &liar] };
            // Some changes are rounded away; then there is nothing to dispute.
            let Some(terms) = terms(world, backends) else { continue };
            let place = terms.check().expect("terms that check").place;
            let [mut a, mut b] = backends.map(|backend| trace(world, backend, place));
            let played = play(world, &terms, [&mut a, &mut b]);
            files.push(save(temp.path(), files.len(), world, &played.entries));
        }
    }
    for generation in decoder::settings() {
        files.extend(generation_files(temp.path(), files.len(), generation));
    }
    files.extend(logprobs_files(temp.path(), files.len()));
    let Some(steps) = same_verdicts(&files) else { return };
    for part in ["maxima", "sums", "block_likeliest", "likeliest", "out"] {
        assert!(steps.contains(&format!("logprobs.{part}")), "{part} was not disputed: {steps:?}");
    }
    let ops: BTreeSet<_> = steps.iter().filter_map(|step| step.split('.').next()).collect();
    for op in lockstep_kernels::program::OP_NAMES {
        assert!(ops.contains(op), "{op} was not disputed: {steps:?}");
    }
}

/// Disputes about a generation, a few for every op: one in three of the lies, where they show.
fn generation_files(folder: &Path, first: usize, generation: Generation) -> Vec<std::path::PathBuf> {
    let world = decoder::world(generation);
    let mut files = Vec::new();
    for (number, lie) in decoder::lies(&world).into_iter().enumerate().step_by(3) {
        let (liar, honest) = (Liar(lie), &Reference as &dyn lockstep_kernels::backend::Backend);
        let backends = if number % 2 == 0 { [&liar, honest] } else { [honest, &liar] };
        let Some(terms) = decoder::terms(&world, backends) else { continue };
        let ground = terms.check().expect("terms that check");
        let [mut a, mut b] = backends.map(|backend| decoder::trace(&world, backend, &ground));
        let played = play(&world, &terms, [&mut a, &mut b]);
        files.push(save(folder, first + files.len(), &world, &played.entries));
    }
    files
}

/// Disputes about log-probabilities: every value of a row, and each of the steps that it is made by.
fn logprobs_files(folder: &Path, first: usize) -> Vec<std::path::PathBuf> {
    let asked = Generation { logprobs: 4, ..decoder::settings()[0].clone() };
    let (world, honest) = (decoder::world(asked), &Reference as &dyn lockstep_kernels::backend::Backend);
    let mut files = Vec::new();
    let mut dispute = |index: usize, column: usize, step: Option<usize>| {
        let changes = [(index, column, -123 - column as i32)];
        let of: [decoder::Changes<'_>; 2] = if column.is_multiple_of(2) { [&changes, &[]] } else { [&[], &changes] };
        let terms = decoder::changed_terms(&world, [honest; 2], of).expect("log-probabilities that differ");
        let ground = terms.check().expect("terms that check");
        let mut traces = of.map(|changes| decoder::changed_trace(&world, honest, &ground, changes));
        let case = LayerCase::of_terms(world.package.manifest(), &terms).expect("a case");
        let plan = case.plan(0);
        let mut steps = plan.steps().iter().enumerate().filter(|(_, step)| step.of_logprobs);
        if let Some((step, _)) = step.and_then(|step| steps.nth(step)) {
            assert!(traces[column % 2].alter(0, Tensor::Step(step as u16), 0, -77));
        }
        let [a, b] = &mut traces;
        let played = play(&world, &terms, [a, b]);
        files.push(save(folder, first + files.len(), &world, &played.entries));
    };
    (0..7).for_each(|column| dispute(column % 3, column, None));
    (0..4).for_each(|step| dispute(1, step, Some(step)));
    files
}

/// How a side ends a dispute before an element is found.
#[derive(Clone, Copy)]
enum End {
    Silence,
    Equivocation,
    Contradiction,
    Concession,
}

/// A dispute that ends so in the second round. The coordinator was down for a while before.
fn ended(world: &World, terms: &Terms, traces: &mut [Trace; 2], cheat: Side, end: End) -> Vec<SignedEntry> {
    let case = LayerCase::of_terms(world.package.manifest(), terms).expect("a case");
    let (mut referee, out) = Referee::open(terms.clone(), Millis(1_000), keys(9), &case).expect("a dispute");
    let (mut now, mut actions) = (Millis(2_000), out.actions);
    actions.extend(referee.handle(now, Input::Downtime { ms: 500 }, &case).actions);
    while referee.verdict().is_none() {
        if actions.is_empty() {
            now = referee.next_wake().expect("somebody is waited for");
            actions = referee.handle(now, Input::Tick, &case).actions;
        }
        for action in std::mem::take(&mut actions) {
            let Action::Ask { side, .. } = action else { continue };
            let ask = referee.ask(world.job.clone(), side);
            let player = Player::new(terms, side, &ask.moves, &case).expect("a player");
            let honest = player.next(&mut traces[side.index()], &case).expect("a move");
            let mut other = honest.clone();
            if let MoveBody::Descend { values } | MoveBody::Ops { values } = &mut other {
                values[0][0] ^= 1;
            }
            let cheats = side == cheat && player.round() == 1;
            let bodies = match end {
                _ if !cheats => vec![honest],
                End::Silence => vec![],
                End::Equivocation => vec![honest, other],
                End::Contradiction => vec![other],
                End::Concession => vec![MoveBody::Concede],
            };
            for body in bodies {
                now.0 += 7;
                let signed = player.made(body).sign(&keys(side.index() as u8 + 1));
                actions.extend(referee.handle(now, Input::Move(signed), &case).actions);
            }
        }
    }
    referee.entries().to_vec()
}

/// The transcript with a credit between the move that ended the game and the verdict, where only the verdict may be.
fn with_a_late_credit(entries: &[SignedEntry]) -> Vec<SignedEntry> {
    let (verdict, before) = entries.split_last().expect("a verdict");
    let mut entries = before.to_vec();
    for what in [What::Credited { ms: 1 }, verdict.entry.what.clone()] {
        let last = &entries.last().expect("a beginning").entry;
        let (dispute, index, previous, at) = (last.dispute, last.index + 1, last.digest(), verdict.entry.at);
        entries.push(Entry { dispute, index, previous, at, what }.sign(&keys(9)));
    }
    entries
}

#[test]
fn its_judge_gives_the_same_verdict_about_every_other_end_and_refuses_files_with_a_flipped_bit() {
    if second_judge().is_none() {
        return;
    }
    let temp = tempfile::tempdir().expect("a folder");
    // Rows of more than 256 chunks in all, so that two rounds descend.
    let world = World::new(&encoder(16, 2, 24, 1, false, &[270]));
    let liar = Liar(Lie { layer: 1, op: 2, exponent: false, element: 100 });
    let terms = terms(&world, [&Reference, &liar]).expect("a dispute");
    let place = terms.check().expect("terms that check").place;
    let mut traces = [trace(&world, &Reference, place), trace(&world, &liar, place)];
    let ends = [End::Silence, End::Equivocation, End::Contradiction, End::Concession];
    let mut files = Vec::new();
    for (cheat, end) in Side::BOTH.into_iter().flat_map(|side| ends.map(|end| (side, end))) {
        files.push(save(temp.path(), files.len(), &world, &ended(&world, &terms, &mut traces, cheat, end)));
    }
    let [a, b] = &mut traces;
    let played = play(&world, &terms, [a, b]);
    files.push(save(temp.path(), files.len(), &world, &played.entries));
    if same_verdicts(&files).is_none() {
        return;
    }
    let kinds: BTreeSet<_> =
        files.iter().map(|file| summary(&std::fs::read(file).expect("a file"))["reason"].to_string()).collect();
    assert_eq!(kinds.len(), ends.len() + 1, "{kinds:?}");
    let bytes = std::fs::read(files.last().expect("a file")).expect("a file");
    let mut refused: Vec<_> = (0..bytes.len())
        .step_by(bytes.len() / 60)
        .map(|at| {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            assert!(judge(&changed).is_err());
            let file = temp.path().join(format!("flipped-{at}"));
            std::fs::write(&file, changed).expect("a file");
            file
        })
        .collect();
    let late = save(temp.path(), files.len(), &world, &with_a_late_credit(&played.entries));
    assert!(judge(&std::fs::read(&late).expect("a file")).is_err());
    refused.push(late);
    let Some(mut other) = second_judge() else { return };
    let output = run(other.args(&refused));
    assert!(!output.status.success() && output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), refused.len());
}
