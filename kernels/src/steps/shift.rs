//! Fewer fractional bits (SPEC 24.10).

use std::sync::Arc;

use super::lower::Lowering;
use super::view::{Activation, Data, View};
use super::{At, Lowered, Part, PlanError, Read, Width};
use crate::fixed::round_shift;

#[derive(Debug)]
struct Shift {
    input: View,
    shift: u8,
}

pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    input: View,
    shift: u8,
    cols: u64,
) -> Result<(Activation, Arc<dyn Lowered>), PlanError> {
    let out = lowering.rows(Part::Out, cols, Width::I32)?;
    Ok((Activation::Plain(out), Arc::new(Shift { input, shift })))
}

impl Lowered for Shift {
    fn reads(&self, _: Part, at: At) -> Vec<Read> {
        vec![self.input.one(at.row, at.col)]
    }

    fn evaluate(&self, _: Part, _: At, data: Data<'_>) -> i64 {
        round_shift(data.i32(0).into(), self.shift.into())
    }

    fn chunks(&self, _: Part) -> u64 {
        self.input.chunks(1)
    }
}
