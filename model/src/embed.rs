//! Runs a program layer by layer, and hands out each layer's rows as soon as they are final.

use std::ops::{ControlFlow, Range};

use lockstep_kernels::backend::{BackendError, Executor};
use lockstep_kernels::program::{Program, Rows, TensorId};
use lockstep_kernels::value::{Batch, Value};

/// The committed rows of one finished layer, of all sequences of the batch.
#[derive(Clone, Copy, Debug)]
pub struct LayerRows<'a> {
    /// Index of the layer in the program: 0 is the embedding, the last one the output.
    pub layer: usize,
    /// `[rows, cols]` in the layer output's Q format.
    pub rows: &'a [i32],
    /// Elements in a row.
    pub cols: usize,
    /// Which rows belong to each sequence, in order; one row each where the layer makes one row per sequence.
    pub spans: &'a [Range<usize>],
    /// Elements that saturated in this layer.
    pub saturations: u64,
}

impl<'a> LayerRows<'a> {
    /// The rows of one sequence.
    ///
    /// # Panics
    /// When there is no such sequence.
    pub fn sequence(&self, sequence: usize) -> &'a [i32] {
        let span = &self.spans[sequence];
        &self.rows[span.start * self.cols..span.end * self.cols]
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

/// Runs a loaded encoder over a batch. `on_layer` is called after each layer and may stop the run.
///
/// # Errors
/// See [`EmbedError`].
pub fn embed(
    executor: &mut dyn Executor,
    program: &Program,
    batch: &Batch,
    mut on_layer: impl FnMut(LayerRows<'_>) -> ControlFlow<()>,
) -> Result<Embeddings, EmbedError> {
    executor.begin(batch)?;
    let positions = batch.spans();
    let sequences: Vec<Range<usize>> = (0..batch.sequences.len()).map(|s| s..s + 1).collect();
    let mut out = Embeddings::default();
    for (layer, declared) in program.layers.iter().enumerate() {
        let saturations = executor.run_layer(layer)?.saturations;
        out.saturations += saturations;
        let rows = read_i32(executor, declared.output)?;
        let tensor = program.tensor(declared.output);
        let spans = if tensor.rows == Rows::Position { &positions } else { &sequences };
        let finished = LayerRows { layer, rows: &rows, cols: tensor.cols as usize, spans, saturations };
        if on_layer(finished).is_break() {
            return Err(EmbedError::Stopped { layer });
        }
        if layer + 1 == program.layers.len() {
            out.rows = (0..spans.len()).map(|s| finished.sequence(s).to_vec()).collect();
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
