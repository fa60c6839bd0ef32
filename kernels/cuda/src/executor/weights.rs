//! Parameters on the device.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockstep_kernels::program::{Op, Param, ParamId, Program, ScaledRows};
use lockstep_kernels::value::{ParamData, Params};

use super::digits;
use crate::device::{Buffer, Device, DeviceError};
use crate::params::ROW_PADDING;

/// Bytes that are turned into digits on the host at a time.
const AT_A_TIME: usize = 16 << 20;

/// All parameters of a program. The codes of scaled rows are kept as [`digits`], padded to whole multiples of [`ROW_PADDING`].
pub(super) struct Weights {
    buffers: Vec<Buffer>,
    /// Shifts of heads, by what they are: layers often have the same.
    bytes: BTreeMap<Vec<u8>, Buffer>,
}

impl Weights {
    pub(super) fn new(device: &Arc<dyn Device>, program: &Program, params: &dyn Params) -> Result<Self, DeviceError> {
        let scaled = scaled_codes(program);
        let upload = |(i, param): (usize, &Param)| {
            let id = ParamId(i as u16);
            let buffer = match (params.param(id), scaled.contains(&id)) {
                (ParamData::I8(v), true) => rows(device, v, param, digits::pad),
                (ParamData::I16(v), true) => rows(device, v, param, digits::split),
                (ParamData::I8(v), _) => Buffer::of(device, v),
                (ParamData::I16(v), _) => Buffer::of(device, v),
                (ParamData::U16(v), _) => Buffer::of(device, v),
                (ParamData::I32(v), _) => Buffer::of(device, v),
            };
            params.release(id);
            buffer
        };
        let buffers = program.params.iter().enumerate().map(upload).collect::<Result<_, _>>()?;
        let mut bytes = BTreeMap::new();
        for shifts in program.layers.iter().flat_map(|layer| &layer.ops).flat_map(shifts) {
            if !bytes.contains_key(shifts) {
                bytes.insert(shifts.to_vec(), Buffer::of(device, shifts)?);
            }
        }
        Ok(Self { buffers, bytes })
    }

    /// Where the shifts of an op's heads are.
    pub(super) fn bytes_at(&self, shifts: &[u8]) -> u64 {
        self.bytes[shifts].address()
    }

    /// Where a parameter is.
    pub(super) fn at(&self, id: ParamId) -> u64 {
        self.buffers[usize::from(id.0)].address()
    }
}

/// Shifts of heads that an op has.
fn shifts(op: &Op) -> Vec<&[u8]> {
    match op {
        Op::Rope { shift, .. } => vec![shift],
        Op::Attention { heads, .. } => vec![&heads.score_shift, &heads.value_shift],
        _ => vec![],
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

/// Uploads rows of codes, a piece at a time, in the form that `convert` gives rows of so many columns for a stride.
fn rows<T>(
    device: &Arc<dyn Device>,
    codes: &[T],
    param: &Param,
    convert: fn(&[T], usize, usize) -> Vec<u8>,
) -> Result<Buffer, DeviceError> {
    let cols = param.cols as usize;
    let stride = cols.next_multiple_of(ROW_PADDING);
    let row_bytes = stride * size_of::<T>();
    let buffer = Buffer::new(device, param.rows as usize * row_bytes)?;
    let rows_at_a_time = (AT_A_TIME / row_bytes).max(1);
    for (piece, rows) in codes.chunks(rows_at_a_time * cols).enumerate() {
        let at = buffer.address() + (piece * rows_at_a_time * row_bytes) as u64;
        device.upload(at, &convert(rows, cols, stride))?;
    }
    Ok(buffer)
}
