//! Generations of a small decoder: settings, lies about it, and the terms of disputes.

use lockstep_kernels::backend::Backend;
use lockstep_kernels::conformance::{DecoderShape, decoder};
use lockstep_kernels::program::TensorKind;
use lockstep_model::dispute::Trace;
use lockstep_protocol::dispute::{Ground, Held, Signed, Terms};
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
    let runs = [0, 1].map(|i| world.generation(backends[i], &keys(i as u8 + 1), i as u64 + 1));
    let runs = runs.map(|(receipt, roots, words)| (Signed::Receipt(receipt), roots, words));
    let held = [0, 1].map(|i| Held { signed: &runs[i].0, roots: &runs[i].1, words: &runs[i].2 });
    Terms::of_runs(keys(9).id(), world.job.header(), world.layers(), held, [600_000; 2]).ok()
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
