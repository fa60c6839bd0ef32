//! Pages of caches, on the device.

use std::sync::Arc;

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::host::{PageShape, PageStore};
use lockstep_kernels::program::Op;

use super::DeviceExecutor;
use crate::device::{Buffer, Device};
use crate::params::{AppendParams, AppendRow};
use crate::plan;

/// Positions of a page.
pub(super) const BLOCK: usize = 256;

/// Where an executor's pages come from.
pub(super) struct DeviceStore {
    device: Arc<dyn Device>,
}

impl DeviceStore {
    pub(super) fn new(device: &Arc<dyn Device>) -> Self {
        Self { device: Arc::clone(device) }
    }
}

/// Keys, and after them values.
pub(super) struct DevicePage {
    buffer: Buffer,
}

impl DevicePage {
    /// Where the keys and the values are.
    pub(super) fn at(&self) -> (u64, u64) {
        (self.buffer.address(), self.buffer.address() + self.buffer.bytes() as u64 / 2)
    }
}

impl PageStore for DeviceStore {
    type Page = DevicePage;

    fn make(&self, shape: &PageShape) -> Result<DevicePage, BackendError> {
        let buffer = Buffer::new(&self.device, 2 * shape.len() * size_of::<i16>())?;
        Ok(DevicePage { buffer })
    }

    fn copy(&self, shape: &PageShape, page: &DevicePage) -> Result<DevicePage, BackendError> {
        let copy = self.make(shape)?;
        self.device.copy(page.buffer.address(), copy.buffer.address(), copy.buffer.bytes())?;
        Ok(copy)
    }
}

impl DeviceExecutor {
    /// Keeps the keys and values that an attention is about to read, for later passes.
    pub(super) fn keep(&mut self, op: &Op, line: usize) -> Result<(), BackendError> {
        let Op::Attention { k, v, heads, .. } = op else { return Ok(()) };
        let dim = usize::from(heads.head_dim);
        let mut rows = Vec::new();
        for (sequence, span) in self.pass.batch.sequences.iter().zip(&self.pass.spans) {
            let Some(id) = sequence.cache else { continue };
            self.caches.append(id, line, sequence.start, span.len(), |page, _, position, row| {
                let (keys, values) = page.at();
                let within = (position * dim * size_of::<i16>()) as u64;
                let row = (span.start + row) as u32;
                rows.push(AppendRow { keys: keys + within, values: values + within, row, unused: 0 });
            })?;
        }
        if rows.is_empty() {
            return Ok(());
        }
        let list = Buffer::of(&self.device, &rows)?;
        let launch = plan::append(
            rows.len() as u32,
            AppendParams {
                keys: self.values.at(*k),
                values: self.values.at(*v),
                rows: list.address(),
                kv_heads: heads.kv_heads.into(),
                head_dim: heads.head_dim.into(),
                head_stride: (BLOCK * dim) as u32,
                unused: 0,
            },
        );
        Ok(self.device.launch(&launch)?)
    }
}
