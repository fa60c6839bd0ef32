//! Runs a job again from its tokens, to compare with what somebody signed.

use std::ops::ControlFlow;
use std::sync::Arc;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::value::Batch;
use lockstep_protocol::ids::Root;
use lockstep_protocol::trace::root_of_rows;

use crate::embed::{EmbedError, embed};
use crate::package::Package;

/// What a job gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rerun {
    /// The roots in stream order: layers 1 to L + 1. Layer 0 follows from the tokens and is not committed.
    pub roots: Vec<Root>,
    /// The output row, in units of `2^-output_frac`.
    pub output: Vec<i32>,
    /// Elements that saturated in all layers together.
    pub saturations: u64,
}

/// Runs one sequence through an encoder and commits to its layers. Blocks for as long as the run takes.
///
/// # Errors
/// [`EmbedError::Backend`] where the backend fails or the tokens do not fit the model.
pub fn rerun(package: &Package, backend: &dyn Backend, tokens: &[u32]) -> Result<Rerun, EmbedError> {
    let program = package.program();
    let mut executor = backend.load(Arc::clone(program), package.params())?;
    let mut roots = Vec::with_capacity(program.layers.len());
    let batch = Batch::single(tokens.to_vec());
    let embeddings = embed(&mut *executor, program, &batch, |layer| {
        if layer.layer > 0 {
            roots.push(root_of_rows(layer.sequence(0), layer.cols));
        }
        ControlFlow::Continue(())
    })?;
    let output = embeddings.rows.into_iter().next().unwrap_or_default();
    Ok(Rerun { roots, output, saturations: embeddings.saturations })
}
