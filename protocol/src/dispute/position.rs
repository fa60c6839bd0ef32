//! A dispute as its entries tell it: the board, the clocks, and the chain of entries. Referee, restart and judge follow
//! entries by this one machine.

use thiserror::Error;

use crate::dispute::clock::Clocks;
use crate::dispute::entry::{SignedEntry, What};
use crate::dispute::game::{Game, Illegal};
use crate::dispute::moves::next_history;
use crate::dispute::rules::{self, Refusal};
use crate::dispute::{Ground, Lowering, Move, MoveBody, Phase, Reason, Side, SignedMove, Terms, TermsError, Verdict};
use crate::identity::IdentityError;
use crate::ids::{Digest, DisputeId, Millis};
use crate::limits::{MAX_CREDITS, MAX_DISPUTE_ENTRIES};

/// What is wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EntryError {
    /// It is of another dispute.
    #[error("it is of another dispute")]
    AnotherDispute,
    /// Its index is not the next one.
    #[error("its index is {found}")]
    Index {
        /// The index it has.
        found: u16,
    },
    /// It does not name the entry before it.
    #[error("it does not follow the entry before it")]
    Previous,
    /// Its time is before that of the entry before it.
    #[error("it is earlier than the entry before it")]
    Time,
    /// The signature of the coordinator does not verify.
    #[error("the signature of the coordinator does not verify ({0})")]
    Signature(IdentityError),
    /// The terms are no dispute.
    #[error("the terms: {0}")]
    Terms(#[from] TermsError),
    /// A move is not legal, and so can't have been entered.
    #[error("the move of the {side} in round {round}: {error}")]
    Move {
        /// Whose.
        side: Side,
        /// In which round, counted from 0.
        round: u16,
        /// What is wrong.
        error: Refusal,
    },
    /// A move is entered as one of the other side.
    #[error("the move in round {round} is not one of the {side}")]
    Side {
        /// The side that it is entered for.
        side: Side,
        /// In which round, counted from 0.
        round: u16,
    },
    /// A move is entered twice.
    #[error("the move of the {side} in round {round} is entered already")]
    Repeated {
        /// Whose.
        side: Side,
        /// In which round, counted from 0.
        round: u16,
    },
    /// Notice was given to a side whose clock had not run out, or that had it already.
    #[error("the clock of the {0} had not run out")]
    Notice(Side),
    /// The verdict is another one than follows from the entries before it, or none was due.
    #[error("the verdict does not follow")]
    Verdict,
    /// A verdict was due, or there was one already, or it is the beginning where there was one already.
    #[error("such an entry can't stand here")]
    Misplaced,
    /// There are too many entries, or too many credits.
    #[error("there are too many entries like it")]
    TooMany,
}

/// What a move is, before it is entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Examined {
    /// The very move was entered already: as this entry.
    Repeat(Side, u16),
    /// Legal; with what it opened.
    Legal(Side, Vec<Vec<u8>>),
    /// Its side loses by it.
    Lost(Side, Reason),
}

/// A dispute, as far as its entries go.
#[derive(Clone, Debug)]
pub(super) struct Position {
    id: DisputeId,
    terms: Terms,
    game: Game,
    clocks: Clocks,
    history: Digest,
    /// For each round the entries of the sides' moves.
    rounds: Vec<[Option<u16>; 2]>,
    entries: Vec<SignedEntry>,
    credits: usize,
    /// The verdict that has to be entered next.
    due: Option<Verdict>,
    verdict: Option<Verdict>,
}

impl Position {
    /// Begins with the first entry, checking its terms.
    pub fn open(first: SignedEntry, lowering: &dyn Lowering) -> Result<Self, EntryError> {
        let What::Opened(terms) = &first.entry.what else {
            return Err(EntryError::Misplaced);
        };
        let (id, ground) = (terms.id(), terms.check()?);
        Self::begin(first, id, ground, lowering)
    }

    /// Begins with the first entry, of terms with this id that were checked already.
    pub fn begin(
        first: SignedEntry,
        id: DisputeId,
        ground: Ground,
        lowering: &dyn Lowering,
    ) -> Result<Self, EntryError> {
        let What::Opened(terms) = &first.entry.what else {
            return Err(EntryError::Misplaced);
        };
        let terms = (**terms).clone();
        check_link(&first, id, None)?;
        let mut position = Self {
            id,
            game: Game::new(ground, lowering),
            clocks: Clocks::new(terms.budgets_ms),
            history: Digest::from_bytes(*id.as_bytes()),
            rounds: vec![[None; 2]],
            entries: Vec::new(),
            credits: 0,
            due: None,
            verdict: None,
            terms,
        };
        position.clocks.begin(first.entry.at, [true; 2]);
        position.entries.push(first);
        Ok(position)
    }

    pub fn id(&self) -> DisputeId {
        self.id
    }

    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    pub fn game(&self) -> &Game {
        &self.game
    }

    pub fn clocks(&self) -> &Clocks {
        &self.clocks
    }

    pub fn entries(&self) -> &[SignedEntry] {
        &self.entries
    }

    pub fn last(&self) -> &SignedEntry {
        self.entries.last().expect("the first entry is there from the beginning")
    }

    pub fn due(&self) -> Option<Verdict> {
        self.due
    }

    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict
    }

    /// Whether a side has moved in the round that is played.
    pub fn has_moved(&self, side: Side) -> bool {
        self.rounds.last().is_some_and(|round| round[side.index()].is_some())
    }

    /// Whether there is room for another credit.
    pub fn can_credit(&self) -> bool {
        self.credits < MAX_CREDITS
    }

    /// The moves of the complete rounds.
    pub fn moves(&self) -> impl Iterator<Item = &SignedMove> {
        let complete = self.rounds.iter().filter(|round| round.iter().all(Option::is_some));
        complete.flatten().flatten().filter_map(|index| self.move_of(*index))
    }

    fn move_of(&self, entry: u16) -> Option<&SignedMove> {
        match &self.entries.get(usize::from(entry))?.entry.what {
            What::Moved { signed, .. } => Some(signed),
            _ => None,
        }
    }

    /// Judges a move by every rule, without effect.
    pub fn examine(&self, signed: &SignedMove, lowering: &dyn Lowering) -> Result<Examined, (Option<Side>, Refusal)> {
        let nobody = |refusal| (None, refusal);
        rules::this_dispute(signed, self.id).map_err(nobody)?;
        rules::begun_round(signed, self.game.round()).map_err(nobody)?;
        // Whoever is waited for.
        let likely = if self.has_moved(Side::Claimant) { Side::Challenger } else { Side::Claimant };
        let side = rules::signer(signed, &self.terms, likely).map_err(nobody)?;
        let refused = |refusal| (Some(side), refusal);
        let is_over = self.due.is_some() || matches!(self.game.phase(), Phase::Recompute | Phase::Ended);
        let before = self.rounds.get(usize::from(signed.made.round)).and_then(|round| round[side.index()]);
        if let Some(before) = before {
            let entered = self.move_of(before).expect("it is the entry of a move");
            // Only two moves after the same history contradict each other: an honest player whom somebody told another
            // history, and who forgot what it signed, does not lose by that.
            return match (entered.made == signed.made, entered.made.previous == signed.made.previous) {
                (true, _) => Ok(Examined::Repeat(side, before)),
                (false, _) if is_over => Err(refused(Refusal::Late)),
                (false, true) => Ok(Examined::Lost(side, Reason::Equivocation)),
                (false, false) => Err(refused(Refusal::History)),
            };
        }
        if is_over || signed.made.round != self.game.round() {
            return Err(refused(Refusal::Late));
        }
        rules::same_history(signed, self.history).map_err(refused)?;
        match self.game.check(side, &signed.made.body, lowering) {
            Ok(data) => Ok(Examined::Legal(side, data)),
            Err(Illegal::Refused(refusal)) => Err(refused(refusal)),
            Err(Illegal::Lost(reason)) => Ok(Examined::Lost(side, reason)),
        }
    }

    /// Follows an entry of a transcript, checking everything but the coordinator's signature, and what a verdict says
    /// was recomputed.
    pub fn follow(&mut self, signed: &SignedEntry, lowering: &dyn Lowering) -> Result<(), EntryError> {
        check_link(signed, self.id, Some(self.last()))?;
        if self.entries.len() >= MAX_DISPUTE_ENTRIES {
            return Err(EntryError::TooMany);
        }
        if let What::Moved { side, signed: made } = &signed.entry.what {
            let (side, round) = (*side, made.made.round);
            let examined = self.examine(made, lowering);
            let examined = examined.map_err(|(_, error)| EntryError::Move { side, round, error })?;
            return match &examined {
                Examined::Repeat(..) => Err(EntryError::Repeated { side, round }),
                Examined::Legal(by, _) | Examined::Lost(by, _) if *by != side => Err(EntryError::Side { side, round }),
                _ => {
                    self.take_move(signed.clone(), examined, lowering);
                    Ok(())
                }
            };
        }
        self.take(signed.clone())
    }

    /// Takes the next entry where it is no move.
    pub fn take(&mut self, signed: SignedEntry) -> Result<(), EntryError> {
        let at = signed.entry.at;
        let only_verdict = self.due.is_some() || self.game.phase() == Phase::Recompute;
        if self.verdict.is_some() || (only_verdict && !matches!(signed.entry.what, What::Verdict(_))) {
            return Err(EntryError::Misplaced);
        }
        match &signed.entry.what {
            What::Opened(_) | What::Moved { .. } => return Err(EntryError::Misplaced),
            What::Credited { .. } if !self.can_credit() => return Err(EntryError::TooMany),
            What::Credited { ms } => {
                self.credits += 1;
                self.clocks.credit(at, *ms);
            }
            What::Notice { side } if !self.clocks.is_out(*side, at) => return Err(EntryError::Notice(*side)),
            What::Notice { side } => self.clocks.notice(*side, at),
            What::Verdict(verdict) => self.take_verdict(*verdict, at)?,
        }
        self.entries.push(signed);
        Ok(())
    }

    /// A verdict follows from the last move, from what was recomputed, or from silence.
    fn take_verdict(&mut self, verdict: Verdict, at: Millis) -> Result<(), EntryError> {
        let mut ended = self.game.clone();
        let follows = match (self.due, ended.phase(), verdict.reason) {
            (Some(due), ..) => Some(due),
            (None, Phase::Recompute, Reason::Recomputed { value }) => Some(ended.decide(value)),
            (None, _, Reason::Silence) => self.clocks.silent(at).map(|losers| ended.silence(losers)),
            _ => None,
        };
        if follows != Some(verdict) {
            return Err(EntryError::Verdict);
        }
        self.game = ended;
        self.clocks.stop_all();
        self.due = None;
        self.verdict = Some(verdict);
        Ok(())
    }

    /// Takes the entry of a move that was examined at this position.
    pub fn take_move(&mut self, signed: SignedEntry, examined: Examined, lowering: &dyn Lowering) {
        let (at, index) = (signed.entry.at, signed.entry.index);
        self.entries.push(signed);
        match examined {
            Examined::Repeat(..) => {}
            Examined::Lost(side, reason) => {
                self.clocks.stop_all();
                self.due = Some(self.game.fault(side, reason));
            }
            Examined::Legal(side, data) => {
                let round = self.rounds.last_mut().expect("a round is played");
                round[side.index()] = Some(index);
                self.clocks.stop(side, at);
                if self.game.phase() == Phase::Open {
                    self.clocks.stop_all();
                    self.due = self.game.open(data, lowering);
                } else if let [Some(first), Some(second)] = *round {
                    self.end_round([first, second], at, lowering);
                }
            }
        }
    }

    fn end_round(&mut self, entries: [u16; 2], at: Millis, lowering: &dyn Lowering) {
        let moves = entries.map(|entry| self.move_of(entry).expect("it is the entry of a move").made.clone());
        let bodies: [&MoveBody; 2] = [&moves[0].body, &moves[1].body];
        let pair: [&Move; 2] = [&moves[0], &moves[1]];
        self.history = next_history(self.history, pair);
        self.due = self.game.play(bodies, lowering);
        self.rounds.push([None; 2]);
        // The claimant has to open what it claims; the challenger only may.
        let runs = if self.game.phase() == Phase::Open { Side::Claimant.alone() } else { [true; 2] };
        self.clocks.begin(at, if self.due.is_some() { [false; 2] } else { runs });
    }
}

/// An entry follows the one before it, in the same dispute.
fn check_link(signed: &SignedEntry, id: DisputeId, before: Option<&SignedEntry>) -> Result<(), EntryError> {
    let entry = &signed.entry;
    let index = before.map_or(0, |before| before.entry.index.saturating_add(1));
    let previous = before.map_or(Digest::from_bytes([0; 32]), |before| before.entry.digest());
    if entry.dispute != id {
        Err(EntryError::AnotherDispute)
    } else if entry.index != index {
        Err(EntryError::Index { found: entry.index })
    } else if entry.previous != previous {
        Err(EntryError::Previous)
    } else if before.is_some_and(|before| entry.at < before.entry.at) {
        Err(EntryError::Time)
    } else {
        Ok(())
    }
}
