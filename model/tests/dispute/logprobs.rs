//! Disputes about log-probabilities, where all roots and words are the same.

use std::collections::BTreeSet;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::Op;
use lockstep_model::dispute::{Below, CaseError, LayerCase, Report, Trace, TraceError, judge};
use lockstep_protocol::dispute::{Evidence, Reason, Side, Tensor, Terms, VerdictKind};
use lockstep_protocol::generation::Generation;
use lockstep_protocol::ids::Place;
use lockstep_protocol::logprobs::rows;

use crate::decoder::{changed_terms, changed_trace, settings, trace, world};
use crate::file;
use crate::game::{keys, play};
use crate::liar::{Liar, Lie};
use crate::world::World;

fn asking(logprobs: u8) -> World {
    world(Generation { logprobs, ..settings()[0].clone() })
}

/// What was signed honestly at a point.
fn row(world: &World, backend: &dyn Backend, index: usize) -> Vec<i32> {
    let (.., values) = world.generation(backend, &keys(1), 1, |_| {});
    rows(&values, world.job.kind.generation().unwrap()).nth(index).unwrap().values().to_vec()
}

fn played(world: &World, terms: &Terms, traces: [&mut Trace; 2], liar: Side) -> Report {
    let played = play(world, terms, traces);
    let report = judge(&file(world, &played)).unwrap();
    assert_eq!(report.verdict, played.verdict);
    assert_eq!((played.verdict.losers, played.verdict.kind), (liar.alone(), VerdictKind::Proven));
    assert!(matches!(played.verdict.reason, Reason::Recomputed { .. }), "{:?}", played.verdict);
    assert!(report.is_of_logprobs && report.layer_name == "log-probabilities" && report.row == Some(0));
    assert!((2..=6).contains(&report.rounds) && report.referee_bytes <= 128 << 10, "{report:?}");
    report
}

/// At the first, a middle and the last point, with any number of likely tokens: each value, each token, and two of them in
/// the other order.
#[test]
fn whoever_says_another_log_probability_is_found_at_that_value() {
    let cpu = Cpu::new(None, 1).unwrap();
    let honest = &cpu as &dyn Backend;
    let mut number = 0;
    for logprobs in [1, 4, 21] {
        let world = asking(logprobs);
        let (.., words, _) = world.generation(honest, &keys(1), 1, |_| {});
        for index in [0, words.len() / 2, words.len() - 1] {
            let right = row(&world, honest, index);
            let width = right.len();
            let single = (0..width).step_by(3).map(|column| vec![(index, column, right[column] ^ 1)]);
            let swapped = (width > 3).then(|| vec![(index, 1, right[3]), (index, 3, right[1])]);
            for changes in single.chain(swapped) {
                let liar = Side::BOTH[number % 2];
                number += 1;
                let of = |side: Side| if side == liar { &changes[..] } else { &[] };
                let terms = changed_terms(&world, [honest; 2], Side::BOTH.map(of)).unwrap();
                let ground = terms.check().unwrap();
                assert_eq!((ground.index, ground.place.layer), (index, world.layers() + 2));
                let [mut a, mut b] = Side::BOTH.map(|side| changed_trace(&world, honest, &ground, of(side)));
                for (trace, side) in [(&a, Side::Claimant), (&b, Side::Challenger)] {
                    assert!(trace.agrees_with(&terms.signed(side, &ground)));
                }
                let report = played(&world, &terms, [&mut a, &mut b], liar);
                let element = report.element.unwrap();
                assert_eq!((element.step.as_str(), element.row), ("logprobs.out", 0));
                assert_eq!(element.column, changes[0].1 as u64);
                let Reason::Recomputed { value } = report.verdict.reason else { panic!("it was recomputed") };
                assert_eq!(value, i64::from(right[changes[0].1]));
            }
        }
    }
}

/// Somebody whose logits, or what they are made of, are wrong where no word shows it.
#[test]
fn whoever_has_other_logits_is_found_at_the_op_that_made_them() {
    let cpu = Cpu::new(None, 1).unwrap();
    let world = asking(21);
    let program = world.package.program();
    let layer = program.layers.len() - 1;
    let mut found = BTreeSet::new();
    for (op, kind) in program.layers[layer].ops.iter().enumerate() {
        let cols = program.tensor(kind.out()).cols as usize;
        for (number, element) in (4 * cols..9 * cols).step_by(7).enumerate() {
            let (liar_is, liar) = (Side::BOTH[number % 2], Liar(Lie { layer, op, exponent: false, element }));
            let honest = &cpu as &dyn Backend;
            let backends = if liar_is == Side::Claimant { [&liar, honest] } else { [honest, &liar] };
            let Some(terms) = changed_terms(&world, backends, [&[], &[]]) else { continue };
            let ground = terms.check().unwrap();
            if usize::from(ground.place.layer) != layer + 1 {
                continue;
            }
            let [mut a, mut b] = backends.map(|backend| trace(&world, backend, &ground));
            let element = played(&world, &terms, [&mut a, &mut b], liar_is).element.unwrap();
            assert_eq!((element.layer, element.op_index), (layer, op), "{element:?}");
            found.insert(op);
        }
    }
    let samples = |op: &Op| matches!(op, Op::Sample { .. });
    let before = program.layers[layer].ops.iter().position(samples).unwrap();
    assert_eq!(found, (0..before).collect(), "never found: others");
}

/// Somebody who follows a wrong maximum, sum or list faithfully to the row.
#[test]
fn whoever_follows_a_wrong_step_is_found_at_that_step() {
    let cpu = Cpu::new(None, 1).unwrap();
    let honest = &cpu as &dyn Backend;
    let world = asking(3);
    let right = row(&world, honest, 1);
    let changes = [(1, 2, right[2] - 1)];
    let terms = changed_terms(&world, [honest; 2], [&changes, &[]]).unwrap();
    let ground = terms.check().unwrap();
    let case = LayerCase::of_terms(world.package.manifest(), &terms).unwrap();
    let plan = case.plan(0);
    let of_logprobs = plan.steps().iter().enumerate().filter(|(_, step)| step.of_logprobs);
    let mut names = Vec::new();
    for (step, shape) in of_logprobs {
        let [mut a, mut b] = [&changes[..], &[]].map(|changes| changed_trace(&world, honest, &ground, changes));
        let name = shape.name(case.program());
        if name != "logprobs.out" {
            assert!(a.alter(0, Tensor::Step(step as u16), 0, -77));
        }
        let element = played(&world, &terms, [&mut a, &mut b], Side::Claimant).element.unwrap();
        assert_eq!(element.step, name);
        names.push(name);
    }
    let expected = ["maxima", "sums", "block_likeliest", "likeliest", "out"].map(|part| format!("logprobs.{part}"));
    assert_eq!(names, expected);
}

/// From the kept output of layer L, a trace says what it says from the tokens.
#[test]
fn a_trace_of_log_probabilities_goes_on_from_the_last_layer() {
    let cpu = Cpu::new(None, 1).unwrap();
    let world = asking(5);
    let (program, params) = (world.package.program(), world.package.params());
    let (_, roots, words, values) = world.generation(&cpu, &keys(1), 1, |_| {});
    let (per_point, layer) = (program.layers.len() - 1, program.layers.len() as u16);
    let load = || cpu.load(program.clone(), params.clone()).unwrap();
    for (index, signed) in roots.chunks_exact(per_point).enumerate() {
        let place = Place { point: (world.job.tokens.len() - 1 + index) as u32, layer };
        let whole = Trace::of_job(&mut *load(), program, params.clone(), &world.job, &words, place).unwrap();
        let root = rows(&values, world.job.kind.generation().unwrap()).nth(index).unwrap().root();
        assert_eq!((&whole.roots()[..per_point], whole.roots().last()), (signed, Some(&root)));
        let kept = crate::generation::rows_of(&world, &words, per_point - 1, &mut *load());
        let resume = |rows: &[i32]| {
            let (inputs, below) = ((&world.job, &words[..]), Below { rows, signed });
            Trace::resume(&mut *load(), program, params.clone(), inputs, place, below).unwrap()
        };
        let (mut whole, mut resumed) = (whole, resume(&kept).unwrap());
        assert_eq!(resumed.roots(), whole.roots());
        let case = LayerCase::new(world.package.manifest(), &world.job.header(), place).unwrap();
        for step in 0..case.plan(0).steps().len() as u16 {
            let of = |trace: &mut Trace| trace.frontier(Some(0), Tensor::Step(step), 30, 0..1).unwrap();
            assert_eq!(of(&mut resumed), of(&mut whole), "step {step}");
        }
        let mut other = kept.clone();
        other[3] ^= 1;
        assert!(resume(&other).is_none());
        // So does who had the layers from 2 on, from the rows that it was handed.
        let handed = crate::generation::rows_of(&world, &words, 1, &mut *load());
        let (inputs, below) = ((&world.job, &words[..]), Below { rows: &handed, signed });
        let received = Trace::of_received(&mut *load(), program, params.clone(), inputs, place, (2, below)).unwrap();
        assert_eq!(received.unwrap().roots(), whole.roots());
        // The point's own word is one of what they follow from.
        let few = Trace::of_job(&mut *load(), program, params.clone(), &world.job, &words[..index], place);
        assert!(matches!(few, Err(TraceError::Words { .. })));
    }
}

#[test]
fn a_job_that_asks_for_none_has_no_place_for_them() {
    let world = asking(0);
    let place = Place { point: world.job.tokens.len() as u32 - 1, layer: world.layers() + 2 };
    let refused = LayerCase::new(world.package.manifest(), &world.job.header(), place);
    assert!(matches!(refused, Err(CaseError::Place { .. })));
}
