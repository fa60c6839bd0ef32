//! Pages of caches, on the device.

use std::sync::Arc;

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::host::{PageShape, PageStore};
use lockstep_kernels::program::{Heads, Op};

use super::planner::Planner;
use super::{DeviceExecutor, Inputs};
use crate::device::{Buffer, Device};
use crate::params::{AppendParams, AppendRow};
use crate::plan::{self, Launch};

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

impl Planner<'_> {
    /// Keys and values of an attention into pages, as a list of so many rows says.
    pub fn append(&self, op: &Op, rows: u64, count: u32) -> Launch {
        let Op::Attention { k, v, heads, .. } = op else { unreachable!("only called for attention") };
        let params = AppendParams {
            keys: self.values.at(*k),
            values: self.values.at(*v),
            rows,
            kv_heads: heads.kv_heads.into(),
            head_dim: heads.head_dim.into(),
            head_stride: BLOCK as u32 * u32::from(heads.head_dim),
            unused: 0,
        };
        plan::append(count, params)
    }
}

impl DeviceExecutor {
    /// Keeps the keys and values that an attention is about to read, for later passes.
    pub(super) fn keep(&mut self, inputs: &Inputs, op: &Op, line: usize) -> Result<(), BackendError> {
        let Op::Attention { heads, .. } = op else { return Ok(()) };
        let rows = self.reserve(line, heads)?;
        self.commit(line)?;
        if rows.is_empty() {
            return Ok(());
        }
        let list = Buffer::of(&self.device, &rows)?;
        let launch = self.planner(inputs).append(op, list.address(), rows.len() as u32);
        Ok(self.device.launch(&launch)?)
    }

    /// Makes room in the caches of the pass for the keys and values of an attention. Returns where those of each row go.
    pub(super) fn reserve(&mut self, line: usize, heads: &Heads) -> Result<Vec<AppendRow>, BackendError> {
        let dim = usize::from(heads.head_dim);
        let mut rows = Vec::new();
        for (sequence, span) in self.pass.batch.sequences.iter().zip(&self.pass.spans) {
            let Some(id) = sequence.cache else { continue };
            self.caches.reserve(id, line, sequence.start, span.len(), |page, _, position, row| {
                let (keys, values) = page.at();
                let within = (position * dim * size_of::<i16>()) as u64;
                let row = (span.start + row) as u32;
                rows.push(AppendRow { keys: keys + within, values: values + within, row, unused: 0 });
            })?;
        }
        Ok(rows)
    }

    /// Has the caches of the pass hold them.
    pub(super) fn commit(&mut self, line: usize) -> Result<(), BackendError> {
        let ends = self.pass.batch.sequences.iter().filter_map(|s| Some((s.cache?, s.tokens.len())));
        ends.into_iter().try_for_each(|(id, end)| self.caches.commit(id, line, end))
    }
}
