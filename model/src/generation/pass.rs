//! One pass of the program over a batch, with every committed row hashed on the way.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

use lockstep_kernels::backend::{BackendError, Executor};
use lockstep_kernels::program::Program;
use lockstep_kernels::value::Batch;
use lockstep_protocol::ids::Root;
use lockstep_protocol::trace::RowTree;

use super::logprobs::Logits;
use super::recorder::Recorder;
use crate::embed::read_i32;
use crate::output::{Output, Wanted};

/// Layers that may wait to be hashed while the next ones run.
const LAYERS_AHEAD: usize = 2;
/// A layer with fewer bytes of rows than this is hashed at once: a second thread would cost more than it saves.
const OVERLAP_BYTES: usize = 256 << 10;

/// After which of a part's rows something is noted in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Rows of this pass up to there, at least 1.
    pub rows: usize,
    /// The root, because there is a point.
    pub root: bool,
    /// The whole state, to go on from there another time.
    pub state: bool,
}

/// What was noted at one cut in one layer.
#[derive(Clone, Debug, Default)]
pub(super) struct Noted {
    pub root: Option<Root>,
    pub state: Option<RowTree>,
}

/// What one sequence has in a pass.
#[derive(Debug)]
pub(super) struct Part {
    /// Its rows among those of the pass.
    pub span: Range<usize>,
    /// Ascending.
    pub cuts: Vec<Cut>,
    /// Whether its roots are told as they come: only where the pass can't turn out to have gone too far.
    pub is_told: bool,
    /// Whether the logits of its points are wanted.
    pub wants_logits: bool,
    /// The hashes of its layers: of a whole model 1 to L. They end with the last row of the pass.
    pub trees: Vec<RowTree>,
    /// Whoever is told its rows.
    pub recorder: Option<Box<dyn Recorder>>,
    /// For each of these layers, one of each cut.
    pub noted: Vec<Vec<Noted>>,
}

impl Part {
    /// The number of each of its rows in the tensors that they are committed in.
    pub fn numbers(&self) -> Range<u64> {
        let first = self.trees.first().map_or(0, RowTree::rows);
        first..first + self.span.len() as u64
    }

    /// Hashes its rows of one of its layers, counted from 0, of which `output` has those of the pass, and passes them on.
    /// Returns a root that is to be told.
    pub fn push(&mut self, layer: usize, output: &Output) -> Option<Root> {
        if let (Some(recorder), Some(rows)) = (&mut self.recorder, output.rows(&self.span)) {
            // It has all layers of a model, from 1 on.
            recorder.push(layer + 1, rows);
        }
        let (tree, mut at) = (&mut self.trees[layer], self.span.start);
        let mut noted = Vec::with_capacity(self.cuts.len());
        for cut in &self.cuts {
            let end = self.span.start + cut.rows;
            output.push_to(tree, at..end);
            at = end;
            noted.push(Noted { root: cut.root.then(|| tree.root()), state: cut.state.then(|| tree.clone()) });
        }
        output.push_to(tree, at..self.span.end);
        let told = noted.iter().find_map(|noted| noted.root).filter(|_| self.is_told);
        self.noted.push(noted);
        told
    }
}

/// What all parts together need of each layer.
fn wanted(parts: &[Part]) -> Wanted {
    if parts.iter().any(|part| part.recorder.is_some()) { Wanted::Rows } else { Wanted::Root }
}

/// The number of each row of the pass in the tensors that it is committed in.
fn numbers(parts: &[Part]) -> Vec<u64> {
    parts.iter().flat_map(Part::numbers).collect()
}

/// What a pass gives besides its parts.
pub(super) struct Passed {
    /// The words of all points of the batch.
    pub words: Vec<u32>,
    /// The logits of all points, where a part wants them.
    pub logits: Option<Logits>,
    /// Elements that the whole batch clamped.
    pub saturations: u64,
}

/// Runs a decoder over a batch. `tell` hears the number of a part, a layer and its root.
pub(super) fn run(
    executor: &mut dyn Executor,
    program: &Program,
    batch: &Batch,
    parts: &mut [Part],
    tell: &mut dyn FnMut(usize, u16, Root),
) -> Result<Passed, BackendError> {
    executor.begin(batch)?;
    let last = program.layers.len() - 1;
    let mut saturations = executor.run_layer(0)?.saturations;
    let widest = (1..last).map(|layer| cols_of(program, layer)).max().unwrap_or(0);
    saturations += if batch.rows() * widest * size_of::<i32>() < OVERLAP_BYTES {
        run_and_hash(executor, program, parts, tell)?
    } else {
        run_while_hashing(executor, program, parts, tell)?
    };
    let (mut words, mut logits) = (Vec::new(), None);
    if batch.points() > 0 {
        saturations += executor.run_layer(last)?.saturations;
        words = read_i32(executor, program.layers[last].output)?.into_iter().map(i32::cast_unsigned).collect();
        if parts.iter().any(|part| part.wants_logits) {
            logits = Logits::read(executor, program)?;
        }
    }
    Ok(Passed { words, logits, saturations })
}

fn cols_of(program: &Program, layer: usize) -> usize {
    program.tensor(program.layers[layer].output).cols as usize
}

/// Layers 1 to L, one after the other.
fn run_and_hash(
    executor: &mut dyn Executor,
    program: &Program,
    parts: &mut [Part],
    tell: &mut dyn FnMut(usize, u16, Root),
) -> Result<u64, BackendError> {
    let (wanted, numbers, mut saturations) = (wanted(parts), numbers(parts), 0);
    for layer in 1..program.layers.len() - 1 {
        saturations += executor.run_layer(layer)?.saturations;
        let output = Output::take(executor, program, layer, wanted, &numbers)?;
        for (index, part) in parts.iter_mut().enumerate() {
            if let Some(root) = part.push(layer - 1, &output) {
                tell(index, layer as u16, root);
            }
        }
    }
    Ok(saturations)
}

/// Layers 1 to L, each hashed while the next one runs.
fn run_while_hashing(
    executor: &mut dyn Executor,
    program: &Program,
    parts: &mut [Part],
    tell: &mut dyn FnMut(usize, u16, Root),
) -> Result<u64, BackendError> {
    let (finished, layers) = sync_channel(LAYERS_AHEAD);
    let (told, roots) = channel();
    let (wanted, numbers) = (wanted(parts), numbers(parts));
    std::thread::scope(|scope| {
        let hasher = scope.spawn(move || hash(&layers, parts, &told));
        let mut saturations = 0;
        let mut ran = Ok(());
        for layer in 1..program.layers.len() - 1 {
            ran = executor.run_layer(layer).and_then(|report| {
                saturations += report.saturations;
                // The hasher ends early only by a panic, which is heard below.
                let _ = finished.send((layer, Output::take(executor, program, layer, wanted, &numbers)?));
                Ok(())
            });
            roots.try_iter().for_each(|(part, layer, root)| tell(part, layer, root));
            if ran.is_err() {
                break;
            }
        }
        drop(finished);
        roots.iter().for_each(|(part, layer, root)| tell(part, layer, root));
        // A panic of the hasher is one of this thread.
        hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        ran.map(|()| saturations)
    })
}

fn hash(layers: &Receiver<(usize, Output)>, parts: &mut [Part], told: &Sender<(usize, u16, Root)>) {
    for (layer, output) in layers {
        for (index, part) in parts.iter_mut().enumerate() {
            if let Some(root) = part.push(layer - 1, &output) {
                // Whoever runs the layers listens until this ends.
                let _ = told.send((index, layer as u16, root));
            }
        }
    }
}
