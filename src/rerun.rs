//! Running a job again, to compare.

use std::ops::ControlFlow;
use std::sync::Arc;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::value::Batch;
use lockstep_model::embed::embed;
use lockstep_model::package::Package;
use lockstep_protocol::ids::Root;
use lockstep_protocol::trace::root_of_rows;

use crate::exit::{Exit, Failure, OrExit};

/// What a job gives.
pub struct Rerun {
    /// Roots of layers 1 to L + 1.
    pub roots: Vec<Root>,
    /// The output row.
    pub output: Vec<i32>,
}

/// Runs one sequence through an encoder.
///
/// # Errors
/// The tokens do not fit the model, or the backend fails.
pub fn rerun(package: &Package, backend: &dyn Backend, tokens: &[u32]) -> Result<Rerun, Failure> {
    let mut executor = backend.load(Arc::clone(package.program()), package.params()).or_exit(Exit::NoDevice)?;
    let mut roots = Vec::new();
    let batch = Batch::single(tokens.to_vec());
    let out = embed(&mut *executor, package.program(), &batch, |layer| {
        if layer.layer > 0 {
            roots.push(root_of_rows(layer.rows, layer.cols));
        }
        ControlFlow::Continue(())
    });
    let output = out.or_exit(Exit::Refuted)?.rows.into_iter().next().unwrap_or_default();
    Ok(Rerun { roots, output })
}
