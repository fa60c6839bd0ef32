//! Weights on the device: digits of codes, in parts that a binding can hold.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::program::{DType, Op, ParamId, Program};
use lockstep_kernels::value::ParamData;
use wgpu::Buffer;

use crate::gpu::Gpu;

/// Codes that a product takes at a time.
pub(crate) const STEP: usize = 16;
/// Weight rows to whose multiple parts are cut: 16 bytes of each in the scales make up an alignment of bindings.
const PART_ROWS: usize = 16;
/// Weight rows of a part, at most: four in a workgroup, of which an axis has 65,535.
const MOST_ROWS: usize = 1 << 17;
/// Bytes of a part, at most, and of one upload.
const PART_BYTES: u64 = 256 << 20;
const UPLOAD_BYTES: usize = 16 << 20;

/// Bytes of a row of so many codes.
const fn row_bytes(digits: usize, cols: usize) -> usize {
    digits * cols.div_ceil(STEP) * STEP
}

/// Bytes that the matrices of a validated program take on a device. Embedding tables stay on the host.
pub(crate) fn bytes_of(program: &Program) -> u64 {
    let ops = program.layers.iter().flat_map(|layer| &layer.ops);
    let codes: BTreeSet<ParamId> =
        ops.filter_map(|op| if let Op::MatMul { weight, .. } = op { Some(weight.codes) } else { None }).collect();
    let bytes = codes.into_iter().map(|id| {
        let declared = program.param(id);
        let digits = if declared.dtype == DType::I8 { 1 } else { 2 };
        declared.rows as u64 * row_bytes(digits, declared.cols as usize) as u64
    });
    bytes.sum()
}

/// Some rows of a matrix.
pub(crate) struct Part {
    pub rows: Range<usize>,
    pub weights: Buffer,
}

/// The codes of a matrix, `[rows][digits][steps]` in sixteens of digits.
pub(crate) struct Matrix {
    pub parts: Vec<Part>,
    /// Digits of a code: 1 or 2.
    pub digits: usize,
    /// Sixteens of codes in a row.
    pub steps: usize,
    /// Sum of the codes of each row.
    pub sums: Vec<i32>,
}

impl Matrix {
    /// Uploads the codes of a matrix, `[rows, cols]`.
    pub fn new(gpu: &Arc<Gpu>, codes: ParamData<'_>, cols: usize) -> Result<Self, BackendError> {
        let (rows, digits) = match codes {
            ParamData::I16(v) => (v.len() / cols, 2),
            ParamData::I8(v) => (v.len() / cols, 1),
            _ => unreachable!("validation: weight codes are i8 or i16"),
        };
        let steps = cols.div_ceil(STEP);
        let row_bytes = row_bytes(digits, cols);
        let most = (gpu.binding.min(PART_BYTES) / row_bytes as u64) as usize;
        let most = (most.min(MOST_ROWS) / PART_ROWS).max(1) * PART_ROWS;
        let mut matrix = Self { parts: vec![], digits, steps, sums: Vec::with_capacity(rows) };
        for first in (0..rows).step_by(most) {
            let rows = first..rows.min(first + most);
            let weights = gpu.storage((rows.len() * row_bytes) as u64);
            let batch = (UPLOAD_BYTES / row_bytes).max(1);
            for start in rows.clone().step_by(batch) {
                let mut digits = Vec::with_capacity(batch.min(rows.len()) * row_bytes);
                for row in start..rows.end.min(start + batch) {
                    let sum = push_row(&mut digits, codes, row * cols..(row + 1) * cols, steps * STEP - cols);
                    matrix.sums.push(sum);
                }
                gpu.queue.write_buffer(&weights, ((start - rows.start) * row_bytes) as u64, &digits);
                // What was handed over is copied once something is submitted.
                gpu.queue.submit([]);
            }
            gpu.check()?;
            matrix.parts.push(Part { rows, weights });
        }
        Ok(matrix)
    }
}

/// Appends the digits of a row, filled up with zeros. Returns the sum of its codes: at most 2^14 of 16 bits.
fn push_row(to: &mut Vec<u8>, codes: ParamData<'_>, range: Range<usize>, fill: usize) -> i32 {
    let end = |to: &mut Vec<u8>| to.resize(to.len() + fill, 0);
    match codes {
        ParamData::I8(v) => {
            let row = &v[range];
            to.extend(row.iter().map(|code| *code as u8));
            end(to);
            row.iter().map(|code| i32::from(*code)).sum()
        }
        ParamData::I16(v) => {
            let row = &v[range];
            to.extend(row.iter().map(|code| (*code >> 8) as u8));
            end(to);
            to.extend(row.iter().map(|code| (*code as u8) ^ 0x80));
            end(to);
            row.iter().map(|code| i32::from(*code)).sum()
        }
        _ => unreachable!("validation: weight codes are i8 or i16"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the shader makes of digits, for every code there is.
    #[test]
    fn digits_stand_for_their_codes() {
        let codes: Vec<i16> = (i16::MIN..=i16::MAX).collect();
        let mut digits = Vec::new();
        push_row(&mut digits, ParamData::I16(&codes), 0..16, 0);
        assert_eq!(digits.len(), 32);
        digits.clear();
        let sum = push_row(&mut digits, ParamData::I16(&codes), 0..codes.len(), 0);
        assert_eq!(sum, -32_768);
        let (high, low) = digits.split_at(codes.len());
        for ((code, h), l) in codes.iter().zip(high).zip(low) {
            let value = 256 * i32::from(*h as i8) + i32::from(*l as i8) + 128;
            assert_eq!(value, i32::from(*code));
        }
    }

    #[test]
    fn rows_are_filled_up_with_zeros() {
        let mut digits = Vec::new();
        assert_eq!(push_row(&mut digits, ParamData::I16(&[9, 7, 300]), 1..3, 14), 307);
        assert_eq!(digits, [&[0, 1], &[0; 14][..], &[0x87, 0xac], &[0; 14]].concat());
        digits.clear();
        assert_eq!(push_row(&mut digits, ParamData::I8(&[-1, 5]), 0..2, 14), 4);
        assert_eq!(digits, [&[0xff, 5], &[0; 14][..]].concat());
    }
}
