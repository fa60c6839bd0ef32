//! Whether a program can be disputed at all (SPEC 24.6).

use super::{CHUNK_BYTES, MAX_READ_BYTES, Plan, PlanError};
use crate::program::{Program, Rows};

/// Checks that every layer of a validated program has a dispute view at any length and row, and that no element of it
/// reads more than [`MAX_READ_BYTES`] in whole chunks.
///
/// The longest sequence and its last row bound all others: no range that an element reads, and no tensor, shrinks when
/// the sequence grows. Ops that no committed value depends on can't be disputed and are not looked at.
///
/// # Errors
/// The first op for which that fails, with the step and the figure.
pub fn check_reads(program: &Program) -> Result<(), PlanError> {
    for (layer, shape) in program.layers.iter().enumerate().skip(1) {
        let row = match program.tensor(shape.output).rows {
            Rows::Position => program.max_positions.saturating_sub(1),
            Rows::Sequence | Rows::Point => 0,
        };
        let plan = Plan::new(program, layer, program.max_positions, row)?;
        for (step, (op, _)) in plan.steps.iter().zip(&plan.ops) {
            let bytes = op.chunks(step.part).saturating_mul(CHUNK_BYTES);
            if bytes > MAX_READ_BYTES {
                let (layer, op, step) = (step.layer, step.op, step.name(program));
                return Err(PlanError::Reads { layer, op, step, bytes });
            }
        }
    }
    Ok(())
}
