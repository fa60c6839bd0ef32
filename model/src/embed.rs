//! Runs a program layer by layer, and hands out each layer's rows as soon as they are final.

use std::ops::{ControlFlow, Range};

use lockstep_kernels::backend::{BackendError, Executor};
use lockstep_kernels::program::{Program, Rows, TensorId};
use lockstep_kernels::value::{Batch, Value};
use lockstep_protocol::ids::Root;

use crate::output::{Output, Wanted};

/// One finished layer, of all sequences of the batch.
#[derive(Clone, Debug)]
pub struct Layer<'a> {
    /// Index of the layer in the program: 0 is the embedding, the last one the output.
    pub layer: usize,
    /// `[rows, cols]` in the layer output's Q format, or their hashes.
    pub output: Output,
    /// Which rows belong to each sequence, in order; one row each where the layer makes one row per sequence.
    pub spans: &'a [Range<usize>],
    /// Elements that saturated in this layer.
    pub saturations: u64,
}

impl Layer<'_> {
    /// The rows of one sequence; none where only roots are wanted, and the device hashed them.
    ///
    /// # Panics
    /// When there is no such sequence.
    pub fn rows(&self, sequence: usize) -> Option<&[i32]> {
        self.output.rows(&self.spans[sequence])
    }

    /// The root of the rows of one sequence.
    ///
    /// # Panics
    /// When there is no such sequence.
    pub fn root(&self, sequence: usize) -> Root {
        self.output.root(&self.spans[sequence])
    }
}

/// What a run gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Embeddings {
    /// One output row for each sequence, in units of `2^-output_frac`.
    pub rows: Vec<Vec<i32>>,
    /// Elements that saturated in all layers together.
    pub saturations: u64,
}

/// Why a run has no result.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The backend failed, or refused the batch.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The callback asked to stop.
    #[error("stopped after layer {layer}")]
    Stopped {
        /// The last layer that ran.
        layer: usize,
    },
}

/// Runs a loaded encoder over a batch. `on_layer` is called after each layer, with what is wanted of it, and may stop the
/// run. The output is read in any case.
///
/// # Errors
/// See [`EmbedError`].
pub fn embed(
    executor: &mut dyn Executor,
    program: &Program,
    batch: &Batch,
    wanted: Wanted,
    mut on_layer: impl FnMut(Layer<'_>) -> ControlFlow<()>,
) -> Result<Embeddings, EmbedError> {
    executor.begin(batch)?;
    let positions = batch.spans();
    let sequences: Vec<Range<usize>> = (0..batch.sequences.len()).map(|s| s..s + 1).collect();
    let mut out = Embeddings::default();
    for (layer, declared) in program.layers.iter().enumerate() {
        let saturations = executor.run_layer(layer)?.saturations;
        out.saturations += saturations;
        let is_last = layer + 1 == program.layers.len();
        let spans = if program.tensor(declared.output).rows == Rows::Position { &positions } else { &sequences };
        // A sequence is a tensor of its own.
        let numbers: Vec<u64> = spans.iter().flat_map(|span| 0..span.len() as u64).collect();
        let output = Output::take(executor, program, layer, if is_last { Wanted::Rows } else { wanted }, &numbers)?;
        if is_last {
            out.rows = spans.iter().filter_map(|span| output.rows(span)).map(<[i32]>::to_vec).collect();
        }
        if on_layer(Layer { layer, output, spans, saturations }).is_break() {
            return Err(EmbedError::Stopped { layer });
        }
    }
    Ok(out)
}

/// The real numbers that an output row stands for. Exact: an `i32` times a power of two is a double.
pub fn to_real(row: &[i32], output_frac: u8) -> Vec<f64> {
    let unit = crate::exact::exp2(-i32::from(output_frac));
    row.iter().map(|x| f64::from(*x) * unit).collect()
}

pub(crate) fn read_i32(executor: &mut dyn Executor, tensor: TensorId) -> Result<Vec<i32>, BackendError> {
    match executor.read(tensor)? {
        Value::I32(rows) => Ok(rows),
        _ => Err(BackendError::Value { tensor, reason: "a layer's output is i32".into() }),
    }
}
