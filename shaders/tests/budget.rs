//! Memory of a device: what does not fit is refused before it is there, with the numbers.

mod common;

use std::sync::Arc;

use common::open;
use lockstep_kernels::backend::{Backend, BackendError, Executor};
use lockstep_kernels::conformance::{Case, DecoderShape, OwnedParams, decoder};
use lockstep_kernels::value::{Batch, CacheId, Params, Sequence};
use lockstep_shaders::{Options, Wgpu};

/// 200 x 24 columns, and 40 x 24 three times in each of two layers: about 18 KiB of weights.
fn case() -> Case {
    decoder(DecoderShape { vocab: 200, ..DecoderShape::SMALL }, &[1])
}

fn load(wgpu: &Wgpu, case: &Case) -> Result<Box<dyn Executor>, BackendError> {
    let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
    wgpu.load(Arc::clone(&case.program), params)
}

fn sequence(tokens: usize) -> Batch {
    let (tokens, cache) = (vec![1; tokens], Some(CacheId(0)));
    Batch { sequences: vec![Sequence { tokens, cache, ..Sequence::default() }] }
}

fn refused<T>(result: Result<T, BackendError>, what: &str) {
    match result.map(|_| ()) {
        Err(BackendError::Unavailable(why)) => {
            assert!(why.starts_with(what) && why.contains("--pipeline-listen"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused() {
    let Some(wgpu) = open(Options { memory_bytes: Some(10_000), ..Options::default() }) else { return };
    assert_eq!(wgpu.memory_bytes(), Some(10_000));
    refused(load(&wgpu, &case()), "the weights of the model would take ");
}

/// Models share the memory, and give it back.
#[test]
fn two_models_that_do_not_fit_together_fit_one_after_the_other() {
    let Some(wgpu) = open(Options { memory_bytes: Some(30_000), ..Options::default() }) else { return };
    let first = load(&wgpu, &case()).expect("room for one");
    refused(load(&wgpu, &case()), "the weights of the model would take ");
    drop(first);
    load(&wgpu, &case()).expect("room for one");
}

/// After a batch or a cache that does not fit, smaller ones do.
#[test]
fn batches_and_caches_that_do_not_fit_are_refused() {
    let Some(wgpu) = open(Options { memory_bytes: Some(1 << 20), ..Options::default() }) else { return };
    let case = case();
    let mut executor = load(&wgpu, &case).expect("room for the weights");
    refused(executor.begin(&sequence(700)), "the batch would take ");
    let run = |executor: &mut dyn Executor, tokens| {
        executor.begin(&sequence(tokens))?;
        (0..=case.program.layers.len() - 2).try_for_each(|layer| executor.run_layer(layer).map(drop))
    };
    run(executor.as_mut(), 10).expect("room for few");
    // Pages of caches take what the weights and a batch leave.
    let fill = (1..100).try_for_each(|id| {
        executor.fork_cache(CacheId(0), CacheId(id), 10).and_then(|()| {
            let mut batch = sequence(11);
            batch.sequences[0].cache = Some(CacheId(id));
            batch.sequences[0].start = 10;
            executor.begin(&batch)?;
            executor.run_layer(0)?;
            executor.run_layer(1).map(drop)
        })
    });
    refused(fill, "more keys and values would take ");
}
