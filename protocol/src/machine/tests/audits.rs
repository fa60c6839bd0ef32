//! Audits: nobody shows a run before all have committed, and what happens where nobody is there to audit.

use super::*;
use crate::limits::{ABSENCE_LOOK_MS, ABSENCE_LOOKS, AUDIT_PATIENCE_MS, REVEAL_MS};

/// The worker of an assignment streams its roots and commits to them; its result stays with it.
fn commit(shell: &mut Shell, index: usize) -> (NodeId, LeaseEpoch, Input) {
    let (node, epoch, _) = shell.assigned[index].clone();
    shell.withhold = true;
    shell.run_right(index);
    shell.withhold = false;
    let result = shell.committed.remove(&(job(1).id(), epoch)).unwrap();
    (node, epoch, result)
}

fn revealed(actions: &[Action]) -> Vec<NodeId> {
    let node = |action: &Action| match action {
        Action::Reveal { node, .. } => Some(*node),
        _ => None,
    };
    actions.iter().filter_map(node).collect()
}

/// A machine with a first run that is to be audited by two, and so many workers beside the first.
fn audited_by_two(others: u8) -> Shell {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, always(2, false))));
    shell.run_right(0);
    for number in 2..2 + others {
        shell.feed(joined(number, 1));
    }
    shell
}

#[test]
fn nobody_reveals_before_all_auditors_have_committed() {
    let mut shell = audited_by_two(2);
    assert_eq!(shell.assigned.len(), 2);
    let before = shell.actions.len();
    let (first, ..) = commit(&mut shell, 0);
    assert!(revealed(&shell.actions[before..]).is_empty());
    let (second, ..) = commit(&mut shell, 0);
    assert_eq!(BTreeSet::from_iter(revealed(&shell.actions[before..])), BTreeSet::from([first, second]));
}

#[test]
fn a_commitment_is_durable_before_its_worker_may_reveal() {
    let mut shell = audited_by_two(0);
    let committed = shell.records.iter().position(|record| matches!(record, Record::Committed { .. })).unwrap();
    assert!(matches!(shell.records[committed + 1], Record::Ran { .. }));
    shell.crash();
    assert_eq!(shell.machine.job(&job(1).id()).unwrap().runs, 1);
}

#[test]
fn waiting_for_others_does_not_count_against_the_lease_and_takes_no_place() {
    let mut shell = audited_by_two(2);
    let (node, epoch, result) = commit(&mut shell, 0);
    // The other auditor leaves, and somebody takes its place much later.
    let (other, ..) = shell.assigned.remove(0);
    let before = shell.actions.len();
    shell.feed(Input::WorkerLeft { node: other });
    shell.feed(Input::Submit(spec(2, NEVER)));
    shell.feed(Input::Submit(spec(3, NEVER)));
    assert!(shell.assigned.iter().any(|(busy, ..)| *busy == node), "its place is free");
    keep_alive(&mut shell, ABSENCE_LOOK_MS * u64::from(ABSENCE_LOOKS - 1));
    assert!(!shell.actions[before..].contains(&Action::Cancel { node, job: job(1).id(), epoch }));
    shell.feed(joined(4, 1));
    let index = shell.assigned.iter().position(|(found, ..)| *found == keys(4).id()).unwrap();
    shell.run_right(index);
    assert!(revealed(&shell.actions[before..]).contains(&node));
    shell.feed(result);
    assert_eq!(shell.outcome(job(1).id()).unwrap().others.len(), 2);
}

#[test]
fn who_commits_and_does_not_reveal_is_replaced() {
    let mut shell = audited_by_two(2);
    let (silent, epoch, _) = commit(&mut shell, 0);
    shell.run_right(0);
    shell.feed(joined(4, 1));
    keep_alive(&mut shell, REVEAL_MS + 1_000);
    assert!(shell.actions.contains(&Action::Cancel { node: silent, job: job(1).id(), epoch }));
    assert_eq!(shell.assigned.iter().map(|(node, ..)| *node).collect::<Vec<_>>(), [keys(4).id()]);
    shell.run_right(0);
    assert_eq!(shell.outcome(job(1).id()).unwrap().others.len(), 2);
}

#[test]
fn a_result_that_does_not_fit_its_commitment_breaks_the_rules() {
    let mut shell = audited_by_two(2);
    let (node, epoch, result) = commit(&mut shell, 0);
    let Input::Completed { result, .. } = result else { panic!("a result") };
    commit(&mut shell, 0);
    let job = job(1).id();
    let actions = shell.feed(Input::Completed { node, job, epoch, result, salt: salt(99) });
    let reason = RejectReason::NotAsCommitted;
    assert!(actions.contains(&Action::Rejected { node, job, epoch, reason }));
}

#[test]
fn a_result_that_comes_before_its_time_breaks_the_rules() {
    let mut shell = audited_by_two(2);
    let (node, epoch, result) = commit(&mut shell, 0);
    let actions = shell.feed(result);
    let (job, reason) = (job(1).id(), RejectReason::NotToldToReveal);
    assert!(actions.contains(&Action::Rejected { node, job, epoch, reason }));
}

#[test]
fn a_commitment_comes_once_and_after_the_last_root() {
    let job = job(1).id();
    let commitment = |value| RunCommitment::from_bytes([value; 32]);
    let reason = RejectReason::CommitmentOutOfOrder;
    let mut shell = audited_by_two(2);
    let (node, epoch, _) = shell.assigned[0].clone();
    let early = shell.feed(Input::Committed { node, job, epoch, commitment: commitment(1) });
    assert!(early.contains(&Action::Rejected { node, job, epoch, reason: reason.clone() }));
    let mut shell = audited_by_two(2);
    let (node, epoch, _) = commit(&mut shell, 0);
    let another = shell.feed(Input::Committed { node, job, epoch, commitment: commitment(1) });
    assert!(another.contains(&Action::Rejected { node, job, epoch, reason }));
}

#[test]
fn a_repeated_commitment_is_told_again_to_reveal() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, NEVER)));
    let (node, epoch, _) = commit(&mut shell, 0);
    let (id, roots) = (job(1).id(), right_roots(job(1).id()));
    let head = geometry(&job(1)).head(id, epoch, &roots).unwrap();
    let (job, commitment) = (id, RunCommitment::of(id, epoch, node, &salt(1), &head));
    let again = shell.feed(Input::Committed { node, job, epoch, commitment });
    assert_eq!(again, [Action::Reveal { node, job, epoch }]);
}

#[test]
fn where_nobody_can_audit_the_job_ends_within_half_a_minute() {
    for hold in [false, true] {
        let mut shell = Shell::new();
        shell.feed(joined(1, 1));
        shell.feed(Input::Submit(spec(1, always(2, hold))));
        shell.run_right(0);
        keep_alive(&mut shell, ABSENCE_LOOK_MS * u64::from(ABSENCE_LOOKS) - 1_000);
        assert_eq!(shell.machine.unfinished_jobs(), 1);
        keep_alive(&mut shell, 2_000);
        assert_eq!(shell.machine.unfinished_jobs(), 0);
        // Who asked for no answer without its audits is told why there is none.
        let reason = JobFailure::NoAuditor;
        assert_eq!(shell.actions.contains(&Action::JobFailed { job: job(1).id(), reason, said: None }), hold);
        assert_eq!(shell.outcome(job(1).id()).map(|outcome| outcome.audits_wanted), (!hold).then_some(2));
    }
}

#[test]
fn a_missing_auditor_is_given_up_and_the_one_that_is_there_counts() {
    let mut shell = audited_by_two(1);
    shell.run_right(0);
    assert!(shell.outcome(job(1).id()).is_none());
    keep_alive(&mut shell, ABSENCE_LOOK_MS * u64::from(ABSENCE_LOOKS) + 1_000);
    let outcome = shell.outcome(job(1).id()).unwrap();
    assert_eq!((outcome.others.len(), outcome.audits_wanted), (1, 2));
}

#[test]
fn a_busy_auditor_is_waited_for_longer_than_an_absent_one() {
    let mut shell = audited_by_two(2);
    // One auditor commits; the other fails once and its replacement is draining the whole time.
    commit(&mut shell, 0);
    let (node, epoch, _) = shell.assigned.remove(0);
    let code = crate::messages::FailureCode::Internal;
    shell.feed(Input::Failed { node, job: job(1).id(), epoch, code, reason: String::new() });
    keep_alive(&mut shell, 2 * ABSENCE_LOOK_MS * u64::from(ABSENCE_LOOKS));
    assert_eq!(shell.machine.unfinished_jobs(), 1, "it may be asked again");
    shell.assigned.clear();
    keep_alive(&mut shell, AUDIT_PATIENCE_MS + 3 * REVEAL_MS);
    assert_eq!(shell.machine.unfinished_jobs(), 0);
}

#[test]
fn where_operators_must_differ_nobody_of_a_known_run_s_operator_audits_it() {
    let policy = AuditPolicy { distinct_operators: true, ..always(2, false) };
    let mut shell = Shell::new();
    shell.feed(joined_of(1, 1, Some("north")));
    shell.feed(Input::Submit(spec(1, policy)));
    shell.run_right(0);
    shell.feed(joined_of(2, 1, Some("north")));
    shell.feed(joined_of(3, 1, None));
    assert!(shell.assigned.is_empty());
    // Also after a restart it is known whose run that was.
    shell.crash();
    shell.feed(joined_of(2, 1, Some("north")));
    assert!(shell.assigned.is_empty());
    shell.feed(joined_of(4, 1, Some("south")));
    shell.feed(joined_of(5, 1, Some("south")));
    assert_eq!(shell.assigned.iter().map(|(node, ..)| *node).collect::<Vec<_>>(), [keys(4).id()]);
    shell.feed(joined_of(6, 1, Some("east")));
    shell.run_right(0);
    shell.run_right(0);
    assert_eq!(shell.outcome(job(1).id()).unwrap().others.len(), 2);
}

#[test]
fn a_run_of_an_unknown_operator_has_no_auditor_where_operators_must_differ() {
    let policy = AuditPolicy { distinct_operators: true, ..always(1, false) };
    let mut shell = Shell::new();
    shell.feed(joined_of(1, 1, None));
    shell.feed(Input::Submit(spec(1, policy)));
    shell.run_right(0);
    shell.feed(joined_of(2, 1, Some("south")));
    assert!(shell.assigned.is_empty());
}

#[test]
fn a_planted_job_is_audited_where_the_first_run_is_wrong_and_only_there() {
    let planted = Some(right_roots(job(1).id()));
    for is_wrong in [false, true] {
        let mut shell = Shell::new();
        shell.feed(joined(1, 1));
        shell.feed(Input::Submit(JobSpec { planted: planted.clone(), ..spec(1, NEVER) }));
        let (_, _, assigned) = shell.assigned[0].clone();
        assert_eq!(*assigned, job(1), "what the worker gets is a job like any other");
        if is_wrong {
            shell.run_wrong(0);
        } else {
            shell.run_right(0);
        }
        assert_eq!(shell.machine.unfinished_jobs(), usize::from(is_wrong));
        shell.crash();
        shell.feed(joined(2, 1));
        assert_eq!(shell.assigned.len(), usize::from(is_wrong));
    }
}

#[test]
fn colluders_who_agree_on_a_planted_job_meet_everybody_else() {
    let mut shell = Shell::new();
    let planted = Some(right_roots(job(1).id()));
    for number in [1, 2] {
        shell.feed(joined(number, 1));
    }
    shell.feed(Input::Submit(JobSpec { planted, ..spec(1, NEVER) }));
    let mut shared = right_roots(job(1).id());
    shared[1] = root(0x77);
    shell.run_with(0, shared.clone());
    shell.run_with(0, shared);
    assert!(shell.disputes.is_empty() && shell.outcome(job(1).id()).is_none(), "two that agree are not enough");
    shell.feed(joined(3, 1));
    shell.run_right(0);
    // Nobody else is there to be asked.
    keep_alive(&mut shell, ABSENCE_LOOK_MS * u64::from(ABSENCE_LOOKS) + 1_000);
    assert!(shell.actions.iter().any(|action| matches!(action, Action::OpenDispute { .. })));
}

#[test]
fn known_roots_that_the_job_can_not_have_are_refused() {
    let mut shell = Shell::new();
    let actions = shell.feed(Input::Submit(JobSpec { planted: Some(vec![root(1)]), ..spec(1, NEVER) }));
    assert!(matches!(actions[..], [Action::RefuseJob { reason: SubmitError::Planted { .. }, .. }]));
}

#[test]
fn a_refuted_run_of_an_unknown_operator_does_not_keep_others_from_the_job() {
    let policy = AuditPolicy { distinct_operators: true, ..always(1, false) };
    let mut shell = Shell::new();
    shell.feed(joined_of(1, 1, None));
    shell.feed(Input::Submit(spec(1, policy)));
    let epoch = shell.assigned[0].1;
    shell.run_wrong(0);
    shell.feed(Input::Retracted { node: keys(1).id(), job: job(1).id(), epoch });
    for (number, operator) in [(2, "north"), (3, "south")] {
        shell.feed(joined_of(number, 1, Some(operator)));
        shell.run_right(0);
    }
    assert_eq!(shell.outcome(job(1).id()).unwrap().withdrawals.len(), 1);
}
