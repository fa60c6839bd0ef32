//! Disputes about this worker's own runs: it answers what the coordinator asks, from a run made once more.
//!
//! - `play`: one question, from its checks to the move on its way.
//! - `desk`: where moves are made, one at a time, beside the engine.
//! - `traces`: the disputed layers, run once more from what was kept or from the tokens; `stopping` ends one that nobody waits for.
//! - `vault`: what must not be forgotten.
//!
//! The worker believes nobody's account: the terms must carry its own signature under the run, the position follows from
//! what both sides signed, and a move is durable before it is sent. Asked again for a round, after a crash or out of
//! malice, it sends the same bytes. Where its own run, made again, is not the one that it signed, it concedes.

mod desk;
mod play;
mod stopping;
mod traces;
mod vault;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lockstep_kernels::backend::Backend;
use lockstep_protocol::dispute::{DisputeId, Ground, Side, SignedEntry, SignedMove, TermsError, Verdict};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::NodeId;
use lockstep_protocol::job::JobError;
use lockstep_protocol::limits::WORKER_DISPUTES;
use lockstep_protocol::messages::Ask;

use self::desk::Desk;
pub(crate) use self::play::play;
use self::traces::Subject;
use self::vault::Vault;
use crate::event::{Event, Events};
use crate::kept::KeptRuns;
use crate::stage::Inputs;
use crate::store::blocking;

/// Why an ask is not answered, now or ever.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Another coordinator's dispute.
    #[error("the dispute is before another coordinator, {0}")]
    Coordinator(NodeId),
    /// The terms don't hold.
    #[error("the terms of the dispute: {0}")]
    Terms(#[from] TermsError),
    /// The job is not the terms'.
    #[error("the job is not the one that is disputed")]
    Job,
    /// The job or its layers are not allowed.
    #[error("{0}")]
    Bounds(#[from] JobError),
    /// This worker has signed neither of the two runs.
    #[error("neither of the disputed runs is by this worker")]
    NotMine,
}

/// An ask that was checked.
#[derive(Debug)]
pub(crate) struct Question {
    ask: Ask,
    dispute: DisputeId,
    /// Which one is this worker's.
    side: Side,
    ground: Ground,
}

impl Question {
    /// Checks everything but the moves: that this worker signed a run which differs from another one of the same job.
    fn new(ask: Ask, me: NodeId, coordinator: NodeId) -> Result<Self, AskError> {
        let terms = &ask.terms;
        if terms.coordinator != coordinator {
            return Err(AskError::Coordinator(terms.coordinator));
        }
        ask.job.check()?;
        if ask.job.header() != terms.job {
            return Err(AskError::Job);
        }
        let side = terms.side_of(&me).filter(|side| *side == ask.side).ok_or(AskError::NotMine)?;
        let ground = terms.check()?;
        Ok(Self { dispute: terms.id(), side, ground, ask })
    }

    /// The round that is asked about, counted from 0.
    fn round(&self) -> u16 {
        // An ask has few moves: its decoder caps them.
        u16::try_from(self.ask.moves.len() / 2).unwrap_or(u16::MAX)
    }

    /// The layers that this worker answers for, where others had the rest of the run.
    fn layers(&self) -> Option<(u16, u16)> {
        let claim = self.ask.terms.claim(self.side);
        let signed = claim.receipt().filter(|_| claim.is_shared())?;
        // Log-probabilities come after the last layer, and are whose that is.
        let layer = self.ground.place.layer.min(self.ask.terms.layers.saturating_add(1));
        let own = signed.members().find(|(_, first, last)| (*first..=*last).contains(&layer));
        own.map(|(_, first, last)| (first, last))
    }

    fn subject(&self) -> Subject {
        (self.ask.terms.job_id(), self.ground.place)
    }
}

/// An ask that was checked, and what is kept about it.
struct Checked {
    question: Arc<Question>,
    /// A move of the other side that was shown in place of another one.
    shown_before: Option<SignedMove>,
    /// The move that this worker signed for the round.
    signed_before: Option<SignedMove>,
}

/// What a worker has of its disputes, over all connections.
#[derive(Debug)]
pub(crate) struct Disputes {
    me: NodeId,
    coordinator: NodeId,
    events: Events,
    desk: Desk,
    vault: Arc<Vault>,
    /// Held while an ask is checked: one that is dropped while it waits costs nothing.
    checking: Arc<tokio::sync::Mutex<()>>,
    /// Those that are played.
    live: Mutex<BTreeMap<DisputeId, (Side, Subject)>>,
}

impl Disputes {
    pub fn new(
        dir: PathBuf,
        backend: Arc<dyn Backend>,
        (kept, inputs): (Arc<KeptRuns>, Inputs),
        keys: Keypair,
        coordinator: NodeId,
        events: Events,
    ) -> Self {
        let (me, vault) = (keys.id(), Arc::new(Vault::new(dir)));
        let desk = Desk::new(backend, (kept, inputs), keys, Arc::clone(&vault));
        Self { me, coordinator, events, desk, vault, checking: Arc::default(), live: Mutex::default() }
    }

    /// How many are played.
    pub fn live(&self) -> usize {
        self.list().len()
    }

    /// Keeps the coordinator's signature under a move: the proof that it came, and when.
    pub async fn acknowledged(&self, signed: SignedEntry) {
        let (vault, coordinator, dispute) = (Arc::clone(&self.vault), self.coordinator, signed.entry.dispute);
        let kept = blocking(move || match signed.check(&coordinator) {
            Ok(()) => vault.acknowledge(&signed).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        });
        if let Err(error) = kept.await.map_err(|failure| failure.reason).flatten() {
            tracing::warn!(%dispute, %error, "an acknowledgement is not kept");
        }
    }

    /// Ends a dispute. What it was played with is dropped, unless another one needs it.
    pub async fn judged(&self, dispute: DisputeId, verdict: Verdict) {
        let vault = Arc::clone(&self.vault);
        let kept = blocking(move || vault.judged(dispute, &verdict).map_err(|error| error.to_string()));
        if let Err(error) = kept.await.map_err(|failure| failure.reason).flatten() {
            tracing::warn!(%dispute, %error, "a verdict is not kept");
        }
        let (was, idle) = {
            let mut live = self.list();
            let was = live.remove(&dispute);
            (was, was.filter(|(_, subject)| live.values().all(|(_, other)| other != subject)))
        };
        let lost = was.map(|(side, _)| verdict.losers[side.index()]);
        self.events.emit(Event::DisputeJudged { dispute, verdict, lost });
        if let Some((_, subject)) = idle {
            self.desk.forget(subject);
        }
    }

    /// Ends what computes, and waits for it.
    pub async fn stop(&self) {
        self.desk.stop().await;
    }

    /// Checks an ask away from the reactor, and looks up what is kept about it.
    async fn check(self: &Arc<Self>, ask: Ask) -> Result<Checked, String> {
        let (held, turn) = (Arc::clone(self), Arc::clone(&self.checking).lock_owned().await);
        let checked = blocking(move || {
            let _turn = turn;
            let question = Question::new(ask, held.me, held.coordinator).map_err(|error| error.to_string())?;
            let shown_before = held.witness(&question);
            // One that can't be read is the desk's to complain about.
            let signed_before = held.vault.signed(question.dispute, question.round()).unwrap_or_default();
            Ok(Checked { question: Arc::new(question), shown_before, signed_before })
        });
        checked.await.map_err(|failure| failure.reason).flatten()
    }

    /// Remembers a dispute until its verdict. Of too many, one whose verdict was never heard goes.
    fn begin(&self, question: &Question) {
        let mut live = self.list();
        if live.len() >= WORKER_DISPUTES && !live.contains_key(&question.dispute) {
            live.pop_first();
        }
        live.insert(question.dispute, (question.side, question.subject()));
    }

    /// Keeps the moves of the other side as they are shown. Returns one that was shown before in place of another: the
    /// proof that the other side signed both.
    fn witness(&self, question: &Question) -> Option<SignedMove> {
        let other = question.side.other();
        let key = question.ask.terms.key(other);
        // One for each round and no others, so that nobody fills the disk with moves of rounds that never were.
        let theirs = (0..).zip(question.ask.moves.iter().skip(other.index()).step_by(2));
        let is_theirs = |shown: &SignedMove, round: u16| {
            (shown.made.dispute, shown.made.round) == (question.dispute, round) && shown.check(&key).is_ok()
        };
        let signed = theirs.filter(|(round, shown)| is_theirs(shown, *round)).map(|(_, shown)| shown);
        signed.into_iter().find_map(|shown| match self.vault.witness(shown) {
            Ok(before) => before,
            Err(error) => {
                tracing::warn!(dispute = %question.dispute, %error, "a move of the other side is not kept");
                None
            }
        })
    }

    fn list(&self) -> MutexGuard<'_, BTreeMap<DisputeId, (Side, Subject)>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
