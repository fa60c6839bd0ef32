//! Clocks, notice and grace.

use super::*;
use crate::limits::{GRACE_MS, MAX_CREDITS, MOVE_MIN_MS};

fn lying() -> Match {
    Match::about(|run| run.lie(at(&small(), 3, 411), 4))
}

impl Match {
    fn wait(&mut self, until: Millis) -> Output {
        self.now = until;
        let out = self.referee.handle(until, Input::Tick, &self.toy);
        self.note(out)
    }
}

fn notices(out: &Output) -> Vec<Side> {
    let side = |entry: &SignedEntry| match entry.entry.what {
        What::Notice { side } => Some(side),
        _ => None,
    };
    out.entries.iter().filter_map(side).collect()
}

#[test]
fn who_is_silent_is_given_notice_then_grace_and_then_loses() {
    let mut game = lying();
    game.step(Side::Challenger);
    let deadline = Millis(1_000 + BUDGET);
    assert_eq!(game.referee.next_wake(), Some(deadline));
    assert_eq!(game.wait(Millis(deadline.0 - 1)), Output::default());
    assert_eq!(notices(&game.wait(deadline)), [Side::Claimant]);
    assert_eq!(game.referee.next_wake(), Some(deadline.plus(GRACE_MS)));
    assert_eq!(game.wait(deadline.plus(GRACE_MS - 1)), Output::default());
    game.wait(deadline.plus(GRACE_MS));
    game.ended(CLAIMANT, Reason::Silence);
    assert_eq!(game.referee.verdict().unwrap().kind, VerdictKind::Timeout);
    assert_eq!(game.referee.next_wake(), None);
}

#[test]
fn a_late_tick_gives_notice_first_all_the_same() {
    let mut game = lying();
    game.step(Side::Challenger);
    let late = Millis(1_000 + 10 * BUDGET);
    assert_eq!(notices(&game.wait(late)), [Side::Claimant]);
    assert_eq!(game.referee.verdict(), None);
}

#[test]
fn in_the_time_of_grace_a_move_may_still_come_through_anybody() {
    let mut game = lying();
    game.step(Side::Challenger);
    game.wait(Millis(1_000 + BUDGET));
    game.step(Side::Claimant);
    // It has nothing left but the minimum.
    assert_eq!(game.referee.round(), 1);
    assert_eq!(game.referee.next_wake(), Some(game.now.plus(MOVE_MIN_MS)));
    game.verdict();
    game.ended(CLAIMANT, game.referee.verdict().unwrap().reason);
    assert_eq!(game.referee.verdict().unwrap().kind, VerdictKind::Proven);
}

#[test]
fn where_both_are_silent_both_lose() {
    let mut game = lying();
    assert_eq!(notices(&game.wait(Millis(1_000 + BUDGET))), Side::BOTH);
    game.wait(Millis(1_000 + BUDGET + GRACE_MS));
    game.ended(BOTH, Reason::Silence);
}

#[test]
fn nobody_wins_by_moving_last() {
    let mut game = lying();
    // The claimant uses everything up, and moves at the last moment in each round.
    while game.referee.phase() < Phase::Open {
        game.step(Side::Challenger);
        let wake = game.referee.next_wake().unwrap();
        game.now = Millis(wake.0 - 6);
        game.step(Side::Claimant);
        let left = game.referee.next_wake().unwrap().since(game.now);
        assert!(left >= MOVE_MIN_MS || game.referee.phase() == Phase::Open, "{left}");
    }
    game.verdict();
}

#[test]
fn a_clock_runs_until_its_own_side_has_moved() {
    let mut game = lying();
    game.now = Millis(1_000 + 200_000);
    game.step(Side::Claimant);
    game.now = Millis(1_000 + 400_000);
    game.step(Side::Challenger);
    let start = game.now;
    let challenger = start.plus(BUDGET - start.since(Millis(1_000)));
    assert_eq!(game.referee.next_wake(), Some(challenger));
    game.step(Side::Challenger);
    let claimant = start.plus(BUDGET - 200_005);
    assert_eq!(game.referee.next_wake(), Some(claimant));
}

#[test]
fn only_credited_downtime_extends_clocks_and_both_sides_alike() {
    let mut game = lying();
    let down = 50_000;
    game.now = Millis(1_000 + 70_000);
    game.send(Input::Downtime { ms: down });
    let deadline = Millis(1_000 + BUDGET + down);
    assert_eq!(notices(&game.wait(Millis(deadline.0 - 1))), []);
    assert_eq!(notices(&game.wait(deadline)), Side::BOTH);
    // Whatever is said, more than what passed is not credited.
    game.send(Input::Downtime { ms: u64::MAX });
    let wake = game.referee.next_wake().unwrap();
    game.wait(wake);
    game.ended(BOTH, Reason::Silence);
}

#[test]
fn downtime_is_credited_a_bounded_number_of_times() {
    let mut game = lying();
    for _ in 0..MAX_CREDITS + 5 {
        game.send(Input::Downtime { ms: 1 });
    }
    assert_eq!(game.referee.entries().len(), 1 + MAX_CREDITS);
    game.verdict();
    game.ended(CLAIMANT, game.referee.verdict().unwrap().reason);
}

#[test]
fn a_clock_that_goes_back_stands_still() {
    let mut game = lying();
    game.now = Millis(100_000);
    game.step(Side::Claimant);
    game.now = Millis(0);
    game.step(Side::Challenger);
    let times: Vec<_> = game.referee.entries().iter().map(|entry| entry.entry.at).collect();
    assert!(times.is_sorted());
    game.now = Millis(100_010);
    game.verdict();
    game.ended(CLAIMANT, game.referee.verdict().unwrap().reason);
}

#[test]
fn a_claimant_that_opens_nothing_loses_and_at_half_time_the_challenger_may_open() {
    let mut game = lying();
    game.reach(Phase::Open);
    assert_eq!(game.asked, [true, false]);
    let (start, left) = (game.now, game.referee.next_wake().unwrap().since(game.now) * 2);
    let out = game.wait(start.plus(left / 2));
    assert_eq!(out.actions, [Action::Ask { side: Side::Challenger, open_only: true }]);
    assert!(game.referee.ask(the_job(), Side::Challenger).open_only);
    let mut silent = (game.referee.clone(), game.now);
    // It need not; then the claimant alone loses.
    while silent.0.verdict().is_none() {
        silent.1 = silent.0.next_wake().unwrap();
        silent.0.handle(silent.1, Input::Tick, &game.toy);
    }
    let verdict = silent.0.verdict().unwrap();
    assert_eq!((verdict.losers, verdict.kind), (CLAIMANT, VerdictKind::Timeout));
    // If it does, the referee computes.
    game.step(Side::Challenger);
    game.compute();
    let verdict = game.referee.verdict().unwrap();
    game.ended(CLAIMANT, verdict.reason);
    assert_eq!(verdict.kind, VerdictKind::Proven);
}
