//! The activations of one batch, on the host.

use std::sync::Arc;

use crate::backend::BackendError;
use crate::program::{Program, Rows, TensorId, TensorKind};
use crate::value::Value;

/// A buffer with this many bytes more than four times what a batch needs is given back.
const SLACK_BYTES: usize = 1 << 20;

/// One value per tensor. Storage is kept between batches; what was in it can't be read.
pub(super) struct Activations {
    program: Arc<Program>,
    values: Vec<Value>,
    /// Whether this batch wrote the tensor.
    written: Vec<bool>,
    extent: Extent,
}

/// Number of rows of a batch's tensors, by what the rows are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extent {
    pub(super) positions: usize,
    pub(super) sequences: usize,
    pub(super) points: usize,
}

impl Activations {
    /// Of a batch without rows.
    pub(super) fn new(program: Arc<Program>) -> Self {
        let empty = |kind| match kind {
            TensorKind::I32 => Value::I32(Vec::new()),
            TensorKind::I16 => Value::I16(Vec::new()),
            TensorKind::Bfp => Value::Bfp { codes: Vec::new(), exponents: Vec::new() },
        };
        let values: Vec<_> = program.tensors.iter().map(|t| empty(t.kind)).collect();
        let written = vec![false; values.len()];
        Self { program, values, written, extent: Extent::default() }
    }

    /// Forgets every value, and gives back storage that is far larger than the batch needs.
    pub(super) fn begin(&mut self, extent: Extent) {
        self.extent = extent;
        self.written.fill(false);
        for i in 0..self.values.len() {
            let (rows, len) = self.shape(TensorId(i as u16));
            match &mut self.values[i] {
                Value::I32(v) => forget(v, len),
                Value::I16(v) => forget(v, len),
                Value::Bfp { codes, exponents } => {
                    forget(codes, len);
                    forget(exponents, rows);
                }
            }
        }
    }

    /// Rows and elements of a tensor in this batch.
    fn shape(&self, id: TensorId) -> (usize, usize) {
        let tensor = self.program.tensor(id);
        let rows = match tensor.rows {
            Rows::Position => self.extent.positions,
            Rows::Sequence => self.extent.sequences,
            Rows::Point => self.extent.points,
        };
        (rows, rows * tensor.cols as usize)
    }

    /// Takes a tensor's storage out, sized for the batch, so that an op can write all of it while it reads others.
    pub(super) fn take(&mut self, id: TensorId) -> Value {
        let (rows, len) = self.shape(id);
        let mut value = std::mem::replace(&mut self.values[usize::from(id.0)], Value::I32(Vec::new()));
        match &mut value {
            Value::I32(v) => v.resize(len, 0),
            Value::I16(v) => v.resize(len, 0),
            Value::Bfp { codes, exponents } => {
                codes.resize(len, 0);
                exponents.resize(rows, 0);
            }
        }
        value
    }

    /// Puts back what [`take`](Self::take) gave, written.
    pub(super) fn put(&mut self, id: TensorId, value: Value) {
        self.values[usize::from(id.0)] = value;
        self.written[usize::from(id.0)] = true;
    }

    /// A value that this batch wrote.
    pub(super) fn get(&self, id: TensorId) -> Result<&Value, BackendError> {
        let refuse = |reason: &str| Err(BackendError::Value { tensor: id, reason: reason.into() });
        match self.written.get(usize::from(id.0)) {
            None => refuse("the program has no such tensor"),
            Some(false) => refuse("this batch has not written it yet"),
            Some(true) => Ok(self.slot(id)),
        }
    }

    /// A value that is known to be written.
    pub(super) fn slot(&self, id: TensorId) -> &Value {
        &self.values[usize::from(id.0)]
    }

    /// Replaces a value from outside.
    pub(super) fn set(&mut self, id: TensorId, value: Value) -> Result<(), BackendError> {
        let refuse = |reason: &str| Err(BackendError::Value { tensor: id, reason: reason.into() });
        let Some(tensor) = self.program.tensors.get(usize::from(id.0)) else {
            return refuse("the program has no such tensor");
        };
        let (rows, len) = self.shape(id);
        let fits = match (tensor.kind, &value) {
            (TensorKind::I32, Value::I32(v)) => v.len() == len,
            (TensorKind::I16, Value::I16(v)) => v.len() == len,
            (TensorKind::Bfp, Value::Bfp { codes, exponents }) => codes.len() == len && exponents.len() == rows,
            _ => false,
        };
        if !fits {
            return refuse("kind or length differs from the declaration");
        }
        self.put(id, value);
        Ok(())
    }
}

/// What is left in the storage has no meaning: ops write all that they take.
fn forget<T>(storage: &mut Vec<T>, needed: usize) {
    let spare = storage.capacity().saturating_sub(needed.saturating_mul(4)).saturating_mul(size_of::<T>());
    if spare > SLACK_BYTES {
        *storage = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Builder;

    fn held(a: &Activations) -> usize {
        let bytes = |v: &Value| match v {
            Value::I32(v) => 4 * v.capacity(),
            Value::I16(v) => 2 * v.capacity(),
            Value::Bfp { codes, exponents } => 2 * codes.capacity() + 4 * exponents.capacity(),
        };
        a.values.iter().map(bytes).sum()
    }

    #[test]
    fn a_small_batch_gives_back_what_a_large_one_took() {
        let (mut b, x) = Builder::with_input(100_000, 16);
        let codes = b.rows("codes", 16, TensorKind::Bfp);
        let queries = b.rows("queries", 16, TensorKind::I16);
        let mut a = Activations::new(b.case("quantize", String::new(), &[1], None).program);
        let fill = |a: &mut Activations| {
            for id in [x, codes, queries] {
                let value = a.take(id);
                a.put(id, value);
            }
        };
        let one = |positions| Extent { positions, sequences: 1, points: 0 };
        a.begin(one(100_000));
        fill(&mut a);
        assert!(held(&a) >= 100_000 * (16 * 8 + 4));
        // Storage of a batch of about the same size is kept.
        a.begin(one(50_000));
        fill(&mut a);
        assert!(held(&a) >= 100_000 * (16 * 8 + 4));
        a.begin(one(10));
        assert!(held(&a) <= 4 * SLACK_BYTES, "{}", held(&a));
        assert!(a.get(x).is_err());
    }
}
