//! One dispute from the first question to the verdict, in one thread, with a clock beside every part.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lockstep_model::dispute::{LayerCase, Trace};
use lockstep_protocol::canonical::to_bytes;
use lockstep_protocol::dispute::{Action, Input, Output, Player, Recompute, Referee, Side, SignedMove, Terms, Verdict};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::Millis;
use lockstep_protocol::job::Job;

use super::claims::Keys;

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
    inputs: Vec<Input>,
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

/// Passes of which the median counts.
const PASSES: usize = 51;

/// What the referee computes for a dispute, in seconds of this thread's processor time: the median over passes. It opens the
/// dispute, checks every move and opening, computes the element, and signs its transcript; nothing is read or written.
pub(super) fn referee_seconds(
    terms: &Terms,
    keys: &Keys,
    case: impl Fn() -> Result<LayerCase>,
    played: &Played,
) -> Result<f64> {
    let mut samples = Vec::with_capacity(PASSES);
    for _ in 0..PASSES {
        // A new case each time: it keeps the plan of the disputed row.
        let (case, terms, inputs) = (case()?, terms.clone(), played.inputs.clone());
        let start = thread_time();
        let (mut referee, _) = Referee::open(terms, NOW, keys.coordinator.clone(), &case)?;
        for input in inputs {
            let out = referee.handle(NOW, input, &case);
            for action in &out.actions {
                if let Action::Recompute(recompute) = action {
                    std::hint::black_box(evaluate(&case, recompute));
                }
            }
        }
        samples.push(thread_time().saturating_sub(start).as_secs_f64());
    }
    Ok(crate::samples::median(samples.into_iter()))
}

/// Processor time of this thread: what others do on the machine meanwhile is not the referee's.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
