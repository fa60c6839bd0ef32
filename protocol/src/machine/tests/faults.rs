//! Honest faults: runs that their workers take back.

use super::*;
use crate::dispute::Side;
use crate::limits::{FAULTY_MS, RETRACT_JOBS};
use crate::machine::credits::bond;

/// A machine where a first run waits for its audit. Its worker and lease.
fn ran_once() -> (Shell, NodeId, LeaseEpoch) {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, always(1, false))));
    let (node, epoch, _) = shell.assigned[0].clone();
    shell.run_wrong(0);
    (shell, node, epoch)
}

#[test]
fn a_run_that_is_taken_back_is_replaced_and_its_worker_is_set_aside_for_a_while() {
    let (mut shell, node, epoch) = ran_once();
    let job = job(1).id();
    let actions = shell.feed(Input::Retracted { node, job, epoch });
    assert!(actions.iter().any(|action| matches!(action, Action::SetAside { node: faulty, .. } if *faulty == node)));
    assert_eq!(shell.machine.job(&job).unwrap().stage, Stage::Open);
    let refused = shell.feed(joined(1, 1));
    assert_eq!(refused, [Action::RefuseWorker { node, code: RefusalCode::Faulty }]);
    shell.crash();
    let refused = shell.feed(joined(1, 1));
    assert_eq!(refused, [Action::RefuseWorker { node, code: RefusalCode::Faulty }]);
    shell.wait(FAULTY_MS);
    shell.feed(joined(1, 1));
    assert_eq!(shell.machine.quarantined().count(), 0);
    assert!(shell.machine.workers().any(|worker| worker.node == node), "it is let in again");
    // It does not get the job again.
    assert!(shell.assigned.is_empty());
    shell.feed(joined(2, 1));
    shell.run_right(0);
    shell.feed(joined(3, 1));
    shell.run_right(0);
    let outcome = shell.outcome(job).unwrap();
    assert_eq!((outcome.withdrawals.len(), outcome.refutations.len()), (1, 0));
    assert!(outcome.receipt(&crate::testing::job(1), None, &keys(100), Millis(5)).check().is_ok());
}

#[test]
fn a_retraction_costs_the_whole_bond_and_the_pay() {
    let (mut shell, node, epoch) = ran_once();
    let spec = spec(1, always(1, false));
    shell.feed(Input::Retracted { node, job: job(1).id(), epoch });
    assert_eq!(shell.machine.ledger().free(&node), GRANT - bond(&spec));
    assert_eq!(shell.machine.ledger().totals().held, 0);
}

#[test]
fn a_second_retraction_too_soon_is_treated_as_a_refutation() {
    let (mut shell, node, epoch) = ran_once();
    shell.feed(Input::Retracted { node, job: job(1).id(), epoch });
    shell.wait(FAULTY_MS);
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(2, always(1, false))));
    let index = shell.assigned.iter().position(|(.., job)| job.id() == crate::testing::job(2).id()).unwrap();
    let (_, epoch, _) = shell.assigned[index].clone();
    shell.run_wrong(index);
    let actions = shell.feed(Input::Retracted { node, job: job(2).id(), epoch });
    let is_quarantine = |action: &Action| matches!(action, Action::Quarantine { node: cheat, .. } if *cheat == node);
    assert!(actions.iter().any(is_quarantine));
}

/// A machine that was faulty for a while takes back all that it made meanwhile, at the price of each, and is not ruined.
#[test]
fn runs_from_before_a_fault_are_taken_back_as_part_of_it() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    let specs = [1, 2, 3].map(|number| spec(number, always(1, false)));
    let mut epochs = Vec::new();
    for spec in &specs {
        shell.feed(Input::Submit(spec.clone()));
        epochs.push(shell.assigned[0].1);
        shell.run_wrong(0);
    }
    let node = keys(1).id();
    for (number, epoch) in (1..).zip(&epochs[..2]) {
        let actions = shell.feed(Input::Retracted { node, job: job(number).id(), epoch: *epoch });
        assert!(actions.iter().any(|action| matches!(action, Action::SetAside { .. })), "{actions:?}");
    }
    // The third one was not heard: its audit finds it wrong, and it is conceded at the same price.
    shell.judges = false;
    shell.feed(joined(2, 1));
    let third = job(3).id();
    while shell.assigned[0].2.id() != third {
        shell.run_right(0);
    }
    shell.run_right(0);
    assert_eq!(shell.disputes[0].1.key(Side::Claimant), node);
    shell.end_with(Verdict { reason: Reason::Conceded, ..verdict([true, false], VerdictKind::Proven) });
    assert_eq!(shell.machine.quarantined().count(), 0);
    assert!(shell.machine.is_set_aside(&node));
    let lost: u64 = specs.iter().map(bond).sum();
    assert_eq!(shell.machine.ledger().free(&node), GRANT - lost);
}

#[test]
fn after_enough_good_runs_a_worker_may_take_one_back_again() {
    let (mut shell, node, epoch) = ran_once();
    shell.feed(Input::Retracted { node, job: job(1).id(), epoch });
    let fault = shell.machine.faults.get_mut(&node).unwrap();
    fault.accepted = RETRACT_JOBS - 1;
    assert!(!shell.machine.may_retract(&node));
    shell.wait(FAULTY_MS);
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(2, NEVER)));
    shell.run_right(0);
    assert!(shell.machine.may_retract(&node));
}

#[test]
fn what_is_in_a_dispute_or_not_one_s_own_is_not_taken_back() {
    let mut shell = Shell::new();
    shell.judges = false;
    (1..=2).for_each(|number| drop(shell.feed(joined(number, 1))));
    shell.feed(Input::Submit(spec(1, always(1, false))));
    let (first, epoch, _) = shell.assigned[0].clone();
    shell.run_right(0);
    let (other, ..) = shell.assigned[0].clone();
    let job = job(1).id();
    assert!(shell.feed(Input::Retracted { node: other, job, epoch }).is_empty());
    shell.run_wrong(0);
    assert!(shell.feed(Input::Retracted { node: first, job, epoch }).is_empty());
    assert_eq!(shell.machine.job(&job).unwrap().stage, Stage::Disputing);
}

#[test]
fn an_auditor_that_waits_is_told_to_reveal_when_the_only_run_is_taken_back() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, always(2, false))));
    let (first, epoch, _) = shell.assigned[0].clone();
    shell.run_wrong(0);
    shell.feed(joined(2, 1));
    shell.run_right(0);
    let revealed = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::Reveal { .. }));
    let actions = shell.feed(Input::Retracted { node: first, job: job(1).id(), epoch });
    assert!(revealed(&actions), "it makes the first run now");
    assert_eq!(shell.machine.job(&job(1).id()).unwrap().runs, 2);
}

#[test]
fn a_draw_is_asked_for_once_whatever_else_happens() {
    let (mut shell, node, _) = ran_once();
    let draws = |shell: &Shell| shell.actions.iter().filter(|action| matches!(action, Action::NeedDraw { .. })).count();
    assert_eq!(draws(&shell), 1);
    let receipt = run_with(&keys(1), &job(1), LeaseEpoch(1), right_roots(job(1).id())).receipt;
    shell.feed(joined(2, 1));
    shell.challenge(&receipt, 2, right_roots(job(1).id()));
    assert_eq!(draws(&shell), 1);
    assert!(shell.machine.workers().any(|worker| worker.node == node));
}

#[test]
fn who_concedes_a_dispute_is_set_aside_once_and_pays_the_other_side() {
    for is_first in [true, false] {
        let mut shell = Shell::new();
        shell.judges = false;
        (1..=2).for_each(|number| drop(shell.feed(joined(number, 1))));
        shell.feed(Input::Submit(spec(1, always(1, false))));
        shell.run_right(0);
        shell.run_wrong(0);
        let [winner, loser] = Side::BOTH.map(|side| shell.disputes[0].1.key(side));
        if !is_first {
            shell.machine.faults.insert(loser, Fault { until: Millis(0), accepted: 1 });
        }
        let conceded = Verdict { reason: Reason::Conceded, ..verdict([false, true], VerdictKind::Proven) };
        shell.end_with(conceded);
        assert_eq!(shell.machine.quarantined().count(), usize::from(!is_first));
        assert_eq!(shell.machine.is_set_aside(&loser), is_first);
        assert!(shell.machine.ledger().free(&winner) > GRANT - bond(&spec(1, always(1, false))));
        shell.feed(joined(3, 1));
        shell.run_right(0);
        let outcome = shell.outcome(job(1).id()).unwrap();
        assert_eq!((outcome.withdrawals.len(), outcome.refutations.len()), if is_first { (1, 0) } else { (0, 1) });
    }
}

#[test]
fn runs_that_fall_to_challenges_while_they_are_disputed_do_no_harm_to_the_dispute() {
    let mut shell = Shell::new();
    shell.judges = false;
    (1..=2).for_each(|number| drop(shell.feed(joined(number, 1))));
    shell.feed(Input::Submit(spec(1, always(1, false))));
    shell.run_wrong(0);
    shell.run_wrong(0);
    let runs: Vec<_> = shell.machine.jobs.values().next().unwrap().runs.clone();
    shell.feed(joined(3, 1));
    for run in &runs {
        shell.challenge(&run.result.receipt, 3, right_roots(job(1).id()));
        shell.judge();
    }
    assert_eq!(shell.machine.job(&job(1).id()).unwrap().stage, Stage::Disputing);
    shell.crash();
    shell.judge();
    assert_eq!(shell.machine.job(&job(1).id()).unwrap().stage, Stage::Open);
}

#[test]
fn good_runs_after_a_fault_are_counted_over_a_restart_that_forgets_their_jobs() {
    let (mut shell, node, epoch) = ran_once();
    shell.feed(Input::Retracted { node, job: job(1).id(), epoch });
    shell.wait(FAULTY_MS);
    shell.feed(joined(2, 1));
    while !shell.assigned.is_empty() {
        shell.run_right(0);
    }
    shell.feed(joined(3, 1));
    shell.run_right(0);
    shell.feed(Input::WorkerLeft { node: keys(2).id() });
    shell.feed(Input::WorkerLeft { node: keys(3).id() });
    shell.feed(joined(1, 1));
    for number in 2..=4 {
        shell.feed(Input::Submit(spec(number, NEVER)));
        shell.run_right(0);
    }
    shell.records.retain(Record::outlives_job);
    shell.crash();
    assert_eq!(shell.machine.unfinished_jobs(), 0);
    assert_eq!(shell.machine.faults[&node].accepted, 3);
    let last = shell.records.last().unwrap();
    let bytes = crate::canonical::to_bytes(last);
    assert_eq!(&crate::canonical::from_bytes::<Record>(&bytes).unwrap(), last);
    // Nobody is redeemed who has no fault.
    let record = Record::Redeemed { node: keys(7).id(), job: job(1).id(), accepted: 1 };
    assert_eq!(restore(&[record]).unwrap_err(), ReplayError::Fault(job(1).id()));
}
