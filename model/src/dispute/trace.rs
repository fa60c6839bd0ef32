//! What a player can say: a run that was kept, and everything that follows from it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::Arc;

use blake3::hazmat::HasherExt;

use lockstep_kernels::backend::Executor;
use lockstep_kernels::program::{ParamId, Program};
use lockstep_kernels::sampling::split_word;
use lockstep_kernels::steps::Plan;
use lockstep_kernels::value::Params;
use lockstep_protocol::dispute::{Evidence, EvidenceError, Source, Tensor};
use lockstep_protocol::ids::{Place, Root};
use lockstep_protocol::job::Job;
use lockstep_protocol::limits::CHUNK_BYTES;
use lockstep_protocol::openings::{ChunkRange, OpeningError, Outboard, open_range};
use lockstep_protocol::trace::padded_row_bytes;

use super::TraceError;
use super::fill::{Ids, fill};
use super::kept::{Below, Kept, Point};
use crate::generation::{draw, sampling};
use crate::lower::param_bytes;

/// A player's evidence about one place of one job: its own run, once more, with everything kept that the dispute may
/// ask for. Whatever it says follows from what the executor computed, so an executor that lies makes a liar that stays
/// true to its lie.
pub struct Trace {
    kept: Kept,
    params: Arc<dyn Params>,
    ids: Ids,
    /// The steps of the disputed row, once it is known.
    view: Option<View>,
    /// Whatever was opened, by source.
    outboards: BTreeMap<Source, Outboard>,
}

/// What a job's run is made from, up to a place.
struct Inputs<'a> {
    /// Those of the prompt, and of the words before the point.
    tokens: Cow<'a, [u32]>,
    /// Of a generation.
    of_point: Option<Point>,
    ids: Ids,
}

impl<'a> Inputs<'a> {
    fn of(job: &'a Job, words: &[u32], place: Place, program: &Program) -> Result<Self, TraceError> {
        let Some(generation) = job.kind.generation() else {
            let ids = Ids { tokens: le_bytes(&job.tokens), words: Vec::new() };
            return Ok(Self { tokens: Cow::Borrowed(&job.tokens), of_point: None, ids });
        };
        // The log-probabilities, which come after all layers, are also those of the point's own word.
        let likeliest = generation.logprobs.checked_sub(1);
        let likeliest = likeliest.filter(|_| usize::from(place.layer) == program.layers.len());
        let before = (place.point as usize + 1).saturating_sub(job.tokens.len());
        let needed = before.saturating_add(usize::from(likeliest.is_some()));
        let words = words.get(..needed).ok_or(TraceError::Words { place, words: words.len() })?;
        let generated = words[..before].iter().map(|word| split_word(*word).0);
        let point = Point {
            settings: Arc::new(sampling(generation, job.header().token_count)),
            draw: draw(&job.seed, place.point),
            logprobs: words.last().copied().zip(likeliest),
        };
        Ok(Self {
            tokens: job.tokens.iter().copied().chain(generated).collect(),
            of_point: Some(point),
            ids: Ids { tokens: le_bytes(&job.tokens), words: le_bytes(words) },
        })
    }
}

/// The dispute view of one row.
struct View {
    row: usize,
    plan: Plan,
    steps: Vec<Vec<u8>>,
}

impl Trace {
    /// Runs a job's tokens up to the disputed layer and keeps what the dispute may ask for. `executor` has `program` and
    /// `params` loaded; `params` are those of a package that was checked. Blocks for as long as the run takes.
    ///
    /// # Errors
    /// [`TraceError`]: the program or job has no such place, or the backend fails.
    pub fn run(
        executor: &mut dyn Executor,
        program: &Arc<Program>,
        params: Arc<dyn Params>,
        tokens: &[u32],
        place: Place,
    ) -> Result<Self, TraceError> {
        let kept = Kept::run(executor, program, tokens, place, None)?;
        let ids = Ids { tokens: le_bytes(tokens), words: Vec::new() };
        Ok(Self { kept, params, ids, view: None, outboards: BTreeMap::new() })
    }

    /// As [`of_job`](Self::of_job), from the output of the layer below the disputed one, so that only that layer is run.
    /// `None` where there is none below, or where the rows are not those that were signed.
    ///
    /// # Errors
    /// As [`of_job`](Self::of_job).
    pub fn resume(
        executor: &mut dyn Executor,
        program: &Arc<Program>,
        params: Arc<dyn Params>,
        (job, words): (&Job, &[u32]),
        place: Place,
        below: Below<'_>,
    ) -> Result<Option<Self>, TraceError> {
        let Inputs { tokens, of_point, ids } = Inputs::of(job, words, place, program)?;
        let kept = Kept::resume(executor, program, &tokens, place, of_point, below)?;
        Ok(kept.map(|kept| Self { kept, params, ids, view: None, outboards: BTreeMap::new() }))
    }

    /// As [`run`](Self::run), for a job of any kind. `words` are those that its run had made before the disputed point, where
    /// log-probabilities are disputed also the point's own, or more of them; none of an embedding.
    ///
    /// # Errors
    /// As [`run`](Self::run); there are fewer words.
    pub fn of_job(
        executor: &mut dyn Executor,
        program: &Arc<Program>,
        params: Arc<dyn Params>,
        job: &Job,
        words: &[u32],
        place: Place,
    ) -> Result<Self, TraceError> {
        let Inputs { tokens, of_point, ids } = Inputs::of(job, words, place, program)?;
        let kept = Kept::run(executor, program, &tokens, place, of_point)?;
        Ok(Self { kept, params, ids, view: None, outboards: BTreeMap::new() })
    }

    /// As [`of_job`](Self::of_job), from the output of the layer before `first`, which was computed elsewhere: `executor`
    /// has the layers from there on. `None` where the rows are not those that were signed.
    ///
    /// # Errors
    /// As [`of_job`](Self::of_job).
    pub fn of_received(
        executor: &mut dyn Executor,
        program: &Arc<Program>,
        params: Arc<dyn Params>,
        (job, words): (&Job, &[u32]),
        place: Place,
        (first, below): (u16, Below<'_>),
    ) -> Result<Option<Self>, TraceError> {
        let Inputs { tokens, of_point, ids } = Inputs::of(job, words, place, program)?;
        let kept = Kept::run_from(executor, program, &tokens, place, of_point, (first, below))?;
        Ok(kept.map(|kept| Self { kept, params, ids, view: None, outboards: BTreeMap::new() }))
    }

    /// The roots of layers 1 to the disputed one, at the disputed point; after those of all layers that of the
    /// log-probabilities, where these are disputed. A player who finds others here than it signed
    /// must not play, but concede or retract.
    pub fn roots(&self) -> &[Root] {
        &self.kept.roots
    }

    /// Whether the signed roots of the disputed point begin with [`roots`](Self::roots).
    pub fn agrees_with(&self, of_point: &[Root]) -> bool {
        of_point.starts_with(&self.kept.roots)
    }

    /// Alters one element, whatever follows from it: the evidence of somebody who contradicts himself. For adversaries.
    /// An element of the output belongs to the last step too; one of a step is lost when another row is asked for.
    /// `element` counts from the start of the padded tensor. Returns whether there is such an element.
    pub fn alter(&mut self, chunk: u64, tensor: Tensor, element: u64, value: i64) -> bool {
        self.outboards.clear();
        if self.view(chunk).is_err() {
            return false;
        }
        let (Some(view), output) = (&mut self.view, &mut self.kept.output) else { return false };
        let last = view.steps.len() - 1;
        let row = view.row * view.steps[last].len()..(view.row + 1) * view.steps[last].len();
        let (step, start) = match tensor {
            Tensor::Step(step) if usize::from(step) == last => (last, row.start),
            Tensor::Step(step) => (usize::from(step), 0),
            Tensor::Output => (last, 0),
        };
        let Some(width) = view.plan.steps().get(step).map(|step| step.width.bytes() as usize) else { return false };
        let at = usize::try_from(element).ok().and_then(|element| element.checked_mul(width)?.checked_add(start));
        let bytes = if step == last { &mut *output } else { &mut view.steps[step] };
        let to = at.and_then(|at| bytes.get_mut(at..)?.get_mut(..width));
        let done = to.map(|to| to.copy_from_slice(&value.to_le_bytes()[..width])).is_some();
        view.steps[last].copy_from_slice(&output[row]);
        if let Some(root) = self.kept.roots.last_mut() {
            *root = blake3::hash(output).into();
        }
        done
    }

    /// Bytes of a row of the output, with its padding.
    fn row_bytes(&self) -> usize {
        padded_row_bytes(self.kept.output_columns())
    }

    /// The dispute view of the row that a chunk of the output lies in.
    fn view(&mut self, chunk: u64) -> Result<&mut View, EvidenceError> {
        let row = usize::try_from(chunk).unwrap_or(usize::MAX) / (self.row_bytes() / CHUNK_BYTES);
        if self.view.as_ref().is_none_or(|view| view.row != row) {
            let row_number = u32::try_from(row).unwrap_or(u32::MAX);
            let plan = self.kept.plan(row_number).map_err(|error| EvidenceError(error.to_string()))?;
            let steps = fill(&plan, &self.kept, &self.ids, &*self.params, row);
            self.outboards.retain(|source, _| !matches!(source, Source::Step(_)));
            self.view = Some(View { row, plan, steps });
        }
        Ok(self.view.as_mut().expect("it was just made"))
    }

    fn tensor(&mut self, chunk: Option<u64>, tensor: Tensor) -> Result<&[u8], EvidenceError> {
        match tensor {
            Tensor::Output => Ok(&self.kept.output),
            Tensor::Step(step) => {
                let chunk = chunk.ok_or_else(|| nothing("no row is disputed yet"))?;
                let view = self.view(chunk)?;
                view.steps.get(usize::from(step)).map(Vec::as_slice).ok_or_else(|| nothing("no such step"))
            }
        }
    }
}

impl Evidence for Trace {
    fn frontier(
        &mut self,
        chunk: Option<u64>,
        tensor: Tensor,
        log: u8,
        blocks: Range<u64>,
    ) -> Result<Vec<[u8; 32]>, EvidenceError> {
        let bytes = self.tensor(chunk, tensor)?;
        blocks.map(|index| block_value(bytes, log, index).ok_or_else(|| nothing("no such block"))).collect()
    }

    fn chunk(&mut self, chunk: u64, tensor: Tensor, index: u64) -> Result<Vec<u8>, EvidenceError> {
        let bytes = self.tensor(Some(chunk), tensor)?;
        let at = usize::try_from(index).ok().and_then(|index| bytes.chunks(CHUNK_BYTES).nth(index));
        at.map(<[u8]>::to_vec).ok_or_else(|| nothing("no such chunk"))
    }

    fn open(&mut self, chunk: u64, source: Source, range: ChunkRange) -> Result<Vec<u8>, EvidenceError> {
        let refused = |error: OpeningError| EvidenceError(error.to_string());
        if let Source::Step(_) = source {
            self.view(chunk)?;
        }
        let bytes: Cow<'_, [u8]> = match source {
            Source::Step(step) => {
                let view = self.view.as_ref().map(|view| &view.steps);
                let step = view.and_then(|steps| steps.get(usize::from(step)));
                step.ok_or_else(|| nothing("no such step"))?.into()
            }
            Source::Input => (&self.kept.input).into(),
            Source::Tokens => (&self.ids.tokens).into(),
            Source::Words => (&self.ids.words).into(),
            Source::Param(id) if usize::from(id) < self.kept.program.params.len() => {
                param_bytes(self.params.param(ParamId(id))).into()
            }
            Source::Param(_) => return Err(nothing("no such parameter")),
        };
        let outboard = match self.outboards.entry(source) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(room) => room.insert(Outboard::new(&bytes).map_err(refused)?),
        };
        open_range(&bytes, outboard, range).map_err(refused)
    }

    fn open_prefix(&mut self, rows: u32, range: ChunkRange) -> Result<Vec<u8>, EvidenceError> {
        let refused = |error: OpeningError| EvidenceError(error.to_string());
        let bytes = (rows as usize).checked_mul(self.row_bytes()).and_then(|bytes| self.kept.output.get(..bytes));
        let bytes = bytes.ok_or_else(|| nothing("no such rows"))?;
        open_range(bytes, &Outboard::new(bytes).map_err(refused)?, range).map_err(refused)
    }
}

/// The chaining value of an aligned block of `2^log` chunks, or the root where that is the whole tensor.
fn block_value(bytes: &[u8], log: u8, index: u64) -> Option<[u8; 32]> {
    let block = (CHUNK_BYTES as u64).checked_shl(log.into()).filter(|block| block >> log == CHUNK_BYTES as u64)?;
    let start = index.checked_mul(block)?;
    let from = usize::try_from(start).ok().filter(|from| *from < bytes.len())?;
    let to = start.saturating_add(block).min(bytes.len() as u64) as usize;
    if (from, to) == (0, bytes.len()) {
        return Some(*blake3::hash(bytes).as_bytes());
    }
    Some(blake3::Hasher::new().set_input_offset(start).update(&bytes[from..to]).finalize_non_root())
}

fn le_bytes(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

fn nothing(what: &str) -> EvidenceError {
    EvidenceError(what.into())
}
