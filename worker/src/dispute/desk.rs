//! Where moves are made: one at a time, beside the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lockstep_kernels::backend::Backend;
use lockstep_model::dispute::LayerCase;
use lockstep_protocol::dispute::{MoveBody, Player, PlayerError, SignedMove};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::limits::WORKER_TRACE_IDLE_MS;
use tokio::sync::Mutex;

use super::Question;
use super::stopping::Stopping;
use super::traces::{From, Subject, Traces};
use super::vault::Vault;
use crate::kept::KeptRuns;
use crate::stage::Inputs;
use crate::store::{Model, blocking};

/// What came of a question.
#[derive(Debug)]
pub(crate) enum Made {
    /// The move, kept already.
    Move(SignedMove),
    /// This worker's own run, made once more, is not the one that it signed; how.
    Differs(String),
}

/// Why there is no move, for people.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It may pass: a disk, a device.
    Passing(String),
    /// What was asked has no answer.
    Lasting(String),
}

impl Trouble {
    fn passing(error: impl ToString) -> Self {
        Self::Passing(error.to_string())
    }

    fn lasting(error: impl ToString) -> Self {
        Self::Lasting(error.to_string())
    }
}

/// Makes one move at a time. A question that is dropped while it waits costs nothing; one that is being answered is
/// answered, and its trace kept for the next one.
pub(crate) struct Desk {
    hand: Arc<Mutex<Hand>>,
    stop: Arc<AtomicBool>,
    /// Whether a task waits to drop what nobody asks for.
    is_watched: Arc<AtomicBool>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Desk {
    pub fn new(backend: Arc<dyn Backend>, kept: (Arc<KeptRuns>, Inputs), keys: Keypair, vault: Arc<Vault>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let backend = Arc::new(Stopping { inner: backend, stop: Arc::clone(&stop) });
        let hand = Hand { keys, vault, traces: Traces::new(backend, kept), used: Instant::now() };
        Self { hand: Arc::new(Mutex::new(hand)), stop, is_watched: Arc::default() }
    }

    /// Makes the move that a question asks for. `is_last_word` says that the model was verified again since the run was
    /// found to differ: then the worker concedes.
    ///
    /// # Errors
    /// Why there is no move.
    pub async fn make(&self, question: &Arc<Question>, model: Arc<Model>, is_last_word: bool) -> Result<Made, Trouble> {
        let mut hand = Arc::clone(&self.hand).lock_owned().await;
        let question = Arc::clone(question);
        let made = blocking(move || hand.make(&question, &model, is_last_word)).await;
        self.drop_when_idle();
        made.map_err(|failure| Trouble::Passing(failure.reason))?
    }

    /// Drops the trace of a place, once nothing is made.
    pub fn forget(&self, subject: Subject) {
        let hand = Arc::clone(&self.hand);
        tokio::spawn(async move { hand.lock().await.traces.forget(&subject) });
    }

    /// Ends the run that is under way after its current layer, and waits for that. None is made any more.
    pub async fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.hand.lock().await.traces.clear();
    }

    /// Traces take memory: they are dropped when nobody has asked for a while. One task at a time looks.
    fn drop_when_idle(&self) {
        const IDLE: Duration = Duration::from_millis(WORKER_TRACE_IDLE_MS);
        if self.is_watched.swap(true, Ordering::Relaxed) {
            return;
        }
        let (hand, is_watched) = (Arc::downgrade(&self.hand), Arc::clone(&self.is_watched));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE).await;
                let Some(hand) = hand.upgrade() else { return };
                let mut hand = hand.lock().await;
                if hand.used.elapsed() >= IDLE {
                    hand.traces.clear();
                    is_watched.store(false, Ordering::Relaxed);
                    return;
                }
            }
        });
    }
}

struct Hand {
    keys: Keypair,
    vault: Arc<Vault>,
    traces: Traces,
    used: Instant,
}

impl Hand {
    fn make(&mut self, question: &Question, model: &Model, is_last_word: bool) -> Result<Made, Trouble> {
        self.used = Instant::now();
        let made = self.next(question, model, is_last_word);
        self.used = Instant::now();
        made
    }

    /// A move that was signed for the round before is the move: whatever has happened since, no other is signed.
    fn next(&mut self, question: &Question, model: &Model, is_last_word: bool) -> Result<Made, Trouble> {
        let (ask, side, place) = (&question.ask, question.side, question.ground.place);
        if let Some(kept) = self.vault.signed(question.dispute, question.round()).map_err(Trouble::passing)? {
            return Ok(Made::Move(kept));
        }
        let case = LayerCase::new(model.package.manifest(), &ask.terms.job, place).map_err(Trouble::lasting)?;
        let player = Player::new(&ask.terms, side, &ask.moves, &case).map_err(Trouble::lasting)?;
        let signed = &ask.terms.signed(side, &question.ground)[..];
        // The last word is not had from memory.
        let epoch = ask.terms.claim(side).epoch();
        let from = match question.layers() {
            Some((first, _)) => From::Received { epoch, first, signed },
            None if is_last_word => From::Tokens,
            None => From::KeptRuns { signed },
        };
        let trace = self.traces.get(model, &ask.job, &question.ground, from).map_err(Trouble::Passing)?;
        let next = if trace.agrees_with(signed) {
            player.next(trace, &case)
        } else {
            Err(PlayerError::NotWhatWasSigned("it has other roots".into()))
        };
        let body = match next {
            Ok(body) => body,
            Err(PlayerError::NotWhatWasSigned(_)) if is_last_word => MoveBody::Concede,
            Err(PlayerError::NotWhatWasSigned(reason)) => {
                self.traces.forget(&question.subject());
                return Ok(Made::Differs(reason));
            }
            Err(PlayerError::Evidence(error)) => return Err(Trouble::passing(error)),
            Err(error) => return Err(Trouble::lasting(error)),
        };
        let signed = player.sign(body, &self.keys, &[]).map_err(Trouble::lasting)?;
        // Durable before anybody sees it.
        self.vault.keep(signed).map(Made::Move).map_err(Trouble::passing)
    }
}
