//! One dispute from the first question to the verdict, in one thread, with a clock beside every part.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lockstep_model::dispute::{LayerCase, Trace};
use lockstep_protocol::canonical::to_bytes;
use lockstep_protocol::dispute::{Action, Input, Output, Player, Recompute, Referee, Side, SignedMove, Terms, Verdict};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Millis, Place};
use lockstep_protocol::job::Job;

use super::claims::Keys;
use crate::processor::thread_seconds;
use crate::samples::Samples;

/// A side with its own run of the disputed layer.
pub(super) struct Party {
    side: Side,
    keys: Keypair,
    case: LayerCase,
    trace: Trace,
    /// What its moves took so far.
    pub game: Duration,
}

impl Party {
    /// Nobody has moved yet.
    pub fn new(side: Side, keys: &Keypair, case: LayerCase, trace: Trace) -> Self {
        Self { side, keys: keys.clone(), case, trace, game: Duration::ZERO }
    }

    /// The next move after these complete rounds, from what both sides signed and nothing else.
    fn next(&mut self, terms: &Terms, moves: &[SignedMove]) -> Result<SignedMove> {
        let start = Instant::now();
        let player = Player::new(terms, self.side, moves, &self.case)?;
        let body = player.next(&mut self.trace, &self.case)?;
        let signed = player.made(body).sign(&self.keys);
        self.game += start.elapsed();
        Ok(signed)
    }
}

/// What happened before the referee.
pub(super) struct Played {
    /// What the referee was told, in order.
    pub inputs: Vec<Input>,
    pub verdict: Verdict,
    pub rounds: u16,
    /// Bytes of all signed moves.
    pub bytes: u64,
}

/// The referee's time does not matter here: its clocks stand still.
const NOW: Millis = Millis(1);

/// Plays a dispute to its end.
pub(super) fn play(
    terms: &Terms,
    job: &Job,
    keys: &Keys,
    case: &LayerCase,
    parties: &mut [Party; 2],
) -> Result<Played> {
    let (mut referee, Output { actions, .. }) = Referee::open(terms.clone(), NOW, keys.coordinator.clone(), case)?;
    let mut actions = VecDeque::from(actions);
    let (mut inputs, mut rounds, mut bytes) = (Vec::new(), 0, 0);
    while let Some(action) = actions.pop_front() {
        let input = match action {
            Action::Ask { side, .. } => {
                let moves = referee.ask(job.clone(), side).moves;
                let signed = parties[side.index()].next(terms, &moves)?;
                rounds = rounds.max(signed.made.round + 1);
                bytes += to_bytes(&signed).len() as u64;
                Input::Move(signed)
            }
            Action::Recompute(recompute) => Input::Recomputed { value: evaluate(case, &recompute) },
            Action::Ended(verdict) => return Ok(Played { inputs, verdict, rounds, bytes }),
            Action::Refuse { side, reason } => bail!("the referee refused an honest move ({side:?}): {reason}"),
            Action::Repeated { side, .. } => bail!("the {side} moved twice"),
        };
        actions.extend(referee.handle(NOW, input.clone(), case).actions);
        inputs.push(input);
    }
    None.context("the dispute did not end")
}

fn evaluate(case: &LayerCase, recompute: &Recompute) -> i64 {
    let data: Vec<&[u8]> = recompute.data.iter().map(Vec::as_slice).collect();
    case.evaluate(recompute.chunk, recompute.step, recompute.element, &data)
}

/// A dispute that was played: with it a referee can be put to work again.
#[derive(Clone, Debug)]
pub(super) struct Game {
    pub terms: Terms,
    pub place: Place,
    pub coordinator: Keypair,
    /// What the referee was told, in order.
    pub inputs: Vec<Input>,
}

impl Game {
    /// All that the referee computes for it: it opens the dispute, checks every move and opening, computes the element, and
    /// signs its transcript; nothing is read or written. A case is used once: it keeps the plan of the disputed row.
    pub fn referee(self, case: &LayerCase) -> Result<Option<Verdict>> {
        let (mut referee, _) = Referee::open(self.terms, NOW, self.coordinator, case)?;
        let mut verdict = None;
        for input in self.inputs {
            for action in referee.handle(NOW, input, case).actions {
                match action {
                    Action::Recompute(recompute) => {
                        std::hint::black_box(evaluate(case, &recompute));
                    }
                    Action::Ended(ended) => verdict = Some(ended),
                    _ => {}
                }
            }
        }
        Ok(verdict)
    }
}

/// Passes that count.
const PASSES: usize = 51;

/// What the referee computes for a dispute, in seconds of this thread's processor time, in each pass.
pub(super) fn referee_seconds(game: &Game, case: impl Fn() -> Result<LayerCase>) -> Result<Samples> {
    let mut samples = Vec::with_capacity(PASSES);
    for _ in 0..PASSES {
        let (case, game) = (case()?, game.clone());
        let start = thread_seconds();
        game.referee(&case)?;
        samples.push(thread_seconds() - start);
    }
    Ok(Samples(samples))
}
