//! The stages of a job and every step between them, as one table.

/// Where a job stands. Durable: it follows from the job's records alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nobody has run it acceptably yet.
    Open,
    /// The first run is durable; whether it is audited is being drawn.
    Drawing,
    /// Others are to run it.
    Auditing,
    /// Two runs differ; the job is being recomputed to find out who is wrong.
    Settling,
    /// All is known; the last record is missing.
    Closing,
    /// It has an outcome. Nothing changes any more.
    Done,
    /// It ended without an outcome. Nothing changes any more.
    Failed,
}

/// What happens to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A worker was given a lease.
    Assigned,
    /// The first acceptable run came.
    FirstRun,
    /// A run came that equals the settled truth.
    RightRun,
    /// A run came that differs from the settled truth.
    WrongRun,
    /// The draw says no audit.
    DrawnNone,
    /// The draw says audit.
    DrawnSome,
    /// An audit came to the same result, and more are wanted.
    Agreed,
    /// An audit came to the same result, and it was the last.
    AgreedLast,
    /// An audit came to another result.
    Disagreed,
    /// The job was recomputed, and some run is right.
    SettledSomeRight,
    /// The job was recomputed, and no run is right.
    SettledNoneRight,
    /// The job could not be recomputed.
    Unsettled,
    /// No worker was found for the audits in time.
    Abandoned,
    /// The outcome was written.
    Finished,
    /// The job was given up.
    GaveUp,
}

/// Every step that exists. What is not here can't happen.
pub const TABLE: &[(Stage, Event, Stage)] = &[
    (Stage::Open, Event::Assigned, Stage::Open),
    (Stage::Open, Event::FirstRun, Stage::Drawing),
    (Stage::Open, Event::RightRun, Stage::Closing),
    (Stage::Open, Event::WrongRun, Stage::Open),
    (Stage::Open, Event::GaveUp, Stage::Failed),
    (Stage::Drawing, Event::DrawnNone, Stage::Closing),
    (Stage::Drawing, Event::DrawnSome, Stage::Auditing),
    (Stage::Auditing, Event::Assigned, Stage::Auditing),
    (Stage::Auditing, Event::Agreed, Stage::Auditing),
    (Stage::Auditing, Event::AgreedLast, Stage::Closing),
    (Stage::Auditing, Event::Disagreed, Stage::Settling),
    (Stage::Auditing, Event::Abandoned, Stage::Closing),
    (Stage::Auditing, Event::GaveUp, Stage::Failed),
    (Stage::Settling, Event::SettledSomeRight, Stage::Closing),
    (Stage::Settling, Event::SettledNoneRight, Stage::Open),
    (Stage::Settling, Event::Unsettled, Stage::Closing),
    (Stage::Settling, Event::GaveUp, Stage::Failed),
    (Stage::Closing, Event::Finished, Stage::Done),
];

/// The stage after an event, or `None` where the table has no such step.
pub fn next(stage: Stage, event: Event) -> Option<Stage> {
    TABLE.iter().find(|(from, what, _)| (*from, *what) == (stage, event)).map(|(_, _, to)| *to)
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
    fn done_and_failed_are_final_and_every_other_stage_leads_to_an_end() {
        for stage in [Stage::Done, Stage::Failed] {
            assert!(TABLE.iter().all(|(from, ..)| *from != stage));
        }
        let mut ends: BTreeSet<_> = [Stage::Done, Stage::Failed].into();
        for _ in 0..TABLE.len() {
            for (from, _, to) in TABLE {
                if ends.contains(to) {
                    ends.insert(*from);
                }
            }
        }
        assert_eq!(ends.len(), 7);
    }

    #[test]
    fn a_lease_is_given_only_where_a_run_is_wanted() {
        for stage in [Stage::Drawing, Stage::Settling, Stage::Closing, Stage::Done, Stage::Failed] {
            assert_eq!(next(stage, Event::Assigned), None);
        }
    }
}
