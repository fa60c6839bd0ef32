//! Block floating point rows: maxima of column blocks, the exponent, the codes (SPEC 24.8).

use std::sync::Arc;

use super::lower::Lowering;
use super::view::{Activation, Data, View};
use super::{At, BLOCK_COLS, Lowered, Part, PlanError, Read, Width, maxima};
use crate::fixed::{round_shift, row_exponent};

#[derive(Debug)]
struct Quantize {
    input: View,
    cols: u64,
    maxima: View,
    exponents: View,
}

pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    input: View,
    cols: u64,
) -> Result<(Activation, Arc<dyn Lowered>), PlanError> {
    let maxima = maxima::lower(lowering, cols, 1)?;
    let exponents = lowering.rows(Part::Exponent, 1, Width::I32)?;
    let codes = lowering.rows(Part::Codes, cols, Width::I16)?;
    Ok((Activation::Bfp { codes, exponents }, Arc::new(Quantize { input, cols, maxima, exponents })))
}

impl Lowered for Quantize {
    fn reads(&self, part: Part, at: At) -> Vec<Read> {
        match part {
            Part::Maxima => vec![self.input.read(at.row, maxima::block(self.cols, at.col))],
            Part::Exponent => vec![self.maxima.read(at.row, 0..maxima::blocks(self.cols))],
            _ => vec![self.input.one(at.row, at.col), self.exponents.one(at.row, 0)],
        }
    }

    fn evaluate(&self, part: Part, _: At, data: Data<'_>) -> i64 {
        match part {
            Part::Maxima => maxima::of_block(data, 0),
            Part::Exponent => row_exponent(maxima::of_row(data, 0)).into(),
            _ => round_shift(data.i32(0).into(), data.i32(1).clamp(0, 63) as u32),
        }
    }

    fn chunks(&self, part: Part) -> u64 {
        match part {
            Part::Maxima => self.input.chunks(self.cols.min(BLOCK_COLS)),
            Part::Exponent => self.maxima.chunks(maxima::blocks(self.cols)),
            _ => self.input.chunks(1) + self.exponents.chunks(1),
        }
    }
}
