//! What commitments cost: the time of hashing every layer's rows beside the time of computing them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_kernels::backend::Backend;
use lockstep_kernels::conformance::encoder;
use lockstep_kernels::program::Program;
use lockstep_kernels::value::{Batch, Params};
use lockstep_model::embed::{EmbedError, embed};
use lockstep_model::output::Wanted;

use crate::report::{Figure, Row};
use crate::samples::Samples;
use crate::watch::Watch;

/// What runs.
pub struct Encoder {
    /// Its program.
    pub program: Arc<Program>,
    /// Its parameters.
    pub params: Arc<dyn Params>,
}

impl Encoder {
    /// Random 8-bit weights in the shape of all-MiniLM-L6-v2, for up to 512 tokens; of the vocabulary there are only a few
    /// tokens, since a look-up takes no time beside the rest.
    pub fn made_up() -> Self {
        let case = encoder(384, 12, 1_536, 6, false, &[512]);
        Self { program: case.program, params: case.params }
    }
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Sequences of one pass.
    pub batch: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Passes that count; one more warms up.
    pub passes: usize,
}

/// Seconds of each counted pass.
#[derive(Clone, Debug, Default)]
pub struct CommitSamples {
    /// The whole pass, commitments included.
    pub total: Vec<f64>,
    /// The part of it that hashed rows.
    pub hashing: Vec<f64>,
}

impl CommitSamples {
    /// Share of each pass that was spent on commitments, 0 to 1.
    fn shares(&self) -> Samples {
        Samples::ratios(&self.hashing, &self.total)
    }

    /// The row of a report.
    pub fn row(&self, workload: Workload, watch: &Watch) -> Row {
        let Workload { batch, tokens, .. } = workload;
        let total = Samples(self.total.clone());
        Row::new([("batch", batch.into()), ("tokens", tokens.into())])
            .figure(Figure::rate("sequences_per_second", "sequences/s", batch as f64, &total))
            .figure(Figure::rate("tokens_per_second", "tokens/s", (batch * tokens) as f64, &total))
            .figure(Figure::of("commit_share", "commit share", &self.shares()))
            .detail("total_seconds", self.total.clone())
            .detail("hashing_seconds", self.hashing.clone())
            .seen(&watch.seen())
    }
}

/// Runs the model on token ids that count up from 1,000, hashes every layer as a worker does, and takes the time.
/// Layers are hashed on the computing thread, so the share is what commitments cost where nothing overlaps.
///
/// # Errors
/// The workload does not fit the model, or the backend fails.
pub fn measure(encoder: &Encoder, backend: &dyn Backend, workload: Workload) -> Result<CommitSamples, EmbedError> {
    let program = &encoder.program;
    let mut executor = backend.load(Arc::clone(program), Arc::clone(&encoder.params))?;
    let vocab = program.vocab_size as usize;
    let token = |s: usize, t: usize| ((1_000 + 31 * s + t) % vocab) as u32;
    let sequences = (0..workload.batch).map(|s| (0..workload.tokens).map(|t| token(s, t)).collect()).collect();
    let batch = Batch::of(sequences);
    let mut samples = CommitSamples::default();
    for pass in 0..=workload.passes {
        let mut hashing = Duration::ZERO;
        let start = Instant::now();
        embed(&mut *executor, program, &batch, Wanted::Rows, |layer| {
            let start = Instant::now();
            // Layer 0 follows from the tokens and is not committed.
            for s in (0..layer.spans.len()).filter(|_| layer.layer > 0) {
                std::hint::black_box(layer.root(s));
            }
            hashing += start.elapsed();
            ControlFlow::Continue(())
        })?;
        if pass > 0 {
            samples.total.push(start.elapsed().as_secs_f64());
            samples.hashing.push(hashing.as_secs_f64());
        }
    }
    Ok(samples)
}
