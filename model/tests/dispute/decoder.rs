//! Generations of a small decoder: settings, lies about it, and the terms of disputes.

use lockstep_kernels::backend::Backend;
use lockstep_kernels::conformance::{DecoderShape, decoder};
use lockstep_kernels::program::TensorKind;
use lockstep_model::dispute::Trace;
use lockstep_protocol::dispute::{Ground, Held, Signed, Tensor, Terms};
use lockstep_protocol::generation::Generation;
use lockstep_protocol::job::JobKind;

use crate::game::keys;
use crate::liar::Lie;
use crate::world::World;

/// Tokens of the prompt.
const PROMPT: usize = 5;

/// A decoder of two layers, and a job that it generates from.
pub fn world(generation: Generation) -> World {
    let shape = DecoderShape { head_norms: true, ..DecoderShape::SMALL };
    let mut case = decoder(shape, &[PROMPT]);
    case.name = "decoder".into();
    World::of_kind(&case, JobKind::Generation(Box::new(generation)))
}

/// Everything that may be asked of sampling, and the likeliest token with nothing besides.
pub fn settings() -> [Generation; 2] {
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
pub fn terms(world: &World, backends: [&dyn Backend; 2]) -> Option<Terms> {
    changed_terms(world, backends, [&[], &[]])
}

/// Changes of log-probabilities: of which point, counted from 0, which column, and to what.
pub type Changes<'a> = &'a [(usize, usize, i32)];

/// The same where sides say other log-probabilities than their backends give.
pub fn changed_terms(world: &World, backends: [&dyn Backend; 2], changes: [Changes<'_>; 2]) -> Option<Terms> {
    let width = world.job.kind.generation().map_or(0, Generation::logprob_values);
    let runs = [0, 1].map(|i| {
        let change = |values: &mut [i32]| {
            changes[i].iter().for_each(|(index, column, value)| values[index * width + column] = *value);
        };
        let run = world.generation(backends[i], &keys(i as u8 + 1), i as u64 + 1, change);
        let (receipt, roots, words, logprobs) = run;
        (Signed::Receipt(receipt), roots, words, logprobs)
    });
    let held = runs.each_ref().map(|(signed, roots, words, logprobs)| Held { signed, roots, words, logprobs });
    Terms::of_runs(keys(9).id(), world.job.header(), world.layers(), held, [600_000; 2]).ok()
}

/// What a player has of it who says other log-probabilities at the disputed point.
pub fn changed_trace(world: &World, backend: &dyn Backend, ground: &Ground, changes: Changes<'_>) -> Trace {
    let mut trace = trace(world, backend, ground);
    for (_, column, value) in changes.iter().filter(|(index, ..)| *index == ground.index) {
        assert!(trace.alter(0, Tensor::Output, *column as u64, (*value).into()));
    }
    trace
}

/// What a player has of it.
pub fn trace(world: &World, backend: &dyn Backend, ground: &Ground) -> Trace {
    let (program, params) = (world.package.program(), world.package.params());
    let mut executor = backend.load(program.clone(), params.clone()).unwrap();
    Trace::of_job(&mut *executor, program, params, &world.job, &ground.words, ground.place).unwrap()
}

/// Lies at positions of the prompt and of what was generated.
pub fn lies(world: &World) -> Vec<Lie> {
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
