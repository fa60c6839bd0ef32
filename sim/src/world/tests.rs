//! The simulation can fail: with one rule broken, it says so.

use std::num::NonZeroUsize;

use lockstep_protocol::dispute::What;
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ledger::{Posting, Purpose};
use lockstep_protocol::machine::Action;

use super::coordinator::{Effect, Step};
use super::{Direction, run_directed};
use crate::adversary::{Adversary, StageTrick};
use crate::report::Report;
use crate::runner::run_with;

/// Worlds with one thing done otherwise.
fn directed(seeds: u64, direction: Direction) -> Report {
    run_with(1_000, seeds, NonZeroUsize::new(2).unwrap(), &|_| {}, &|seed| run_directed(seed, direction))
}

fn tampered(seeds: u64, tamper: fn(&mut Step, &Keypair)) -> Report {
    directed(seeds, Direction { tamper, ..Direction::default() })
}

/// A liar that lets its other keys challenge its answer, one after the other, gains nothing by that: whoever is honest gets
/// a turn. With one challenge of a run at a time, and the others sent away meanwhile, it would.
#[test]
fn sham_challenges_save_a_lie_only_where_they_keep_others_out() {
    let sham = Direction { first: Some(Adversary::ShamChain), ..Direction::default() };
    let report = directed(8, sham);
    assert_eq!(report.violations, []);
    assert!(report.counts.challenges > 40 && report.counts.jobs_wrong_unaudited > 4, "{report:#?}");
    let one_at_a_time = Direction {
        hears: |coordinator, job| coordinator.machine().pending_challenges().all(|(of, _)| of != job),
        ..sham
    };
    let report = directed(8, one_at_a_time);
    assert!(report.violations.iter().any(|broken| broken.what.contains("after a challenge of it")), "{report:#?}");
}

/// A referee that blames the other side, and signs that.
fn blame_the_other(step: &mut Step, keys: &Keypair) {
    for signed in &mut step.batch.entries {
        if let What::Verdict(verdict) = &mut signed.entry.what
            && verdict.losers[0] != verdict.losers[1]
        {
            verdict.losers.reverse();
            *signed = signed.entry.clone().sign(keys);
        }
    }
}

/// A coordinator that keeps what is forfeited for nobody.
fn forget_postings(step: &mut Step, _: &Keypair) {
    step.batch.postings.retain(|posting| !matches!(posting, Posting::Release { .. }));
}

/// A coordinator that acknowledges moves that it has not written.
fn lose_entries(step: &mut Step, _: &Keypair) {
    step.batch.entries.retain(|signed| !matches!(signed.entry.what, What::Moved { .. }));
}

/// A coordinator that never says what somebody is asked.
fn ask_nobody(step: &mut Step, _: &Keypair) {
    step.effects.retain(|effect| !matches!(effect, Effect::Send(_, super::Down::Ask(_))));
}

/// A coordinator that lets a worker take a run back for nothing.
fn forgive(step: &mut Step, _: &Keypair) {
    for posting in &mut step.batch.postings {
        if let Posting::Forfeit { node, purpose: purpose @ Purpose::Lease { .. }, .. } = posting {
            *posting = Posting::Release { node: *node, purpose: *purpose };
        }
    }
}

/// A coordinator that gives another output out than the one that it has roots of.
fn misquote(step: &mut Step, _: &Keypair) {
    for effect in &mut step.effects {
        if let Effect::Ended(action) = effect
            && let Action::JobDone { outcome, .. } = &mut **action
        {
            outcome.result.output[0] ^= 1;
        }
    }
}

/// A coordinator that tells auditors of a generation words that nobody made.
fn mislead(step: &mut Step, _: &Keypair) {
    for effect in &mut step.effects {
        if let Effect::Send(_, super::Down::Assign(_, _, hint)) = effect {
            hint.iter_mut().for_each(|word| *word ^= 1);
        }
    }
}

fn finds(report: &Report, what: &str) {
    assert!(report.violations.iter().any(|violation| violation.what.contains(what)), "{report:#?}");
}

#[test]
fn who_says_other_log_probabilities_is_disputed_about_them_and_about_what_they_follow_from() {
    let report = directed(100, Direction { first: Some(Adversary::Misquoter), ..Direction::default() });
    assert_eq!(report.violations, []);
    let counts = &report.counts;
    for point in ["first", "later"] {
        let place = format!("generation, {point} point, log-probabilities");
        assert!(counts.disputes_at.get(&place).is_some_and(|disputes| *disputes > 2), "{place}: {counts:#?}");
    }
    assert!(counts.elements.contains_key("logprobs.out"), "{counts:#?}");
}

#[test]
fn a_cheat_that_takes_its_run_back_gains_nothing_by_it() {
    let report = directed(150, Direction { first: Some(Adversary::Pretender), ..Direction::default() });
    assert_eq!(report.violations, []);
    let counts = &report.counts;
    assert!(counts.retractions[Adversary::Pretender.name()] > 15 && counts.pretenders_gained > 0, "{counts:#?}");
    assert!(counts.pretenders_lost >= counts.pretenders_gained, "{counts:#?}");
}

#[test]
fn a_retraction_that_costs_nothing_is_noticed() {
    let pretender = Direction { first: Some(Adversary::Pretender), tamper: forgive, ..Direction::default() };
    finds(&directed(60, pretender), "is taken back for");
}

/// Worlds in which no party can hold a model: everything that a cheat can do to its neighbours is done, and what can be proven is.
#[test]
fn pipelines_keep_every_property() {
    let report = directed(300, Direction { shared: Some(true), ..Direction::default() });
    assert_eq!(report.violations, []);
    let counts = &report.counts;
    for trick in StageTrick::ALL {
        assert!(counts.stage_tricks.contains_key(trick.name()), "{}: {counts:#?}", trick.name());
    }
    for kind in ["rows", "contradiction", "words"] {
        assert!(counts.hand_overs_proven.get(kind).is_some_and(|count| *count > 5), "{kind}: {counts:#?}");
    }
    assert!(counts.crew_runs > 100 && counts.disputes > 20 && counts.jobs_done > 100, "{counts:#?}");
}

#[test]
fn a_wrong_hand_over_that_costs_nothing_is_noticed() {
    let shared = Direction { shared: Some(true), tamper: forgive, ..Direction::default() };
    finds(&directed(60, shared), "keeps its bond");
}

#[test]
fn a_list_on_which_everybody_is_an_operator_of_his_own_is_noticed() {
    let list = |operator: Option<&str>, party: usize| operator.map(|operator| format!("{operator} {party}"));
    finds(&directed(100, Direction { list, ..Direction::default() }), "by another operator");
}

#[test]
fn an_output_that_is_not_that_of_its_roots_is_noticed() {
    finds(&tampered(20, misquote), "an output that is not that of its roots");
}

#[test]
fn hints_that_are_wrong_change_nothing() {
    let report = tampered(60, mislead);
    assert_eq!(report.violations, []);
}

#[test]
fn nothing_is_violated_where_nothing_is_broken() {
    assert_eq!(tampered(40, |_, _| {}).violations, []);
}

#[test]
fn a_referee_that_blames_the_other_side_is_noticed() {
    let report = tampered(40, blame_the_other);
    assert!(report.wrong_verdicts > 0, "{report:#?}");
    let first = &report.violations[0];
    assert_eq!(first.replay, format!("lockstep sim --first-seed {} --seeds 1", first.seed));
}

#[test]
fn a_ledger_that_is_not_stored_as_it_is_kept_is_noticed() {
    assert!(!tampered(40, forget_postings).violations.is_empty());
}

#[test]
fn a_transcript_with_a_hole_is_noticed() {
    assert!(!tampered(40, lose_entries).violations.is_empty());
}

#[test]
fn a_coordinator_that_lets_the_honest_run_out_of_time_is_noticed() {
    assert!(tampered(40, ask_nobody).wrong_verdicts > 0);
}

#[test]
fn a_report_follows_from_its_seeds_whatever_the_threads() {
    let run = |threads| crate::run(77, 60, NonZeroUsize::new(threads).unwrap(), &|_| {});
    let report = run(1);
    assert_eq!(report, run(3));
    assert_eq!(report, run(1));
    assert!(report.counts.disputes > 0);
}
