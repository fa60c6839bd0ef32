//! One dispute from the first question to the verdict, in one thread, with a clock beside every part.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lockstep_kernels::backend::{Backend, Executor};
use lockstep_kernels::value::Batch;
use lockstep_model::dispute::{Below, LayerCase, Trace};
use lockstep_model::embed::embed;
use lockstep_model::package::Package;
use lockstep_protocol::canonical::to_bytes;
use lockstep_protocol::dispute::{Action, Input, Output, Player, Recompute, Referee, Side, SignedMove, Terms, Verdict};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Millis, Place};
use lockstep_protocol::job::Job;

use super::claims::Keys;

/// A side with its own run of the disputed layer.
pub(super) struct Party {
    side: Side,
    keys: Keypair,
    case: LayerCase,
    trace: Trace,
    /// What it took to run the disputed layer, from the rows of the one below, which a worker keeps for a while; the layer
    /// that follows from the tokens is run from these.
    pub layer: Duration,
    /// What it took to run everything up to that layer, as where nothing is kept.
    pub prefill: Duration,
    /// What its moves took so far.
    pub game: Duration,
}

impl Party {
    /// Runs the disputed layer, as a worker does that is asked for its first move: from what it kept, and from the tokens.
    /// The model is loaded before. It plays by what came out of the former.
    pub fn prepare(
        package: &Package,
        backend: &dyn Backend,
        (terms, job): (&Terms, &Job),
        (side, keys): (Side, &Keypair),
    ) -> Result<Self> {
        let ground = terms.check()?;
        let place = ground.place;
        let case = LayerCase::new(package.manifest(), &terms.job, place)?;
        let mut executor = backend.load(Arc::clone(package.program()), package.params())?;
        let (program, params) = (package.program(), package.params());
        let start = Instant::now();
        let whole = Trace::of_job(&mut *executor, program, Arc::clone(&params), job, &ground.words, place)?;
        let prefill = start.elapsed();
        let (mut trace, mut layer) = (whole, prefill);
        // A worker keeps rows of embeddings only.
        if !program.is_decoder() {
            let kept = rows_below(&mut *executor, package, job, place)?;
            let below = Below { rows: &kept, signed: terms.claim(side).last_roots() };
            let start = Instant::now();
            if let Some(resumed) = Trace::resume(&mut *executor, program, params, &job.tokens, place, below)? {
                (trace, layer) = (resumed, start.elapsed());
            }
        }
        Ok(Self { side, keys: keys.clone(), case, trace, layer, prefill, game: Duration::ZERO })
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

/// The output of the layer below the disputed one, as a worker has it from its first run.
fn rows_below(executor: &mut dyn Executor, package: &Package, job: &Job, place: Place) -> Result<Vec<i32>> {
    let mut kept = Vec::new();
    embed(executor, package.program(), &Batch::single(job.tokens.clone()), |layer| {
        if layer.layer + 1 == usize::from(place.layer) {
            kept = layer.sequence(0).to_vec();
        }
        ControlFlow::Continue(())
    })?;
    Ok(kept)
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

/// What the referee computes for a dispute, in seconds: the median over passes. It opens the dispute, checks every
/// signature, move and opening, computes the element, and signs its transcript; nothing is read or written.
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
        let start = Instant::now();
        let (mut referee, _) = Referee::open(terms, NOW, keys.coordinator.clone(), &case)?;
        for input in inputs {
            let out = referee.handle(NOW, input, &case);
            for action in &out.actions {
                if let Action::Recompute(recompute) = action {
                    std::hint::black_box(evaluate(&case, recompute));
                }
            }
        }
        samples.push(start.elapsed().as_secs_f64());
    }
    Ok(crate::samples::median(samples.into_iter()))
}
