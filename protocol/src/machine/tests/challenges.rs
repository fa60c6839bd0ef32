//! Challenges by keys that have no lease of the job.

use std::collections::BTreeSet;

use super::*;
use crate::dispute::TermsError;
use crate::ids::DisputeId;
use crate::ledger::{Purpose, price_of_work};
use crate::limits::{
    CHALLENGE_AGAIN_MS, CHALLENGE_WINDOW_MS, CHALLENGES_PER_DOUBLING, FAULTY_MS, MAX_CHALLENGES,
    MAX_CHALLENGES_PER_CLAIMANT,
};
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

/// What the defence of a run costs.
fn defence() -> u64 {
    price_of_work(dispute_work(WORK, LAYERS))
}

fn stake() -> u64 {
    2 * defence()
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
fn a_lie_in_an_ended_job_is_overturned_by_a_challenger_who_earns_half_of_the_stake() {
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
    assert_eq!(free(&shell, 2), GRANT + defence());
    assert_eq!(shell.machine.ledger().totals().held, 0);
}

#[test]
fn a_sham_challenger_loses_its_stake_and_the_run_can_still_be_challenged() {
    let (mut shell, receipt) = ended(false);
    shell.challenge(&receipt, 2, wrong_roots());
    shell.judge();
    assert_eq!(shell.machine.quarantined().collect::<Vec<_>>(), [&keys(2).id()]);
    let pay = price_of_work(WORK);
    assert_eq!((free(&shell, 1), free(&shell, 2)), (GRANT + pay + defence(), GRANT - stake()));
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
    assert_eq!(shell.machine.ledger().totals().burned, bond(&spec) + defence(), "the bond of the run is lost too");
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
    assert!(shell.machine.pending_challenges().eq([(&job(1).id(), &shell.disputes[0].1)]));
    let (mut shell, receipt) = ended(true);
    shell.wait(CHALLENGE_WINDOW_MS + 1_000);
    assert_eq!(refusal(&shell.challenge(&receipt, 2, right)), Some(ChallengeError::TooLate));
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

fn opened(actions: &[Action]) -> Vec<DisputeId> {
    let opens = |action: &Action| match action {
        Action::OpenDispute { terms, .. } => Some(terms.id()),
        _ => None,
    };
    actions.iter().filter_map(opens).collect()
}

fn waits(actions: &[Action]) -> bool {
    matches!(actions[..], [Action::ChallengeWaits { .. }])
}

/// Roots that are wrong in a way of their own.
fn wrong_in_its_way(number: u8) -> Vec<Root> {
    let mut roots = right_roots(job(1).id());
    roots[1] = root(100 + number);
    roots
}

/// The liar's friends 2 to 5 challenge its run, and as many as one key plays are played. Then 6, who is honest, comes.
fn whitewashed() -> (Shell, SignedReceipt) {
    let (mut shell, receipt) = ended(true);
    (3..=9).for_each(|number| drop(shell.feed(joined(number, 1))));
    for number in 2..=5 {
        assert_eq!(opened(&shell.challenge(&receipt, number, wrong_in_its_way(number))).len(), 1);
    }
    (shell, receipt)
}

#[test]
fn sham_challenges_of_a_run_do_not_keep_an_honest_one_out() {
    let (mut shell, receipt) = whitewashed();
    assert!(waits(&shell.challenge(&receipt, 6, right_roots(job(1).id()))));
    assert_eq!(free(&shell, 6), GRANT - 2 * stake(), "who has to wait stakes twice as much as the highest before it");
    // Each sham that ends lets the next one in, and costs both keys of the liar together half of its stake.
    let burned = shell.machine.ledger().totals().burned;
    let actions = shell.end_dispute([false, true], VerdictKind::Proven);
    assert_eq!(opened(&actions), [shell.disputes.last().unwrap().1.id()]);
    assert_eq!(shell.machine.ledger().totals().burned - burned, defence());
    let shams: Vec<_> = shell.disputes[..3].iter().map(|(_, terms)| terms.clone()).collect();
    let actions = shell.judge();
    assert!(actions.iter().any(|action| matches!(action, Action::Overturned { .. })));
    // The shams have no effect any more, whatever comes of them.
    assert_eq!(shell.machine.ledger().totals().held, 0, "the others have their stakes back");
    for terms in &shams {
        assert!(shell.end_with(verdict([true, true], VerdictKind::Proven)).is_empty());
        assert_eq!(free(&shell, (2..=9).find(|n| keys(*n).id() == terms.challenger.worker()).unwrap()), GRANT);
    }
    assert_eq!(shell.machine.quarantined().count(), 2, "the liar, and the friend who lost before");
}

#[test]
fn challenges_that_wait_outlive_a_restart_and_keep_their_turn() {
    let (mut shell, receipt) = whitewashed();
    shell.challenge(&receipt, 6, right_roots(job(1).id()));
    assert!(waits(&shell.challenge(&receipt, 7, wrong_in_its_way(7))));
    assert_eq!(free(&shell, 7), GRANT - 4 * stake());
    shell.records.retain(Record::outlives_job);
    shell.crash();
    let players: BTreeSet<_> = shell.disputes.iter().map(|(_, terms)| terms.challenger.worker()).collect();
    assert_eq!(players, BTreeSet::from([2, 3, 4, 5].map(|number| keys(number).id())));
    shell.end_dispute([false, true], VerdictKind::Proven);
    assert_eq!(shell.disputes.last().unwrap().1.challenger.worker(), keys(6).id(), "first come, first served");
    assert_eq!(refusal(&shell.challenge(&receipt, 7, wrong_in_its_way(8))), Some(ChallengeError::Again));
}

#[test]
fn the_window_of_a_run_stays_open_while_it_is_challenged_and_an_hour_longer() {
    let (mut shell, receipt) = ended(false);
    (3..=5).for_each(|number| drop(shell.feed(joined(number, 1))));
    shell.challenge(&receipt, 2, wrong_roots());
    shell.wait(CHALLENGE_WINDOW_MS + 1_000);
    assert_eq!(refusal(&shell.challenge(&receipt, 3, wrong_roots())), None);
    shell.judge();
    shell.judge();
    for restarts in [false, true] {
        if restarts {
            shell.records.retain(Record::outlives_job);
            shell.crash();
        }
        shell.wait(CHALLENGE_AGAIN_MS / 4);
        // A key without credits is refused for that, and not for the time.
        let refused = refusal(&shell.challenge(&receipt, 9, wrong_roots()));
        assert_eq!(refused, Some(ChallengeError::Stake { needed: stake() }));
    }
    shell.wait(CHALLENGE_AGAIN_MS / 2 + 1_000);
    assert_eq!(refusal(&shell.challenge(&receipt, 5, wrong_roots())), Some(ChallengeError::TooLate));
}

#[test]
fn many_pending_challenges_raise_the_stake_of_the_next_and_have_an_end() {
    let (mut shell, receipt) = ended(true);
    shell.challenge(&receipt, 2, right_roots(job(1).id()));
    let (of, terms) = shell.disputes[0].clone();
    let needed = |shell: &Shell| shell.machine.stake(stake(), &keys(9).id());
    for number in 1..MAX_CHALLENGES {
        let doublings = shell.machine.challenges.pending.len() / CHALLENGES_PER_DOUBLING;
        assert_eq!(needed(&shell), Some(stake().max(1 << doublings)));
        let mut terms = terms.clone();
        terms.budgets_ms[0] = number as u64;
        shell.machine.challenges.insert(of, terms);
    }
    assert_eq!(needed(&shell), None);
    assert_eq!(shell.machine.challenges.played().len(), MAX_CHALLENGES_PER_CLAIMANT, "all are against one key");
    shell.feed(joined(3, 1));
    assert_eq!(refusal(&shell.challenge(&receipt, 3, right_roots(job(1).id()))), Some(ChallengeError::Busy));
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
fn a_key_answers_so_many_challenges_at_a_time_and_the_next_waits() {
    let (mut shell, receipts) = ended_wrong(MAX_CHALLENGES_PER_CLAIMANT as u8 + 1);
    for (number, receipt) in (1..).zip(&receipts) {
        let actions = shell.challenge(receipt, number + 1, right_roots(job(number).id()));
        assert_eq!(refusal(&actions), None);
        assert_eq!(waits(&actions), usize::from(number) > MAX_CHALLENGES_PER_CLAIMANT);
    }
    let last = MAX_CHALLENGES_PER_CLAIMANT as u8 + 2;
    assert_eq!(free(&shell, last), GRANT - 2 * stake());
    let actions = shell.judge();
    assert_eq!(opened(&actions).len(), 1, "one has ended");
    assert_eq!(shell.disputes.last().unwrap().1.challenger.worker(), keys(last).id());
}

#[test]
fn silence_costs_run_and_stake_and_time_but_only_a_proof_the_key() {
    for (kind, is_proof) in [(VerdictKind::Proven, true), (VerdictKind::Timeout, false)] {
        let (mut shell, receipt) = ended(true);
        shell.challenge(&receipt, 2, right_roots(job(1).id()));
        let actions = shell.end_dispute([true, false], kind);
        assert!(actions.iter().any(|action| matches!(action, Action::Overturned { .. })));
        assert_eq!(free(&shell, 2), GRANT + defence());
        assert_eq!(shell.machine.quarantined().count(), usize::from(is_proof));
        assert_eq!(shell.machine.is_set_aside(&keys(1).id()), !is_proof);
        shell.wait(FAULTY_MS);
        let refused = shell.feed(joined(1, 1)).iter().any(|action| matches!(action, Action::RefuseWorker { .. }));
        assert_eq!(refused, is_proof);
    }
}
