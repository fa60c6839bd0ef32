//! Chunks of rows, hashed where they are.

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::program::{TensorId, TensorKind};

use super::DeviceExecutor;
use crate::device::Buffer;
use crate::params::ChunksParams;
use crate::plan;

/// Elements of a chunk.
const CHUNK: u32 = 256;

impl DeviceExecutor {
    /// See [`Executor::chunk_values`](lockstep_kernels::backend::Executor::chunk_values).
    ///
    /// # Errors
    /// The tensor is not `I32` or not written, `counters` has another length, or the device failed.
    pub(super) fn hash_chunks(&self, tensor: TensorId, counters: &[u64]) -> Result<Vec<[u8; 32]>, BackendError> {
        self.values.check_written(tensor)?;
        let declared = self.program.tensor(tensor);
        let rows = self.pass.rows(declared.rows);
        if declared.kind != TensorKind::I32 || counters.len() != rows {
            let reason = format!("{} counters for {rows} rows of {:?}", counters.len(), declared.kind);
            return Err(BackendError::Value { tensor, reason });
        }
        if rows == 0 {
            return Ok(vec![]);
        }
        let (cols, row_chunks) = (declared.cols, declared.cols.div_ceil(CHUNK));
        let of_rows = Buffer::of(&self.device, counters)?;
        let count = rows * row_chunks as usize;
        let values = Buffer::new(&self.device, count * 32)?;
        let params = ChunksParams {
            input: self.values.at(tensor),
            counters: of_rows.address(),
            values: values.address(),
            rows: rows as u32,
            cols,
            row_chunks,
            unused: 0,
        };
        self.device.launch(&plan::chunks(params))?;
        Ok(values.read(count)?)
    }
}
