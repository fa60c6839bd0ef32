//! Runs a job again from its tokens, to compare with what somebody signed.

use std::ops::ControlFlow;
use std::sync::Arc;

use lockstep_kernels::backend::{Backend, BackendError};
use lockstep_kernels::value::Batch;
use lockstep_protocol::ids::Root;
use lockstep_protocol::job::{Job, JobKind};

use crate::embed::{EmbedError, embed};
use crate::generation::{Event, Generator, Limits, Recorder, Refused, Request, Run};
use crate::output::Wanted;
use crate::package::Package;

/// What a job gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rerun {
    /// The roots in stream order: of each point layers 1 to L + 1. Layer 0 follows from the tokens and is not committed.
    pub roots: Vec<Root>,
    /// Of an embedding the output row, in units of `2^-output_frac`; of a generation its words, and then the
    /// log-probabilities that the job asks for.
    pub output: Vec<i32>,
    /// Elements that saturated in all layers together.
    pub saturations: u64,
    /// Multiply-accumulates of the run.
    pub work_units: u64,
}

/// Why a job has no result.
#[derive(Debug, thiserror::Error)]
pub enum RerunError {
    /// An embedding failed.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// A generation was refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The backend failed while it generated.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl RerunError {
    /// Whether the device failed, which says nothing about the job.
    pub fn is_of_the_device(&self) -> bool {
        match self {
            Self::Embed(EmbedError::Backend(error)) | Self::Backend(error) | Self::Refused(Refused::Backend(error)) => {
                matches!(error, BackendError::Unavailable(_) | BackendError::Device(_))
            }
            Self::Refused(Refused::PassMemory { .. } | Refused::CacheMemory { .. }) => true,
            Self::Embed(_) | Self::Refused(_) => false,
        }
    }
}

/// Runs a job of any kind and commits to its layers. `hint` is what somebody says that a generation comes to: where it
/// is right, one prefill shows that. Blocks for as long as the run takes.
///
/// # Errors
/// Where the backend fails or the job does not fit the model.
pub fn rerun_job(package: &Package, backend: &dyn Backend, job: &Job, hint: &[u32]) -> Result<Rerun, RerunError> {
    rerun_recorded(package, backend, job, hint, None)
}

/// As [`rerun_job`], with somebody who is told the rows.
///
/// # Errors
/// As [`rerun_job`].
pub fn rerun_recorded(
    package: &Package,
    backend: &dyn Backend,
    job: &Job,
    hint: &[u32],
    recorder: Option<Box<dyn Recorder>>,
) -> Result<Rerun, RerunError> {
    let JobKind::Generation(generation) = &job.kind else {
        return Ok(embed_again(package, backend, &job.tokens, recorder)?);
    };
    let request = Request::new(job.tokens.clone(), generation, job.seed, hint.to_vec());
    let run = regenerate(package, backend, request, recorder)?;
    let points = run.words.len() as u64;
    // The last word is no input.
    let work_units = package.program().macs(job.tokens.len() as u64 + points - 1, points);
    let output = run.output();
    Ok(Rerun { roots: run.roots, output, saturations: run.saturations, work_units })
}

/// Runs one generation alone.
fn regenerate(
    package: &Package,
    backend: &dyn Backend,
    request: Request,
    recorder: Option<Box<dyn Recorder>>,
) -> Result<Run, RerunError> {
    let program = package.program();
    let positions = request.prompt.len() as u64 + u64::from(request.sampling.max_tokens);
    let limits = Limits::of_one(program, positions);
    let mut generator = Generator::new(Arc::clone(program), package.params(), backend, limits)?;
    generator.submit_recorded(request, recorder)?;
    let mut done = None;
    let mut note = |_, event| {
        if let Event::Done(run) = event {
            done = Some(run);
        }
    };
    while generator.step(&mut note)? {}
    Ok(done.expect("a generation ends when there is nothing more to do"))
}

/// Runs one sequence through an encoder and commits to its layers. Blocks for as long as the run takes.
///
/// # Errors
/// [`EmbedError::Backend`] where the backend fails or the tokens do not fit the model.
pub fn rerun(package: &Package, backend: &dyn Backend, tokens: &[u32]) -> Result<Rerun, EmbedError> {
    embed_again(package, backend, tokens, None)
}

fn embed_again(
    package: &Package,
    backend: &dyn Backend,
    tokens: &[u32],
    mut recorder: Option<Box<dyn Recorder>>,
) -> Result<Rerun, EmbedError> {
    let program = package.program();
    let mut executor = backend.load(Arc::clone(program), package.params())?;
    let mut roots = Vec::with_capacity(program.layers.len());
    let batch = Batch::single(tokens.to_vec());
    let wanted = if recorder.is_some() { Wanted::Rows } else { Wanted::Root };
    let embeddings = embed(&mut *executor, program, &batch, wanted, |layer| {
        if layer.layer > 0 {
            roots.push(layer.root(0));
        }
        let is_inner = (1..program.layers.len() - 1).contains(&layer.layer);
        if let (Some(recorder), Some(rows)) = (recorder.as_mut().filter(|_| is_inner), layer.rows(0)) {
            recorder.push(layer.layer, rows);
        }
        ControlFlow::Continue(())
    })?;
    if let Some(recorder) = recorder {
        recorder.finish(tokens);
    }
    let output = embeddings.rows.into_iter().next().unwrap_or_default();
    let work_units = program.macs(tokens.len() as u64, 0);
    Ok(Rerun { roots, output, saturations: embeddings.saturations, work_units })
}
