//! Disputes about words and what they were drawn from.

use std::collections::BTreeSet;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::cpu::Cpu;
use lockstep_model::dispute::judge;
use lockstep_protocol::dispute::{Reason, Side, VerdictKind};
use lockstep_protocol::generation::Generation;

use crate::decoder::{lies, settings, terms, trace, world};
use crate::file;
use crate::game::play;
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
