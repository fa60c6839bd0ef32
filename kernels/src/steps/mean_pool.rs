//! Mean over positions: sums of row blocks, then the mean (SPEC 24.13).

use std::sync::Arc;

use super::lower::Lowering;
use super::view::{Activation, Data, View};
use super::{At, BLOCK_ROWS, Lowered, Part, PlanError, Read, Width};
use crate::reference::mean_pool::mean;

#[derive(Debug)]
struct MeanPool {
    input: View,
    positions: u64,
    sums: View,
}

pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    input: View,
    cols: u64,
) -> Result<(Activation, Arc<dyn Lowered>), PlanError> {
    let positions = lowering.place.positions;
    let sums = lowering.block(Part::Sums, [cols, positions.div_ceil(BLOCK_ROWS)], Width::I64)?;
    let out = lowering.rows(Part::Out, cols, Width::I32)?;
    Ok((Activation::Plain(out), Arc::new(MeanPool { input, positions, sums })))
}

impl Lowered for MeanPool {
    fn reads(&self, part: Part, at: At) -> Vec<Read> {
        if part == Part::Out {
            return vec![self.sums.read(at.col, 0..self.positions.div_ceil(BLOCK_ROWS))];
        }
        let rows = at.col * BLOCK_ROWS..self.positions.min((at.col + 1) * BLOCK_ROWS);
        rows.map(|t| self.input.one(t, at.row)).collect()
    }

    fn evaluate(&self, part: Part, _: At, data: Data<'_>) -> i64 {
        if part == Part::Out {
            return mean(data.i64s(0).fold(0, i64::wrapping_add), self.positions as i64);
        }
        (0..data.len()).map(|read| i64::from(data.i32(read))).sum()
    }

    fn chunks(&self, part: Part) -> u64 {
        if part == Part::Out {
            return self.sums.chunks(self.positions.div_ceil(BLOCK_ROWS));
        }
        self.positions.min(BLOCK_ROWS) * self.input.chunks(1)
    }
}
