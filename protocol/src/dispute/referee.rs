//! The referee: takes moves, keeps the clocks, writes the transcript. It has no weights and no run, only the program's
//! shapes, and computes one element.
//!
//! A pure machine. Entries that it returns are to be made durable before any action that comes with them is carried out,
//! and before anybody sees them: that of a move is its acknowledgement, to be sent to its side.

use crate::dispute::position::{Examined, Position};
use crate::dispute::transcript::{TranscriptError, follow_all};
use crate::dispute::{
    Entry, Ground, Lowering, Phase, Recompute, Refusal, Scope, Side, SignedEntry, SignedMove, Terms, TermsError,
    Verdict, What,
};
use crate::identity::Keypair;
use crate::ids::{Digest, DisputeId, Millis};
use crate::job::Job;
use crate::limits::MAX_REFUSED_MOVES;
use crate::messages::Ask;

/// What happened, as told to [`Referee::handle`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A move came, from anybody.
    Move(SignedMove),
    /// The answer to [`Action::Recompute`].
    Recomputed {
        /// The element, sign-extended.
        value: i64,
    },
    /// The coordinator was down for so long, as its own durable heartbeat says.
    Downtime {
        /// Milliseconds.
        ms: u64,
    },
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask a side for its move: send it [`Referee::ask`]. Also whenever it connects again ([`Referee::asks`]).
    Ask {
        /// Which side.
        side: Side,
        /// Whether it is the challenger, who may open in the claimant's place.
        open_only: bool,
    },
    /// A move came that was entered before: tell its side again that it is kept.
    Repeated {
        /// Which side.
        side: Side,
        /// The entry of its move.
        entry: Box<SignedEntry>,
    },
    /// Compute an element with the reference kernels, and feed [`Input::Recomputed`].
    Recompute(Recompute),
    /// A move was refused (to report, and to tell who brought it).
    Refuse {
        /// Whose move, if it is signed by a side.
        side: Option<Side>,
        /// Why.
        reason: Refusal,
    },
    /// The dispute is over.
    Ended(Verdict),
}

/// What [`Referee::handle`] returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// To be made durable together, in this order, before any action is carried out.
    pub entries: Vec<SignedEntry>,
    /// To be carried out in this order.
    pub actions: Vec<Action>,
}

/// One dispute before its referee.
#[derive(Clone, Debug)]
pub struct Referee {
    keys: Keypair,
    position: Position,
    /// Refused moves of each side. Not durable: only a courtesy is counted by it.
    refused: [u32; 2],
    /// Whether the challenger was asked to open.
    has_asked_challenger: bool,
}

impl Referee {
    /// Opens a dispute. The claims of the terms were checked already ([`Terms::between`], [`Terms::check`]); `keys` are the
    /// coordinator's, and `lowering` is that of the place where the terms begin.
    ///
    /// # Errors
    /// [`TermsError`].
    pub fn open(
        terms: Terms,
        now: Millis,
        keys: Keypair,
        lowering: &dyn Lowering,
    ) -> Result<(Self, Output), TermsError> {
        let (dispute, ground, previous) = (terms.id(), terms.ground()?, Digest::from_bytes([0; 32]));
        let what = What::Opened(Box::new(terms));
        let first = Entry { dispute, index: 0, previous, at: now, what }.sign(&keys);
        let position = Position::begin(first.clone(), dispute, ground, lowering);
        let position = position.expect("the referee writes a first entry");
        let referee = Self { keys, position, refused: [0; 2], has_asked_challenger: false };
        let actions = referee.asks();
        Ok((referee, Output { entries: vec![first], actions }))
    }

    /// The referee that wrote these entries, all of which are durable. Then tell it of the downtime, and
    /// [`Referee::resume`].
    ///
    /// # Errors
    /// [`TranscriptError`]: the entries are not a transcript.
    pub fn restore(entries: &[SignedEntry], keys: Keypair, lowering: &dyn Lowering) -> Result<Self, TranscriptError> {
        let position = follow_all(entries, lowering)?;
        Ok(Self { keys, position, refused: [0; 2], has_asked_challenger: false })
    }

    /// What is to be done after a restart: the verdict that is due, the computation, or what the sides are asked. It may
    /// have been done before.
    pub fn resume(&mut self, now: Millis) -> Output {
        let mut out = Output::default();
        self.go_on(now, &mut out);
        out
    }

    /// Takes what happened. `now` is on the coordinator's clock; should it go back, it stands still.
    pub fn handle(&mut self, now: Millis, input: Input, lowering: &dyn Lowering) -> Output {
        let mut out = Output::default();
        match input {
            Input::Move(signed) => self.take_move(now, signed, lowering, &mut out),
            Input::Recomputed { value } => {
                if self.position.game().phase() == Phase::Recompute {
                    let verdict = self.position.game().clone().decide(value);
                    self.end(now, verdict, &mut out);
                }
            }
            Input::Downtime { ms } => {
                if ms > 0 && self.is_open() && self.position.can_credit() {
                    self.write(now, What::Credited { ms }, &mut out);
                }
            }
            Input::Tick => {}
        }
        self.watch_clocks(now, &mut out);
        out
    }

    /// The dispute's id.
    pub fn id(&self) -> DisputeId {
        self.position.id()
    }

    /// The terms.
    pub fn terms(&self) -> &Terms {
        self.position.terms()
    }

    /// Where the dispute begins.
    pub fn ground(&self) -> &Ground {
        self.position.game().ground()
    }

    /// The first chunk of the layer's output that differs, once it is found.
    pub fn chunk(&self) -> Option<u64> {
        self.position.game().chunk()
    }

    /// The first step that differs, once it is found.
    pub fn step(&self) -> Option<u16> {
        self.position.game().step()
    }

    /// The first element that differs, once it is found.
    pub fn element(&self) -> Option<u64> {
        self.position.game().element()
    }

    /// The moves of all complete rounds, in each the claimant's and then the challenger's.
    pub fn moves(&self) -> impl Iterator<Item = &SignedMove> {
        self.position.moves()
    }

    /// The transcript so far.
    pub fn entries(&self) -> &[SignedEntry] {
        self.position.entries()
    }

    /// What is being looked for.
    pub fn phase(&self) -> Phase {
        self.position.game().phase()
    }

    /// What is still in dispute.
    pub fn scope(&self) -> Scope {
        self.position.game().scope()
    }

    /// The round that is played, counted from 0.
    pub fn round(&self) -> u16 {
        self.position.game().round()
    }

    /// The verdict, once there is one.
    pub fn verdict(&self) -> Option<Verdict> {
        self.position.verdict()
    }

    /// When the machine wants [`Input::Tick`] if nothing else happens before.
    pub fn next_wake(&self) -> Option<Millis> {
        let clocks = self.position.clocks();
        let half = self.may_ask_challenger().then(|| clocks.half(Side::Claimant));
        clocks.next_wake().into_iter().chain(half).min()
    }

    /// What the sides are to be asked now: all that are waited for.
    pub fn asks(&self) -> Vec<Action> {
        if !self.is_open() {
            return Vec::new();
        }
        let is_opening = self.phase() == Phase::Open;
        let open_only = |side: Side| is_opening && side == Side::Challenger;
        let is_asked =
            |side: &Side| !self.position.has_moved(*side) && (!open_only(*side) || self.has_asked_challenger);
        let ask = |side: Side| Action::Ask { side, open_only: open_only(side) };
        Side::BOTH.into_iter().filter(is_asked).map(ask).collect()
    }

    /// The message that asks a side for its move.
    pub fn ask(&self, job: Job, side: Side) -> Ask {
        let open_only = self.phase() == Phase::Open && side == Side::Challenger;
        Ask { job, terms: self.terms().clone(), side, moves: self.position.moves().cloned().collect(), open_only }
    }

    /// Whether a move is waited for.
    fn is_open(&self) -> bool {
        self.position.due().is_none() && !matches!(self.phase(), Phase::Recompute | Phase::Ended)
    }

    fn may_ask_challenger(&self) -> bool {
        self.is_open() && self.phase() == Phase::Open && !self.has_asked_challenger
    }

    fn take_move(&mut self, now: Millis, signed: SignedMove, lowering: &dyn Lowering, out: &mut Output) {
        match self.position.examine(&signed, lowering) {
            Err((side, reason)) => self.refuse(side, reason, out),
            Ok(Examined::Repeat(side, index)) => {
                let entry = Box::new(self.entries()[usize::from(index)].clone());
                out.actions.push(Action::Repeated { side, entry });
            }
            Ok(examined @ (Examined::Legal(side, _) | Examined::Lost(side, _))) => {
                let round = self.round();
                let entry = self.next_entry(now, What::Moved { side, signed });
                self.position.take_move(entry.clone(), examined, lowering);
                out.entries.push(entry);
                if self.round() != round || !self.is_open() {
                    self.go_on(now, out);
                }
            }
        }
    }

    /// What is to be done now, once more.
    pub(super) fn again(&self) -> Output {
        let mut actions = self.asks();
        actions.extend(self.position.game().recompute().map(Action::Recompute));
        actions.extend(self.verdict().map(Action::Ended));
        Output { entries: Vec::new(), actions }
    }

    /// Does what is next by itself: the verdict that is due, the computation, or the questions of a round.
    fn go_on(&mut self, now: Millis, out: &mut Output) {
        match self.position.due() {
            Some(due) => self.end(now, due, out),
            None => out.actions.extend(self.again().actions),
        }
    }

    /// Refuses a move with a reason, so many times; then a side's illegal moves are ignored.
    fn refuse(&mut self, side: Option<Side>, reason: Refusal, out: &mut Output) {
        if let Some(side) = side {
            let refused = &mut self.refused[side.index()];
            *refused = refused.saturating_add(1);
            if *refused > MAX_REFUSED_MOVES {
                return;
            }
        }
        out.actions.push(Action::Refuse { side, reason });
    }

    /// Gives notice to whose clock has run out, ends the dispute when the time of grace is over, and asks the challenger
    /// to open when half of the claimant's time is.
    fn watch_clocks(&mut self, now: Millis, out: &mut Output) {
        if !self.is_open() {
            return;
        }
        for side in Side::BOTH {
            if self.position.clocks().is_out(side, now) {
                self.write(now, What::Notice { side }, out);
            }
        }
        if let Some(losers) = self.position.clocks().silent(now) {
            let verdict = self.position.game().clone().silence(losers);
            self.end(now, verdict, out);
        } else if self.may_ask_challenger() && self.position.clocks().half(Side::Claimant) <= now {
            self.has_asked_challenger = true;
            out.actions.push(Action::Ask { side: Side::Challenger, open_only: true });
        }
    }

    fn end(&mut self, now: Millis, verdict: Verdict, out: &mut Output) {
        self.write(now, What::Verdict(verdict), out);
        out.actions.push(Action::Ended(verdict));
    }

    /// Writes an entry that is no move.
    fn write(&mut self, now: Millis, what: What, out: &mut Output) {
        let entry = self.next_entry(now, what);
        self.position.take(entry.clone()).expect("the referee writes what follows");
        out.entries.push(entry);
    }

    fn next_entry(&self, now: Millis, what: What) -> SignedEntry {
        let last = &self.position.last().entry;
        let (dispute, index, previous) = (self.id(), last.index + 1, last.digest());
        Entry { dispute, index, previous, at: now.max(last.at), what }.sign(&self.keys)
    }
}
