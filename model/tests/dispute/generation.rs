//! Disputes about words and what they were drawn from.

use std::collections::BTreeSet;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::conformance::{DecoderShape, decoder};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::TensorKind;
use lockstep_model::dispute::{Trace, judge};
use lockstep_protocol::dispute::{Ground, Held, Reason, Side, Signed, Terms, VerdictKind};
use lockstep_protocol::generation::Generation;
use lockstep_protocol::job::JobKind;

use crate::file;
use crate::game::{keys, play};
use crate::liar::{Liar, Lie};
use crate::world::World;

const PROMPT: usize = 5;

fn world(generation: Generation) -> World {
    let shape = DecoderShape { head_norms: true, ..DecoderShape::SMALL };
    let mut case = decoder(shape, &[PROMPT]);
    case.name = "decoder".into();
    World::of_kind(&case, JobKind::Generation(Box::new(generation)))
}

/// Everything that may be asked of sampling, and the likeliest token with nothing besides.
fn settings() -> [Generation; 2] {
    let every = Generation {
        temperature: 15_000,
        top_k: 50,
        top_p: 9_900,
        min_p: 10,
        repetition_penalty: 10_500,
        frequency_penalty: 1_000,
        logit_bias: vec![(3, 5_000)],
        stop_strings: vec![b"bababababa".to_vec()],
        ..Generation::greedy(6)
    };
    [every, Generation::greedy(6)]
}

/// The terms between two runs; none where they do not differ.
fn terms(world: &World, backends: [&dyn Backend; 2]) -> Option<Terms> {
    let runs = [0, 1].map(|i| world.generation(backends[i], &keys(i as u8 + 1), i as u64 + 1));
    let runs = runs.map(|(receipt, roots, words)| (Signed::Receipt(receipt), roots, words));
    let held = [0, 1].map(|i| Held { signed: &runs[i].0, roots: &runs[i].1, words: &runs[i].2 });
    Terms::of_runs(keys(9).id(), world.job.header(), world.layers(), held, [600_000; 2]).ok()
}

fn trace(world: &World, backend: &dyn Backend, ground: &Ground) -> Trace {
    let (program, params) = (world.package.program(), world.package.params());
    let mut executor = backend.load(program.clone(), params.clone()).unwrap();
    Trace::of_job(&mut *executor, program, params, &world.job, &ground.words, ground.place).unwrap()
}

/// Lies at positions of the prompt and of what was generated.
fn lies(world: &World) -> Vec<Lie> {
    let program = world.package.program();
    let mut lies = Vec::new();
    for (layer, declared) in program.layers.iter().enumerate() {
        for (op, kind) in declared.ops.iter().enumerate() {
            let tensor = program.tensor(kind.out());
            let cols = tensor.cols as usize;
            let is_last = layer + 1 == program.layers.len();
            // In the last layer only a changed word shows.
            let rows = if is_last { PROMPT - 1..PROMPT + 4 } else { PROMPT..PROMPT + 2 };
            for row in rows {
                for col in (0..cols).step_by(if is_last { cols.div_ceil(9) } else { cols }) {
                    lies.push(Lie { layer, op, exponent: false, element: row * cols + (row + 3 * op + col) % cols });
                }
                if tensor.kind == TensorKind::Bfp {
                    lies.push(Lie { layer, op, exponent: true, element: row });
                }
            }
        }
    }
    lies
}

/// Plays a lie; none where it changed nothing that is committed.
fn found(world: &World, honest: &dyn Backend, lie: Lie, liar_is: Side) -> Option<()> {
    let liar = Liar(lie);
    let backends: [&dyn Backend; 2] = if liar_is == Side::Claimant { [&liar, honest] } else { [honest, &liar] };
    let terms = terms(world, backends)?;
    let ground = terms.check().unwrap();
    assert_eq!(usize::from(ground.place.layer), lie.layer.max(1), "{lie:?}");
    let [mut first, mut second] = backends.map(|backend| trace(world, backend, &ground));
    for (trace, side) in [(&first, Side::Claimant), (&second, Side::Challenger)] {
        assert!(trace.agrees_with(terms.claim(side).roots_at(ground.index).unwrap()), "{lie:?} {side:?}");
    }
    let played = play(world, &terms, [&mut first, &mut second]);
    let report = judge(&file(world, &played)).unwrap();
    assert_eq!(report.verdict, played.verdict);
    assert_eq!(played.verdict.losers, liar_is.alone(), "{lie:?} {:?}", played.verdict);
    assert_eq!(played.verdict.kind, VerdictKind::Proven);
    assert!(matches!(played.verdict.reason, Reason::Recomputed { .. }), "{lie:?} {:?}", played.verdict);
    let element = report.element.as_ref().unwrap();
    assert_eq!((element.layer, element.op_index), (lie.layer, lie.op), "{lie:?} {element:?}");
    assert!((3..=6).contains(&report.rounds), "{} rounds", report.rounds);
    assert!(report.referee_bytes <= 128 << 10, "{} bytes", report.referee_bytes);
    Some(())
}

#[test]
fn a_liar_about_any_op_of_a_generation_is_found_at_that_op() {
    let cpu = Cpu::new(None, 1).unwrap();
    let mut ops = BTreeSet::new();
    for generation in settings() {
        let world = world(generation);
        for (i, lie) in lies(&world).into_iter().enumerate() {
            let liar_is = Side::BOTH[i % 2];
            // Some changes are rounded away; then there is nothing to dispute.
            if found(&world, &cpu, lie, liar_is).is_some() {
                ops.insert((lie.layer, lie.op));
            }
        }
    }
    let program = world(Generation::greedy(1)).package.program().clone();
    let all = (0..).zip(&program.layers).flat_map(|(l, layer)| (0..layer.ops.len()).map(move |op| (l, op)));
    let missing: Vec<_> = all.filter(|op| !ops.contains(op)).collect();
    assert!(missing.is_empty(), "never lied about: {missing:?}");
}
