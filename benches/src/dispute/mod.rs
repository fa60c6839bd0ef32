//! What disputes cost: one lie about each kind of op, played to its verdict with the real players and the real referee.
//!
//! - `lies`: which numbers are altered. `claims`: what both sides signed. `play`: the game, and who spends how long.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use lockstep_kernels::backend::Backend;
use lockstep_model::dispute::LayerCase;
use lockstep_model::package::Package;
use lockstep_model::rerun::rerun_job;
use lockstep_protocol::dispute::{Side, VerdictKind};
use lockstep_protocol::job::Job;
use lockstep_sim::adversary::Lie;

use self::claims::Keys;
use self::play::{Party, Played};

mod claims;
mod lies;
mod play;

/// A backend that tells a lie.
pub type Liar<'a> = dyn Fn(Lie) -> Arc<dyn Backend> + 'a;

/// What to dispute about.
#[derive(Debug)]
pub struct Workload<'a> {
    package: &'a Package,
    tokens: Vec<u32>,
    places: Vec<lies::Place>,
}

impl<'a> Workload<'a> {
    /// A job of so many positions on the model, with token ids that count up from 1,000, and one op of each kind to lie
    /// about. Of a decoder the last position is that of a generated token, and the lie is told there.
    ///
    /// # Errors
    /// The model has not so many positions.
    pub fn new(package: &'a Package, positions: usize) -> Result<Self> {
        let program = package.program();
        if positions == 0 || positions > program.max_positions as usize {
            bail!("the model takes 1 to {} positions, not {positions}", program.max_positions);
        }
        if program.is_decoder() && (positions < 2 || positions == program.max_positions as usize) {
            bail!("a generation takes 2 to {} positions here, not {positions}", program.max_positions - 1);
        }
        let prompt = positions - usize::from(program.is_decoder());
        let tokens = (0..prompt).map(|t| ((1_000 + t) % program.vocab_size as usize) as u32).collect();
        Ok(Self { package, tokens, places: lies::places(program) })
    }

    /// How many disputes there will be.
    pub fn disputes(&self) -> usize {
        self.places.len()
    }
}

/// What a player spends.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seconds {
    /// The disputed layer, run once more from the kept rows of the one below, with everything kept that may be asked for.
    pub layer: f64,
    /// All layers up to that one instead, as where nothing is kept any more.
    pub prefill: f64,
    /// All its moves: the steps of the disputed row, hashes, openings and signatures.
    pub game: f64,
}

impl Seconds {
    /// Layer and moves together.
    pub fn total(&self) -> f64 {
        self.layer + self.game
    }
}

/// One dispute.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The kind of op that was lied about.
    pub op: &'static str,
    /// Its layer.
    pub layer: usize,
    /// The first layer whose root differs: that one, or 1 for the embedding.
    pub disputed_layer: u16,
    /// Rounds in which anybody moved.
    pub rounds: u16,
    /// Bytes of all signed moves.
    pub referee_bytes: u64,
    /// What the referee computes: all of it, without disk and network. Median of several passes.
    pub referee_seconds: f64,
    /// What claimant and challenger spend.
    pub players: [Seconds; 2],
    /// Whether the liar, and nobody else, lost.
    pub claimant_loses: bool,
    /// How the verdict is known.
    pub kind: VerdictKind,
    /// The step in dispute at the end, such as `matmul.out`.
    pub step: Option<String>,
    /// The element of it, by its index in the padded tensor.
    pub element: Option<u64>,
}

impl Measured {
    /// What the slower player spends.
    pub fn slower(&self) -> Seconds {
        let [a, b] = self.players;
        if a.total() < b.total() { b } else { a }
    }

    /// Where it ended, for people.
    pub fn ended(&self) -> String {
        let step = self.step.as_deref().unwrap_or("no step");
        self.element.map_or_else(|| step.to_owned(), |element| format!("{step}[{element}]"))
    }
}

/// Plays all disputes, one after the other. `done` is told how many are.
///
/// # Errors
/// A backend fails, no lie about an op shows, or an honest move is refused.
pub fn measure(
    workload: &Workload<'_>,
    honest: &dyn Backend,
    liar: &Liar<'_>,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Measured>> {
    let job = claims::job(workload.package, workload.tokens.clone());
    let truth = rerun_job(workload.package, honest, &job, &[])?;
    let mut all = Vec::with_capacity(workload.places.len());
    for place in &workload.places {
        let (lie, lied) = lies::tell(workload.package, &job, *place, &truth, liar)?;
        all.push(one(workload, &job, lie, [&lied, &truth], [&*liar(lie), honest])?);
        done(all.len());
    }
    Ok(all)
}

/// One dispute: the liar's run is challenged by the honest one.
fn one(
    workload: &Workload<'_>,
    job: &Job,
    lie: Lie,
    runs: [&lockstep_model::rerun::Rerun; 2],
    backends: [&dyn Backend; 2],
) -> Result<Measured> {
    let (package, keys) = (workload.package, Keys::new());
    let terms = claims::terms(package, job, &keys, runs)?;
    let place = terms.check()?.place;
    let case = || Ok(LayerCase::new(package.manifest(), &terms.job, place)?);
    let party = |side: Side| {
        let (backend, keys) = (backends[side.index()], &keys.sides[side.index()]);
        Party::prepare(package, backend, (&terms, job), (side, keys))
    };
    let mut parties = [party(Side::Claimant)?, party(Side::Challenger)?];
    let referee_case = case()?;
    let played = play::play(&terms, job, &keys, &referee_case, &mut parties)?;
    let referee_seconds = play::referee_seconds(&terms, &keys, case, &played)?;
    let Played { verdict, rounds, bytes, .. } = played;
    let step = verdict.chunk.zip(verdict.step).and_then(|(chunk, step)| {
        let plan = referee_case.plan(chunk);
        plan.steps().get(usize::from(step)).map(|step| step.name(package.program()))
    });
    let seconds = |duration: Duration| duration.as_secs_f64();
    Ok(Measured {
        op: package.program().layers[lie.layer].ops[lie.op].name(),
        layer: lie.layer,
        disputed_layer: place.layer,
        rounds,
        referee_bytes: bytes,
        referee_seconds,
        players: parties.map(|party| Seconds {
            layer: seconds(party.layer),
            prefill: seconds(party.prefill),
            game: seconds(party.game),
        }),
        claimant_loses: verdict.losers == [true, false],
        kind: verdict.kind,
        step,
        element: verdict.element,
    })
}
