//! Challenges by keys that have no lease of the job.

use super::*;
use crate::dispute::TermsError;
use crate::ledger::{Purpose, price_of_work};
use crate::limits::{CHALLENGE_WINDOW_MS, FAULTY_MS, MAX_CHALLENGES_PER_CLAIMANT};
use crate::machine::credits::bond;
use crate::machine::disputes::dispute_work;
use crate::receipt::SignedReceipt;

fn wrong_roots() -> Vec<Root> {
    let mut roots = right_roots(job(1).id());
    roots[1] = root(0xcc);
    roots
}

/// A job that worker 1 ran, with right or wrong roots, and that has ended. Worker 2 is there too. Its receipt.
fn ended(is_wrong: bool) -> (Shell, SignedReceipt) {
    let mut shell = Shell::new();
    shell.judges = false;
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, NEVER)));
    if is_wrong {
        shell.run_with(0, wrong_roots());
    } else {
        shell.run_right(0);
    }
    shell.feed(joined(2, 1));
    let receipt = shell.outcome(job(1).id()).unwrap().result.receipt.clone();
    (shell, receipt)
}

fn stake() -> u64 {
    price_of_work(dispute_work(WORK, LAYERS))
}

fn free(shell: &Shell, number: u8) -> u64 {
    shell.machine.ledger().free(&keys(number).id())
}

fn refusal(actions: &[Action]) -> Option<ChallengeError> {
    actions.iter().find_map(|action| match action {
        Action::RefuseChallenge { reason, .. } => Some(reason.clone()),
        _ => None,
    })
}

#[test]
fn a_lie_in_an_ended_job_is_overturned_by_a_challenger_who_earns_the_stake() {
    let (mut shell, receipt) = ended(true);
    let actions = shell.challenge(&receipt, 2, right_roots(job(1).id()));
    assert!(matches!(actions[..], [Action::OpenDispute { .. }]));
    assert_eq!(free(&shell, 2), GRANT - stake());
    let dispute = shell.disputes[0].1.id();
    let actions = shell.judge();
    let overturned = actions.iter().find_map(|action| match action {
        Action::Overturned { refutation, .. } => Some(*refutation),
        _ => None,
    });
    let overturned = overturned.unwrap();
    assert_eq!((overturned.receipt, overturned.dispute), (receipt.receipt.digest(), dispute));
    assert_eq!(shell.machine.quarantined().collect::<Vec<_>>(), [&keys(1).id()]);
    assert_eq!(free(&shell, 2), GRANT + stake());
    assert_eq!(shell.machine.ledger().totals().held, 0);
}

#[test]
fn a_sham_challenger_loses_its_stake_and_the_run_can_still_be_challenged() {
    let (mut shell, receipt) = ended(false);
    shell.challenge(&receipt, 2, wrong_roots());
    shell.judge();
    assert_eq!(shell.machine.quarantined().collect::<Vec<_>>(), [&keys(2).id()]);
    let pay = price_of_work(WORK);
    assert_eq!((free(&shell, 1), free(&shell, 2)), (GRANT + pay + stake(), GRANT - stake()));
    assert_eq!(refusal(&shell.challenge(&receipt, 2, wrong_roots())), Some(ChallengeError::Barred));
    shell.feed(joined(3, 1));
    assert_eq!(refusal(&shell.challenge(&receipt, 3, wrong_roots())), None);
}

#[test]
fn a_worker_that_was_found_wrong_elsewhere_still_answers_for_its_other_runs() {
    let mut shell = Shell::new();
    shell.judges = false;
    shell.feed(joined(1, 1));
    let receipts = [1, 2].map(|number| {
        shell.feed(Input::Submit(spec(number, NEVER)));
        shell.run_wrong(0);
        shell.outcome(job(number).id()).unwrap().result.receipt.clone()
    });
    shell.feed(joined(2, 1));
    for (number, receipt) in [1, 2].into_iter().zip(&receipts) {
        let id = job(number).id();
        assert_eq!(refusal(&shell.challenge(receipt, 2, right_roots(id))), None);
        let is_it = |action: &Action| matches!(action, Action::Overturned { job, .. } if *job == id);
        assert!(shell.judge().iter().any(is_it), "the answer of job {number} falls");
    }
}

#[test]
fn a_run_of_an_unfinished_job_that_loses_a_challenge_is_replaced() {
    let mut shell = Shell::new();
    shell.judges = false;
    shell.feed(joined(1, 1));
    let spec = spec(1, always(1, false));
    shell.feed(Input::Submit(spec.clone()));
    let epoch = shell.assigned[0].1;
    shell.run_with(0, wrong_roots());
    let roots = wrong_roots();
    let receipt = run_with(&keys(1), &job(1), epoch, roots).receipt;
    // The challenger is known from before.
    shell.postings.push(Posting::Issue { to: keys(9).id(), amount: GRANT });
    shell.crash();
    shell.challenge(&receipt, 9, right_roots(job(1).id()));
    shell.judge();
    assert_eq!(shell.machine.job(&job(1).id()).unwrap().stage, Stage::Open);
    assert_eq!(shell.machine.ledger().totals().burned, bond(&spec), "the bond of the run is lost too");
    shell.feed(joined(2, 1));
    shell.run_right(0);
    shell.feed(joined(3, 1));
    shell.run_right(0);
    assert_eq!(shell.outcome(job(1).id()).unwrap().refutations.len(), 1);
}

#[test]
fn challenges_outlive_a_restart() {
    let (mut shell, receipt) = ended(true);
    shell.challenge(&receipt, 2, right_roots(job(1).id()));
    let before = shell.disputes.clone();
    shell.crash();
    assert_eq!(shell.disputes, before);
    // The records of the ended job itself may be gone.
    shell.records.retain(Record::outlives_job);
    shell.crash();
    assert_eq!(shell.disputes, before);
    shell.judge();
    shell.crash();
    assert!(shell.disputes.is_empty());
    assert_eq!(shell.machine.quarantined().count(), 1);
}

#[test]
fn challenges_that_are_not_allowed_are_refused_without_a_stake() {
    let (mut shell, receipt) = ended(true);
    let right = right_roots(job(1).id());
    assert_eq!(
        refusal(&shell.challenge(&receipt, 2, wrong_roots())),
        Some(ChallengeError::Terms(TermsError::NoDifference))
    );
    assert_eq!(
        refusal(&shell.challenge(&receipt, 1, right.clone())),
        Some(ChallengeError::Terms(TermsError::OneKey(keys(1).id())))
    );
    let poor = refusal(&shell.challenge(&receipt, 7, right.clone()));
    assert_eq!(poor, Some(ChallengeError::Stake { needed: stake() }));
    let mut forged = receipt.clone();
    forged.receipt.saturations += 1;
    assert!(matches!(
        refusal(&shell.challenge(&forged, 2, right.clone())),
        Some(ChallengeError::Terms(TermsError::Claim { .. }))
    ));
    assert_eq!(shell.machine.ledger().totals().held, 0);
    shell.challenge(&receipt, 2, right.clone());
    assert_eq!(refusal(&shell.challenge(&receipt, 2, right.clone())), Some(ChallengeError::Again));
    shell.wait(CHALLENGE_WINDOW_MS + 1_000);
    shell.feed(joined(3, 1));
    assert_eq!(refusal(&shell.challenge(&receipt, 3, right)), Some(ChallengeError::TooLate));
}

/// A machine where worker 1 has run so many jobs wrong, each of them ended, and workers 2 to 9 are there. The receipts.
fn ended_wrong(jobs: u8) -> (Shell, Vec<SignedReceipt>) {
    let mut shell = Shell::new();
    shell.judges = false;
    shell.feed(joined(1, 1));
    let receipts = (1..=jobs).map(|number| {
        shell.feed(Input::Submit(spec(number, NEVER)));
        shell.run_wrong(0);
        shell.outcome(job(number).id()).unwrap().result.receipt.clone()
    });
    let receipts = receipts.collect();
    (2..=9).for_each(|number| drop(shell.feed(joined(number, 1))));
    (shell, receipts)
}

#[test]
fn one_challenge_of_a_run_is_played_at_a_time() {
    let (mut shell, receipt) = ended(false);
    (3..=4).for_each(|number| drop(shell.feed(joined(number, 1))));
    assert_eq!(refusal(&shell.challenge(&receipt, 2, wrong_roots())), None);
    assert_eq!(refusal(&shell.challenge(&receipt, 3, wrong_roots())), Some(ChallengeError::Contested));
    assert_eq!(free(&shell, 3), GRANT, "who is refused stakes nothing");
    shell.judge();
    assert_eq!(refusal(&shell.challenge(&receipt, 3, wrong_roots())), None);
}

#[test]
fn a_run_that_lost_a_challenge_is_not_challenged_again_and_pays_once() {
    let (mut shell, receipts) = ended_wrong(1);
    let right = right_roots(job(1).id());
    shell.challenge(&receipts[0], 2, right.clone());
    shell.judge();
    let left = free(&shell, 1);
    for restarts in [false, true] {
        if restarts {
            shell.records.retain(Record::outlives_job);
            shell.crash();
        }
        for number in [2, 3] {
            assert_eq!(refusal(&shell.challenge(&receipts[0], number, right.clone())), Some(ChallengeError::NoSuchRun));
        }
    }
    assert_eq!((free(&shell, 1), shell.disputes.len()), (left, 0));
}

#[test]
fn a_challenge_of_a_run_that_falls_to_something_else_ends_without_effect() {
    for retracts in [true, false] {
        let mut shell = Shell::new();
        shell.judges = false;
        (1..=3).for_each(|number| drop(shell.feed(joined(number, 1))));
        shell.feed(Input::Submit(spec(1, always(1, false))));
        shell.run_wrong(0);
        let run = shell.machine.jobs.values().next().unwrap().runs[0].result.receipt.clone();
        let worker = run.receipt.worker;
        if !retracts {
            shell.run_right(0);
        }
        let busy: Vec<_> =
            shell.machine.jobs.values().next().unwrap().runs.iter().map(|run| run.receipt().worker).collect();
        let number = (1..=3).rev().find(|number| !busy.contains(&keys(*number).id())).unwrap();
        shell.challenge(&run, number, right_roots(job(1).id()));
        let (of, challenge) = shell.disputes.pop().unwrap();
        if retracts {
            shell.feed(Input::Retracted { node: worker, job: of, epoch: run.receipt.epoch });
        } else {
            shell.judge();
        }
        let purpose = Purpose::Dispute { dispute: challenge.id() };
        for side in crate::dispute::Side::BOTH {
            assert_eq!(shell.machine.ledger().held(&challenge.key(side), &purpose), None);
        }
        // Its verdict, which comes later, finds no challenge any more: also not once the job has ended, or after a restart.
        let (ledger, quarantined) = (shell.machine.ledger().clone(), shell.machine.quarantined.clone());
        let lost = Box::new(verdict([true, false], VerdictKind::Proven));
        let actions = shell.feed(Input::Judged { job: of, dispute: challenge.id(), verdict: lost });
        assert!(actions.is_empty());
        assert_eq!((shell.machine.ledger(), &shell.machine.quarantined), (&ledger, &quarantined));
        assert_eq!(quarantined.len(), usize::from(!retracts), "who took it back is not punished for more");
        shell.crash();
        assert!(shell.disputes.iter().all(|(_, terms)| terms.id() != challenge.id()));
    }
}

#[test]
fn a_key_answers_so_many_challenges_at_a_time_and_the_next_is_refused_without_a_stake() {
    let (mut shell, receipts) = ended_wrong(MAX_CHALLENGES_PER_CLAIMANT as u8 + 1);
    for (number, receipt) in (1..).zip(&receipts) {
        let refused = refusal(&shell.challenge(receipt, number + 1, right_roots(job(number).id())));
        let fits = usize::from(number) <= MAX_CHALLENGES_PER_CLAIMANT;
        assert_eq!(refused, (!fits).then_some(ChallengeError::Beset));
    }
    let last = MAX_CHALLENGES_PER_CLAIMANT as u8 + 1;
    assert_eq!(free(&shell, last + 1), GRANT);
    shell.judge();
    let again = shell.challenge(&receipts[usize::from(last) - 1], last + 1, right_roots(job(last).id()));
    assert_eq!(refusal(&again), None, "one has ended");
}

#[test]
fn silence_costs_run_and_stake_and_time_but_only_a_proof_the_key() {
    for (kind, is_proof) in [(VerdictKind::Proven, true), (VerdictKind::Timeout, false)] {
        let (mut shell, receipt) = ended(true);
        shell.challenge(&receipt, 2, right_roots(job(1).id()));
        let actions = shell.end_dispute([true, false], kind);
        assert!(actions.iter().any(|action| matches!(action, Action::Overturned { .. })));
        assert_eq!(free(&shell, 2), GRANT + stake());
        assert_eq!(shell.machine.quarantined().count(), usize::from(is_proof));
        assert_eq!(shell.machine.is_set_aside(&keys(1).id()), !is_proof);
        shell.wait(FAULTY_MS);
        let refused = shell.feed(joined(1, 1)).iter().any(|action| matches!(action, Action::RefuseWorker { .. }));
        assert_eq!(refused, is_proof);
    }
}
