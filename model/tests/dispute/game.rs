//! Two players and a referee, without a network.

use lockstep_kernels::backend::Backend;
use lockstep_model::dispute::{LayerCase, Trace};
use lockstep_protocol::dispute::{
    Action, Claim, Input, MoveBody, Output, Player, Referee, Side, SignedEntry, Terms, Verdict, What,
};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{Millis, Place};

use crate::world::World;

/// A dispute that has ended.
pub struct Played {
    pub entries: Vec<SignedEntry>,
    pub verdict: Verdict,
}

impl Played {
    /// Whether the element was recomputed from an opening.
    pub fn opened(&self) -> bool {
        let is_opening = |entry: &SignedEntry| match &entry.entry.what {
            What::Moved { signed, .. } => matches!(signed.made.body, MoveBody::Open { .. }),
            _ => false,
        };
        self.entries.iter().any(is_opening)
    }
}

pub fn keys(number: u8) -> Keypair {
    Keypair::from_seed([number; 32])
}

/// The terms between two runs; none where they do not differ.
pub fn terms(world: &World, backends: [&dyn Backend; 2]) -> Option<Terms> {
    let claims = [0, 1].map(|i| Claim::from(world.run(backends[i], &keys(i as u8 + 1), i as u64 + 1)));
    let job = world.job.header();
    Terms::between(keys(9).id(), job, world.layers(), claims, Vec::new(), [600_000; 2]).ok()
}

/// What the owner of a backend can say about a place.
pub fn trace(world: &World, backend: &dyn Backend, place: Place) -> Trace {
    let (program, params) = (world.package.program(), world.package.params());
    let mut executor = backend.load(program.clone(), params.clone()).unwrap();
    Trace::run(&mut *executor, program, params, &world.job.tokens, place).unwrap()
}

/// Plays to the end. Both sides answer every question from their evidence.
pub fn play(world: &World, terms: &Terms, evidence: [&mut Trace; 2]) -> Played {
    let case = LayerCase::of_terms(world.package.manifest(), terms).unwrap();
    let (mut referee, out) = Referee::open(terms.clone(), Millis(1_000), keys(9), &case).unwrap();
    let mut actions = out.actions;
    let mut now = 1_000;
    let [a, b] = evidence;
    while referee.verdict().is_none() {
        assert!(!actions.is_empty(), "the referee waits for nobody in {:?}", referee.phase());
        for action in std::mem::take(&mut actions) {
            now += 7;
            let out: Output = match action {
                Action::Ask { side, .. } => {
                    let ask = referee.ask(world.job.clone(), side);
                    let evidence = if side == Side::Claimant { &mut *a } else { &mut *b };
                    let player = Player::new(terms, side, &ask.moves, &case).unwrap();
                    let body = player.next(evidence, &case).unwrap();
                    let signed = player.sign(body, &keys(side.index() as u8 + 1), &[]).unwrap();
                    referee.handle(Millis(now), Input::Move(signed), &case)
                }
                Action::Recompute(element) => {
                    let value = case.recompute(&element);
                    referee.handle(Millis(now), Input::Recomputed { value }, &case)
                }
                Action::Refuse { side, reason } => panic!("{side:?}: {reason}"),
                Action::Repeated { .. } | Action::Ended(_) => Output::default(),
            };
            actions.extend(out.actions);
        }
    }
    Played { entries: referee.entries().to_vec(), verdict: referee.verdict().unwrap() }
}
