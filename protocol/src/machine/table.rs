//! The stages of a job and every step between them, as one table.

/// Where a job stands. Durable: it follows from the job's records alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It is to be run in lockstep; who audits it is being drawn before it starts.
    Choosing,
    /// Nobody has run it acceptably yet.
    Open,
    /// The first run is durable; whether it is audited is being drawn.
    Drawing,
    /// Others are to run it.
    Auditing,
    /// Two runs differ; their workers play a dispute about the first place at which they do.
    Disputing,
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
    /// After all runs were refuted or taken back another one came, and audits are wanted.
    AnotherRun,
    /// The same, and no audit is wanted beside it.
    AnotherRunAlone,
    /// The draw says no audit.
    DrawnNone,
    /// The draw says audit.
    DrawnSome,
    /// An audit came, and more are wanted.
    Audited,
    /// The last audit came, and all runs agree.
    AuditedAgreed,
    /// The last audit came, and some runs differ.
    AuditedSplit,
    /// The missing audits were given up, and all runs agree.
    AbandonedAgreed,
    /// The missing audits were given up, and some runs differ.
    AbandonedSplit,
    /// Nobody was there to run the job in lockstep: it goes on with one worker and audits after it.
    AbandonedNone,
    /// A dispute began.
    Disputed,
    /// A dispute ended, and no run stands.
    JudgedNone,
    /// A dispute ended, and runs that stand still differ.
    JudgedSplit,
    /// A dispute ended, and fewer runs stand than are wanted.
    JudgedFew,
    /// A dispute ended, and enough runs stand, all alike.
    JudgedEnough,
    /// A worker took its run back, or lost a challenge with it, and others stand.
    Withdrawn,
    /// The same, and no other run stands.
    WithdrawnLast,
    /// The outcome was written.
    Finished,
    /// The job was given up.
    GaveUp,
}

/// Every step that exists. What is not here can't happen.
pub const TABLE: &[(Stage, Event, Stage)] = &[
    (Stage::Choosing, Event::DrawnNone, Stage::Open),
    (Stage::Choosing, Event::DrawnSome, Stage::Auditing),
    (Stage::Choosing, Event::GaveUp, Stage::Failed),
    (Stage::Open, Event::Assigned, Stage::Open),
    (Stage::Open, Event::FirstRun, Stage::Drawing),
    (Stage::Open, Event::AnotherRun, Stage::Auditing),
    (Stage::Open, Event::AnotherRunAlone, Stage::Closing),
    // The only run that stood was taken back while two others were halted.
    (Stage::Open, Event::Disputed, Stage::Disputing),
    (Stage::Open, Event::GaveUp, Stage::Failed),
    (Stage::Drawing, Event::DrawnNone, Stage::Closing),
    (Stage::Drawing, Event::DrawnSome, Stage::Auditing),
    (Stage::Drawing, Event::WithdrawnLast, Stage::Open),
    (Stage::Drawing, Event::GaveUp, Stage::Failed),
    (Stage::Auditing, Event::Assigned, Stage::Auditing),
    (Stage::Auditing, Event::Audited, Stage::Auditing),
    (Stage::Auditing, Event::AuditedAgreed, Stage::Closing),
    (Stage::Auditing, Event::AuditedSplit, Stage::Disputing),
    (Stage::Auditing, Event::AbandonedAgreed, Stage::Closing),
    (Stage::Auditing, Event::AbandonedSplit, Stage::Disputing),
    (Stage::Auditing, Event::AbandonedNone, Stage::Open),
    (Stage::Auditing, Event::Disputed, Stage::Disputing),
    (Stage::Auditing, Event::Withdrawn, Stage::Auditing),
    (Stage::Auditing, Event::WithdrawnLast, Stage::Open),
    (Stage::Auditing, Event::GaveUp, Stage::Failed),
    (Stage::Disputing, Event::Disputed, Stage::Disputing),
    (Stage::Disputing, Event::Withdrawn, Stage::Disputing),
    (Stage::Disputing, Event::WithdrawnLast, Stage::Disputing),
    (Stage::Disputing, Event::JudgedNone, Stage::Open),
    (Stage::Disputing, Event::JudgedSplit, Stage::Disputing),
    (Stage::Disputing, Event::JudgedFew, Stage::Auditing),
    (Stage::Disputing, Event::JudgedEnough, Stage::Closing),
    (Stage::Disputing, Event::GaveUp, Stage::Failed),
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
        assert_eq!(ends.len(), 8);
    }

    #[test]
    fn a_lease_is_given_only_where_a_run_is_wanted() {
        for stage in [Stage::Drawing, Stage::Disputing, Stage::Closing, Stage::Done, Stage::Failed] {
            assert_eq!(next(stage, Event::Assigned), None);
        }
    }
}
