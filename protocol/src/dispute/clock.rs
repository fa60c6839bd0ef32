//! The sides' clocks. Time is an argument.

use crate::dispute::Side;
use crate::ids::Millis;
use crate::limits::{GRACE_MS, MOVE_MIN_MS};

/// A chess clock for each side. In a round both run from its start, each until its side has moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Clocks {
    /// What each side had left when the round began.
    left_ms: [u64; 2],
    /// When the round began, moved forward by what was credited since.
    start: Millis,
    runs: [bool; 2],
    /// When the time of grace ends, of sides that were given notice.
    grace: [Option<Millis>; 2],
}

impl Clocks {
    /// Clocks with these budgets. None runs.
    pub fn new(budgets_ms: [u64; 2]) -> Self {
        Self { left_ms: budgets_ms, start: Millis(0), runs: [false; 2], grace: [None; 2] }
    }

    /// Begins a round: the clocks of these sides run.
    pub fn begin(&mut self, now: Millis, runs: [bool; 2]) {
        self.start = now;
        self.runs = runs;
        self.grace = [None; 2];
    }

    /// Stops both: nobody is waited for.
    pub fn stop_all(&mut self) {
        self.runs = [false; 2];
        self.grace = [None; 2];
    }

    /// Stops a side's clock: it has moved.
    pub fn stop(&mut self, side: Side, now: Millis) {
        let side = side.index();
        if std::mem::take(&mut self.runs[side]) {
            self.left_ms[side] = self.left_ms[side].saturating_sub(now.since(self.start));
            self.grace[side] = None;
        }
    }

    /// Takes so much of the time since the round began off both sides' account.
    pub fn credit(&mut self, now: Millis, ms: u64) {
        let ms = ms.min(now.since(self.start));
        self.start = self.start.plus(ms);
        for grace in self.grace.iter_mut().flatten() {
            *grace = grace.plus(ms);
        }
    }

    /// How long a side may take in this round: what it has left, but never less than a round's minimum.
    fn allowed_ms(&self, side: Side) -> u64 {
        self.left_ms[side.index()].max(MOVE_MIN_MS)
    }

    /// When a side's clock runs out; `None` where it does not run.
    pub fn deadline(&self, side: Side) -> Option<Millis> {
        self.runs[side.index()].then(|| self.start.plus(self.allowed_ms(side)))
    }

    /// When half of a side's time in this round is over.
    pub fn half(&self, side: Side) -> Millis {
        self.start.plus(self.allowed_ms(side) / 2)
    }

    /// Whether a side is to be given notice: its clock has run out, and it was given none.
    pub fn is_out(&self, side: Side, now: Millis) -> bool {
        self.grace[side.index()].is_none() && self.deadline(side).is_some_and(|deadline| deadline <= now)
    }

    /// The time of grace of a side begins.
    pub fn notice(&mut self, side: Side, now: Millis) {
        self.grace[side.index()] = Some(now.plus(GRACE_MS));
    }

    /// Who has lost by silence. Where both were given notice, both are waited for.
    pub fn silent(&self, now: Millis) -> Option<[bool; 2]> {
        let ends = self.last_grace()?;
        (ends <= now).then(|| self.grace.map(|grace| grace.is_some()))
    }

    /// When something happens next if nobody moves.
    pub fn next_wake(&self) -> Option<Millis> {
        let unnoticed = Side::BOTH.into_iter().filter(|side| self.grace[side.index()].is_none());
        unnoticed.filter_map(|side| self.deadline(side)).chain(self.last_grace()).min()
    }

    fn last_grace(&self) -> Option<Millis> {
        self.grace.into_iter().flatten().max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Side = Side::Claimant;

    #[test]
    fn a_round_charges_what_it_took_and_grants_the_minimum() {
        let mut clocks = Clocks::new([MOVE_MIN_MS * 3, 5]);
        clocks.begin(Millis(100), [true; 2]);
        assert_eq!(clocks.deadline(Side::Challenger), Some(Millis(100 + MOVE_MIN_MS)));
        clocks.stop(FIRST, Millis(100 + MOVE_MIN_MS));
        assert_eq!(clocks.deadline(FIRST), None);
        clocks.begin(Millis(50_000), [true; 2]);
        assert_eq!(clocks.deadline(FIRST), Some(Millis(50_000 + MOVE_MIN_MS * 2)));
        clocks.stop(FIRST, Millis(500_000));
        clocks.begin(Millis(500_000), [true; 2]);
        assert_eq!(clocks.deadline(FIRST), Some(Millis(500_000 + MOVE_MIN_MS)));
    }

    #[test]
    fn credit_extends_both_sides_alike_and_never_beyond_what_passed() {
        let mut clocks = Clocks::new([60_000, 70_000]);
        clocks.begin(Millis(0), [true; 2]);
        clocks.credit(Millis(1_000), u64::MAX);
        assert_eq!(clocks.deadline(Side::Claimant), Some(Millis(61_000)));
        assert_eq!(clocks.deadline(Side::Challenger), Some(Millis(71_000)));
        clocks.notice(FIRST, Millis(61_000));
        clocks.credit(Millis(62_000), 500);
        assert_eq!(clocks.silent(Millis(61_000 + GRACE_MS)), None);
        assert_eq!(clocks.silent(Millis(61_500 + GRACE_MS)), Some([true, false]));
    }

    #[test]
    fn two_sides_that_were_given_notice_are_both_waited_for() {
        let mut clocks = Clocks::new([20_000, 20_001]);
        clocks.begin(Millis(0), [true; 2]);
        assert_eq!(clocks.next_wake(), Some(Millis(20_000)));
        clocks.notice(FIRST, Millis(20_000));
        assert_eq!(clocks.next_wake(), Some(Millis(20_001)));
        clocks.notice(Side::Challenger, Millis(20_001));
        assert_eq!(clocks.next_wake(), Some(Millis(20_001 + GRACE_MS)));
        assert_eq!(clocks.silent(Millis(20_000 + GRACE_MS)), None);
        assert_eq!(clocks.silent(Millis(20_001 + GRACE_MS)), Some([true, true]));
    }
}
