//! What a player keeps of a run: everything from which the tensors of one layer's dispute view follow.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_kernels::backend::{BackendError, Executor};
use lockstep_kernels::program::{Op, Program, Rows, TensorId, TensorKind};
use lockstep_kernels::sampling::Sampling;
use lockstep_kernels::steps::{Part, Plan, PlanError, Step};
use lockstep_kernels::value::{Batch, Sampler, Sequence, Value};
use lockstep_protocol::ids::{Place, Root};
use lockstep_protocol::trace::{RowTree, push_padded_row, root_of_rows};

use super::TraceError;
use crate::generation::Logits;

/// The output of the layer below the disputed one, kept from the run that was signed.
#[derive(Clone, Copy, Debug)]
pub struct Below<'a> {
    /// Its rows up to the disputed point, or more, each of the output's columns, without padding.
    pub rows: &'a [i32],
    /// The signed roots of the disputed point: those of layer 1 and on, at least up to the layer below.
    pub signed: &'a [Root],
}

/// What is drawn at the disputed point of a generation, and how.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub settings: Arc<Sampling>,
    pub draw: u64,
    /// Where its log-probabilities are disputed: the word, and how many likely tokens are beside it.
    pub logprobs: Option<(u32, u8)>,
}

/// A run up to the disputed layer.
#[derive(Debug)]
pub(super) struct Kept {
    pub program: Arc<Program>,
    pub place: Place,
    /// The disputed layer, or the last one, where log-probabilities are disputed.
    layer: usize,
    /// Of a generation.
    of_point: Option<Point>,
    /// The roots of layers 1 to the disputed one, over the rows up to the point. After those of all layers comes that of the
    /// log-probabilities, where it is these that are disputed.
    pub roots: Vec<Root>,
    /// The same while layers run.
    trees: Vec<RowTree>,
    /// `R_{l-1}`: padded rows. Empty for layer 1.
    pub input: Vec<u8>,
    /// `R_l`: padded rows; or the one row of log-probabilities.
    pub output: Vec<u8>,
    /// What each op of the layer wrote, by layer and op; for layer 1 the ops of layer 0 too.
    values: BTreeMap<(usize, usize), Value>,
}

impl Kept {
    /// Runs the layers up to the disputed one over the tokens up to the point.
    pub fn run(
        executor: &mut dyn Executor,
        program: &Arc<Program>,
        tokens: &[u32],
        place: Place,
        of_point: Option<Point>,
    ) -> Result<Self, TraceError> {
        let mut kept = Self::empty(program, tokens.len(), place, of_point)?;
        let pass = kept.begin(executor, tokens)?;
        for l in 0..=kept.layer {
            executor.run_layer(l)?;
            kept.after(executor, l, pass)?;
        }
        kept.roots = kept.trees.drain(..).map(|tree| tree.root()).collect();
        kept.add_logprobs(executor, pass)?;
        Ok(kept)
    }

    /// The same from layer `first` on, at least 2, where others have computed those before. `None` where the rows of the
    /// layer before are not those that were signed.
    pub fn run_from(
        executor: &mut dyn Executor,
        program: &Arc<Program>,
        tokens: &[u32],
        place: Place,
        of_point: Option<Point>,
        (first, below): (u16, Below<'_>),
    ) -> Result<Option<Self>, TraceError> {
        let mut kept = Self::empty(program, tokens.len(), place, of_point)?;
        let (first, layer, positions) = (usize::from(first), kept.layer, place.point as usize + 1);
        if first < 2 || first > layer {
            return Err(TraceError::Place { place, layers: program.layers.len(), tokens: tokens.len() });
        }
        let cols = program.tensor(program.layers[first - 1].output).cols as usize;
        let (Some(rows), Some(signed)) = (below.rows.get(..positions * cols), below.signed.get(..first - 1)) else {
            return Ok(None);
        };
        if signed.last() != Some(&root_of_rows(rows, cols)) {
            return Ok(None);
        }
        let pass = kept.begin(executor, tokens)?;
        executor.write(program.layers[first - 1].output, Value::I32(rows.to_vec()))?;
        if first == layer {
            rows.chunks_exact(cols).for_each(|row| push_padded_row(row, &mut kept.input));
        }
        for l in first..=layer {
            executor.run_layer(l)?;
            kept.after(executor, l, pass)?;
        }
        let own = kept.trees.drain(..).skip(first - 1).map(|tree| tree.root());
        kept.roots = signed.iter().copied().chain(own).collect();
        kept.add_logprobs(executor, pass)?;
        Ok(Some(kept))
    }

    /// Runs the disputed layer alone, from the output of the one below. `None` where that is not what was signed, or where
    /// the disputed layer is the first one, which starts from the tokens.
    pub fn resume(
        executor: &mut dyn Executor,
        program: &Arc<Program>,
        tokens: &[u32],
        place: Place,
        of_point: Option<Point>,
        below: Below<'_>,
    ) -> Result<Option<Self>, TraceError> {
        let mut kept = Self::empty(program, tokens.len(), place, of_point)?;
        let (layer, positions) = (kept.layer, place.point as usize + 1);
        let input = program.layers[layer - 1].output;
        let cols = program.tensor(input).cols as usize;
        let (Some(rows), Some(signed)) = (below.rows.get(..positions * cols), below.signed.get(..layer - 1)) else {
            return Ok(None);
        };
        if signed.last() != Some(&root_of_rows(rows, cols)) {
            return Ok(None);
        }
        rows.chunks_exact(cols).for_each(|row| push_padded_row(row, &mut kept.input));
        let pass = kept.begin(executor, tokens)?;
        executor.write(input, Value::I32(rows.to_vec()))?;
        executor.run_layer(layer)?;
        kept.after(executor, layer, pass)?;
        let output = kept.trees.drain(..).next_back().map(|tree| tree.root());
        kept.roots = signed.iter().copied().chain(output).collect();
        kept.add_logprobs(executor, pass)?;
        Ok(Some(kept))
    }

    /// Begins a pass over the tokens up to the point, in which only the disputed word is sampled, if any: all of a long
    /// generation have more logits than anybody has memory. Returns how many positions and points it has.
    fn begin(&self, executor: &mut dyn Executor, tokens: &[u32]) -> Result<[usize; 2], TraceError> {
        let is_last = self.layer + 1 == self.program.layers.len();
        let point = self.of_point.clone().filter(|_| is_last);
        let sampler = point.map(|point| Sampler { sampling: point.settings, draws: vec![point.draw] });
        let tokens = tokens[..=self.place.point as usize].to_vec();
        let sequence = Sequence { sampler, ..Sequence::new(tokens) };
        let pass = [sequence.rows(), sequence.points().len()];
        executor.begin(&Batch { sequences: vec![sequence] })?;
        Ok(pass)
    }

    /// Nothing of a run over so many tokens yet.
    fn empty(program: &Arc<Program>, tokens: usize, place: Place, of_point: Option<Point>) -> Result<Self, TraceError> {
        let (last, positions) = (program.layers.len().saturating_sub(1), place.point as usize + 1);
        let prompt = of_point.as_ref().map_or(1, |point| point.settings.prompt_tokens as usize);
        let has_logprobs = of_point.as_ref().is_some_and(|point| point.logprobs.is_some());
        let layer = if has_logprobs { last } else { place.layer.into() };
        if !(1..=last).contains(&layer) || !(prompt..=tokens).contains(&positions) {
            return Err(TraceError::Place { place, layers: program.layers.len(), tokens });
        }
        let columns = |l: usize| program.tensor(program.layers[l].output).cols as usize;
        Ok(Self {
            program: Arc::clone(program),
            place,
            layer,
            of_point,
            roots: Vec::with_capacity(layer),
            trees: (1..=layer).map(|l| RowTree::new(columns(l))).collect(),
            input: Vec::new(),
            output: Vec::new(),
            values: BTreeMap::new(),
        })
    }

    fn logprobs(&self) -> Option<(u32, u8)> {
        self.of_point.as_ref().and_then(|point| point.logprobs)
    }

    /// Columns of what is disputed, without padding.
    pub fn output_columns(&self) -> usize {
        let output = self.program.layers[self.layer].output;
        self.logprobs()
            .map_or(self.program.tensor(output).cols as usize, |(_, likeliest)| 1 + 2 * usize::from(likeliest))
    }

    /// The dispute view of a row.
    pub fn plan(&self, row: u32) -> Result<Plan, PlanError> {
        let sampling = self.of_point.as_ref().map(|point| (&*point.settings, point.draw));
        let positions = self.place.point + 1;
        match (self.logprobs(), sampling) {
            (Some((_, likeliest)), Some(sampling)) => Plan::logprobs(&self.program, positions, sampling, likeliest),
            _ => Plan::new(&self.program, self.layer, positions, row, sampling),
        }
    }

    /// Where log-probabilities are disputed, takes those of the pass that has just run in place of the words.
    fn add_logprobs(&mut self, executor: &mut dyn Executor, pass: [usize; 2]) -> Result<(), TraceError> {
        let Some((word, likeliest)) = self.logprobs() else { return Ok(()) };
        let logits = Logits::of(&self.program, |tensor| match self.read(executor, tensor, pass)? {
            Value::I32(values) => Ok::<_, TraceError>(values),
            _ => unreachable!("validation: logits are i32"),
        })?;
        // One point was sampled.
        let row = logits.map(|logits| logits.row(0, word, likeliest + 1)).unwrap_or_default();
        self.output.clear();
        push_padded_row(&row, &mut self.output);
        self.roots.push(Root::from(blake3::hash(&self.output)));
        Ok(())
    }

    /// Takes what is needed of a layer that has just run; later ones may write over it.
    fn after(&mut self, executor: &mut dyn Executor, l: usize, pass: [usize; 2]) -> Result<(), TraceError> {
        let (program, layer) = (Arc::clone(&self.program), self.layer);
        let output = program.layers[l].output;
        if l > 0 {
            let rows = self.read(executor, output, pass)?;
            let Value::I32(rows) = rows else { unreachable!("validation: a layer's output is i32") };
            self.trees[l - 1].push_rows(&rows);
            if l + 1 >= layer {
                let padded = if l == layer { &mut self.output } else { &mut self.input };
                rows.chunks_exact(program.tensor(output).cols as usize).for_each(|row| push_padded_row(row, padded));
            }
        }
        if l == layer || (l, layer) == (0, 1) {
            for (op, kind) in program.layers[l].ops.iter().enumerate() {
                let value = self.read(executor, kind.out(), pass)?;
                self.values.insert((l, op), value);
            }
        }
        Ok(())
    }

    /// Reads a tensor and checks its shape, so that no backend can make what follows fail.
    fn read(
        &self,
        executor: &mut dyn Executor,
        id: TensorId,
        [positions, points]: [usize; 2],
    ) -> Result<Value, TraceError> {
        let tensor = self.program.tensor(id);
        let rows = match tensor.rows {
            Rows::Position => positions,
            Rows::Sequence => 1,
            Rows::Point => points,
        };
        let (len, value) = (rows * tensor.cols as usize, executor.read(id)?);
        let fits = match (tensor.kind, &value) {
            (TensorKind::I32, Value::I32(v)) => v.len() == len,
            (TensorKind::I16, Value::I16(v)) => v.len() == len,
            (TensorKind::Bfp, Value::Bfp { codes, exponents }) => codes.len() == len && exponents.len() == rows,
            _ => false,
        };
        if !fits {
            let reason = "the backend gave another kind or length than the program declares".into();
            return Err(BackendError::Value { tensor: id, reason }.into());
        }
        Ok(value)
    }

    fn output_rows(&self) -> Rows {
        self.program.tensor(self.program.layers[self.layer].output).rows
    }

    /// The bytes of a step that is an op's output, from what the backend wrote. `row` is the disputed one.
    ///
    /// # Panics
    /// When the step is another part of its op, or of a plan for another layer.
    pub fn output_of(&self, step: &Step, row: usize) -> Vec<u8> {
        let op: &Op = &self.program.layers[step.layer].ops[step.op];
        // Before a row that belongs to a point come those of the point's position.
        let row = match (self.program.tensor(op.out()).rows, self.output_rows()) {
            (Rows::Position, Rows::Point) => self.place.point as usize,
            (Rows::Position, _) => row,
            (Rows::Sequence | Rows::Point, _) => 0,
        };
        let rows = if step.all_rows { 0..step.rows as usize } else { row..row + 1 };
        let value = &self.values[&(step.layer, step.op)];
        let mut bytes = Vec::with_capacity(step.bytes() as usize);
        let row_bytes = step.row_bytes() as usize;
        let cols = step.cols as usize;
        match (value, step.part) {
            (Value::I32(v), Part::Out) | (Value::Bfp { exponents: v, .. }, Part::Exponent) => {
                push_rows(&mut bytes, &v[rows.start * cols..rows.end * cols], cols, row_bytes, |v| v.to_le_bytes());
            }
            (Value::I16(v), Part::Out) | (Value::Bfp { codes: v, .. }, Part::Codes) => {
                push_rows(&mut bytes, &v[rows.start * cols..rows.end * cols], cols, row_bytes, |v| v.to_le_bytes());
            }
            _ => unreachable!("{} has no output {}", op.name(), step.part.name()),
        }
        bytes
    }
}

/// Appends rows, each padded with zeros to `row_bytes`.
fn push_rows<T: Copy, const N: usize>(
    bytes: &mut Vec<u8>,
    values: &[T],
    cols: usize,
    row_bytes: usize,
    le: fn(T) -> [u8; N],
) {
    for row in values.chunks_exact(cols) {
        let start = bytes.len();
        bytes.resize(start + row_bytes, 0);
        for (to, value) in bytes[start..].as_chunks_mut::<N>().0.iter_mut().zip(row) {
            *to = le(*value);
        }
    }
}
