//! What disputes cost: one lie about each kind of op, and one about log-probabilities, played to its verdict with the real players and the real referee.
//!
//! - `honest`: the run that both sides share up to the lie. `lies`: which numbers are altered. `claims`: what both sides
//!   signed. `play`: the game, and who spends how long. `many`: how many a second.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use lockstep_kernels::backend::Backend;
use lockstep_model::dispute::LayerCase;
use lockstep_model::package::Package;
use lockstep_protocol::dispute::{Side, VerdictKind};
use lockstep_sim::adversary::Lie;

use crate::samples::Samples;
use crate::watch::{Seen, Watch};

use self::claims::Keys;
use self::honest::Honest;
use self::lies::Lied;
pub use self::many::{Rates, rates};
use self::play::{Game, Party, Played};

mod claims;
mod honest;
mod lies;
mod many;
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
        if program.is_decoder() && positions < 2 {
            bail!("a generation takes 2 positions or more here, not {positions}");
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
#[derive(Clone, Debug)]
pub struct Measured {
    /// The kind of op that was lied about; `logprobs` where it was these.
    pub op: &'static str,
    /// Its layer; of log-probabilities one after the last.
    pub layer: usize,
    /// The first layer whose root differs: that one, or 1 for the embedding; of log-probabilities, for which no root differs,
    /// one after the last.
    pub disputed_layer: u16,
    /// Rounds in which anybody moved.
    pub rounds: u16,
    /// Bytes of all signed moves.
    pub referee_bytes: u64,
    /// What the referee computes: all of it, without disk and network. One sample for each of several passes.
    pub referee_seconds: Samples,
    /// What was to be seen while it was played.
    pub seen: Seen,
    /// What claimant and challenger spend.
    pub players: [Seconds; 2],
    /// What an honest player spends on all layers up to the disputed one, where nothing of its run is kept any more.
    pub prefill_seconds: f64,
    /// What the middle layer takes over all positions, without anything that a dispute needs of it.
    pub middle_seconds: f64,
    /// Whether the liar, and nobody else, lost.
    pub claimant_loses: bool,
    /// How the verdict is known.
    pub kind: VerdictKind,
    /// The step in dispute at the end, such as `matmul.out`.
    pub step: Option<String>,
    /// The element of it, by its index in the padded tensor.
    pub element: Option<u64>,
    /// To referee it again.
    game: Game,
}

impl Measured {
    /// What the slower player spends.
    pub fn slower(&self) -> Seconds {
        let [a, b] = self.players;
        if a.total() < b.total() { b } else { a }
    }

    /// What the slower player spends, in units of the middle layer.
    pub fn layers(&self) -> f64 {
        self.slower().total() / self.middle_seconds
    }

    /// Where it ended, for people.
    pub fn ended(&self) -> String {
        let step = self.step.as_deref().unwrap_or("no step");
        self.element.map_or_else(|| step.to_owned(), |element| format!("{step}[{element}]"))
    }
}

/// Plays all disputes, one after the other: the liar's run is challenged by the honest one. The honest run is made once.
/// `take` gets each as soon as it is done.
///
/// # Errors
/// A backend fails, no lie about an op shows, or an honest move is refused; whatever `take` says.
pub fn measure(
    workload: &Workload<'_>,
    honest: &dyn Backend,
    liar: &Liar<'_>,
    take: &mut dyn FnMut(&Measured) -> Result<()>,
) -> Result<Vec<Measured>> {
    let job = claims::job(workload.package, workload.tokens.clone());
    let truth = Honest::run(workload.package, honest, &job)?;
    let middle = truth.middle(honest)?;
    let (mut all, mut prefills) = (Vec::with_capacity(workload.places.len()), BTreeMap::new());
    for at in &workload.places {
        let watch = Watch::start();
        let lied = lies::tell(&truth, *at, honest, liar)?;
        let prefill = match prefills.entry(lied.place.layer) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(room) => *room.insert(truth.prefill(honest, lied.place)?),
        };
        let mut measured = one(&truth, honest, lied, [middle, prefill])?;
        measured.seen = watch.seen();
        take(&measured)?;
        all.push(measured);
    }
    Ok(all)
}

/// One dispute.
fn one(truth: &Honest<'_>, backend: &dyn Backend, lied: Lied, [middle, prefill]: [Duration; 2]) -> Result<Measured> {
    let (package, keys) = (truth.package, Keys::new());
    let terms = claims::terms(truth, &keys, &lied)?;
    let Lied { op, layer_of_op, place, trace, layer, .. } = lied;
    ensure!(terms.check()?.place == place, "the runs differ elsewhere than at the lie");
    let case = || Ok(LayerCase::new(package.manifest(), &terms.job, place)?);
    let mut executor = backend.load(Arc::clone(package.program()), package.params())?;
    let (honest, honest_layer) = truth.trace(&mut *executor, place)?;
    drop(executor);
    let [liar_keys, honest_keys] = &keys.sides;
    let mut parties = [
        Party::new(Side::Claimant, liar_keys, case()?, trace),
        Party::new(Side::Challenger, honest_keys, case()?, honest),
    ];
    let referee_case = case()?;
    let played = play::play(&terms, truth.job, &keys, &referee_case, &mut parties)?;
    let Played { inputs, verdict, rounds, bytes } = played;
    let game = Game { terms: terms.clone(), place, coordinator: keys.coordinator.clone(), inputs };
    let referee_seconds = play::referee_seconds(&game, case)?;
    let step = verdict.chunk.zip(verdict.step).and_then(|(chunk, step)| {
        let plan = referee_case.plan(chunk);
        plan.steps().get(usize::from(step)).map(|step| step.name(package.program()))
    });
    let [claimant, challenger] = parties.map(|party| party.game);
    let seconds = |layer: Duration, game: Duration| Seconds { layer: layer.as_secs_f64(), game: game.as_secs_f64() };
    Ok(Measured {
        op,
        layer: layer_of_op,
        disputed_layer: place.layer,
        rounds,
        referee_bytes: bytes,
        referee_seconds,
        seen: Seen::default(),
        players: [seconds(layer, claimant), seconds(honest_layer, challenger)],
        prefill_seconds: prefill.as_secs_f64(),
        middle_seconds: middle.as_secs_f64(),
        claimant_loses: verdict.losers == [true, false],
        kind: verdict.kind,
        step,
        element: verdict.element,
        game,
    })
}
