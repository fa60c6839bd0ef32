//! Disputes: who plays, and what a verdict does to job and workers.

use super::*;
use crate::limits::{DEFAULT_MACS_PER_MS, DISPUTE_BASE_MS, DISPUTE_MAX_MS, LEASE_FACTOR};

/// A machine with so many workers, and a job with so many auditors whose disputes the test ends itself.
fn disputed(workers: u8, auditors: u8) -> Shell {
    let mut shell = Shell::new();
    shell.judges = false;
    (1..=workers).for_each(|number| drop(shell.feed(joined(number, 1))));
    shell.feed(Input::Submit(spec(1, always(auditors, false))));
    shell
}

fn sides(shell: &Shell) -> [NodeId; 2] {
    let (_, terms) = shell.disputes.last().unwrap();
    [terms.claimant.worker(), terms.challenger.worker()]
}

fn stage(shell: &Shell) -> Stage {
    shell.machine.job(&job(1).id()).unwrap().stage
}

#[test]
fn the_first_run_is_the_claimant_and_the_first_that_differs_the_challenger() {
    let mut shell = disputed(4, 3);
    let first = shell.assigned[0].0;
    shell.run_right(0);
    let [agrees, wrong, also_wrong] = [0, 1, 2].map(|index| shell.assigned[index].0);
    shell.run_right(0);
    shell.run_wrong(0);
    assert!(shell.disputes.is_empty(), "the last audit is missing");
    shell.run_wrong(0);
    let order: Vec<_> = shell
        .records
        .iter()
        .filter_map(|record| match record {
            Record::Ran { result, .. } => Some(result.receipt.receipt.worker),
            _ => None,
        })
        .collect();
    let challenger = *order.iter().find(|node| [wrong, also_wrong].contains(node)).unwrap();
    assert!(order.contains(&agrees));
    assert_eq!(sides(&shell), [first, challenger]);
}

#[test]
fn each_key_that_differs_plays_its_own_dispute() {
    let mut shell = disputed(3, 2);
    shell.run_right(0);
    let roots = {
        let mut roots = right_roots(job(1).id());
        roots[1] = root(99);
        roots
    };
    let twins: Vec<_> = shell.assigned.iter().map(|(node, ..)| *node).collect();
    shell.run_with(0, roots.clone());
    shell.run_with(0, roots);
    let [first, loser] = sides(&shell);
    shell.judge();
    // The twin's run equals the refuted one and is not refuted with it.
    assert_eq!(shell.machine.quarantined().collect::<Vec<_>>(), [&loser]);
    let twin = *twins.iter().find(|node| **node != loser).unwrap();
    assert_eq!(sides(&shell), [first, twin]);
    shell.judge();
    assert_eq!(shell.machine.quarantined().count(), 2);
    assert_eq!(stage(&shell), Stage::Auditing);
}

#[test]
fn a_sham_challenger_does_not_use_up_an_audit() {
    let mut shell = disputed(2, 1);
    shell.run_right(0);
    shell.run_wrong(0);
    shell.judge();
    assert_eq!(stage(&shell), Stage::Auditing);
    assert!(shell.outcome(job(1).id()).is_none());
    shell.feed(joined(3, 1));
    shell.run_right(0);
    let outcome = shell.outcome(job(1).id()).unwrap();
    assert_eq!((outcome.others.len(), outcome.refutations.len()), (2, 1));
}

#[test]
fn where_both_lose_the_job_is_open_again() {
    let mut shell = disputed(2, 1);
    shell.run_wrong(0);
    shell.run_wrong(0);
    shell.end_dispute([true, true], VerdictKind::Proven);
    assert_eq!(stage(&shell), Stage::Open);
    assert_eq!(shell.machine.quarantined().count(), 2);
    shell.judges = true;
    shell.feed(joined(3, 1));
    shell.run_wrong(0);
    shell.feed(joined(4, 1));
    shell.run_right(0);
    shell.feed(joined(5, 1));
    shell.run_right(0);
    let outcome = shell.outcome(job(1).id()).unwrap();
    assert_eq!(outcome.result.receipt.receipt.worker, keys(4).id());
    assert_eq!(outcome.refutations.len(), 3);
    assert!(outcome.receipt(&job(1), None, &keys(100), Millis(5)).check().is_ok());
}

#[test]
fn who_loses_by_silence_is_set_aside_who_is_proven_wrong_is_quarantined_and_the_records_say_how() {
    for kind in [VerdictKind::Proven, VerdictKind::Timeout] {
        let mut shell = disputed(2, 1);
        shell.run_right(0);
        shell.run_wrong(0);
        let [_, loser] = sides(&shell);
        let dispute = shell.disputes[0].1.id();
        shell.end_dispute([false, true], kind);
        let place = Place { point: 3, layer: 2 };
        let is_proof = kind == VerdictKind::Proven;
        let quarantine = Action::Quarantine { node: loser, job: job(1).id(), place, kind };
        assert_eq!(shell.actions.contains(&quarantine), is_proof);
        assert_eq!(shell.machine.is_set_aside(&loser), !is_proof);
        assert!(shell.machine.ledger().free(&loser) < GRANT, "the bond is lost either way");
        shell.crash();
        assert_eq!(shell.machine.is_set_aside(&loser), !is_proof);
        assert_eq!(shell.machine.quarantined().count(), usize::from(is_proof));
        shell.feed(joined(3, 1));
        shell.run_right(0);
        let refutation = shell.outcome(job(1).id()).unwrap().refutations[0];
        assert_eq!((refutation.dispute, refutation.kind, refutation.worker), (dispute, kind, loser));
    }
}

#[test]
fn after_a_restart_the_same_dispute_is_asked_for_again() {
    let mut shell = disputed(2, 1);
    shell.run_right(0);
    shell.run_wrong(0);
    let before = shell.disputes.clone();
    // Speeds are not durable: the clocks must be those of the record.
    shell.crash();
    assert_eq!(shell.disputes, before);
    let records = shell.records.len();
    shell.crash();
    assert_eq!(shell.records.len(), records, "nothing new is written");
    shell.judge();
    assert_eq!(stage(&shell), Stage::Auditing);
}

#[test]
fn a_verdict_about_another_dispute_changes_nothing() {
    let mut shell = disputed(2, 1);
    shell.run_right(0);
    shell.run_wrong(0);
    let verdict = Box::new(verdict([true, false], VerdictKind::Proven));
    let input = Input::Judged { job: job(1).id(), dispute: crate::ids::DisputeId::from_bytes([7; 32]), verdict };
    assert!(shell.feed(input.clone()).is_empty());
    let mut again = input;
    if let Input::Judged { dispute, .. } = &mut again {
        *dispute = shell.disputes[0].1.id();
    }
    shell.judge();
    // The same verdict a second time finds no dispute any more.
    assert!(shell.feed(again).is_empty());
    assert_eq!(shell.machine.quarantined().count(), 1);
}

#[test]
fn a_verdict_that_finds_nobody_wrong_ends_the_job_without_blame() {
    let mut shell = disputed(2, 1);
    shell.run_right(0);
    shell.run_wrong(0);
    let actions = shell.end_dispute([false, false], VerdictKind::Proven);
    let reason = JobFailure::Undecided;
    assert!(actions.contains(&Action::JobFailed { job: job(1).id(), reason, said: None }));
    assert_eq!(shell.machine.quarantined().count(), 0);
}

#[test]
fn clocks_cover_prefill_and_a_layer_at_no_less_than_the_default_speed() {
    let mut shell = disputed(2, 1);
    shell.run_right(0);
    shell.run_wrong(0);
    let (_, terms) = &shell.disputes[0];
    let work = WORK + WORK.div_ceil(u64::from(LAYERS));
    let slowest = DISPUTE_BASE_MS + LEASE_FACTOR * (work / DEFAULT_MACS_PER_MS);
    for budget in terms.budgets_ms {
        assert!((DISPUTE_BASE_MS..=slowest).contains(&budget), "{budget}");
    }
    // However large the job is, a clock ends.
    let mut shell = Shell::new();
    shell.judges = false;
    let huge = JobSpec { work: Work::fixed(1 << 60), ..spec(1, always(1, false)) };
    shell.machine = Machine::new(Config { grant: u64::MAX / 4, ..config() });
    (1..=2).for_each(|number| drop(shell.feed(joined(number, 1))));
    shell.feed(Input::Submit(huge));
    assert_eq!(shell.machine.budget_ms(1 << 60, LAYERS, &keys(9).id()), DISPUTE_MAX_MS);
}

#[test]
fn a_refuted_worker_s_other_jobs_are_audited() {
    let mut shell = disputed(2, 1);
    shell.run_right(0);
    shell.run_wrong(0);
    shell.judge();
    // Its key gets nothing any more, not even a connection.
    let cheat = *shell.machine.quarantined().next().unwrap();
    let number = (1..=2).find(|number| keys(*number).id() == cheat).unwrap();
    let refused = shell.feed(joined(number, 1));
    assert_eq!(refused, [Action::RefuseWorker { node: cheat, code: RefusalCode::Quarantined }]);
}
