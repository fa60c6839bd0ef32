//! How a dispute is told: each round in a sentence, from what the coordinator reports.

use std::collections::BTreeMap;

use lockstep_coordinator::events::{DisputedElement, Narrowed};
use lockstep_protocol::ids::{DisputeId, VerdictKind};

/// The sides of all disputes, and the one that is told of round by round: the first.
#[derive(Default)]
pub struct Rounds {
    sides: BTreeMap<DisputeId, [&'static str; 2]>,
    first: Option<DisputeId>,
    /// Bytes of the move that waits for the other side's.
    half: Option<(u16, u64)>,
}

/// A move, as reported.
pub struct Moved<'a> {
    /// In which dispute.
    pub dispute: DisputeId,
    /// In which round.
    pub round: u16,
    /// What kind of move.
    pub stage: &'a str,
    /// What is left after it.
    pub narrowed: &'a Narrowed,
    /// Bytes of it.
    pub bytes: u64,
}

impl Rounds {
    /// A dispute begins between these two.
    pub fn open(&mut self, dispute: DisputeId, sides: [&'static str; 2]) {
        self.sides.insert(dispute, sides);
        self.first.get_or_insert(dispute);
    }

    /// Whether a dispute is the one that is told of in full.
    pub fn is_first(&self, dispute: &DisputeId) -> bool {
        self.first == Some(*dispute)
    }

    /// Who disputes.
    pub fn sides(&self, dispute: &DisputeId) -> [&'static str; 2] {
        self.sides.get(dispute).copied().unwrap_or(["?"; 2])
    }

    /// What to tell of a move: nothing of other disputes than the first, and nothing of the first move of a round in
    /// which both sides move.
    pub fn line(&mut self, moved: &Moved<'_>) -> Option<String> {
        if !self.is_first(&moved.dispute) {
            return None;
        }
        let both = !matches!(moved.stage, "open" | "concede");
        let bytes = match self.half.take() {
            Some((round, first)) if round == moved.round => first + moved.bytes,
            _ if both => {
                self.half = Some((moved.round, moved.bytes));
                return None;
            }
            _ => moved.bytes,
        };
        Some(format!("round {}  {:<68}{bytes:>6} bytes", moved.round + 1, sentence(moved)))
    }
}

/// What a round found.
fn sentence(moved: &Moved<'_>) -> String {
    let Narrowed { layer, step, first_chunk, chunks, element } = moved.narrowed;
    let left = match chunks {
        1 => format!("chunk {first_chunk}"),
        _ => format!("chunks {first_chunk} to {}", first_chunk + chunks - 1),
    };
    match (moved.stage, step) {
        ("ops", Some(step)) => format!("every step of that row, committed: {step} is the first to differ"),
        ("ops", None) => "every step of that row, committed: none differs but the row itself".into(),
        ("reveal", _) => match element {
            Some(element) => format!("1 KiB revealed by each: element {element} is the first to differ"),
            None => "1 KiB revealed by each".into(),
        },
        ("open", _) => "what that number follows from, opened against agreed roots".into(),
        ("concede", _) => "one side concedes".into(),
        (_, None) => format!("the tree over all rows of layer {layer}: {left} differs"),
        (_, Some(step)) => format!("the tree over {step}: {left} differs"),
    }
}

/// The number in dispute: what was claimed, and what it is.
pub fn number(sides: [&str; 2], element: &DisputedElement) -> Vec<String> {
    let DisputedElement { step, row, column, claimed, right } = element;
    let mut lines =
        vec![format!("{step}[{row}, {column}]: {} says {}, {} says {}", sides[0], claimed[0], sides[1], claimed[1])];
    if let Some(right) = right {
        lines.push(format!("the referee recomputes this one number: {right}"));
    }
    lines
}

/// Who lost, and how that is known.
pub fn verdict(losers: &[&str], kind: VerdictKind) -> String {
    let how = match kind {
        VerdictKind::Proven => "proven: anybody can check it from the dispute's file",
        VerdictKind::Timeout => "timeout: the coordinator heard nothing",
    };
    format!("{} loses ({how})", losers.join(" and "))
}
