//! Disputes over tiny models: whoever altered one element of one op is found at that op, and the file of the dispute
//! proves it to anybody.

mod decoder;
mod game;
mod generation;
mod liar;
mod logprobs;
mod scan;
mod world;

use std::collections::BTreeSet;

use game::{Played, keys, play, terms, trace};
use liar::{Liar, Lie};
use lockstep_kernels::backend::Backend;
use lockstep_kernels::conformance::encoder;
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::{Rows, TensorKind};
use lockstep_kernels::reference::Reference;
use lockstep_kernels::value::{Batch, Value};
use lockstep_model::dispute::{Below, LayerCase, Report, Trace, export, judge};
use lockstep_protocol::commitment::Geometry;
use lockstep_protocol::dispute::{Claim, Evidence, Reason, Side, Source, Tensor, Terms, VerdictKind};
use lockstep_protocol::ids::Root;
use lockstep_protocol::limits::MAX_DISPUTE_FILE_BYTES;
use lockstep_protocol::openings::ChunkRange;
use lockstep_protocol::receipt::SignedReceipt;
use world::World;

fn geometry(world: &World) -> Geometry {
    world.job.header().geometry(world.layers()).unwrap()
}

fn file(world: &World, played: &Played) -> Vec<u8> {
    export(world.package.manifest_bytes().to_vec(), played.entries.clone())
}

/// Lies about every op of every layer, at the first, a middle and the last row of its output.
fn lies(world: &World) -> Vec<Lie> {
    let program = world.package.program();
    let mut lies = Vec::new();
    for (layer, declared) in program.layers.iter().enumerate() {
        for (op, kind) in declared.ops.iter().enumerate() {
            let tensor = program.tensor(kind.out());
            let rows = if tensor.rows == Rows::Position { world.job.tokens.len() } else { 1 };
            let cols = tensor.cols as usize;
            let lie = |exponent, element| Lie { layer, op, exponent, element };
            for row in BTreeSet::from([0, rows / 2, rows - 1]) {
                lies.push(lie(false, row * cols + (row + 3 * op) % cols));
                if tensor.kind == TensorKind::Bfp {
                    lies.push(lie(true, row));
                }
            }
        }
    }
    lies
}

/// Plays a lie in one role; none where it changed nothing that is committed.
fn found(world: &World, honest: &dyn Backend, lie: Lie, liar_is: Side) -> Option<()> {
    let liar = Liar(lie);
    let backends: [&dyn Backend; 2] = if liar_is == Side::Claimant { [&liar, honest] } else { [honest, &liar] };
    let terms = terms(world, backends)?;
    let place = terms.check().unwrap().place;
    assert_eq!(usize::from(place.layer), lie.layer.max(1), "{lie:?}");
    let [mut first, mut second] = backends.map(|backend| trace(world, backend, place));
    let claims = [&terms.claimant, &terms.challenger].map(Claim::last_roots);
    for (trace, own, other) in [(&first, claims[0], claims[1]), (&second, claims[1], claims[0])] {
        assert!(trace.agrees_with(own) && !trace.agrees_with(other));
    }
    let played = play(world, &terms, [&mut first, &mut second]);
    let report = judge(&file(world, &played)).unwrap();
    check(&terms, &played, &report, lie, liar_is);
    Some(())
}

fn check(terms: &Terms, played: &Played, report: &Report, lie: Lie, liar_is: Side) {
    let verdict = played.verdict;
    assert_eq!(verdict.losers, liar_is.alone(), "{lie:?} {verdict:?}");
    assert_eq!((verdict.kind, report.verdict, report.dispute), (VerdictKind::Proven, verdict, terms.id()));
    assert!(played.opened());
    let element = report.element.as_ref().unwrap();
    assert_eq!((element.layer, element.op_index), (lie.layer, lie.op), "{lie:?} {element:?}");
    let Reason::Recomputed { value } = verdict.reason else { panic!("{lie:?} {verdict:?}") };
    assert_eq!(element.claimed[liar_is.other().index()], Some(value));
    assert!(element.claimed[liar_is.index()].is_some_and(|claimed| claimed != value));
    assert!((3..=6).contains(&report.rounds), "{} rounds", report.rounds);
    assert!(report.referee_bytes <= 128 << 10, "{} bytes", report.referee_bytes);
    assert!(report.opened < report.ended);
}

#[test]
fn a_liar_about_any_op_is_found_at_that_op_in_both_roles_and_the_judge_agrees() {
    let cpu = Cpu::new(None, 1).unwrap();
    for (case, honest) in
        [(encoder(16, 2, 24, 2, false, &[270]), &cpu as &dyn Backend), (encoder(264, 4, 40, 1, true, &[5]), &Reference)]
    {
        let world = World::new(&case);
        let mut ops = BTreeSet::new();
        for lie in lies(&world) {
            for liar_is in Side::BOTH {
                // Some changes are rounded away; then there is nothing to dispute.
                if found(&world, honest, lie, liar_is).is_some() {
                    ops.insert((lie.layer, lie.op));
                }
            }
        }
        let all = case.program.layers.iter().map(|layer| layer.ops.len()).sum::<usize>();
        assert_eq!(ops.len(), all, "every op was lied about");
    }
}

/// A run with other roots from one layer on, signed.
fn with_root(world: &World, layer: u16, root: Root, number: u8) -> SignedReceipt {
    let mut receipt = world.run(&Reference, &keys(number), number.into()).receipt;
    receipt.roots[usize::from(layer) - 1] = root;
    if usize::from(layer) == receipt.roots.len() {
        receipt.output_root = root;
    }
    receipt.head = geometry(world).head(receipt.job, receipt.epoch, &receipt.roots).unwrap();
    receipt.sign(&keys(number))
}

#[test]
fn who_contradicts_himself_is_found_at_the_step_that_he_altered() {
    let world = World::new(&encoder(16, 2, 24, 1, false, &[270]));
    for (layer, row) in [(1, 7), (2, 0)] {
        let place = geometry(&world).places().nth(usize::from(layer) - 1).unwrap();
        let case = LayerCase::new(world.package.manifest(), &world.job.header(), place).unwrap();
        let last = case.plan(row).steps().len() - 1;
        for step in 0..=last {
            let (mut truth, mut lying) = (trace(&world, &Reference, place), trace(&world, &Reference, place));
            // The output must differ, or there is no dispute.
            assert!(lying.alter(row, Tensor::Step(last as u16), 5, 77));
            let element = if step == last { 5 } else { 0 };
            assert!(step == last || lying.alter(row, Tensor::Step(step as u16), element, -12_345));
            let claimant = world.run(&Reference, &keys(1), 1);
            let challenger = with_root(&world, layer, *lying.roots().last().unwrap(), 2);
            let claims = [claimant, challenger].map(Claim::from);
            let job = world.job.header();
            let terms = Terms::between(keys(9).id(), job, 1, claims, Vec::new(), [600_000; 2]).unwrap();
            let played = play(&world, &terms, [&mut truth, &mut lying]);
            let verdict = played.verdict;
            assert_eq!((verdict.step, verdict.element), (Some(step as u16), Some(element)));
            assert_eq!(verdict.losers, [false, true]);
            assert_eq!(judge(&file(&world, &played)).unwrap().verdict, verdict);
        }
        let mut trace = trace(&world, &Reference, place);
        assert!(!trace.alter(row, Tensor::Step(last as u16 + 1), 0, 0));
        assert!(!trace.alter(row, Tensor::Step(0), u64::MAX, 0));
        assert!(!trace.alter(u64::MAX, Tensor::Step(0), 0, 0));
    }
}

/// From the output of the layer below a trace says the same as from the tokens; from anything else there is none.
#[test]
fn a_trace_from_the_layer_below_is_that_of_the_run() {
    let cpu = Cpu::new(None, 1).unwrap();
    let world = World::new(&encoder(16, 2, 24, 2, false, &[270]));
    let (program, params) = (world.package.program(), world.package.params());
    let mut whole = cpu.load(program.clone(), params.clone()).unwrap();
    whole.begin(&Batch::single(world.job.tokens.clone())).unwrap();
    whole.run_layer(0).unwrap();
    for place in geometry(&world).places() {
        let (layer, mut truth) = (usize::from(place.layer), trace(&world, &cpu, place));
        let Value::I32(rows) = whole.read(program.layers[layer - 1].output).unwrap() else { panic!("rows are i32") };
        whole.run_layer(layer).unwrap();
        let signed = truth.roots().to_vec();
        let resume = |rows: &[i32], signed: &[Root]| {
            let (mut executor, below) = (cpu.load(program.clone(), params.clone()).unwrap(), Below { rows, signed });
            Trace::resume(&mut *executor, program, params.clone(), (&world.job, &[]), place, below).unwrap()
        };
        let Some(mut resumed) = resume(&rows, &signed) else {
            assert_eq!(layer, 1, "only the first layer starts from the tokens");
            continue;
        };
        assert_eq!(resumed.roots(), truth.roots());
        let steps = LayerCase::new(world.package.manifest(), &world.job.header(), place).unwrap().plan(0).steps().len();
        for step in 0..steps as u16 {
            for tensor in [Tensor::Step(step), Tensor::Output] {
                let values = [&mut resumed, &mut truth].map(|trace| trace.frontier(Some(0), tensor, 30, 0..1).unwrap());
                assert_eq!(values[0], values[1]);
            }
        }
        let open = |trace: &mut Trace| trace.open(0, Source::Input, ChunkRange { first: 0, count: 1 }).unwrap();
        assert_eq!(open(&mut resumed), open(&mut truth));
        let mut other = rows.clone();
        other[5] ^= 1;
        assert!(resume(&other, &signed).is_none() && resume(&rows[1..], &signed).is_none());
        assert!(resume(&rows, &signed[1..]).is_none() && resume(&rows, &[]).is_none());
    }
}

#[test]
fn a_byte_that_was_changed_anywhere_in_a_file_is_an_error() {
    let world = World::new(&encoder(16, 2, 24, 1, false, &[40]));
    let lie = Lie { layer: 1, op: 2, exponent: false, element: 100 };
    let liar = Liar(lie);
    let terms = terms(&world, [&Reference, &liar]).unwrap();
    let place = terms.check().unwrap().place;
    let mut traces = [trace(&world, &Reference, place), trace(&world, &liar, place)];
    let [a, b] = &mut traces;
    let bytes = file(&world, &play(&world, &terms, [a, b]));
    assert!(bytes.len() < MAX_DISPUTE_FILE_BYTES && judge(&bytes).is_ok());
    for at in (0..bytes.len()).step_by(89).chain(bytes.len() - 200..bytes.len()) {
        for flip in [1, 0x80] {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            assert!(judge(&changed).is_err(), "byte {at} of {}", bytes.len());
        }
    }
    for len in (0..bytes.len()).step_by(1_009) {
        assert!(judge(&bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
    }
    assert!(judge(&[&bytes[..], &[0]].concat()).is_err());
}
