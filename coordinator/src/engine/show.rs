//! What watchers are shown of a dispute.

use lockstep_model::dispute::{LayerCase, Report};
use lockstep_protocol::dispute::{Phase, Reason, Referee};
use lockstep_protocol::ids::Place;

use crate::events::{DisputedElement, Narrowed};

/// The name of what is looked for.
pub(super) fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Row => "row",
        Phase::Ops => "ops",
        Phase::Chunk => "chunk",
        Phase::Reveal => "reveal",
        Phase::Open => "open",
        Phase::Recompute => "recompute",
        Phase::Ended => "ended",
    }
}

/// What is still in dispute.
pub(super) fn narrowed(referee: &Referee, case: &LayerCase, place: Place) -> Narrowed {
    let scope = referee.scope();
    let step = scope.chunk.zip(scope.step).and_then(|(chunk, step)| step_name(case, chunk, step));
    Narrowed {
        layer: place.layer,
        step,
        first_chunk: scope.chunks.start,
        chunks: scope.chunks.end - scope.chunks.start,
        element: scope.element,
    }
}

fn step_name(case: &LayerCase, chunk: u64, step: u16) -> Option<String> {
    let plan = case.plan(chunk);
    plan.steps().get(usize::from(step)).map(|step| step.name(case.program()))
}

/// The element on which a dispute came down, with what both sides revealed it to be.
pub(super) fn disputed_element(report: &Report) -> Option<DisputedElement> {
    let element = report.element.as_ref()?;
    let [Some(claimant), Some(challenger)] = element.claimed else {
        return None;
    };
    let right = match report.verdict.reason {
        Reason::Recomputed { value } => Some(value),
        _ => None,
    };
    let (step, row, column) = (element.step.clone(), element.row, element.column);
    Some(DisputedElement { step, row, column, claimed: [claimant, challenger], right })
}
