//! Lockstep audits: side by side, stopped at the first difference.

use super::*;
use crate::dispute::SignedPartial;
use crate::limits::{ABSENCE_LOOK_MS, ABSENCE_LOOKS, HALT_MS};
use crate::machine::credits::bond;
use crate::messages::FailureCode;

fn policy() -> AuditPolicy {
    AuditPolicy { lockstep: true, ..always(1, false) }
}

/// A machine where a job is run in lockstep by two workers, whose disputes the test ends itself.
fn side_by_side() -> Shell {
    let mut shell = Shell::new();
    shell.judges = false;
    (1..=2).for_each(|number| drop(shell.feed(joined(number, 1))));
    shell.feed(Input::Submit(spec(1, policy())));
    assert_eq!(shell.assigned.len(), 2, "both at once");
    shell
}

fn stream(shell: &mut Shell, index: usize, roots: &[Root]) -> Vec<Action> {
    let (node, epoch, job) = shell.assigned[index].clone();
    let before = shell.actions.len();
    for (place, root) in geometry(&job).places().zip(roots) {
        shell.feed(Input::root((node, job.id(), epoch), place, *root));
    }
    shell.actions[before..].to_vec()
}

fn wrong_from(index: usize) -> Vec<Root> {
    let mut roots = right_roots(job(1).id());
    roots[index..].fill(root(0xcc));
    roots
}

fn signed(number: u8, epoch: LeaseEpoch, roots: Vec<Root>) -> Box<SignedPartial> {
    let job = job(1);
    let partial = Partial::of_roots(job.id(), &geometry(&job), epoch, &roots, &[], keys(number).id());
    Box::new(partial.unwrap().sign(&keys(number)))
}

/// Both workers of [`side_by_side`] differ at layer 2. The number and lease of who is right, then of who is wrong.
fn halted() -> (Shell, [(u8, LeaseEpoch); 2]) {
    let mut shell = side_by_side();
    let sides = [0, 1].map(|index: usize| {
        let (node, epoch, _) = shell.assigned[index].clone();
        ((1..=2).find(|number| keys(*number).id() == node).unwrap(), epoch)
    });
    stream(&mut shell, 0, &right_roots(job(1).id())[..3]);
    stream(&mut shell, 1, &wrong_from(1)[..2]);
    (shell, sides)
}

fn sign(shell: &mut Shell, (number, epoch): (u8, LeaseEpoch), roots: Vec<Root>) -> Vec<Action> {
    let partial = signed(number, epoch, roots);
    shell.feed(Input::Partial { node: keys(number).id(), partial })
}

fn wait_alive(shell: &mut Shell, milliseconds: u64) {
    for _ in 0..milliseconds / 1_000 {
        let nodes: Vec<_> = shell.machine.workers().map(|worker| worker.node).collect();
        nodes.into_iter().for_each(|node| drop(shell.feed(Input::Heartbeat { node })));
        shell.wait(1_000);
    }
}

#[test]
fn equal_streams_end_like_an_audit_that_agrees() {
    let mut shell = side_by_side();
    shell.run_right(0);
    assert!(shell.outcome(job(1).id()).is_none(), "the other has not committed");
    shell.run_right(0);
    let outcome = shell.outcome(job(1).id()).unwrap();
    assert_eq!((outcome.others.len(), outcome.audits_wanted), (1, 1));
}

#[test]
fn a_job_that_is_not_drawn_runs_alone() {
    let mut shell = Shell::new();
    (1..=2).for_each(|number| drop(shell.feed(joined(number, 1))));
    shell.feed(Input::Submit(spec(1, AuditPolicy { per_mille: 0, ..policy() })));
    assert_eq!(shell.assigned.len(), 1);
    shell.run_right(0);
    assert_eq!(shell.outcome(job(1).id()).unwrap().audits_wanted, 0);
}

#[test]
fn the_job_stops_at_the_first_root_that_differs_and_says_where() {
    let (shell, sides) = halted();
    let id = job(1).id();
    let nodes = sides.map(|(number, _)| keys(number).id());
    let place = geometry(&job(1)).place(1).unwrap();
    assert!(shell.actions.contains(&Action::Diverged { job: id, place, nodes }));
    for ((_, epoch), node) in sides.into_iter().zip(nodes) {
        assert!(shell.actions.contains(&Action::Halt { node, job: id, epoch, place }));
    }
    assert!(matches!(shell.records.last(), Some(Record::Diverged { .. })));
}

#[test]
fn both_sign_and_their_partial_runs_are_disputed() {
    let (mut shell, [right, wrong]) = halted();
    sign(&mut shell, right, right_roots(job(1).id())[..2].to_vec());
    let actions = sign(&mut shell, wrong, wrong_from(1)[..2].to_vec());
    assert!(actions.iter().any(|action| matches!(action, Action::OpenDispute { .. })));
    let held = shell.machine.ledger().totals().held;
    assert_eq!(held, 2 * bond(&spec(1, policy())));
    shell.crash();
    assert_eq!(shell.machine.ledger().totals().held, held, "the bonds outlive a restart");
    let wrong = keys(wrong.0).id();
    let side = shell.disputes[0].1.side_of(&wrong).unwrap();
    shell.end_dispute(side.alone(), VerdictKind::Proven);
    assert_eq!(shell.machine.quarantined().collect::<Vec<_>>(), [&wrong]);
    assert_eq!(shell.machine.ledger().totals().held, 0);
    assert!(shell.machine.ledger().free(&keys(right.0).id()) > GRANT);
    // The job goes on, also with the one that was right.
    (3..=4).for_each(|number| drop(shell.feed(joined(number, 1))));
    while !shell.assigned.is_empty() {
        shell.run_right(0);
    }
    assert_eq!(shell.outcome(job(1).id()).unwrap().others.len(), 1);
}

#[test]
fn who_does_not_sign_in_time_loses_the_bond_and_is_set_aside() {
    for leaves in [false, true] {
        let (mut shell, [right, wrong]) = halted();
        let (silent, id) = (keys(wrong.0).id(), job(1).id());
        sign(&mut shell, right, right_roots(id)[..2].to_vec());
        if leaves {
            shell.feed(Input::WorkerLeft { node: silent });
        } else {
            shell.feed(Input::Failed {
                node: silent,
                job: id,
                epoch: wrong.1,
                code: FailureCode::Internal,
                reason: String::new(),
            });
        }
        wait_alive(&mut shell, HALT_MS + 1_000);
        assert!(shell.machine.is_set_aside(&silent), "it may only have crashed");
        assert_eq!(shell.machine.quarantined().count(), 0);
        assert_eq!(shell.machine.ledger().free(&silent), GRANT - bond(&spec(1, policy())));
        assert!(shell.machine.ledger().free(&keys(right.0).id()) > GRANT - bond(&spec(1, policy())));
    }
}

#[test]
fn bonds_of_halted_runs_are_free_again_where_their_dispute_finds_nobody_wrong() {
    let (mut shell, [right, wrong]) = halted();
    sign(&mut shell, right, right_roots(job(1).id())[..2].to_vec());
    sign(&mut shell, wrong, wrong_from(1)[..2].to_vec());
    shell.end_dispute([false, false], VerdictKind::Proven);
    assert_eq!(shell.machine.unfinished_jobs(), 0);
    assert_eq!(shell.machine.ledger().totals().held, 0);
    assert_eq!(shell.machine.ledger().free(&keys(right.0).id()), GRANT);
}

#[test]
fn a_worker_that_comes_back_is_told_again_to_halt_and_can_still_sign() {
    let (mut shell, [right, wrong]) = halted();
    let (node, id) = (keys(wrong.0).id(), job(1).id());
    shell.feed(Input::WorkerLeft { node });
    let actions = shell.feed(joined(wrong.0, 1));
    let place = geometry(&job(1)).place(1).unwrap();
    assert!(actions.contains(&Action::Halt { node, job: id, epoch: wrong.1, place }));
    sign(&mut shell, wrong, wrong_from(1)[..2].to_vec());
    sign(&mut shell, right, right_roots(id)[..2].to_vec());
    assert_eq!(shell.disputes.len(), 1);
}

#[test]
fn what_is_signed_must_be_what_was_streamed() {
    let (mut shell, [_, wrong]) = halted();
    // It would rather stand for something else now.
    let actions = sign(&mut shell, wrong, right_roots(job(1).id()));
    let is_rejected = |action: &Action| matches!(action, Action::Rejected { reason: RejectReason::NotAsHalted, .. });
    assert!(actions.iter().any(is_rejected));
    assert!(shell.disputes.is_empty());
    // Nor for more than it was told to sign.
    let (mut shell, [right, _]) = halted();
    assert!(sign(&mut shell, right, right_roots(job(1).id())).iter().any(is_rejected));
    let mut shell = side_by_side();
    let (node, epoch, _) = shell.assigned[0].clone();
    let number = (1..=2).find(|number| keys(*number).id() == node).unwrap();
    let actions = sign(&mut shell, (number, epoch), right_roots(job(1).id()));
    let is_rejected = |action: &Action| matches!(action, Action::Rejected { reason: RejectReason::NotToldToHalt, .. });
    assert!(actions.iter().any(is_rejected));
}

#[test]
fn a_halt_does_not_outlive_a_restart_and_nobody_is_blamed() {
    let (mut shell, _) = halted();
    shell.crash();
    assert_eq!(shell.machine.ledger().totals().held, 0);
    (1..=2).for_each(|number| drop(shell.feed(joined(number, 1))));
    shell.run_right(0);
    shell.run_right(0);
    assert!(shell.outcome(job(1).id()).is_some());
    assert_eq!(shell.machine.quarantined().count(), 0);
}

#[test]
fn halted_runs_are_disputed_also_where_the_only_run_that_stood_is_taken_back() {
    for has_committed in [false, true] {
        let (mut shell, id) = (Shell::new(), job(1).id());
        shell.judges = false;
        shell.feed(Input::Submit(spec(1, AuditPolicy { auditors: 2, ..policy() })));
        shell.wait(ABSENCE_LOOK_MS * u64::from(ABSENCE_LOOKS) + 1_000);
        shell.feed(joined(1, 1));
        let (node, epoch, _) = shell.assigned[0].clone();
        shell.run_wrong(0);
        (2..=3).for_each(|number| drop(shell.feed(joined(number, 1))));
        let [right, wrong] = [0, 1].map(|index: usize| {
            let (node, epoch, _) = shell.assigned[index].clone();
            ((2..=3).find(|number| keys(*number).id() == node).unwrap(), epoch)
        });
        if has_committed {
            shell.run_right(0);
        } else {
            stream(&mut shell, 0, &right_roots(id)[..2]);
        }
        stream(&mut shell, usize::from(!has_committed), &wrong_from(1)[..2]);
        let actions = shell.feed(Input::Retracted { node, job: id, epoch });
        assert!(!actions.iter().any(|action| matches!(action, Action::Reveal { .. })), "it is halted");
        assert_eq!(shell.machine.job(&id).unwrap().stage, Stage::Open);
        sign(&mut shell, right, right_roots(id)[..2].to_vec());
        sign(&mut shell, wrong, wrong_from(1)[..2].to_vec());
        assert_eq!(shell.machine.job(&id).unwrap().stage, Stage::Disputing);
        shell.judge();
        assert_eq!(shell.machine.quarantined().collect::<Vec<_>>(), [&keys(wrong.0).id()]);
        assert_eq!(shell.machine.job(&id).unwrap().stage, Stage::Open);
    }
}

#[test]
fn a_difference_is_found_also_after_one_side_has_committed() {
    let mut shell = side_by_side();
    shell.run_right(0);
    let actions = stream(&mut shell, 0, &wrong_from(2)[..3]);
    assert!(actions.iter().any(|action| matches!(action, Action::Diverged { place, .. } if place.layer == 3)));
}

#[test]
fn where_nobody_is_there_to_run_it_the_job_waits_for_a_worker_and_is_audited_after_it() {
    for hold in [false, true] {
        let mut shell = Shell::new();
        shell.feed(Input::Submit(spec(1, AuditPolicy { hold, ..policy() })));
        shell.wait(ABSENCE_LOOK_MS * u64::from(ABSENCE_LOOKS) + 1_000);
        assert_eq!(shell.machine.job(&job(1).id()).unwrap().stage, Stage::Open);
        shell.feed(joined(1, 1));
        shell.run_right(0);
        shell.feed(joined(2, 1));
        shell.run_right(0);
        assert_eq!(shell.outcome(job(1).id()).unwrap().others.len(), 1);
    }
}

#[test]
fn where_operators_must_differ_all_who_run_side_by_side_are_known_and_distinct() {
    let mut shell = Shell::new();
    for (number, operator) in [(1, None), (2, Some("north")), (3, Some("north")), (4, Some("south"))] {
        shell.feed(joined_of(number, 1, operator));
    }
    shell.feed(Input::Submit(spec(1, AuditPolicy { distinct_operators: true, ..policy() })));
    let nodes: BTreeSet<_> = shell.assigned.iter().map(|(node, ..)| *node).collect();
    assert!(nodes.len() == 2 && nodes.contains(&keys(4).id()) && !nodes.contains(&keys(1).id()));
}
