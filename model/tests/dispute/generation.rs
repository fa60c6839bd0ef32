//! Disputes about words and what they were drawn from.

use std::collections::BTreeSet;

use lockstep_kernels::backend::{Backend, Executor};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::sampling::split_word;
use lockstep_kernels::value::{Batch, Value};
use lockstep_model::dispute::{Below, LayerCase, Trace, judge};
use lockstep_protocol::dispute::{Evidence, Reason, Side, Tensor, VerdictKind};
use lockstep_protocol::generation::Generation;
use lockstep_protocol::ids::{Place, Root};

use crate::decoder::{lies, settings, terms, trace, world};
use crate::file;
use crate::game::{keys, play};
use crate::liar::{Liar, Lie};
use crate::world::World;

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

/// From the kept output of the layer below, a trace of any layer says what it says from the tokens.
#[test]
fn a_trace_of_a_generation_from_the_layer_below_is_that_of_the_run() {
    let cpu = Cpu::new(None, 1).unwrap();
    let world = world(settings()[0].clone());
    let (program, params) = (world.package.program(), world.package.params());
    let (_, roots, words, _) = world.generation(&cpu, &keys(1), 1, |_| {});
    let of_point = program.layers.len() - 1;
    for (index, signed) in roots.chunks_exact(of_point).enumerate() {
        let point = (world.job.tokens.len() - 1 + index) as u32;
        for layer in 1..=of_point as u16 {
            let load = || cpu.load(program.clone(), params.clone()).unwrap();
            let (place, inputs) = (Place { point, layer }, (&world.job, &words[..]));
            let whole = Trace::of_job(&mut *load(), program, params.clone(), &world.job, &words, place);
            let mut truth = whole.unwrap();
            assert!(truth.agrees_with(signed));
            let rows = rows_of(&world, &words, usize::from(layer) - 1, &mut *load());
            let resume = |rows: &[i32], signed: &[Root]| {
                let below = Below { rows, signed };
                Trace::resume(&mut *load(), program, params.clone(), inputs, place, below).unwrap()
            };
            let Some(mut resumed) = resume(&rows, signed) else {
                assert_eq!(layer, 1, "only the first layer starts from the tokens");
                continue;
            };
            assert_eq!(resumed.roots(), truth.roots());
            let case = LayerCase::new(world.package.manifest(), &world.job.header(), place).unwrap();
            // The row of the point, and where there are more, that of the first position.
            let last = if layer == of_point as u16 { 0 } else { u64::from(point) };
            for chunk in [0, last] {
                for step in 0..case.plan(chunk).steps().len() as u16 {
                    let values = [&mut resumed, &mut truth]
                        .map(|trace| trace.frontier(Some(chunk), Tensor::Step(step), 30, 0..1).unwrap());
                    assert_eq!(values[0], values[1], "{place:?} chunk {chunk} step {step}");
                }
            }
            let mut other = rows.clone();
            other[5] ^= 1;
            let positions = world.job.tokens.len() + words.len() - 1;
            let few = &rows[..rows.len() / positions * (point as usize + 1) - 1];
            assert!(resume(&other, signed).is_none() && resume(few, signed).is_none());
        }
    }
}

/// The output of a layer over all positions of the run.
pub fn rows_of(world: &World, words: &[u32], layer: usize, executor: &mut dyn Executor) -> Vec<i32> {
    let program = world.package.program();
    let inputs = words[..words.len() - 1].iter().map(|word| split_word(*word).0);
    executor.begin(&Batch::single(world.job.tokens.iter().copied().chain(inputs).collect())).unwrap();
    for layer in 0..=layer {
        executor.run_layer(layer).unwrap();
    }
    match executor.read(program.layers[layer].output).unwrap() {
        Value::I32(rows) => rows,
        _ => panic!("rows are i32"),
    }
}
