//! A decoder must give the same rows however its sequences are cut into passes, whoever shares them, and whichever
//! cache they continue.

use std::ops::Range;
use std::sync::Arc;

use super::case::{Case, OwnedParams};
use super::data::SplitMix;
use super::decoders::{DecoderShape, decoder};
use super::sampling::random_sampling;
use super::{Difference, Divergence, Level, compare, writer};
use crate::backend::{Backend, BackendError, Executor};
use crate::program::{Layer, Op, Rows, TensorId, TensorKind};
use crate::reference::Reference;
use crate::sampling::Sampling;
use crate::value::{Batch, CacheId, Params, Sampler, Sequence, Value};

/// Positions of one sequence in one pass, kept in a cache or not.
type Part = (usize, Option<u64>, Range<usize>);

/// What is done to an executor.
enum Step {
    /// One pass, of which every tensor is read after its layer.
    Pass(Vec<Part>),
    /// One pass, of which only the outputs of layers are read: a backend may run it as one.
    Outputs(Vec<Part>),
    /// From a cache to a new one with as many positions.
    Fork(u64, u64, usize),
    /// A cache keeps as many positions.
    Truncate(u64, usize),
    /// A cache is dropped.
    Drop(u64),
}

/// Lengths and prompt lengths. The first three begin alike, with as many positions as [`COMMON`] says.
const SEQUENCES: [(usize, u32); 4] = [(540, 530), (300, 1), (515, 512), (3, 3)];
/// See [`SEQUENCES`].
const COMMON: [usize; 4] = [540, 270, 512, 0];

/// Schedules of the quick level.
const QUICK: [&str; 3] = ["ragged passes", "forked caches", "outputs alone"];

/// Passes over the sequences, each list on an executor of its own.
fn schedules() -> Vec<(&'static str, Vec<Step>)> {
    let whole = |s: usize, cache| (s, cache, 0..SEQUENCES[s].0);
    let one = |s: usize, cache, range| Step::Pass(vec![(s, Some(cache), range)]);
    let cuts = [0, 1, 2, 17, 255, 256, 257, 300, 511, 513, 540];
    let chunks = cuts.windows(2).map(|w| one(0, 1, w[0]..w[1])).collect();
    let singles = (0..SEQUENCES[1].0).map(|t| one(1, 1, t..t + 1)).collect();
    let ragged = vec![
        Step::Pass(vec![(0, Some(1), 0..530), (3, Some(9), 0..2)]),
        Step::Pass(vec![(0, Some(1), 530..531), (2, Some(2), 0..400), whole(3, None), (3, Some(9), 2..3)]),
        Step::Pass(vec![(2, Some(2), 400..510), (0, Some(1), 531..532), (1, Some(3), 0..270)]),
        Step::Drop(9),
        Step::Pass(vec![(0, Some(1), 532..540), (1, Some(3), 270..300), (2, Some(2), 510..515), whole(3, Some(9))]),
    ];
    let forked = vec![
        one(0, 1, 0..540),
        // In the middle of a page, and at the end of one.
        Step::Fork(1, 2, 269),
        Step::Fork(1, 3, 512),
        Step::Pass(vec![(1, Some(2), 269..271), (2, Some(3), 512..513)]),
        Step::Pass(vec![(2, Some(3), 513..515), (1, Some(2), 271..300), (0, Some(1), 539..540)]),
        Step::Drop(1),
        Step::Fork(2, 1, 269),
        one(0, 1, 269..540),
        one(1, 2, 299..300),
    ];
    let redone = vec![
        one(0, 1, 0..540),
        Step::Truncate(1, 530),
        one(0, 1, 530..540),
        // Without being cut first, and with another sequence from where they differ.
        one(0, 1, 255..530),
        Step::Truncate(1, 270),
        one(1, 1, 270..300),
        one(0, 1, 0..9),
    ];
    vec![
        ("outputs alone", outputs_alone()),
        ("one pass without caches", vec![Step::Pass((0..4).map(|s| whole(s, None)).collect())]),
        ("one pass with caches", vec![Step::Pass((0..4).map(|s| whole(s, Some(s as u64))).collect())]),
        ("in pieces", chunks),
        ("token by token", singles),
        ("ragged passes", ragged),
        ("forked caches", forked),
        ("positions redone", redone),
    ]
}

/// Word by word, in batches that grow, over the end of a page, and on pages that are copied under way. Each of these sequences is
/// the one whose points start at its first position.
fn outputs_alone() -> Vec<Step> {
    let words =
        |places: &[(u64, usize)]| Step::Outputs(places.iter().map(|(cache, t)| (1, Some(*cache), *t..t + 1)).collect());
    let mut steps = vec![Step::Pass(vec![(1, Some(1), 0..252), (1, Some(2), 0..3)])];
    steps.extend((252..258).map(|t| words(&[(1, t)])));
    steps.extend((258..261).map(|t| words(&[(2, t - 255), (1, t)])));
    steps.push(Step::Fork(1, 3, 261));
    steps.extend((261..264).map(|t| words(&[(3, t), (1, t), (2, t - 255)])));
    steps
}

/// A decoder, its sequences, and what the oracle makes of each one alone.
struct Expected {
    case: Case,
    tokens: Vec<Vec<u32>>,
    sampling: Vec<Arc<Sampling>>,
    of_sequences: Vec<Made>,
}

/// What a pass made.
struct Made {
    /// Tensors of `i32` that were read, in the order of writing.
    tensors: Vec<Tensor>,
    /// Of each layer.
    saturations: Vec<u64>,
}

/// A tensor of a pass.
struct Tensor {
    /// Which one it is of all tensors of `i32`, in the order of writing.
    nth: usize,
    layer: usize,
    id: TensorId,
    rows: Vec<i32>,
}

impl Expected {
    fn new(shape: DecoderShape) -> Result<Self, BackendError> {
        let case = decoder(shape, &[1]);
        let mut rng = SplitMix::named("tokens of the passes");
        let mut random =
            |len: usize| -> Vec<u32> { (0..len).map(|_| rng.range(0, shape.vocab as i64 - 1) as u32).collect() };
        let first = random(SEQUENCES[0].0);
        let tokens = SEQUENCES
            .iter()
            .zip(COMMON)
            .map(|((len, _), common)| [&first[..common.min(*len)], &random(len.saturating_sub(common))].concat());
        let tokens = tokens.collect();
        let mut rng = SplitMix::named("settings of the passes");
        let settings =
            SEQUENCES.map(|(_, prompt_tokens)| Sampling { prompt_tokens, ..random_sampling(&mut rng, shape.vocab) });
        let sampling = settings.into_iter().map(Arc::new).collect();
        let mut expected = Self { case, tokens, sampling, of_sequences: vec![] };
        let mut oracle = expected.load(&Reference)?;
        for (s, (len, _)) in SEQUENCES.into_iter().enumerate() {
            let batch = expected.batch(&[(s, None, 0..len)]);
            expected.of_sequences.push(expected.pass(oracle.as_mut(), &batch, |_, _| true)?);
        }
        Ok(expected)
    }

    fn load(&self, backend: &dyn Backend) -> Result<Box<dyn Executor>, BackendError> {
        let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&self.case.params);
        backend.load(Arc::clone(&self.case.program), params)
    }

    fn batch(&self, parts: &[Part]) -> Batch {
        let sequence = |(s, cache, range): &Part| {
            let sampler = Sampler { sampling: Arc::clone(&self.sampling[*s]), draws: vec![] };
            let mut sequence = Sequence::new(self.tokens[*s][..range.end].to_vec());
            (sequence.start, sequence.cache) = (range.start, cache.map(CacheId));
            sequence.sampler = Some(sampler);
            let draw = |t| SplitMix::named(&format!("draw {s} {t}")).next_u64();
            let draws = sequence.points().map(draw).collect();
            if let Some(sampler) = &mut sequence.sampler {
                sampler.draws = draws;
            }
            sequence
        };
        Batch { sequences: parts.iter().map(sequence).collect() }
    }

    /// Runs a pass, and reads the tensors that `is_read` says of a layer.
    fn pass(
        &self,
        executor: &mut dyn Executor,
        batch: &Batch,
        is_read: impl Fn(&Layer, TensorId) -> bool,
    ) -> Result<Made, BackendError> {
        executor.begin(batch)?;
        let (mut made, mut nth) = (Made { tensors: vec![], saturations: vec![] }, 0);
        for (layer, of) in self.case.program.layers.iter().enumerate() {
            made.saturations.push(executor.run_layer(layer)?.saturations);
            for id in of.ops.iter().map(Op::out) {
                if is_read(of, id)
                    && let Value::I32(rows) = executor.read(id)?
                {
                    made.tensors.push(Tensor { nth, layer, id, rows });
                }
                nth += usize::from(self.case.program.tensor(id).kind == TensorKind::I32);
            }
        }
        Ok(made)
    }

    /// The rows that a pass must give in the `nth` tensor, out of those of whole sequences.
    fn rows(&self, parts: &[Part], nth: usize) -> Vec<i32> {
        let of_part = |(s, _, range): &Part| {
            let Tensor { id, rows, .. } = &self.of_sequences[*s].tensors[nth];
            let tensor = self.case.program.tensor(*id);
            let cols = tensor.cols as usize;
            let first = if tensor.rows == Rows::Point { SEQUENCES[*s].1 as usize - 1 } else { 0 };
            let range = range.start.max(first) - first..range.end.max(first) - first;
            rows[range.start * cols..range.end * cols].iter().copied()
        };
        parts.iter().flat_map(of_part).collect()
    }
}

/// Runs schedules on the backend, against the oracle over whole sequences without caches. Returns the number of elements
/// compared.
pub(super) fn invariance(backend: &dyn Backend, level: Level) -> Result<u64, Divergence> {
    let mut elements = 0;
    let deep = DecoderShape::SMALL;
    // Heads that are wider than a register has codes, three of which share keys and values.
    let flat = DecoderShape { head_norms: true, heads: 6, head_dim: 34, rotary_dim: 12, layers: 1, ..deep };
    let shapes: &[_] = if level == Level::Quick { &[flat] } else { &[flat, deep] };
    for shape in shapes {
        let of_oracle = |e: BackendError| Divergence {
            backend: "reference".into(),
            op: "model",
            case: "a decoder over whole sequences".into(),
            difference: Difference::Failed { error: e.to_string() },
        };
        let expected = Expected::new(*shape).map_err(of_oracle)?;
        let quick = |name: &str| QUICK.contains(&name);
        for (name, steps) in schedules().into_iter().filter(|(name, _)| level == Level::Full || quick(name)) {
            elements += run(backend, &expected, &steps).map_err(|(op, difference)| Divergence {
                backend: backend.name(),
                op,
                case: name.into(),
                difference,
            })?;
        }
    }
    Ok(elements)
}

/// An error is the op that wrote what differs, and the difference.
fn run(backend: &dyn Backend, expected: &Expected, steps: &[Step]) -> Result<u64, (&'static str, Difference)> {
    let failed = |e: BackendError| ("model", Difference::Failed { error: e.to_string() });
    let mut executor = expected.load(backend).map_err(failed)?;
    let mut elements = 0;
    for step in steps {
        match step {
            Step::Pass(parts) => {
                let made = expected.pass(executor.as_mut(), &expected.batch(parts), |_, _| true).map_err(failed)?;
                elements += check(expected, parts, made)?;
            }
            Step::Outputs(parts) => {
                let outputs = |layer: &Layer, id| layer.output == id;
                let made = expected.pass(executor.as_mut(), &expected.batch(parts), outputs).map_err(failed)?;
                elements += check(expected, parts, made)?;
            }
            Step::Fork(from, to, positions) => {
                executor.fork_cache(CacheId(*from), CacheId(*to), *positions).map_err(failed)?;
            }
            Step::Truncate(id, positions) => executor.truncate_cache(CacheId(*id), *positions).map_err(failed)?,
            Step::Drop(id) => executor.drop_cache(CacheId(*id)),
        }
    }
    Ok(elements)
}

fn check(expected: &Expected, parts: &[Part], made: Made) -> Result<u64, (&'static str, Difference)> {
    let program = &expected.case.program;
    let mut elements = 0;
    for Tensor { nth, layer, id, rows } in made.tensors {
        let (tensor, wanted) = (program.tensor(id), Value::I32(expected.rows(parts, nth)));
        elements += compare(&tensor.name, tensor.cols as usize, &wanted, &Value::I32(rows))
            .map_err(|difference| (writer(program, layer, id), difference))?;
    }
    // What passes over whole sequences clamp is known.
    if parts.iter().all(|(s, _, range)| *range == (0..SEQUENCES[*s].0)) {
        for (layer, got) in made.saturations.into_iter().enumerate() {
            let expected = parts.iter().map(|(s, ..)| expected.of_sequences[*s].saturations[layer]).sum();
            if expected != got {
                return Err(("model", Difference::Saturations { layer, expected, got }));
            }
        }
    }
    Ok(elements)
}
