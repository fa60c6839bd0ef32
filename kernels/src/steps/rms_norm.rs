//! RMSNorm (SPEC 24.11).

use std::sync::Arc;

use super::lower::Lowering;
use super::normalize::Statistics;
use super::view::{Activation, Data, View};
use super::{At, Lowered, Part, PlanError, Read, Width};
use crate::fixed::sat32;
use crate::program::Norm;
use crate::reference::normalize::{gain, scaled_epsilon};

#[derive(Debug)]
struct RmsNorm {
    statistics: Statistics,
    norm: Norm,
    scale: View,
    /// Columns of a group.
    cols: u64,
}

pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    input: View,
    norm: &Norm,
    cols: u64,
    groups: u16,
) -> Result<(Activation, Arc<dyn Lowered>), PlanError> {
    let groups = u64::from(groups);
    let statistics = Statistics::lower(lowering, input, [cols / groups, groups], false)?;
    let out = lowering.rows(Part::Out, cols, Width::I32)?;
    let scale = lowering.param(norm.scale);
    Ok((Activation::Plain(out), Arc::new(RmsNorm { statistics, norm: *norm, scale, cols: cols / groups })))
}

impl Lowered for RmsNorm {
    fn reads(&self, part: Part, at: At) -> Vec<Read> {
        let mut reads = self.statistics.reads(part, at);
        if part == Part::Out {
            reads.push(self.scale.one(0, at.col % self.cols));
        }
        reads
    }

    fn evaluate(&self, part: Part, _: At, data: Data<'_>) -> i64 {
        if part != Part::Out {
            return self.statistics.evaluate(part, data);
        }
        let norm = &self.norm;
        let unit = self.statistics.unit(data, |scale| scaled_epsilon(norm.epsilon_mantissa, norm.epsilon_shift, scale));
        sat32(gain(unit, data.i32(self.statistics.reads_of_unit()), norm.shift)).0.into()
    }

    fn chunks(&self, part: Part) -> u64 {
        self.statistics.chunks(part) + if part == Part::Out { self.scale.chunks(1) } else { 0 }
    }
}
