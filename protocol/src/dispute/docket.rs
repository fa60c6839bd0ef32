//! The docket: all disputes of a coordinator, side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use thiserror::Error;

use crate::dispute::referee::{Input, Output, Referee};
use crate::dispute::transcript::{self, TranscriptError};
use crate::dispute::{Lowering, SignedEntry, Terms, TermsError};
use crate::identity::Keypair;
use crate::ids::{DisputeId, JobId, LeaseEpoch, Millis, NodeId};
use crate::limits::MAX_DISPUTES;

/// Why a dispute is not opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DocketError {
    /// The terms are no dispute.
    #[error("{0}")]
    Terms(#[from] TermsError),
    /// The entries of a dispute that is gone on with are not its transcript.
    #[error("{0}")]
    Transcript(#[from] TranscriptError),
    /// The terms name another coordinator.
    #[error("the terms are for coordinator {0}")]
    AnotherCoordinator(NodeId),
    /// The two runs were disputed before, on other terms.
    #[error("these two runs have been disputed already")]
    Again,
    /// The time for joining is over.
    #[error("the time for challenges ended at {0}")]
    TooLate(Millis),
    /// As many disputes go on as are allowed.
    #[error("{MAX_DISPUTES} disputes go on already: try again later")]
    Full,
}

/// One dispute and the program that it is about.
struct Case {
    referee: Referee,
    lowering: Arc<dyn Lowering>,
}

/// All disputes of a coordinator: those that go on, and those that have ended and were not forgotten yet.
pub struct Docket {
    keys: Keypair,
    cases: BTreeMap<DisputeId, Case>,
    /// Which runs have been disputed.
    parties: BTreeSet<Parties>,
    /// In the order in which they ended.
    ended: Vec<DisputeId>,
}

impl std::fmt::Debug for Docket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Docket({} disputes, {} of them ended)", self.cases.len(), self.ended.len())
    }
}

impl Docket {
    /// An empty docket of the coordinator with these keys.
    pub fn new(keys: Keypair) -> Self {
        Self { keys, cases: BTreeMap::new(), parties: BTreeSet::new(), ended: Vec::new() }
    }

    /// Opens a dispute. Terms that were opened before name the same dispute: nothing is written then, and the actions
    /// say again what is to be done. After `joins_until`, where there is such a time, nobody joins any more.
    ///
    /// # Errors
    /// [`DocketError`].
    pub fn open(
        &mut self,
        now: Millis,
        terms: Terms,
        lowering: Arc<dyn Lowering>,
        joins_until: Option<Millis>,
    ) -> Result<(DisputeId, Output), DocketError> {
        let id = terms.id();
        if let Some(case) = self.cases.get(&id) {
            return Ok((id, case.referee.again()));
        }
        if terms.coordinator != self.keys.id() {
            return Err(DocketError::AnotherCoordinator(terms.coordinator));
        }
        if self.parties.contains(&parties(&terms)) {
            return Err(DocketError::Again);
        }
        if let Some(until) = joins_until.filter(|until| *until < now) {
            return Err(DocketError::TooLate(until));
        }
        if self.open_count() >= MAX_DISPUTES {
            return Err(DocketError::Full);
        }
        let (referee, out) = Referee::open(terms, now, self.keys.clone(), &*lowering)?;
        self.insert(referee, lowering);
        Ok((id, out))
    }

    /// Goes on with a dispute of which these entries are durable, after the coordinator was down for so long.
    ///
    /// # Errors
    /// [`DocketError::Transcript`].
    pub fn restore(
        &mut self,
        now: Millis,
        down_ms: u64,
        entries: Vec<SignedEntry>,
        lowering: Arc<dyn Lowering>,
    ) -> Result<(DisputeId, Output), DocketError> {
        let id = transcript::terms(&entries)?.id();
        let mut referee = Referee::restore(&entries, self.keys.clone(), &*lowering)?;
        let mut out = referee.handle(now, Input::Downtime { ms: down_ms }, &*lowering);
        let more = referee.resume(now);
        out.entries.extend(more.entries);
        // What is to be done may follow from the downtime already.
        out.actions = more.actions;
        self.insert(referee, lowering);
        self.note_end(id);
        Ok((id, out))
    }

    /// Takes what happened in one dispute; `None` where there is no such dispute.
    pub fn handle(&mut self, now: Millis, dispute: DisputeId, input: Input) -> Option<Output> {
        let case = self.cases.get_mut(&dispute)?;
        let out = case.referee.handle(now, input, &*case.lowering);
        self.note_end(dispute);
        Some(out)
    }

    /// Tells every dispute that goes on that time has passed. Returns those in which something came of it.
    pub fn tick(&mut self, now: Millis) -> Vec<(DisputeId, Output)> {
        self.handle_all(now, &Input::Tick)
    }

    /// Tells every dispute that goes on that the coordinator was down for so long.
    pub fn downtime(&mut self, now: Millis, ms: u64) -> Vec<(DisputeId, Output)> {
        self.handle_all(now, &Input::Downtime { ms })
    }

    fn handle_all(&mut self, now: Millis, input: &Input) -> Vec<(DisputeId, Output)> {
        let open: Vec<_> = self.open_cases().map(Referee::id).collect();
        let outputs = open.into_iter().filter_map(|id| Some((id, self.handle(now, id, input.clone())?)));
        outputs.filter(|(_, out)| *out != Output::default()).collect()
    }

    /// When the docket wants [`Docket::tick`] if nothing else happens before.
    pub fn next_wake(&self) -> Option<Millis> {
        self.open_cases().filter_map(Referee::next_wake).min()
    }

    /// A dispute.
    pub fn get(&self, dispute: &DisputeId) -> Option<&Referee> {
        self.cases.get(dispute).map(|case| &case.referee)
    }

    /// The disputes that go on and that a key plays in, to ask it again when it connects.
    pub fn of_key<'a>(&'a self, key: &'a NodeId) -> impl Iterator<Item = &'a Referee> {
        self.open_cases().filter(|referee| referee.terms().side_of(key).is_some())
    }

    /// The disputes that go on.
    pub fn open_cases(&self) -> impl Iterator<Item = &Referee> {
        self.cases.values().map(|case| &case.referee).filter(|referee| referee.verdict().is_none())
    }

    fn open_count(&self) -> usize {
        self.cases.len() - self.ended.len()
    }

    fn insert(&mut self, referee: Referee, lowering: Arc<dyn Lowering>) {
        self.parties.insert(parties(referee.terms()));
        self.cases.insert(referee.id(), Case { referee, lowering });
    }

    /// Remembers an end, and forgets the oldest of too many.
    fn note_end(&mut self, id: DisputeId) {
        let has_ended = self.cases.get(&id).is_some_and(|case| case.referee.verdict().is_some());
        if has_ended && !self.ended.contains(&id) {
            self.ended.push(id);
        }
        if self.ended.len() > MAX_DISPUTES
            && let Some(case) = self.cases.remove(&self.ended.remove(0))
        {
            self.parties.remove(&parties(case.referee.terms()));
        }
    }
}

/// The runs of a dispute: the job, and whose they are under which leases, of claimant and challenger. Two keys may differ
/// again under new leases of the job.
type Parties = (JobId, [(NodeId, LeaseEpoch); 2]);

fn parties(terms: &Terms) -> Parties {
    (terms.job_id(), [&terms.claimant, &terms.challenger].map(|claim| (claim.worker(), claim.epoch())))
}
