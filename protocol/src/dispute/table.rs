//! The phases of a dispute and every step between them, as one table.

/// What is being looked for. It follows from the moves alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The first chunk of the layer's output that differs, which names the row.
    Row,
    /// The first step of that row that differs.
    Ops,
    /// The first chunk of that step that differs.
    Chunk,
    /// The first element of that chunk that differs.
    Reveal,
    /// What that element is made of.
    Open,
    /// What that element is: the referee computes it.
    Recompute,
    /// Nothing: there is a verdict.
    Ended,
}

/// What comes out of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// The disputed block is smaller, and more than one chunk.
    Narrowed,
    /// The row is found.
    RowFound,
    /// The step is found, and a block of it of more than one chunk.
    StepFound,
    /// The chunk is found.
    ChunkFound,
    /// The element is found.
    ElementFound,
    /// What it reads is there.
    Opened,
    /// It is known who was wrong.
    Decided,
    /// A side lost by its own move.
    Fault,
    /// A side did not move in its time.
    Silence,
}

/// Every step that exists. What is not here can't happen.
pub const TABLE: &[(Phase, Event, Phase)] = &[
    (Phase::Row, Event::Narrowed, Phase::Row),
    (Phase::Row, Event::RowFound, Phase::Ops),
    // A row of one step, or one that had a root at an earlier point.
    (Phase::Row, Event::ChunkFound, Phase::Reveal),
    (Phase::Row, Event::Fault, Phase::Ended),
    (Phase::Row, Event::Silence, Phase::Ended),
    (Phase::Ops, Event::StepFound, Phase::Chunk),
    (Phase::Ops, Event::ChunkFound, Phase::Reveal),
    (Phase::Ops, Event::Fault, Phase::Ended),
    (Phase::Ops, Event::Silence, Phase::Ended),
    (Phase::Chunk, Event::Narrowed, Phase::Chunk),
    (Phase::Chunk, Event::ChunkFound, Phase::Reveal),
    (Phase::Chunk, Event::Fault, Phase::Ended),
    (Phase::Chunk, Event::Silence, Phase::Ended),
    (Phase::Reveal, Event::ElementFound, Phase::Open),
    // Padding, which reads nothing and is zero.
    (Phase::Reveal, Event::Decided, Phase::Ended),
    (Phase::Reveal, Event::Fault, Phase::Ended),
    (Phase::Reveal, Event::Silence, Phase::Ended),
    (Phase::Open, Event::Opened, Phase::Recompute),
    // Opened at the earlier point: nothing has to be computed.
    (Phase::Open, Event::Decided, Phase::Ended),
    (Phase::Open, Event::Fault, Phase::Ended),
    (Phase::Open, Event::Silence, Phase::Ended),
    (Phase::Recompute, Event::Decided, Phase::Ended),
];

/// The phase after an event, or `None` where the table has no such step.
pub fn next(phase: Phase, event: Event) -> Option<Phase> {
    TABLE.iter().find(|(from, what, _)| (*from, *what) == (phase, event)).map(|(_, _, to)| *to)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_step_has_one_result() {
        let steps: BTreeSet<_> = TABLE.iter().map(|(from, what, _)| (*from, *what)).collect();
        assert_eq!(steps.len(), TABLE.len());
    }

    #[test]
    fn nothing_follows_the_end_and_no_step_leads_back() {
        assert!(TABLE.iter().all(|(from, ..)| *from != Phase::Ended));
        assert!(TABLE.iter().all(|(from, what, to)| from < to || (from == to && *what == Event::Narrowed)));
    }

    #[test]
    fn whoever_is_waited_for_can_lose_by_silence_and_by_its_own_move() {
        for phase in [Phase::Row, Phase::Ops, Phase::Chunk, Phase::Reveal, Phase::Open] {
            for event in [Event::Fault, Event::Silence] {
                assert_eq!(next(phase, event), Some(Phase::Ended));
            }
        }
        assert_eq!(next(Phase::Recompute, Event::Silence), None);
    }
}
