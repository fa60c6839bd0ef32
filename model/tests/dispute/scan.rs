//! Bisection equals a linear scan: what a dispute finds is the first element in which two runs differ, of all that they
//! commit to, read from the start to the end.

use std::sync::OnceLock;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::conformance::encoder;
use lockstep_kernels::program::TensorKind;
use lockstep_kernels::reference::Reference;
use lockstep_model::dispute::{LayerCase, Trace};
use lockstep_protocol::dispute::{Evidence, Ground, Reason, Side, Tensor, Terms};
use lockstep_protocol::limits::CHUNK_BYTES;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::decoder::{self, settings};
use crate::game::{self, keys, play};
use crate::liar::{Liar, Lie};
use crate::world::World;

/// An embedding that reads past an attention block, and generations from a prompt of five tokens.
fn worlds() -> &'static [World] {
    static WORLDS: OnceLock<Vec<World>> = OnceLock::new();
    WORLDS.get_or_init(|| {
        let generations = settings().map(decoder::world);
        generations.into_iter().chain([World::new(&encoder(16, 2, 24, 2, false, &[270]))]).collect()
    })
}

/// Where a lie is, whatever the program: which op of all, which element of its output, and whether an exponent is meant.
type Anywhere = (Index, Index, bool);

fn lie(world: &World, (op, element, exponent): &Anywhere) -> Lie {
    let program = world.package.program();
    let all = program.layers.iter().enumerate().flat_map(|(l, layer)| (0..layer.ops.len()).map(move |op| (l, op)));
    let (layer, op) = all.collect::<Vec<_>>()[op.index(program.layers.iter().map(|layer| layer.ops.len()).sum())];
    let tensor = program.tensor(program.layers[layer].ops[op].out());
    let exponent = *exponent && tensor.kind == TensorKind::Bfp;
    // The words that are drawn are read too, but for the last; where there are fewer, the lie is none.
    let rows = world.job.tokens.len() + world.job.kind.max_points() as usize - 1;
    let cols = if exponent { 1 } else { tensor.cols as usize };
    Lie { layer, op, exponent, element: element.index(rows * cols) }
}

/// The terms between two runs, and all roots of both.
fn terms(world: &World, backends: [&dyn Backend; 2]) -> Option<Terms> {
    match world.job.kind.generation() {
        Some(_) => decoder::terms(world, backends),
        None => game::terms(world, backends),
    }
}

fn trace(world: &World, backend: &dyn Backend, ground: &Ground) -> Trace {
    match world.job.kind.generation() {
        Some(_) => decoder::trace(world, backend, ground),
        None => game::trace(world, backend, ground.place),
    }
}

/// The first place at which two runs have other roots.
fn first_place(world: &World, backends: [&dyn Backend; 2]) -> usize {
    let roots = |backend: &dyn Backend| match world.job.kind.generation() {
        Some(_) => world.generation(backend, &keys(1), 1, |_| {}).1,
        None => world.run(backend, &keys(1), 1).receipt.roots,
    };
    let [a, b] = backends.map(roots);
    a.iter().zip(&b).position(|(a, b)| a != b).expect("the runs differ")
}

/// A whole tensor, chunk by chunk.
fn whole(trace: &mut Trace, chunk: u64, tensor: Tensor) -> Vec<u8> {
    (0..).map_while(|index| trace.chunk(chunk, tensor, index).ok()).flatten().collect()
}

/// The first `width` bytes in which two tensors differ, by number.
fn differs(traces: &mut [Trace; 2], chunk: u64, tensor: Tensor, width: usize) -> Option<u64> {
    let [a, b] = traces.each_mut().map(|trace| whole(trace, chunk, tensor));
    assert_eq!(a.len(), b.len());
    a.chunks(width).zip(b.chunks(width)).position(|(a, b)| a != b).map(|at| at as u64)
}

/// Chunk, step and element of the first difference between two runs of a layer.
fn scan(world: &World, terms: &Terms, traces: &mut [Trace; 2]) -> (u64, u16, u64) {
    let case = LayerCase::of_terms(world.package.manifest(), terms).unwrap();
    let chunk = differs(traces, 0, Tensor::Output, CHUNK_BYTES).expect("the layer's output differs");
    let plan = case.plan(chunk);
    let last = plan.steps().len() - 1;
    for (step, of) in plan.steps().iter().enumerate().take(last) {
        let step = step as u16;
        if let Some(element) = differs(traces, chunk, Tensor::Step(step), of.width.bytes() as usize) {
            return (chunk, step, element);
        }
    }
    let element = differs(traces, chunk, Tensor::Step(last as u16), 4).expect("the row of the output differs");
    (chunk, last as u16, element)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_a_dispute_finds_is_what_a_linear_scan_finds(
        world in 0_usize..3,
        claimant in any::<Anywhere>(),
        challenger in proptest::option::of(any::<Anywhere>()),
    ) {
        let world = &worlds()[world];
        let liars = [Some(&claimant), challenger.as_ref()].map(|at| at.map(|at| Liar(lie(world, at))));
        let backends = liars.each_ref().map(|liar| match liar {
            Some(liar) => liar as &dyn Backend,
            None => &Reference,
        });
        // Some changes are rounded away; then there is nothing to dispute.
        let Some(terms) = terms(world, backends) else { return Ok(()) };
        let ground = terms.check().unwrap();
        let geometry = world.job.header().geometry(world.layers()).unwrap();
        prop_assert_eq!(geometry.place(first_place(world, backends)), Some(ground.place));
        let mut traces = backends.map(|backend| trace(world, backend, &ground));
        let found = scan(world, &terms, &mut traces);
        let [a, b] = &mut traces;
        let verdict = play(world, &terms, [a, b]).verdict;
        prop_assert_eq!((verdict.chunk, verdict.step, verdict.element), (Some(found.0), Some(found.1), Some(found.2)));
        prop_assert!(matches!(verdict.reason, Reason::Recomputed { .. }), "{:?}", verdict);
        prop_assert!(challenger.is_some() || verdict.losers == Side::Claimant.alone(), "{:?}", verdict);
    }
}
