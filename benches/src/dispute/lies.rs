//! Which numbers are lied about: one of each kind of op, where the program has it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_kernels::backend::Backend;
use lockstep_kernels::program::{Program, Rows, TensorKind};
use lockstep_kernels::value::Value;
use lockstep_model::dispute::Trace;
use lockstep_protocol::dispute::Tensor;
use lockstep_protocol::ids::{Place as RunPlace, Root};
use lockstep_sim::adversary::{Change, Lie, Target};

use super::Liar;
use super::honest::Honest;

/// What to lie about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// What an op puts out.
    Op {
        /// Layer of the program.
        layer: usize,
        /// Op of the layer.
        op: usize,
    },
    /// The log-probabilities of the last point.
    Logprobs,
}

/// The first op of each kind of the embedding, of the middle layer, and of the output layer; and the log-probabilities.
pub(super) fn places(program: &Program) -> Vec<Place> {
    let last = program.layers.len() - 1;
    // A set: a short program may have fewer than three.
    let layers: BTreeSet<usize> = [0, last.div_ceil(2), last].into();
    let mut places = Vec::new();
    for layer in layers {
        let mut kinds = BTreeSet::new();
        let ops = program.layers[layer].ops.iter().enumerate();
        places.extend(ops.filter(|(_, op)| kinds.insert(op.name())).map(|(op, _)| Place::Op { layer, op }));
    }
    places.extend(program.is_decoder().then_some(Place::Logprobs));
    places
}

/// Bits to flip, one after the other until the difference shows: rounding may swallow a low one, and high ones lie
/// beyond 16-bit elements.
const BITS: [u32; 9] = [14, 20, 26, 30, 31, 12, 8, 4, 1];

/// What a liar has who tells one lie: the run that it streamed up to where it differs, and its evidence.
pub(super) struct Lied {
    /// The kind of op that is lied about, and its layer; or `logprobs`, which come after the last one.
    pub op: &'static str,
    pub layer_of_op: usize,
    /// The first layer whose root differs, at the last point.
    pub place: RunPlace,
    /// All roots up to there.
    pub roots: Vec<Root>,
    /// The words of all points that are complete.
    pub words: Vec<u32>,
    /// Those that are lied about, where all roots are right.
    pub logprobs: Option<Vec<i32>>,
    pub trace: Trace,
    /// What the disputed layer took.
    pub layer: Duration,
}

/// A lie that shows. The run before it is the honest one.
pub(super) fn tell(honest: &Honest<'_>, at: Place, backend: &dyn Backend, liar: &Liar<'_>) -> Result<Lied> {
    match at {
        Place::Op { layer, op } => tell_of_op(honest, (layer, op), liar),
        Place::Logprobs => tell_of_logprobs(honest, backend),
    }
}

/// A lie about the log-probability of the last word.
fn tell_of_logprobs(honest: &Honest<'_>, backend: &dyn Backend) -> Result<Lied> {
    let program = honest.package.program();
    let (layer_of_op, mut logprobs) = (program.layers.len(), honest.logprobs().to_vec());
    let place = honest.place(layer_of_op);
    let mut executor = backend.load(Arc::clone(program), honest.package.params())?;
    let (mut trace, layer) = honest.trace(&mut *executor, place)?;
    let row = logprobs.len().checked_sub(logprobs.len() / honest.words().len()).context("a run has words")?;
    let value = logprobs.get_mut(row).context("log-probabilities are asked for")?;
    *value -= 1;
    ensure!(trace.alter(0, Tensor::Output, 0, (*value).into()), "a row has a first value");
    let (roots, words) = (honest.run.roots.clone(), honest.words());
    Ok(Lied { op: "logprobs", layer_of_op, place, roots, words, logprobs: Some(logprobs), trace, layer })
}

/// A lie about the middle element of what an op puts out that shows in a root.
fn tell_of_op(honest: &Honest<'_>, (layer, index): (usize, usize), liar: &Liar<'_>) -> Result<Lied> {
    let (package, job) = (honest.package, honest.job);
    let program = package.program();
    let op = &program.layers[layer].ops[index];
    let tensor = program.tensor(op.out());
    let row = match tensor.rows {
        Rows::Position if !program.is_decoder() => job.tokens.len() / 2,
        Rows::Sequence => 0,
        // The position of the first token that was generated, which is the last point.
        Rows::Position | Rows::Point => job.tokens.len(),
    };
    let place = honest.place(layer.max(1));
    let target = Target::Element { row, col: tensor.cols as usize / 2 };
    let widths = |bit: &&u32| tensor.kind == TensorKind::I32 || **bit < 15;
    for bit in BITS.iter().filter(widths) {
        let lie = Lie { layer, op: index, target, change: Change::Xor(1 << bit) };
        let mut executor = liar(lie).load(Arc::clone(program), package.params())?;
        let (trace, spent) = honest.trace(&mut *executor, place)?;
        let root = *trace.roots().last().context("a trace has the root of its layer")?;
        if trace.agrees_with(honest.last_roots()) {
            continue;
        }
        let mut words = honest.words();
        // The last point is complete where its word is what differs.
        let is_whole = words.pop().is_some() && usize::from(place.layer) + 1 == program.layers.len();
        if let (true, Value::I32(said)) = (is_whole, executor.read(program.layers[usize::from(place.layer)].output)?) {
            words.extend(said.last().map(|word| word.cast_unsigned()));
        }
        let roots = honest.roots_with(place, root);
        let (op, layer_of_op, logprobs) = (op.name(), layer, None);
        return Ok(Lied { op, layer_of_op, place, roots, words, logprobs, trace, layer: spent });
    }
    None.with_context(|| format!("no lie about op {index} ({}) of layer {layer} shows in a root", op.name()))
}
