//! Product, element by element (SPEC 24.10).

use std::sync::Arc;

use super::lower::Lowering;
use super::view::{Activation, Data, View};
use super::{At, Lowered, Part, PlanError, Read, Width};
use crate::fixed::{round_shift, sat32};

#[derive(Debug)]
struct Multiply {
    inputs: [View; 2],
    shift: u8,
}

pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    inputs: [View; 2],
    shift: u8,
    cols: u64,
) -> Result<(Activation, Arc<dyn Lowered>), PlanError> {
    let out = lowering.rows(Part::Out, cols, Width::I32)?;
    Ok((Activation::Plain(out), Arc::new(Multiply { inputs, shift })))
}

impl Lowered for Multiply {
    fn reads(&self, _: Part, at: At) -> Vec<Read> {
        self.inputs.map(|input| input.one(at.row, at.col)).into()
    }

    fn evaluate(&self, _: Part, _: At, data: Data<'_>) -> i64 {
        sat32(round_shift(i64::from(data.i32(0)) * i64::from(data.i32(1)), self.shift.into())).0.into()
    }

    fn chunks(&self, _: Part) -> u64 {
        self.inputs.iter().map(|input| input.chunks(1)).sum()
    }
}
