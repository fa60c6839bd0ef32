//! What the dispute game asks of a program, answered from the manifest alone.

use std::sync::{Arc, Mutex, PoisonError};

use lockstep_kernels::program::{ParamId, Program, Rows};
use lockstep_kernels::sampling::Sampling;
use lockstep_kernels::steps::{self, Plan};
use lockstep_protocol::dispute::{Lowering, Read, Recompute, Shape, Source, Terms};
use lockstep_protocol::ids::{Place, Root};
use lockstep_protocol::job::JobHeader;
use lockstep_protocol::limits::CHUNK_BYTES;
use lockstep_protocol::trace::padded_row_bytes;

use super::CaseError;
use crate::generation::{draw, sampling};
use crate::package::{BlobInfo, Manifest};

/// A model that can be disputed, as a referee knows it: from its manifest, checked once for all its disputes.
#[derive(Clone, Debug)]
pub struct Disputable {
    /// What people call the model.
    pub name: String,
    program: Arc<Program>,
    params: Arc<[BlobInfo]>,
}

impl Disputable {
    /// The model of a manifest.
    ///
    /// # Errors
    /// [`CaseError::Plan`]: its program can't be disputed.
    pub fn of(manifest: &Manifest) -> Result<Self, CaseError> {
        steps::check_reads(&manifest.program)?;
        let (name, program) = (manifest.name.clone(), Arc::clone(&manifest.program));
        Ok(Self { name, program, params: manifest.params.as_slice().into() })
    }

    /// The case of a place of a job on this model.
    ///
    /// # Errors
    /// [`CaseError::Place`]: there is no such place.
    pub fn case(&self, job: &JobHeader, place: Place) -> Result<LayerCase, CaseError> {
        let (program, layer) = (&self.program, usize::from(place.layer));
        let none = CaseError::Place { place, layers: program.layers.len(), tokens: job.token_count };
        let generation = job.kind.generation();
        // A generation has a point for the last token of its prompt, and for each that it makes but the last.
        let points = match generation {
            None => 0..job.token_count,
            Some(asked) => {
                let first = job.token_count.saturating_sub(1);
                first..first.saturating_add(asked.max_tokens)
            }
        };
        let is_point = points.contains(&place.point) && place.point < program.max_positions;
        // After the last layer come the log-probabilities, where the job asks for them.
        let (last, asked) = (program.layers.len() - 1, generation.map_or(0, |asked| asked.logprobs));
        let likeliest = asked.checked_sub(1).filter(|_| layer == last + 1);
        let is_layer = (1..=last).contains(&layer) || likeliest.is_some();
        if !is_point || !is_layer || program.is_decoder() != generation.is_some() {
            return Err(none);
        }
        let (positions, layer) = (place.point + 1, layer.min(last));
        let sampling = generation.map(|asked| (sampling(asked, job.token_count), draw(&job.seed, place.point)));
        Ok(LayerCase {
            program: Arc::clone(program),
            params: Arc::clone(&self.params),
            tokens: (job.token_root, 4 * u64::from(job.token_count)),
            place,
            layer,
            positions,
            sampling,
            likeliest,
            plan: Mutex::default(),
        })
    }

    /// The case of the first place at which the claims of a dispute differ. The claims are checked; that the model is the
    /// job's is the caller's to check.
    ///
    /// # Errors
    /// [`CaseError`].
    pub fn case_of(&self, terms: &Terms) -> Result<LayerCase, CaseError> {
        // Beside the transformer layers a program has the embedding and the output.
        let expected = self.program.layers.len().saturating_sub(2);
        if usize::from(terms.layers) != expected {
            return Err(CaseError::Layers { expected, found: terms.layers });
        }
        self.case(&terms.job, terms.ground()?.place)
    }
}

/// The disputed layer of one job, or the log-probabilities of a point, lowered to steps. Needs no weights: digests stand
/// for them.
#[derive(Debug)]
pub struct LayerCase {
    program: Arc<Program>,
    params: Arc<[BlobInfo]>,
    tokens: (Root, u64),
    place: Place,
    /// Of the program; where log-probabilities are disputed the last one, of which they are made.
    layer: usize,
    positions: u32,
    /// Settings and draw of the point, in a generation.
    sampling: Option<(Sampling, u64)>,
    /// Where log-probabilities are disputed, of how many of the likeliest tokens.
    likeliest: Option<u8>,
    /// The plan that was asked for last, with its row: a dispute is about one row, once that is found.
    plan: Mutex<Option<(u64, Arc<Plan>)>>,
}

impl LayerCase {
    /// The case of a place of a job on the model of this manifest.
    ///
    /// # Errors
    /// [`CaseError`]: the program can't be disputed, or has no such place.
    pub fn new(manifest: &Manifest, job: &JobHeader, place: Place) -> Result<Self, CaseError> {
        Disputable::of(manifest)?.case(job, place)
    }

    /// The case of the first place at which the claims of a dispute differ. The terms are checked; that the manifest is
    /// the one of the job's model is the caller's to check.
    ///
    /// # Errors
    /// [`CaseError`].
    pub fn of_terms(manifest: &Manifest, terms: &Terms) -> Result<Self, CaseError> {
        Disputable::of(manifest)?.case_of(terms)
    }

    /// The disputed place.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The program.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// The row of what is disputed that a chunk of it belongs to.
    pub fn row(&self, chunk: u64) -> u64 {
        chunk / self.row_chunks()
    }

    /// The plan of the row that a chunk belongs to. A chunk beyond the end counts to the last row.
    pub fn plan(&self, chunk: u64) -> Arc<Plan> {
        let row = self.row(chunk).min(self.output_rows() - 1);
        let mut cached = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some((of, plan)) if *of == row => Arc::clone(plan),
            _ => {
                let sampling = self.sampling.as_ref().map(|(settings, draw)| (settings, *draw));
                let plan = match (self.likeliest, sampling) {
                    (Some(likeliest), Some(sampling)) => {
                        Plan::logprobs(&self.program, self.positions, sampling, likeliest)
                    }
                    _ => Plan::new(&self.program, self.layer, self.positions, row as u32, sampling),
                };
                let plan = Arc::new(plan.expect("every row of a program that was checked can be disputed"));
                *cached = Some((row, Arc::clone(&plan)));
                plan
            }
        }
    }

    /// Recomputes an element from the bytes of its reads, in order: the referee's part. Total.
    pub fn evaluate(&self, chunk: u64, step: u16, element: u64, data: &[&[u8]]) -> i64 {
        self.plan(chunk).evaluate(step.into(), element, data)
    }

    /// Does what a referee asks for: [`Action::Recompute`](lockstep_protocol::dispute::Action::Recompute).
    pub fn recompute(&self, element: &Recompute) -> i64 {
        let data: Vec<&[u8]> = element.data.iter().map(Vec::as_slice).collect();
        self.evaluate(element.chunk, element.step, element.element, &data)
    }

    /// Whether log-probabilities are disputed, and no layer.
    pub fn is_of_logprobs(&self) -> bool {
        self.likeliest.is_some()
    }

    /// The name of what is disputed, for people.
    pub fn name(&self) -> &str {
        if self.is_of_logprobs() { "log-probabilities" } else { &self.program.layers[self.layer].name }
    }

    /// Rows of what is disputed: of log-probabilities, that of the point.
    fn output_rows(&self) -> u64 {
        if self.is_of_logprobs() { 1 } else { self.rows(self.layer) }
    }

    /// Bytes of one of these, with its padding.
    fn output_row_bytes(&self) -> u64 {
        let bytes = |likeliest: u8| padded_row_bytes(1 + 2 * usize::from(likeliest)) as u64;
        self.likeliest.map_or_else(|| self.row_bytes(self.layer), bytes)
    }

    /// Rows of a layer's output up to the point.
    fn rows(&self, layer: usize) -> u64 {
        match self.program.tensor(self.program.layers[layer].output).rows {
            Rows::Position => self.positions.into(),
            Rows::Sequence | Rows::Point => 1,
        }
    }

    /// Bytes of one row of a layer's output, with its padding.
    fn row_bytes(&self, layer: usize) -> u64 {
        padded_row_bytes(self.program.tensor(self.program.layers[layer].output).cols as usize) as u64
    }
}

impl Lowering for LayerCase {
    fn output(&self) -> Shape {
        Shape { bytes: self.output_rows() * self.output_row_bytes(), width: 4 }
    }

    fn input_bytes(&self) -> u64 {
        if self.layer == 1 { 0 } else { self.rows(self.layer - 1) * self.row_bytes(self.layer - 1) }
    }

    fn steps(&self, chunk: u64) -> Vec<Shape> {
        let shape = |step: &steps::Step| Shape { bytes: step.bytes(), width: step.width.bytes() as u8 };
        self.plan(chunk).steps().iter().map(shape).collect()
    }

    fn reads(&self, chunk: u64, step: u16, element: u64) -> Vec<Read> {
        self.plan(chunk).reads(step.into(), element).into_iter().map(read).collect()
    }

    fn follow(&self, chunk: u64, step: u16, element: u64, data: &[Vec<u8>]) -> Vec<Read> {
        let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        self.plan(chunk).follow(step.into(), element, &data).into_iter().map(read).collect()
    }

    fn blob(&self, source: Source) -> Option<(Root, u64)> {
        match source {
            Source::Tokens => Some(self.tokens),
            Source::Param(id) => {
                let blob = self.params.get(usize::from(id))?;
                Some((Root::from_bytes(*blob.digest.as_bytes()), blob.bytes))
            }
            Source::Step(_) | Source::Input | Source::Words => None,
        }
    }

    fn row_chunks(&self) -> u64 {
        self.output_row_bytes() / CHUNK_BYTES as u64
    }
}

/// A read in the terms of the game.
fn read(read: steps::Read) -> Read {
    let source = match read.source {
        steps::Source::Step(step) => Source::Step(step),
        steps::Source::Input => Source::Input,
        steps::Source::Tokens => Source::Tokens,
        steps::Source::Words => Source::Words,
        steps::Source::Param(ParamId(id)) => Source::Param(id),
    };
    Read { source, bytes: read.bytes }
}
