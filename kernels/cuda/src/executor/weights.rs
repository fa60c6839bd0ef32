//! Parameters on the device.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use lockstep_kernels::program::{Op, ParamId, Program, ScaledRows};
use lockstep_kernels::value::{ParamData, Params};

use crate::device::{Buffer, Device, DeviceError};
use crate::params::ROW_PADDING;

/// Bytes that are padded on the host at a time.
const PADDED_AT_A_TIME: usize = 16 << 20;

/// All parameters of a program. The codes of scaled rows are padded to whole multiples of [`ROW_PADDING`].
pub(super) struct Weights {
    buffers: Vec<Buffer>,
}

impl Weights {
    pub(super) fn new(device: &Arc<dyn Device>, program: &Program, params: &dyn Params) -> Result<Self, DeviceError> {
        let padded = scaled_codes(program);
        let upload = |(i, param): (usize, &lockstep_kernels::program::Param)| {
            let id = ParamId(i as u16);
            let cols = if padded.contains(&id) { param.cols as usize } else { 0 };
            match params.param(id) {
                ParamData::I8(v) => rows(device, v, cols),
                ParamData::I16(v) => rows(device, v, cols),
                ParamData::U16(v) => rows(device, v, cols),
                ParamData::I32(v) => rows(device, v, cols),
            }
        };
        Ok(Self { buffers: program.params.iter().enumerate().map(upload).collect::<Result<_, _>>()? })
    }

    /// Where a parameter is.
    pub(super) fn at(&self, id: ParamId) -> u64 {
        self.buffers[usize::from(id.0)].address()
    }
}

/// Parameters that are the codes of scaled rows.
fn scaled_codes(program: &Program) -> BTreeSet<ParamId> {
    let of_op = |op: &Op| -> Vec<ScaledRows> {
        match op {
            Op::MatMul { weight, .. } => vec![*weight],
            Op::Embed { tables, .. } => tables.iter().map(|(rows, _)| *rows).collect(),
            _ => vec![],
        }
    };
    program.layers.iter().flat_map(|l| &l.ops).flat_map(of_op).map(|rows| rows.codes).collect()
}

/// Uploads rows of `cols` items, each padded with zeros; as they are where that is 0 or needs no padding.
fn rows<T: Pod + Zeroable>(device: &Arc<dyn Device>, items: &[T], cols: usize) -> Result<Buffer, DeviceError> {
    if cols == 0 || cols.is_multiple_of(ROW_PADDING) {
        return Buffer::of(device, items);
    }
    let stride = cols.next_multiple_of(ROW_PADDING);
    let buffer = Buffer::new(device, items.len() / cols * stride * size_of::<T>())?;
    let rows_at_a_time = (PADDED_AT_A_TIME / (stride * size_of::<T>())).max(1);
    let mut padded = vec![T::zeroed(); rows_at_a_time.min(items.len() / cols) * stride];
    for (piece, rows) in items.chunks(rows_at_a_time * cols).enumerate() {
        for (to, from) in padded.chunks_exact_mut(stride).zip(rows.chunks_exact(cols)) {
            to[..cols].copy_from_slice(from);
        }
        let at = buffer.address() + (piece * rows_at_a_time * stride * size_of::<T>()) as u64;
        device.upload(at, bytemuck::cast_slice(&padded[..rows.len() / cols * stride]))?;
    }
    Ok(buffer)
}
