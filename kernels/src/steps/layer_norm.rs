//! LayerNorm (SPEC 24.11).

use std::sync::Arc;

use super::lower::Lowering;
use super::normalize::Statistics;
use super::view::{Activation, Data, View};
use super::{At, Lowered, Part, PlanError, Read, Width};
use crate::fixed::sat32;
use crate::program::{Norm, ParamId};
use crate::reference::normalize::{gain, scaled_epsilon};

#[derive(Debug)]
struct LayerNorm {
    statistics: Statistics,
    norm: Norm,
    scale: View,
    bias: View,
}

pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    input: View,
    norm: &Norm,
    bias: ParamId,
    cols: u64,
) -> Result<(Activation, Arc<dyn Lowered>), PlanError> {
    let statistics = Statistics::lower(lowering, input, [cols, 1], true)?;
    let (scale, bias) = (lowering.param(norm.scale), lowering.param(bias));
    let out = lowering.rows(Part::Out, cols, Width::I32)?;
    Ok((Activation::Plain(out), Arc::new(LayerNorm { statistics, norm: *norm, scale, bias })))
}

impl Lowered for LayerNorm {
    fn reads(&self, part: Part, at: At) -> Vec<Read> {
        let mut reads = self.statistics.reads(part, at);
        if part == Part::Out {
            reads.extend([self.scale.one(0, at.col), self.bias.one(0, at.col)]);
        }
        reads
    }

    fn evaluate(&self, part: Part, _: At, data: Data<'_>) -> i64 {
        if part != Part::Out {
            return self.statistics.evaluate(part, data);
        }
        let (norm, next) = (&self.norm, self.statistics.reads_of_unit());
        let unit = self.statistics.unit(data, |scale| scaled_epsilon(norm.epsilon_mantissa, norm.epsilon_shift, scale));
        sat32(gain(unit, data.i32(next), norm.shift) + i64::from(data.i32(next + 1))).0.into()
    }

    fn chunks(&self, part: Part) -> u64 {
        let params = if part == Part::Out { self.scale.chunks(1) + self.bias.chunks(1) } else { 0 };
        self.statistics.chunks(part) + params
    }
}
