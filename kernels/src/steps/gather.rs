//! The row at the point (SPEC 24.15).

use std::sync::Arc;

use super::lower::Lowering;
use super::view::{Activation, Data, View};
use super::{At, Lowered, Part, PlanError, Read, Width};

#[derive(Debug)]
struct Gather {
    input: View,
}

pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    input: View,
    cols: u64,
) -> Result<(Activation, Arc<dyn Lowered>), PlanError> {
    let out = lowering.rows(Part::Out, cols, Width::I32)?;
    Ok((Activation::Plain(out), Arc::new(Gather { input })))
}

impl Lowered for Gather {
    fn reads(&self, _: Part, at: At) -> Vec<Read> {
        vec![self.input.one(at.row, at.col)]
    }

    fn evaluate(&self, _: Part, _: At, data: Data<'_>) -> i64 {
        data.i32(0).into()
    }

    fn chunks(&self, _: Part) -> u64 {
        self.input.chunks(1)
    }
}
