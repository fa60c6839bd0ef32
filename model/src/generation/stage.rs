//! One job through some of a model's layers, in step with those that have the others.
//!
//! Every stage of a pipeline holds the same job and advances it by the same passes: it knows the tokens, gets the rows of
//! the layer before its first one and the words that the last stage drew, and so comes to the same cuts, the same end,
//! and where a hint was wrong to the same position. It hashes the rows that it receives like those of a layer of its own,
//! so it has the root of its input at every point.

use std::sync::Arc;

use lockstep_kernels::backend::{BackendError, Executor};
use lockstep_kernels::program::Program;
use lockstep_kernels::slice::Slice;
use lockstep_kernels::value::{Batch, CacheId, Sequence, Value};
use lockstep_protocol::generation::{word_root, word_token};
use lockstep_protocol::hand_over::{HandOver, cuts};
use lockstep_protocol::ids::{Place, Root};
use lockstep_protocol::job::{Job, JobKind};
use lockstep_protocol::trace::{RowTree, root_of_rows};

use super::logprobs::Logits;
use super::pass::{Cut, Part, Passed};
use super::task::Task;
use super::{Event, Request, TaskId};
use crate::embed::read_i32;
use crate::output::{Output, Wanted};

/// Why a stage does not go on.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The job is not one of the model.
    #[error("the model is not for this kind of job")]
    Kind,
    /// A pass over more positions than are left, or none.
    #[error("a pass of {count} positions where {left} are left")]
    Count {
        /// Of the pass.
        count: usize,
        /// Positions that are left.
        left: usize,
    },
    /// More or fewer rows than the pass has positions, or words than it has points.
    #[error("{found} {what}; the pass has {expected}")]
    Shape {
        /// Of what.
        what: &'static str,
        /// How many there have to be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Words came without a pass, or a pass before the words of the last one.
    #[error("passes and words do not take turns")]
    Turn,
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Some rows of a pass, as they are handed over ([`cuts`]): how many there are before them and with them, and the roots of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Rows before them.
    pub first: u32,
    /// Rows with them.
    pub rows: u32,
    /// The root before them.
    pub before: Root,
    /// BLAKE3 of their values ([`HandOver::values`]).
    pub values: Root,
    /// The root after them.
    pub root: Root,
}

impl Mark {
    /// Of the word that was drawn at a point: the one row of the output layer there.
    pub fn of_word(point: u32, word: u32) -> Self {
        let (before, values) = (root_of_rows(&[], 1), HandOver::values_root(&[word.cast_signed()]));
        Self { first: point, rows: point + 1, before, values, root: word_root(word) }
    }
}

/// What a pass gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagePass {
    /// The rows of the stage's last layer at the positions of the pass; of the last stage none.
    pub rows: Vec<i32>,
    /// What is signed of them, piece by piece.
    pub marks: Vec<Mark>,
    /// Words that have to be taken in before the next pass.
    pub points: usize,
    /// Of the last stage: the words of the points.
    pub words: Vec<u32>,
    /// Of the last stage of an embedding: the output.
    pub output: Vec<i32>,
}

/// One job at one stage.
pub struct StageRun {
    slice: Slice,
    model: Arc<Program>,
    cache: CacheId,
    kind: Kind,
    /// The rows that were received, of all positions that are computed.
    received: Vec<i32>,
    /// A pass that waits for its words, and at the last stage the logits of its points where they are asked for.
    part: Option<(Part, Option<Logits>)>,
    saturations: Option<u64>,
}

enum Kind {
    Embedding {
        tokens: Vec<u32>,
        trees: Vec<RowTree>,
        is_done: bool,
    },
    /// Whether it has come to its end.
    Generation(Box<Task>, bool),
}

impl StageRun {
    /// A checked job of the model, of which `slice` is here. `cache` names its keys and values on the executor. `hint` is
    /// the same at all stages.
    ///
    /// # Errors
    /// [`StageError::Kind`].
    pub fn new(
        model: Arc<Program>,
        slice: Slice,
        job: &Job,
        hint: Vec<u32>,
        cache: CacheId,
    ) -> Result<Self, StageError> {
        let (first, last) = slice.layers().into_inner();
        let (from, to) = (first.saturating_sub(1).max(1), last.min(model.layers.len() - 2));
        let cols = |layer: usize| model.tensor(model.layers[layer].output).cols as usize;
        let trees = (from..=to).map(|layer| RowTree::new(cols(layer))).collect();
        let has_output = last + 1 == model.layers.len();
        let kind = match &job.kind {
            JobKind::Embedding if model.is_decoder() => return Err(StageError::Kind),
            JobKind::Generation(_) if !model.is_decoder() => return Err(StageError::Kind),
            JobKind::Embedding => Kind::Embedding { tokens: job.tokens.clone(), trees, is_done: false },
            JobKind::Generation(generation) => {
                let request = Request::new(job.tokens.clone(), generation, job.seed, hint);
                let task = Task::new(TaskId(cache.0), cache, request, model.vocab_size, 0, trees);
                Kind::Generation(Box::new(task.of_slice(from as u16, has_output)), false)
            }
        };
        let (received, part) = (Vec::new(), None);
        Ok(Self { slice, model, cache, kind, received, part, saturations: Some(0) })
    }

    /// Positions whose tokens are known and that are not computed yet; 0 at the end.
    pub fn left(&self) -> usize {
        match &self.kind {
            Kind::Embedding { is_done: true, .. } | Kind::Generation(_, true) => 0,
            Kind::Embedding { tokens, .. } => tokens.len(),
            Kind::Generation(task, false) => task.slot().left,
        }
    }

    /// Positions that are computed.
    pub fn computed(&self) -> usize {
        match &self.kind {
            Kind::Embedding { tokens, is_done, .. } => tokens.len() * usize::from(*is_done),
            Kind::Generation(task, _) => task.computed(),
        }
    }

    /// How many positions a pass has at most: an embedding has one pass.
    pub fn pass_of(&self, most: usize) -> usize {
        match &self.kind {
            Kind::Embedding { .. } => self.left(),
            Kind::Generation(..) => self.left().min(most.max(1)),
        }
    }

    /// Elements in a row that is received; 0 at the first stage, which receives none.
    pub fn received_cols(&self) -> usize {
        self.slice.input().map_or(0, |input| self.model.tensor(input).cols as usize)
    }

    /// The rows that were received so far: the output of the layer before the first one here, at all computed positions.
    pub fn received(&self) -> &[i32] {
        &self.received
    }

    /// Where the rows of the next pass are cut when they are received ([`cuts`]); nothing at the first stage.
    pub fn received_cuts(&self, count: usize) -> Vec<usize> {
        let columns = Some(self.received_cols()).filter(|columns| *columns > 0);
        columns.map(|columns| cuts(count, self.points(count), columns)).unwrap_or_default()
    }

    /// What the sender has to have signed of the rows of the next pass, of which these are the values. Nothing where no layer
    /// that has roots is received.
    ///
    /// # Panics
    /// Where there are not as many values as `count` rows have.
    pub fn received_marks(&self, count: usize, rows: &[i32]) -> Vec<Mark> {
        self.received_tree().map(|tree| self.marks(tree.clone(), count, rows)).unwrap_or_default()
    }

    /// The state of the tree over all rows that were received, and these of the next pass ([`RowTree::state`]): what an error in the
    /// rows that follow is proven from.
    ///
    /// # Panics
    /// Where these are no whole rows.
    pub fn received_state(&self, rows: &[i32]) -> Vec<u8> {
        let mut tree = self.received_tree().cloned();
        tree.iter_mut().for_each(|tree| tree.push_rows(rows));
        tree.map(|tree| tree.state()).unwrap_or_default()
    }

    fn received_tree(&self) -> Option<&RowTree> {
        self.trees().first().filter(|_| *self.slice.layers().start() > 1)
    }

    /// How many of the next `count` positions are points of which a word is drawn.
    fn points(&self, count: usize) -> usize {
        match &self.kind {
            Kind::Embedding { .. } => 0,
            Kind::Generation(task, _) => task.points(count),
        }
    }

    fn trees(&self) -> &[RowTree] {
        match &self.kind {
            Kind::Embedding { trees, .. } => trees,
            Kind::Generation(task, _) => task.trees(),
        }
    }

    fn marks(&self, mut tree: RowTree, count: usize, rows: &[i32]) -> Vec<Mark> {
        assert!(count > 0 && rows.len().is_multiple_of(count), "whole rows");
        let (computed, cols) = (self.computed(), rows.len() / count);
        let (mut at, mut before) = (0, tree.root());
        let mark = |end: usize| {
            let piece = &rows[at * cols..end * cols];
            tree.push_rows(piece);
            let (values, root) = (HandOver::values_root(piece), tree.root());
            let mark = Mark { first: (computed + at) as u32, rows: (computed + end) as u32, before, values, root };
            (at, before) = (end, root);
            mark
        };
        cuts(count, self.points(count), cols).into_iter().map(mark).collect()
    }

    /// What the last stage has to have signed of the words at the points of the pass that waits for them. `None` where they are not as
    /// many, or one can't be a word of the job there: nobody goes on with such a one.
    pub fn word_marks(&self, words: &[u32]) -> Option<Vec<Mark>> {
        let (Some((part, _)), Kind::Generation(task, _)) = (&self.part, &self.kind) else { return None };
        let points: Vec<_> =
            part.cuts.iter().filter(|cut| cut.root).map(|cut| task.computed() + cut.rows - 1).collect();
        let is_one = |(at, word): (usize, &u32)| task.may_draw(at, *word) && word_token(*word) < self.model.vocab_size;
        let are_right = words.len() == points.len() && words.iter().enumerate().all(is_one);
        are_right.then(|| points.iter().zip(words).map(|(point, word)| Mark::of_word(*point as u32, *word)).collect())
    }

    /// Computes the next `count` positions. `rows` are those of the layer before, at the first stage none.
    ///
    /// # Errors
    /// [`StageError`]; after one of the backend the run is of no use.
    pub fn pass(&mut self, executor: &mut dyn Executor, count: usize, rows: &[i32]) -> Result<StagePass, StageError> {
        let left = self.left();
        if self.part.is_some() {
            return Err(StageError::Turn);
        }
        if count == 0 || count > left || self.pass_of(count) != count {
            return Err(StageError::Count { count, left });
        }
        let expected = count * self.received_cols();
        if rows.len() != expected {
            return Err(StageError::Shape { what: "values of rows", expected, found: rows.len() });
        }
        let has_output = self.has_output();
        let last_tree = self.trees().last().filter(|_| !has_output).cloned();
        let (sequence, mut part) = match &mut self.kind {
            Kind::Embedding { tokens, trees, .. } => {
                let cuts = vec![Cut { rows: count, root: true, state: false }];
                let (trees, noted) = (std::mem::take(trees), Vec::new());
                (
                    Sequence::new(tokens.clone()),
                    Part { span: 0..count, cuts, is_told: true, wants_logits: false, trees, recorder: None, noted },
                )
            }
            Kind::Generation(task, _) => {
                let mut sequence = task.sequence(count);
                sequence.sampler = sequence.sampler.filter(|_| has_output);
                // What a point comes to is said when its word is known.
                let part = Part { is_told: false, ..task.part(count, 0..count, false) };
                (sequence, part)
            }
        };
        let points = self.points(count);
        let (saturations, last) = self.run(executor, sequence, rows, Some(&mut part))?;
        self.saturations = self.saturations.map(|sum| sum + saturations);
        self.received.extend_from_slice(rows);
        let marks = last_tree.map(|tree| self.marks(tree, count, &last)).unwrap_or_default();
        let mut passed = StagePass { rows: last, marks, points, words: vec![], output: vec![] };
        match (&mut self.kind, has_output) {
            (Kind::Embedding { .. }, true) => passed.output = std::mem::take(&mut passed.rows),
            (Kind::Generation(..), true) => {
                passed.words = std::mem::take(&mut passed.rows).into_iter().map(i32::cast_unsigned).collect();
            }
            (_, false) => {}
        }
        let wants_logits = has_output && part.wants_logits;
        let logits = if wants_logits { Logits::read(executor, &self.model)? } else { None };
        self.part = Some((part, logits));
        Ok(passed)
    }

    fn has_output(&self) -> bool {
        *self.slice.layers().end() + 1 == self.model.layers.len()
    }

    /// Runs the layers that are here. Returns what they clamped, and the output of the last one.
    fn run(
        &self,
        executor: &mut dyn Executor,
        sequence: Sequence,
        rows: &[i32],
        mut part: Option<&mut Part>,
    ) -> Result<(u64, Vec<i32>), StageError> {
        let batch = Batch { sequences: vec![sequence] };
        executor.begin(&batch)?;
        let (first, last) = self.slice.layers().into_inner();
        let numbers: Vec<u64> = part.iter().flat_map(|part| part.numbers()).collect();
        let mut trees = 0;
        if let Some(input) = self.slice.input() {
            executor.write(input, Value::I32(rows.to_vec()))?;
            if let Some(part) = part.as_mut().filter(|_| first > 1) {
                part.push(trees, &Output::of_rows(rows.to_vec(), self.received_cols()));
                trees += 1;
            }
        }
        let (mut saturations, mut output) = (0, Vec::new());
        for layer in first..=last {
            let is_output = layer + 1 == self.model.layers.len();
            if is_output && self.model.is_decoder() && batch.points() == 0 {
                break;
            }
            saturations += executor.run_layer(layer)?.saturations;
            // The embedding is not committed, and only the last layer here is handed over.
            let committed = part.as_mut().filter(|_| layer > 0 && !is_output);
            if let Some(part) = committed {
                let wanted = if layer == last || part.recorder.is_some() { Wanted::Rows } else { Wanted::Root };
                let of_layer = Output::take(executor, &self.model, layer, wanted, &numbers)?;
                part.push(trees, &of_layer);
                trees += 1;
                output = of_layer.into_rows().filter(|_| layer == last).unwrap_or_default();
            } else if layer == last {
                output = read_i32(executor, self.model.layers[layer].output)?;
            }
        }
        Ok((saturations, output))
    }

    /// Takes in the words that the last stage drew at the points of the pass, of an embedding none, and says what is new: the roots of the
    /// received layer and of those here, at every point that counts, and the words. Returns whether the run has ended.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn accept(
        &mut self,
        executor: &mut dyn Executor,
        words: &[u32],
        output: &[i32],
        say: &mut dyn FnMut(Event),
    ) -> Result<bool, StageError> {
        let (mut part, logits) = self.part.take().ok_or(StageError::Turn)?;
        let cols = self.received_cols();
        let has_output = self.has_output();
        match &mut self.kind {
            Kind::Embedding { tokens, trees, is_done } => {
                let point = tokens.len() as u32 - 1;
                let from = self.slice.layers().start().saturating_sub(1).max(1) as u16;
                for (layer, noted) in (from..).zip(&part.noted) {
                    let root = noted[0].root.expect("the one cut of an embedding has a root");
                    say(Event::Root { place: Place { point, layer }, root });
                }
                if has_output {
                    let layer = self.model.layers.len() as u16 - 1;
                    let root = lockstep_protocol::trace::root_of_rows(output, output.len().max(1));
                    say(Event::Root { place: Place { point, layer }, root });
                }
                *trees = std::mem::take(&mut part.trees);
                *is_done = true;
                Ok(true)
            }
            Kind::Generation(task, is_done) => {
                let expected = part.cuts.iter().filter(|cut| cut.root).count();
                if words.len() != expected {
                    self.part = Some((part, logits));
                    return Err(StageError::Shape { what: "words", expected, found: words.len() });
                }
                let passed = Passed { words: words.to_vec(), logits, saturations: 0 };
                let advance = task.accept(part, &passed, 0..words.len(), &mut |_, event| say(event));
                self.received.truncate(task.computed() * cols);
                *is_done = advance.is_done;
                if advance.is_rolled_back {
                    // What the rest of a wrong draft clamped is in the count.
                    self.saturations = self.saturations.filter(|sum| *sum == 0);
                    executor.truncate_cache(self.cache, task.computed())?;
                }
                Ok(advance.is_done)
            }
        }
    }

    /// Frees the executor's memory, and counts what the run clamped in all at the layers that are here.
    ///
    /// # Errors
    /// Whatever the backend says.
    pub fn finish(&mut self, executor: &mut dyn Executor, most: usize) -> Result<u64, StageError> {
        executor.drop_cache(self.cache);
        if let (None, Kind::Generation(task, _)) = (self.saturations, &self.kind) {
            let (cols, has_output) = (self.received_cols(), self.has_output());
            let mut sum = 0;
            for mut sequence in task.again(most.max(1)) {
                let rows = &self.received[sequence.start * cols..sequence.tokens.len() * cols];
                sequence.sampler = sequence.sampler.filter(|_| has_output);
                sum += self.run(executor, sequence, rows, None)?.0;
            }
            executor.drop_cache(self.cache);
            self.saturations = Some(sum);
        }
        Ok(self.saturations.unwrap_or_default())
    }
}
