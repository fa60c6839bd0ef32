//! Whether a program can be disputed at all (SPEC 24.6).

use super::{CHUNK_BYTES, MAX_READ_BYTES, Plan, PlanError};
use crate::program::{Op, Program, Rows};
use crate::sampling::{MAX_LIKELIEST, ONE, Sampling};

/// Checks that every layer of a validated program has a dispute view at any length and row, and that no element of it
/// reads more than [`MAX_READ_BYTES`] in whole chunks.
///
/// The longest sequence and its last row bound all others: no range that an element reads, and no tensor, shrinks when
/// the sequence grows. Ops that no committed value depends on can't be disputed and are not looked at.
///
/// Settings that take every step of sampling bound all others but the greedy ones, which have a step of their own; and the
/// most log-probabilities bound fewer.
///
/// # Errors
/// The first op for which that fails, with the step and the figure.
pub fn check_reads(program: &Program) -> Result<(), PlanError> {
    let greedy = Sampling::greedy(1, 1);
    let settings = [with_every_step(), greedy.clone()];
    let settings = if program.is_decoder() { &settings[..] } else { &settings[..0] };
    for (layer, shape) in program.layers.iter().enumerate().skip(1) {
        let row = match program.tensor(shape.output).rows {
            Rows::Position => program.max_positions.saturating_sub(1),
            Rows::Sequence | Rows::Point => 0,
        };
        if settings.is_empty() {
            check(program, &Plan::new(program, layer, program.max_positions, row, None)?)?;
        }
        for settings in settings {
            check(program, &Plan::new(program, layer, program.max_positions, row, Some((settings, 0)))?)?;
        }
    }
    // The layers of a stage of a shared model end before the one that samples, but for those of the last stage.
    let samples = |op: &Op| matches!(op, Op::Sample { .. });
    if program.layers.last().is_some_and(|layer| layer.ops.iter().any(samples)) {
        check(program, &Plan::logprobs(program, program.max_positions, (&greedy, 0), MAX_LIKELIEST)?)?;
    }
    Ok(())
}

/// Settings under which a point has every step but that of greedy sampling, and reads back as far as it may.
pub(super) fn with_every_step() -> Sampling {
    Sampling {
        temperature: ONE,
        top_k: 1,
        top_p: 0,
        repetition_penalty: 0,
        stop_strings: vec![vec![0]],
        ..Sampling::greedy(1, 1)
    }
}

fn check(program: &Program, plan: &Plan) -> Result<(), PlanError> {
    for (step, (op, _)) in plan.steps.iter().zip(&plan.ops) {
        let bytes = op.chunks(step.part).saturating_mul(CHUNK_BYTES);
        if bytes > MAX_READ_BYTES {
            let (layer, op, step) = (step.layer, step.op, step.name(program));
            return Err(PlanError::Reads { layer, op, step, bytes });
        }
    }
    Ok(())
}
