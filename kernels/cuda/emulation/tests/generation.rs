//! Whole generations on the CUDA kernels, with graphs and without: the words, roots and log-probabilities of the oracle.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_cuda::Cuda;
use lockstep_cuda_emulation::{Emulation, Order};
use lockstep_kernels::backend::Backend;
use lockstep_kernels::conformance::{DecoderShape, OwnedParams, decoder};
use lockstep_kernels::reference::Reference;
use lockstep_kernels::sampling::Sampling;
use lockstep_kernels::value::Params;
use lockstep_model::generation::{Event, Generator, Limits, Request, Run, TaskId};
use lockstep_protocol::ids::Seed;

const SHAPE: DecoderShape = DecoderShape { width: 264, layers: 3, ..DecoderShape::SMALL };

fn request(prompt: usize, words: u32, seed: u8, hint: &[u32]) -> Request {
    let tokens = (0..prompt).map(|t| ((t * t + 7 * t + 13 * usize::from(seed)) % SHAPE.vocab) as u32).collect();
    let sampling = Sampling {
        temperature: 8_000,
        repetition_penalty: 12_000,
        frequency_penalty: 1_000,
        ..Sampling::greedy(prompt as u32, words)
    };
    Request { prompt: tokens, sampling, seed: Seed::from_bytes([seed; 32]), hint: hint.to_vec(), logprobs: seed % 4 }
}

/// Requests that come while others run, so that batches change; some audit what others made. Runs in the order of requests.
fn generate(backend: &dyn Backend) -> Vec<Run> {
    let case = decoder(SHAPE, &[1]);
    let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
    let limits = Limits { pass_tokens: 64, ..Limits::within(1 << 30) };
    let mut generator = Generator::new(Arc::clone(&case.program), params, backend, limits).expect("a decoder");
    let mut runs: BTreeMap<TaskId, Run> = BTreeMap::new();
    let mut steps = |generator: &mut Generator, most: usize| {
        let mut hear = |id, event| {
            if let Event::Done(run) = event {
                runs.insert(id, run);
            }
        };
        (0..most).all(|_| generator.step(&mut hear).expect("no device fails"))
    };
    let submit = |generator: &mut Generator, request| {
        generator.submit(request).expect("there is room");
    };
    submit(&mut generator, request(250, 14, 1, &[]));
    steps(&mut generator, 8);
    submit(&mut generator, request(9, 6, 2, &[]));
    submit(&mut generator, request(70, 5, 3, &[]));
    steps(&mut generator, 4);
    // A wrong hint from its third word on, and a prompt that is known by now.
    submit(&mut generator, request(9, 6, 2, &[1, 2, 3]));
    submit(&mut generator, request(250, 3, 1, &[]));
    while steps(&mut generator, 1) {}
    assert_eq!(runs.len(), 5);
    runs.into_values().collect()
}

#[test]
fn generations_are_the_oracles_with_graphs_and_without() {
    let wanted = generate(&Reference);
    assert!(wanted.iter().any(|run| run.words.windows(2).any(|pair| pair[0] != pair[1])), "tokens differ");
    for order in [Order::Ascending, Order::Descending] {
        let cuda = Cuda::on(Arc::new(Emulation::new(order, (9, 0))), None).expect("a capable device");
        assert_ne!(cuda.name(), cuda.clone().without_graphs().name());
        assert_eq!(generate(&cuda), wanted, "{}", cuda.name());
        let cuda = cuda.without_graphs();
        assert_eq!(generate(&cuda), wanted, "{}", cuda.name());
    }
}
