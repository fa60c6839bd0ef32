//! What a player keeps of a run: everything from which the tensors of one layer's dispute view follow.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_kernels::backend::{BackendError, Executor};
use lockstep_kernels::program::{Op, Program, Rows, TensorId, TensorKind};
use lockstep_kernels::steps::{Part, Step};
use lockstep_kernels::value::{Batch, Value};
use lockstep_protocol::ids::{Place, Root};
use lockstep_protocol::trace::{push_padded_row, root_of_rows};

use super::TraceError;

/// A run up to the disputed layer.
#[derive(Debug)]
pub(super) struct Kept {
    pub program: Arc<Program>,
    pub place: Place,
    /// The roots of layers 1 to the disputed one, over the rows up to the point.
    pub roots: Vec<Root>,
    /// `R_{l-1}`: padded rows. Empty for layer 1.
    pub input: Vec<u8>,
    /// `R_l`: padded rows.
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
    ) -> Result<Self, TraceError> {
        let (layer, positions) = (usize::from(place.layer), place.point as usize + 1);
        if layer == 0 || layer >= program.layers.len() || positions > tokens.len() {
            return Err(TraceError::Place { place, layers: program.layers.len(), tokens: tokens.len() });
        }
        let mut kept = Self {
            program: Arc::clone(program),
            place,
            roots: Vec::with_capacity(layer),
            input: Vec::new(),
            output: Vec::new(),
            values: BTreeMap::new(),
        };
        executor.begin(&Batch::single(tokens[..positions].to_vec()))?;
        for l in 0..=layer {
            executor.run_layer(l)?;
            kept.after(executor, l)?;
        }
        Ok(kept)
    }

    /// Takes what is needed of a layer that has just run; later ones may write over it.
    fn after(&mut self, executor: &mut dyn Executor, l: usize) -> Result<(), TraceError> {
        let (program, layer) = (Arc::clone(&self.program), usize::from(self.place.layer));
        let output = program.layers[l].output;
        if l > 0 {
            let rows = self.read(executor, output)?;
            let Value::I32(rows) = rows else { unreachable!("validation: a layer's output is i32") };
            let cols = program.tensor(output).cols as usize;
            self.roots.push(root_of_rows(&rows, cols));
            if l + 1 >= layer {
                let padded = if l == layer { &mut self.output } else { &mut self.input };
                rows.chunks_exact(cols).for_each(|row| push_padded_row(row, padded));
            }
        }
        if l == layer || (l, layer) == (0, 1) {
            for (op, kind) in program.layers[l].ops.iter().enumerate() {
                let value = self.read(executor, kind.out())?;
                self.values.insert((l, op), value);
            }
        }
        Ok(())
    }

    /// Reads a tensor and checks its shape, so that no backend can make what follows fail.
    fn read(&self, executor: &mut dyn Executor, id: TensorId) -> Result<Value, TraceError> {
        let tensor = self.program.tensor(id);
        let rows = match tensor.rows {
            Rows::Position => self.place.point as usize + 1,
            Rows::Sequence | Rows::Point => 1,
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

    /// The bytes of a step that is an op's output, from what the backend wrote. `row` is the disputed one.
    ///
    /// # Panics
    /// When the step is another part of its op, or of a plan for another layer.
    pub fn output_of(&self, step: &Step, row: usize) -> Vec<u8> {
        let op: &Op = &self.program.layers[step.layer].ops[step.op];
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
