//! Random walks over everything that can be done to caches, on the device and on the oracle: the same values, the same
//! refusals.

mod common;

use std::sync::Arc;

use common::open;
use lockstep_kernels::backend::{Backend, BackendError, Executor};
use lockstep_kernels::conformance::{Case, DecoderShape, OwnedParams, SplitMix, decoder};
use lockstep_kernels::reference::Reference;
use lockstep_kernels::sampling::Sampling;
use lockstep_kernels::value::{Batch, CacheId, Params, Sampler, Sequence, Value};
use lockstep_shaders::Options;

const SHAPE: DecoderShape = DecoderShape::SMALL;
const CACHES: i64 = 3;

/// Something that is done to an executor.
#[derive(Clone, Debug)]
enum Step {
    Begin(Batch),
    Layer(usize),
    Fork(CacheId, CacheId, usize),
    Truncate(CacheId, usize),
    Drop(CacheId),
}

fn load(case: &Case, backend: &dyn Backend) -> Box<dyn Executor> {
    let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
    backend.load(Arc::clone(&case.program), params).expect("a valid program")
}

/// Does it, and tells all that came of it.
fn apply(executor: &mut dyn Executor, case: &Case, step: &Step) -> Result<(u64, Vec<Value>), BackendError> {
    match step {
        Step::Begin(batch) => executor.begin(batch)?,
        Step::Fork(from, to, positions) => executor.fork_cache(*from, *to, *positions)?,
        Step::Truncate(id, positions) => executor.truncate_cache(*id, *positions)?,
        Step::Drop(id) => executor.drop_cache(*id),
        Step::Layer(layer) => {
            let report = executor.run_layer(*layer)?;
            let ops = case.program.layers[*layer].ops.iter();
            let values = ops.map(|op| executor.read(op.out())).collect::<Result<_, _>>()?;
            return Ok((report.saturations, values));
        }
    }
    Ok((0, vec![]))
}

/// What a walk knows of the caches, to ask for what often exists.
struct Walk {
    rng: SplitMix,
    lengths: [usize; CACHES as usize],
}

impl Walk {
    fn pick(&mut self, high: i64) -> i64 {
        self.rng.range(0, high)
    }

    fn cache(&mut self) -> usize {
        self.pick(CACHES - 1) as usize
    }

    /// A length that a cache has or almost has, or where a page ends.
    fn near(&mut self, length: usize) -> usize {
        match self.pick(5) {
            0 => length + 1,
            1 => length / 2,
            2 => length.min(256),
            3 => length.saturating_sub(1),
            _ => length,
        }
    }

    fn sequence(&mut self, with_cache: bool) -> Sequence {
        let id = self.cache();
        let start = if with_cache && self.pick(4) > 0 { self.near(self.lengths[id]) } else { 0 };
        let rows = [1, 2, 7, 40, 250][self.pick(4) as usize];
        let end = start + rows;
        let family = self.pick(1) as usize;
        let tokens = (0..end).map(|t| ((t * t + family * (t / 100)) % SHAPE.vocab) as u32).collect();
        let sampling = Sampling { temperature: 9_000, top_p: 9_500, ..Sampling::greedy(end as u32, 1) };
        let sampler =
            (self.pick(1) == 0).then(|| Sampler { sampling: Arc::new(sampling), draws: vec![(id as u64) << 61] });
        if with_cache {
            self.lengths[id] = end;
        }
        Sequence { tokens, start, cache: with_cache.then_some(CacheId(id as u64)), sampler }
    }

    /// What is done to a cache between passes, or in the middle of one.
    fn change(&mut self) -> Step {
        let (from, to) = (self.cache(), self.cache());
        let positions = self.near(self.lengths[from]);
        match self.pick(3) {
            0 => Step::Drop(CacheId(from as u64)),
            1 => Step::Truncate(CacheId(from as u64), positions),
            _ => {
                self.lengths[to] = positions;
                Step::Fork(CacheId(from as u64), CacheId(to as u64), positions)
            }
        }
    }

    /// A pass of one or two sequences, with a change in its middle now and then; or a change alone.
    fn steps(&mut self) -> Vec<Step> {
        if self.pick(3) == 0 {
            return vec![self.change()];
        }
        let mut sequences = vec![self.sequence(true)];
        if self.pick(2) == 0 {
            let with_cache = self.pick(1) == 0;
            sequences.push(self.sequence(with_cache));
        }
        let mut steps = vec![Step::Begin(Batch { sequences })];
        for layer in 0..SHAPE.layers + 2 {
            if self.pick(9) == 0 {
                steps.push(self.change());
            }
            steps.push(Step::Layer(layer));
        }
        steps
    }
}

#[test]
fn random_walks_end_alike() {
    let Some(wgpu) = open(Options::default()) else { return };
    let case = decoder(SHAPE, &[1]);
    for seed in 0..6 {
        let mut walk = Walk { rng: SplitMix::named(&format!("walk {seed}")), lengths: [0; CACHES as usize] };
        let (mut oracle, mut device) = (load(&case, &Reference), load(&case, &wgpu));
        for number in 0..12 {
            for step in walk.steps() {
                let expected = apply(oracle.as_mut(), &case, &step).map_err(|e| e.to_string());
                let got = apply(device.as_mut(), &case, &step).map_err(|e| e.to_string());
                assert!(got == expected, "seed {seed}, step {number}, {step:?}: {got:?}, expected {expected:?}");
                if matches!((&step, &expected), (Step::Begin(_) | Step::Layer(_), Err(_))) {
                    break;
                }
            }
        }
        (0..CACHES as u64).for_each(|id| device.drop_cache(CacheId(id)));
        assert_eq!(device.cache_bytes(), 0, "seed {seed}: what nobody holds is given back");
    }
}

#[test]
fn shared_pages_count_once() {
    let Some(wgpu) = open(Options::default()) else { return };
    let case = decoder(SHAPE, &[1]);
    let mut device = load(&case, &wgpu);
    let tokens = vec![1; 300];
    device
        .begin(&Batch { sequences: vec![Sequence { tokens, cache: Some(CacheId(0)), ..Sequence::default() }] })
        .expect("it fits");
    for layer in 0..=SHAPE.layers {
        device.run_layer(layer).expect("a layer");
    }
    let held = device.cache_bytes();
    assert_eq!(held, case.program.cache_bytes(300));
    device.fork_cache(CacheId(0), CacheId(1), 300).expect("a fork");
    assert_eq!(device.cache_bytes(), held);
    device.truncate_cache(CacheId(0), 10).expect("a cut");
    assert_eq!(device.cache_bytes(), held);
    device.drop_cache(CacheId(1));
    assert_eq!(device.cache_bytes(), held / 2);
}
