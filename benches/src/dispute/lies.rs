//! Which numbers are lied about: one of each kind of op, where the program has it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use lockstep_kernels::program::{Program, Rows, TensorKind};
use lockstep_kernels::value::Value;
use lockstep_model::dispute::Trace;
use lockstep_protocol::ids::{Place as RunPlace, Root};
use lockstep_sim::adversary::{Change, Lie, Target};

use super::Liar;
use super::honest::Honest;

/// An op to lie about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Layer of the program.
    pub layer: usize,
    /// Op of the layer.
    pub op: usize,
}

/// The first op of each kind of the embedding, of the middle layer, and of the output layer.
pub(super) fn places(program: &Program) -> Vec<Place> {
    let last = program.layers.len() - 1;
    // A set: a short program may have fewer than three.
    let layers: BTreeSet<usize> = [0, last.div_ceil(2), last].into();
    let mut places = Vec::new();
    for layer in layers {
        let mut kinds = BTreeSet::new();
        let ops = program.layers[layer].ops.iter().enumerate();
        places.extend(ops.filter(|(_, op)| kinds.insert(op.name())).map(|(op, _)| Place { layer, op }));
    }
    places
}

/// Bits to flip, one after the other until the difference shows: rounding may swallow a low one, and high ones lie
/// beyond 16-bit elements.
const BITS: [u32; 9] = [14, 20, 26, 30, 31, 12, 8, 4, 1];

/// What a liar has who tells one lie: the run that it streamed up to where it differs, and its evidence.
pub(super) struct Lied {
    pub lie: Lie,
    /// The first layer whose root differs, at the last point.
    pub place: RunPlace,
    /// All roots up to there.
    pub roots: Vec<Root>,
    /// The words of all points that are complete.
    pub words: Vec<u32>,
    pub trace: Trace,
    /// What the disputed layer took.
    pub layer: Duration,
}

/// A lie about the middle element of what an op puts out that shows in a root. The run before it is the honest one.
pub(super) fn tell(honest: &Honest<'_>, at: Place, liar: &Liar<'_>) -> Result<Lied> {
    let (package, job) = (honest.package, honest.job);
    let program = package.program();
    let op = &program.layers[at.layer].ops[at.op];
    let tensor = program.tensor(op.out());
    let row = match tensor.rows {
        Rows::Position if !program.is_decoder() => job.tokens.len() / 2,
        Rows::Sequence => 0,
        // The position of the first token that was generated, which is the last point.
        Rows::Position | Rows::Point => job.tokens.len(),
    };
    let place = honest.place(at.layer.max(1));
    let target = Target::Element { row, col: tensor.cols as usize / 2 };
    let widths = |bit: &&u32| tensor.kind == TensorKind::I32 || **bit < 15;
    for bit in BITS.iter().filter(widths) {
        let lie = Lie { layer: at.layer, op: at.op, target, change: Change::Xor(1 << bit) };
        let mut executor = liar(lie).load(Arc::clone(program), package.params())?;
        let (trace, layer) = honest.trace(&mut *executor, place)?;
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
        return Ok(Lied { lie, place, roots: honest.roots_with(place, root), words, trace, layer });
    }
    None.with_context(|| format!("no lie about op {} ({}) of layer {} shows in a root", at.op, op.name(), at.layer))
}
