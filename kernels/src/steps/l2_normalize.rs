//! Scaling to unit length (SPEC 24.11).

use std::sync::Arc;

use super::lower::Lowering;
use super::normalize::Statistics;
use super::view::{Activation, Data, View};
use super::{At, Lowered, Part, PlanError, Read, Width};

#[derive(Debug)]
struct L2Normalize {
    statistics: Statistics,
}

pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    input: View,
    cols: u64,
) -> Result<(Activation, Arc<dyn Lowered>), PlanError> {
    let statistics = Statistics::lower(lowering, input, [cols, 1], false)?;
    let out = lowering.rows(Part::Out, cols, Width::I32)?;
    Ok((Activation::Plain(out), Arc::new(L2Normalize { statistics })))
}

impl Lowered for L2Normalize {
    fn reads(&self, part: Part, at: At) -> Vec<Read> {
        self.statistics.reads(part, at)
    }

    fn evaluate(&self, part: Part, _: At, data: Data<'_>) -> i64 {
        match part {
            Part::Out => self.statistics.unit(data, |_| 0),
            _ => self.statistics.evaluate(part, data),
        }
    }

    fn chunks(&self, part: Part) -> u64 {
        self.statistics.chunks(part)
    }
}
