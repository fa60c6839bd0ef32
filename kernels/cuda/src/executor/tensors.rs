//! The activations of one batch, on the device.

use std::sync::Arc;

use bytemuck::Pod;
use lockstep_kernels::backend::BackendError;
use lockstep_kernels::pass::Pass;
use lockstep_kernels::program::{Layer, Program, TensorId, TensorKind};
use lockstep_kernels::value::Value;

use super::digits;
use crate::device::{Buffer, Device, DeviceError};
use crate::params::ROW_PADDING;

/// A buffer with this many bytes more than four times what a batch needs is given back.
const SLACK_BYTES: usize = 1 << 20;

/// One slot per tensor. Storage is kept between batches, what was in it is not.
pub(super) struct Tensors {
    device: Arc<dyn Device>,
    program: Arc<Program>,
    slots: Vec<Slot>,
    /// Where else than in their slots tensors are, until another layer writes them.
    apart: Vec<Option<u64>>,
}

#[derive(Default)]
struct Slot {
    data: Option<Buffer>,
    /// Of block floating point rows.
    exponents: Option<Buffer>,
    /// Whether this batch wrote the tensor.
    written: bool,
}

/// Rows of a tensor in a batch, its columns, and elements from one row to the next.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    cols: usize,
    stride: usize,
    element: usize,
}

impl Shape {
    const fn bytes(self) -> usize {
        self.rows * self.stride * self.element
    }
}

impl Tensors {
    pub(super) fn new(device: &Arc<dyn Device>, program: &Arc<Program>) -> Self {
        let slots = program.tensors.iter().map(|_| Slot::default()).collect();
        let apart = vec![None; program.tensors.len()];
        Self { device: Arc::clone(device), program: Arc::clone(program), slots, apart }
    }

    /// Forgets every value.
    pub(super) fn forget(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.written = false);
    }

    /// From here on the tensors that a layer writes are in their slots, but for its output, which is `apart` where that is given.
    pub(super) fn enter(&mut self, layer: &Layer, apart: Option<u64>) {
        layer.ops.iter().for_each(|op| self.apart[usize::from(op.out().0)] = None);
        self.apart[usize::from(layer.output.0)] = apart;
    }

    /// Whether a tensor is elsewhere than in its slot.
    pub(super) fn is_apart(&self, id: TensorId) -> bool {
        self.apart[usize::from(id.0)].is_some()
    }

    /// Forgets every value, and gives back storage that is far larger than the batch needs.
    pub(super) fn begin(&mut self, pass: &Pass) {
        self.forget();
        for i in 0..self.slots.len() {
            let needed = self.shape(TensorId(i as u16), pass).bytes();
            let slot = &mut self.slots[i];
            if slot.data.as_ref().is_some_and(|b| b.bytes() > needed.saturating_mul(4).saturating_add(SLACK_BYTES)) {
                *slot = Slot::default();
            }
        }
    }

    fn shape(&self, id: TensorId, pass: &Pass) -> Shape {
        let tensor = self.program.tensor(id);
        let cols = tensor.cols as usize;
        let (stride, element) = match tensor.kind {
            TensorKind::I32 => (cols, 4),
            TensorKind::I16 => (cols, 2),
            TensorKind::Bfp => (cols.next_multiple_of(ROW_PADDING), 2),
        };
        Shape { rows: pass.rows(tensor.rows), cols, stride, element }
    }

    /// Has storage for the tensor. Returns its number of elements.
    pub(super) fn prepare(&mut self, id: TensorId, pass: &Pass) -> Result<usize, DeviceError> {
        let shape = self.shape(id, pass);
        let is_bfp = self.program.tensor(id).kind == TensorKind::Bfp;
        let slot = &mut self.slots[usize::from(id.0)];
        reserve(&self.device, &mut slot.data, shape.bytes())?;
        if is_bfp {
            reserve(&self.device, &mut slot.exponents, 4 * shape.rows)?;
        }
        Ok(shape.rows * shape.cols)
    }

    pub(super) fn set_written(&mut self, id: TensorId) {
        self.slots[usize::from(id.0)].written = true;
    }

    /// Refuses a tensor that this batch has not written.
    pub(super) fn check_written(&self, id: TensorId) -> Result<(), BackendError> {
        let refuse = |reason: &str| Err(BackendError::Value { tensor: id, reason: reason.into() });
        match self.slots.get(usize::from(id.0)) {
            None => refuse("the program has no such tensor"),
            Some(Slot { written: false, .. }) => refuse("this batch has not written it yet"),
            Some(_) => Ok(()),
        }
    }

    /// Where a prepared tensor's elements are.
    pub(super) fn at(&self, id: TensorId) -> u64 {
        let slot = || self.slots[usize::from(id.0)].data.as_ref().expect("prepared").address();
        self.apart[usize::from(id.0)].unwrap_or_else(slot)
    }

    /// Where its exponents are.
    pub(super) fn exponents_at(&self, id: TensorId) -> u64 {
        self.slots[usize::from(id.0)].exponents.as_ref().expect("prepared").address()
    }

    pub(super) fn read(&self, id: TensorId, pass: &Pass) -> Result<Value, BackendError> {
        self.check_written(id)?;
        let (shape, at) = (self.shape(id, pass), self.at(id));
        let elements = shape.rows * shape.stride;
        Ok(match self.program.tensor(id).kind {
            TensorKind::I32 => Value::I32(self.download(at, elements)?),
            TensorKind::I16 => Value::I16(self.download(at, elements)?),
            TensorKind::Bfp => {
                let codes = digits::join(&self.download(at, 2 * elements)?, shape.stride, shape.cols);
                let exponents = self.download(self.exponents_at(id), shape.rows)?;
                Value::Bfp { codes, exponents }
            }
        })
    }

    fn download<T: Pod>(&self, at: u64, len: usize) -> Result<Vec<T>, DeviceError> {
        let mut items = vec![T::zeroed(); len];
        if len > 0 {
            self.device.download(at, bytemuck::cast_slice_mut(&mut items))?;
        }
        Ok(items)
    }

    pub(super) fn write(&mut self, id: TensorId, value: &Value, pass: &Pass) -> Result<(), BackendError> {
        let refuse = |reason: &str| Err(BackendError::Value { tensor: id, reason: reason.into() });
        let Some(tensor) = self.program.tensors.get(usize::from(id.0)) else {
            return refuse("the program has no such tensor");
        };
        let shape = self.shape(id, pass);
        let len = shape.rows * shape.cols;
        let fits = match (tensor.kind, value) {
            (TensorKind::I32, Value::I32(v)) => v.len() == len,
            (TensorKind::I16, Value::I16(v)) => v.len() == len,
            (TensorKind::Bfp, Value::Bfp { codes, exponents }) => codes.len() == len && exponents.len() == shape.rows,
            _ => false,
        };
        if !fits {
            return refuse("kind or length differs from the declaration");
        }
        self.prepare(id, pass)?;
        let slot = &self.slots[usize::from(id.0)];
        let data = slot.data.as_ref().expect("just prepared");
        match value {
            Value::I32(v) => data.write(v)?,
            Value::I16(v) => data.write(v)?,
            Value::Bfp { codes, exponents } => {
                data.write(&digits::split(codes, shape.cols, shape.stride))?;
                slot.exponents.as_ref().expect("just prepared").write(exponents)?;
            }
        }
        self.set_written(id);
        Ok(())
    }
}

/// Has a buffer of at least so many bytes. What was in it need not be kept.
fn reserve(device: &Arc<dyn Device>, slot: &mut Option<Buffer>, bytes: usize) -> Result<(), DeviceError> {
    if slot.as_ref().is_none_or(|b| b.bytes() < bytes) {
        // The old one goes first: both together may not fit.
        *slot = None;
        *slot = Some(Buffer::new(device, bytes)?);
    }
    Ok(())
}
