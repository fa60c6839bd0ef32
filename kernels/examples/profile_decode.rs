//! Where the time of a decoder goes: prefill, and decoding token by token at several lengths. For people; nothing is
//! checked.
//!
//! `cargo run --release -p lockstep-kernels --example profile_decode [-- THREADS [SEQUENCES [small]]]`
#![allow(clippy::float_arithmetic, clippy::disallowed_types, reason = "time is measured here, nothing is computed")]

use std::sync::Arc;
use std::time::Instant;

use lockstep_kernels::backend::{Backend, BackendError, Executor};
use lockstep_kernels::conformance::{DecoderShape, decoder};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::sampling::Sampling;
use lockstep_kernels::value::{Batch, CacheId, Params, Sampler, Sequence};

/// As of a model of 135 million parameters.
const LARGE: DecoderShape = DecoderShape {
    vocab: 49_152,
    max_positions: 2_048,
    width: 576,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    rotary_dim: 64,
    inner: 1_536,
    layers: 30,
    head_norms: false,
};

/// As of a model of 4 million parameters.
const SMALL: DecoderShape = DecoderShape {
    vocab: 4_096,
    width: 256,
    heads: 8,
    kv_heads: 4,
    head_dim: 32,
    rotary_dim: 32,
    inner: 688,
    layers: 6,
    ..LARGE
};

fn main() -> Result<(), BackendError> {
    let mut args = std::env::args().skip(1);
    let mut number = |default| args.next().and_then(|a| a.parse().ok()).unwrap_or(default);
    let (threads, sequences) = (number(2), number(1));
    let shape = if args.next().is_some_and(|a| a == "small") { SMALL } else { LARGE };
    let case = decoder(shape, &[1]);
    let cpu = Cpu::new(None, threads)?;
    let params: Arc<dyn Params> = Arc::clone(&case.params) as Arc<dyn Params>;
    let mut executor = cpu.load(Arc::clone(&case.program), params)?;
    println!("{} on {threads} threads, {sequences} sequences", cpu.name());
    let mut done = 0;
    for length in [64, 256, 512, 1_024, 1_500] {
        let start = Instant::now();
        pass(executor.as_mut(), &shape, sequences, done, length)?;
        let rate = (sequences * (length - done)) as f64 / start.elapsed().as_secs_f64();
        println!("prefill of {done}..{length}: {rate:.0} tokens/s");
        done = length;
        let (start, count) = (Instant::now(), 16);
        for t in done..done + count {
            pass(executor.as_mut(), &shape, sequences, t, t + 1)?;
        }
        let time = start.elapsed().as_secs_f64() / count as f64;
        let bytes = case.program.params.iter().filter_map(|p| (p.name != "tokens").then(|| p.bytes()).flatten());
        let gigabytes = bytes.sum::<u64>() as f64 / 1e9;
        println!(
            "decode at {done}: {:.2} ms a pass, {:.1} tokens/s, {:.1} GB/s of weights",
            time * 1e3,
            sequences as f64 / time,
            gigabytes / time
        );
        done += count;
    }
    println!("{:.1} MB of caches", executor.cache_bytes() as f64 / 1e6);
    Ok(())
}

/// All layers over the same positions of all sequences.
fn pass(
    executor: &mut dyn Executor,
    shape: &DecoderShape,
    sequences: usize,
    from: usize,
    to: usize,
) -> Result<(), BackendError> {
    let sequence = |s: usize| {
        let tokens = (0..to).map(|t| ((t * 7 + s * 13) % shape.vocab) as u32).collect();
        let sampling = Sampling::greedy(to as u32, 1);
        let sampler = Some(Sampler { sampling: Arc::new(sampling), draws: vec![0] });
        Sequence { tokens, start: from, cache: Some(CacheId(s as u64)), sampler }
    };
    executor.begin(&Batch { sequences: (0..sequences).map(sequence).collect() })?;
    (0..shape.layers + 2).try_for_each(|layer| executor.run_layer(layer).map(|_| ()))
}
