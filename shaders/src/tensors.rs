//! The activations of one batch, on the device.
//!
//! A row of `i32` lies as it is. Rows of 16-bit codes are filled up: to whole pairs of words, and block floating point rows to
//! the 16 codes that a matrix product takes at a time. What fills a row up has no meaning. A block floating point row has a
//! second buffer, with its exponent and the sum of its codes.

use std::sync::Arc;

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::budget::Taken;
use lockstep_kernels::pass::Pass;
use lockstep_kernels::program::{Program, Tensor, TensorId, TensorKind};
use lockstep_kernels::value::Value;
use wgpu::Buffer;

use crate::gpu::{Gpu, bytes};
use crate::recorder::Slice;

/// A buffer with this many bytes more than four times what a batch needs is given back.
const SLACK_BYTES: u64 = 1 << 20;
/// Bytes of exponent and sum of a row.
pub(crate) const SCALE_BYTES: usize = 8;

/// Codes in a row of that many, with what fills it up.
pub(crate) fn padded(kind: TensorKind, cols: usize) -> usize {
    match kind {
        TensorKind::I32 => cols,
        TensorKind::I16 => cols.next_multiple_of(4),
        TensorKind::Bfp => cols.next_multiple_of(16),
    }
}

/// Bytes of a row on the device.
pub(crate) fn row_bytes(tensor: &Tensor) -> usize {
    let size = if tensor.kind == TensorKind::I32 { 4 } else { 2 };
    size * padded(tensor.kind, tensor.cols as usize)
}

struct Held {
    main: Buffer,
    scales: Option<Buffer>,
}

/// One value per tensor. Buffers are kept between batches, what was in them is not.
pub(crate) struct Tensors {
    gpu: Arc<Gpu>,
    program: Arc<Program>,
    held: Vec<Option<Held>>,
    /// Whether this batch wrote the tensor.
    written: Vec<bool>,
    /// Rows of each tensor in this batch.
    rows: Vec<usize>,
    /// Memory that all buffers together take.
    taken: Option<Taken>,
}

impl Tensors {
    /// Of a batch without rows.
    pub fn new(gpu: Arc<Gpu>, program: Arc<Program>) -> Self {
        let count = program.tensors.len();
        let held = (0..count).map(|_| None).collect();
        Self { gpu, program, held, written: vec![false; count], rows: vec![0; count], taken: None }
    }

    /// Forgets every value, gives back buffers that are far larger than the batch needs, and sets aside what it needs.
    ///
    /// # Errors
    /// The device has not as much.
    pub fn begin(&mut self, pass: &Pass) -> Result<(), BackendError> {
        self.written.fill(false);
        let (mut all, mut least) = (0, 0);
        for (i, tensor) in self.program.tensors.iter().enumerate() {
            self.rows[i] = pass.rows(tensor.rows);
            let needed = (self.rows[i] * row_bytes(tensor)) as u64;
            if self.held[i].as_ref().is_some_and(|held| held.main.size() > 4 * needed + SLACK_BYTES) {
                self.held[i] = None;
            }
            least += needed;
            all += self.held[i].as_ref().map_or(0, |held| held.main.size()).max(needed);
        }
        self.taken = None;
        let taken = self.gpu.budget.take(all, "the batch").or_else(|_| {
            // It may fit where nothing is left of earlier ones.
            self.held.fill_with(|| None);
            self.gpu.budget.take(least, "the batch")
        });
        self.taken = Some(taken?);
        Ok(())
    }

    /// Rows of a tensor in this batch.
    pub fn rows(&self, id: TensorId) -> usize {
        self.rows[usize::from(id.0)]
    }

    /// Makes room for a tensor that is about to be written.
    pub fn make(&mut self, id: TensorId) {
        let (i, tensor) = (usize::from(id.0), self.program.tensor(id));
        let (main, scales) = ((self.rows[i] * row_bytes(tensor)) as u64, (self.rows[i] * SCALE_BYTES) as u64);
        let fits = |held: &Held| held.main.size() >= main && held.scales.as_ref().is_none_or(|s| s.size() >= scales);
        if !self.held[i].as_ref().is_some_and(fits) {
            let scales = (tensor.kind == TensorKind::Bfp).then(|| self.gpu.storage(scales));
            self.held[i] = Some(Held { main: self.gpu.storage(main), scales });
        }
        self.written[i] = true;
    }

    /// An error where this batch has not written the tensor.
    pub fn check(&self, id: TensorId) -> Result<(), BackendError> {
        let refuse = |reason: &str| Err(BackendError::Value { tensor: id, reason: reason.into() });
        match self.written.get(usize::from(id.0)) {
            None => refuse("the program has no such tensor"),
            Some(false) => refuse("this batch has not written it yet"),
            Some(true) => Ok(()),
        }
    }

    fn held(&self, id: TensorId) -> &Held {
        self.held[usize::from(id.0)].as_ref().expect("a tensor that was made")
    }

    /// The buffer of a tensor that was made.
    pub fn buffer(&self, id: TensorId) -> &Buffer {
        &self.held(id).main
    }

    /// Some rows of a tensor that was made.
    pub fn slice(&self, id: TensorId, rows: &std::ops::Range<usize>) -> Slice<'_> {
        part(&self.held(id).main, rows, row_bytes(self.program.tensor(id)))
    }

    /// Exponents and sums of some rows of a block floating point tensor that was made.
    pub fn scales(&self, id: TensorId, rows: &std::ops::Range<usize>) -> Slice<'_> {
        part(self.held(id).scales.as_ref().expect("a block floating point tensor"), rows, SCALE_BYTES)
    }

    /// Copies a value out.
    pub fn read(&self, id: TensorId) -> Result<Value, BackendError> {
        self.check(id)?;
        let (tensor, rows) = (self.program.tensor(id), self.rows(id));
        let cols = tensor.cols as usize;
        if rows == 0 {
            return Ok(match tensor.kind {
                TensorKind::I32 => Value::I32(vec![]),
                TensorKind::I16 => Value::I16(vec![]),
                TensorKind::Bfp => Value::Bfp { codes: vec![], exponents: vec![] },
            });
        }
        let held = self.held(id);
        let main = self.gpu.download(&held.main, (rows * row_bytes(tensor)) as u64)?;
        let codes = || {
            let rows = main.chunks_exact(row_bytes(tensor)).flat_map(|row| row[..2 * cols].as_chunks::<2>().0);
            rows.map(|code| i16::from_le_bytes(*code)).collect()
        };
        Ok(match tensor.kind {
            TensorKind::I32 => Value::I32(main.as_chunks::<4>().0.iter().map(|v| i32::from_le_bytes(*v)).collect()),
            TensorKind::I16 => Value::I16(codes()),
            TensorKind::Bfp => {
                let scales = held.scales.as_ref().expect("a block floating point tensor");
                let scales = self.gpu.download(scales, (rows * SCALE_BYTES) as u64)?;
                let words = scales.as_chunks::<4>().0.iter().map(|v| i32::from_le_bytes(*v));
                Value::Bfp { codes: codes(), exponents: words.step_by(2).collect() }
            }
        })
    }

    /// Replaces a value from outside.
    pub fn write(&mut self, id: TensorId, value: &Value) -> Result<(), BackendError> {
        let refuse = |reason: &str| Err(BackendError::Value { tensor: id, reason: reason.into() });
        let Some(tensor) = self.program.tensors.get(usize::from(id.0)) else {
            return refuse("the program has no such tensor");
        };
        let (rows, cols) = (self.rows(id), tensor.cols as usize);
        let (kind, fill) = (tensor.kind, padded(tensor.kind, cols) - cols);
        let of_codes = |codes: &[i16]| {
            let row = |row: &[i16]| row.iter().flat_map(|code| code.to_le_bytes()).chain(vec![0; 2 * fill]).collect();
            codes.chunks_exact(cols).flat_map(|codes| -> Vec<u8> { row(codes) }).collect()
        };
        let (main, scales): (Vec<u8>, _) = match (kind, value) {
            (TensorKind::I32, Value::I32(v)) if v.len() == rows * cols => {
                (v.iter().flat_map(|v| v.to_le_bytes()).collect(), None)
            }
            (TensorKind::I16, Value::I16(v)) if v.len() == rows * cols => (of_codes(v), None),
            (TensorKind::Bfp, Value::Bfp { codes, exponents })
                if codes.len() == rows * cols && exponents.len() == rows =>
            {
                let sums = codes.chunks_exact(cols).map(|row| row.iter().map(|code| i32::from(*code)).sum::<i32>());
                let scales = exponents.iter().zip(sums).flat_map(|(e, sum)| [*e as u32, sum as u32]);
                (of_codes(codes), Some(scales.collect::<Vec<_>>()))
            }
            _ => return refuse("kind or length differs from the declaration"),
        };
        self.make(id);
        if rows > 0 {
            let held = self.held(id);
            self.gpu.queue.write_buffer(&held.main, 0, &main);
            if let (Some(buffer), Some(scales)) = (&held.scales, scales) {
                self.gpu.queue.write_buffer(buffer, 0, &bytes(&scales));
            }
        }
        self.gpu.check()
    }
}

/// Rows of that many bytes.
pub(crate) fn part<'a>(buffer: &'a Buffer, rows: &std::ops::Range<usize>, row_bytes: usize) -> Slice<'a> {
    Slice { buffer, offset: (rows.start * row_bytes) as u64, bytes: (rows.len() * row_bytes) as u64 }
}
