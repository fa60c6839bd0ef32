//! Recomputes a job over which two workers differ.

use std::ops::ControlFlow;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::value::Batch;
use lockstep_model::embed::{EmbedError, embed};
use lockstep_protocol::ids::Root;
use lockstep_protocol::job::Job;
use lockstep_protocol::trace::root_of_rows;

use crate::models::Model;

/// The right roots of a job, in stream order. Blocks for as long as one run on the oracle takes.
///
/// # Errors
/// When the backend fails or refuses the tokens.
pub fn right_roots(oracle: &dyn Backend, model: &Model, job: &Job) -> Result<Vec<Root>, EmbedError> {
    let program = model.package().program();
    let mut executor = oracle.load(program.clone(), model.package().params())?;
    let mut roots = Vec::with_capacity(program.layers.len());
    let batch = Batch::single(job.tokens.clone());
    embed(&mut *executor, program, &batch, |layer| {
        // Layer 0 follows from the tokens and is not committed.
        if layer.layer > 0 {
            roots.push(root_of_rows(layer.sequence(0), layer.cols));
        }
        ControlFlow::Continue(())
    })?;
    Ok(roots)
}
