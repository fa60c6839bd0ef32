//! Disputes about the toy layer.

mod clocks;
mod docket;
mod files;
mod games;
mod logprobs;
mod points;
mod random;
mod restarts;
mod rules;
mod toy;

use toy::{Run, Toy};

use super::*;
use crate::canonical::to_bytes;
use crate::identity::Keypair;
use crate::ids::{Digest, LeaseEpoch, Millis, Place, Root};
use crate::job::Job;
use crate::testing::{job, keys, root, run_with};

/// A budget that is never used up.
const BUDGET: u64 = 600_000;
const PLACE: Place = Place { point: 3, layer: 2 };

fn coordinator() -> Keypair {
    keys(90)
}

fn key_of(side: Side) -> Keypair {
    keys(91 + side.index() as u8)
}

/// The manifest is whatever has this hash.
const MANIFEST: &[u8] = b"a manifest";

fn the_job() -> Job {
    Job { model: blake3::hash(MANIFEST).into(), ..job(7) }
}

/// A claim whose second layer is this run.
fn claim(side: Side, run: &Run) -> Claim {
    let output = root(50 + side.index() as u8);
    let roots = vec![blake3::hash(&run.input).into(), run.root(), root(40 + side.index() as u8), output];
    run_with(&key_of(side), &the_job(), LeaseEpoch(side.index() as u64 + 1), roots).receipt.into()
}

fn terms(claimant: &Run, challenger: &Run) -> Terms {
    let claims = [claim(Side::Claimant, claimant), claim(Side::Challenger, challenger)];
    let (id, job) = (coordinator().id(), the_job().header());
    Terms::between(id, job, crate::testing::LAYERS, claims, Vec::new(), [BUDGET; 2]).unwrap()
}

fn small() -> Toy {
    Toy::new(5, 700, &the_job().tokens)
}

/// A dispute with both sides at hand.
struct Match {
    toy: Toy,
    runs: [Run; 2],
    referee: Referee,
    now: Millis,
    asked: [bool; 2],
    refused: Vec<(Option<Side>, Refusal)>,
    recompute: Option<Recompute>,
}

impl Match {
    fn new(claimant: Run, challenger: Run) -> Self {
        let toy = claimant.toy.clone();
        Self::with(terms(&claimant, &challenger), toy, [claimant, challenger])
    }

    fn with(terms: Terms, toy: Toy, runs: [Run; 2]) -> Self {
        let now = Millis(1_000);
        let (referee, out) = Referee::open(terms, now, coordinator(), &toy).unwrap();
        let mut game = Self { toy, runs, referee, now, asked: [false; 2], refused: Vec::new(), recompute: None };
        game.note(out);
        game
    }

    /// The claimant's second byte of row 3 is wrong, whatever it says of the steps.
    fn about(lie: impl Fn(Run) -> Run) -> Self {
        let honest = Run::honest(&small());
        let liar = lie(honest.clone());
        Self::new(liar, honest)
    }

    fn note(&mut self, out: Output) -> Output {
        for action in &out.actions {
            match action {
                Action::Ask { side, .. } => self.asked[side.index()] = true,
                Action::Refuse { side, reason } => self.refused.push((*side, reason.clone())),
                Action::Recompute(recompute) => self.recompute = Some(recompute.clone()),
                Action::Repeated { .. } | Action::Ended(_) => {}
            }
        }
        out
    }

    fn send(&mut self, input: Input) -> Output {
        self.now = self.now.plus(5);
        let out = self.referee.handle(self.now, input, &self.toy);
        self.note(out)
    }

    fn player(&self, side: Side) -> Player {
        let moves: Vec<_> = self.referee.moves().cloned().collect();
        Player::new(self.referee.terms(), side, &moves, &self.toy).unwrap()
    }

    /// What a side would honestly say of its run.
    fn body(&mut self, side: Side) -> MoveBody {
        let (player, toy) = (self.player(side), self.toy.clone());
        player.next(&mut self.runs[side.index()], &toy).unwrap()
    }

    fn signed(&mut self, side: Side) -> SignedMove {
        let body = self.body(side);
        self.player(side).made(body).sign(&key_of(side))
    }

    fn say(&mut self, side: Side, body: MoveBody) -> Output {
        let signed = self.player(side).made(body).sign(&key_of(side));
        self.send(Input::Move(signed))
    }

    fn step(&mut self, side: Side) -> Output {
        self.asked[side.index()] = false;
        let signed = self.signed(side);
        self.send(Input::Move(signed))
    }

    /// Plays until this phase begins.
    fn reach(&mut self, phase: Phase) {
        while self.referee.phase() < phase {
            for side in Side::BOTH {
                if self.referee.verdict().is_none() && self.asked[side.index()] {
                    self.step(side);
                }
            }
            if phase > Phase::Recompute {
                self.compute();
            }
        }
        assert_eq!(self.referee.phase(), phase);
    }

    fn compute(&mut self) {
        if let Some(recompute) = self.recompute.take() {
            self.send(Input::Recomputed { value: Toy::evaluate(&recompute) });
        }
    }

    /// Plays to the end.
    fn verdict(&mut self) -> Verdict {
        self.reach(Phase::Ended);
        self.referee.verdict().unwrap()
    }

    fn ended(&self, losers: [bool; 2], reason: Reason) {
        let verdict = self.referee.verdict().expect("it is over");
        assert_eq!((verdict.losers, verdict.reason, verdict.kind), (losers, reason, reason.kind()));
        assert_eq!(verdict.place, PLACE);
        self.check_judge(verdict);
    }

    /// The judge of the transcript agrees.
    fn check_judge(&self, verdict: Verdict) {
        let judged = judge(self.referee.entries(), &self.toy, &mut Toy::evaluate);
        assert_eq!(judged, Ok(verdict));
    }

    /// Bytes of all moves.
    fn bytes(&self) -> usize {
        let moves = self.referee.entries().iter().filter_map(|entry| match &entry.entry.what {
            What::Moved { signed, .. } => Some(to_bytes(signed).len()),
            _ => None,
        });
        moves.sum()
    }
}

const CLAIMANT: [bool; 2] = [true, false];
const CHALLENGER: [bool; 2] = [false, true];
const BOTH: [bool; 2] = [true, true];

/// Byte of column `col` of row `row` of the output.
fn at(toy: &Toy, row: u64, col: u64) -> usize {
    (row * toy.row_bytes(4) + col * 4) as usize
}

fn other_root() -> Root {
    root(99)
}
