//! Random disputes.

use proptest::prelude::*;

use super::*;
use crate::limits::CHUNK_BYTES;

/// What an adversary does with a turn.
#[derive(Clone, Debug)]
enum Trick {
    Honest,
    Silent,
    Repeat,
    Concede,
    Equivocate,
    Flip(prop::sample::Index),
    Shorter,
    Longer,
    Kind(u8),
    Restart,
}

fn trick() -> impl Strategy<Value = Trick> {
    prop_oneof![
        6 => Just(Trick::Honest),
        1 => Just(Trick::Silent),
        1 => Just(Trick::Repeat),
        1 => Just(Trick::Concede),
        1 => Just(Trick::Equivocate),
        2 => any::<prop::sample::Index>().prop_map(Trick::Flip),
        1 => Just(Trick::Shorter),
        1 => Just(Trick::Longer),
        1 => any::<u8>().prop_map(Trick::Kind),
        1 => Just(Trick::Restart),
    ]
}

/// The bytes or values of a move, changed.
fn changed(body: &MoveBody, trick: &Trick) -> MoveBody {
    let mut body = body.clone();
    let values = |values: &mut Vec<[u8; 32]>| match trick {
        Trick::Flip(at) if !values.is_empty() => at.get_mut(values)[at.index(32)] ^= 1,
        Trick::Shorter => drop(values.pop()),
        _ => values.push([1; 32]),
    };
    let bytes = |bytes: &mut Vec<u8>| match trick {
        Trick::Flip(at) if !bytes.is_empty() => *at.get_mut(bytes) ^= 1,
        Trick::Shorter => drop(bytes.pop()),
        _ => bytes.push(1),
    };
    match &mut body {
        MoveBody::Descend { values: v } | MoveBody::Ops { values: v } => values(v),
        MoveBody::Reveal { chunk } => bytes(chunk),
        MoveBody::Open { openings } => openings.iter_mut().take(1).for_each(bytes),
        MoveBody::Concede => {}
    }
    body
}

impl Match {
    /// One turn of an adversary.
    fn turn(&mut self, side: Side, trick: &Trick) {
        let (player, toy) = (self.player(side), self.toy.clone());
        // Who has committed to what it does not have is at a loss.
        let Ok(body) = player.next(&mut self.runs[side.index()], &toy) else {
            return;
        };
        match trick {
            Trick::Honest => drop(self.step(side)),
            Trick::Silent => {}
            Trick::Repeat => {
                let signed = self.signed(side);
                self.send(Input::Move(signed.clone()));
                self.send(Input::Move(signed));
            }
            Trick::Concede => drop(self.say(side, MoveBody::Concede)),
            Trick::Equivocate => {
                let second = player.made(MoveBody::Concede).sign(&key_of(side));
                self.step(side);
                if self.referee.verdict().is_none() {
                    self.send(Input::Move(second));
                }
            }
            Trick::Flip(_) | Trick::Shorter | Trick::Longer => drop(self.say(side, changed(&body, trick))),
            Trick::Kind(kind) => {
                let body = match kind % 4 {
                    0 => MoveBody::Descend { values: vec![[0; 32]; usize::from(*kind)] },
                    1 => MoveBody::Ops { values: vec![[0; 32]; usize::from(*kind)] },
                    2 => MoveBody::Reveal { chunk: vec![*kind; CHUNK_BYTES] },
                    _ => MoveBody::Open { openings: vec![vec![*kind; 100]; usize::from(*kind % 5)] },
                };
                self.say(side, body);
            }
            Trick::Restart => {
                self.referee = Referee::restore(self.referee.entries(), coordinator(), &self.toy).unwrap();
                let out = self.referee.resume(self.now);
                self.note(out);
            }
        }
    }

    /// Plays an honest side against these tricks.
    fn against(&mut self, honest: Side, tricks: &[Trick]) -> Verdict {
        for trick in tricks {
            self.compute();
            if self.referee.verdict().is_some() {
                break;
            }
            let (round, has_moved) = (self.referee.round(), !self.asked[honest.index()]);
            if !has_moved {
                self.step(honest);
            }
            self.compute();
            if self.referee.verdict().is_none() && self.referee.round() == round && self.asked[honest.other().index()] {
                self.turn(honest.other(), trick);
            }
        }
        // Then the adversary is silent.
        while self.referee.verdict().is_none() {
            self.compute();
            if self.asked[honest.index()] && self.referee.verdict().is_none() {
                self.step(honest);
            } else if let Some(wake) = self.referee.next_wake() {
                self.now = wake;
                self.send(Input::Tick);
            }
        }
        self.referee.verdict().unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn the_honest_never_lose(
        rows in 1_u64..6,
        cols in 1_u64..700,
        lie in any::<prop::sample::Index>(),
        by in 1_u8..=255,
        in_step in proptest::option::of((0_u16..3, any::<prop::sample::Index>(), 1_u8..=255)),
        is_claimant in any::<bool>(),
        tricks in proptest::collection::vec(trick(), 0..14),
    ) {
        let toy = Toy::new(rows, cols, &the_job().tokens);
        let honest = Run::honest(&toy);
        let mut liar = honest.clone().lie(lie.index(honest.output.len()), by);
        if let Some((step, byte, by)) = &in_step {
            let len = toy.steps(0)[usize::from(*step)].bytes as usize;
            liar = liar.lie_in(*step, byte.index(len), *by);
        }
        let (side, runs) = if is_claimant { (Side::Claimant, [honest, liar]) } else { (Side::Challenger, [liar, honest]) };
        let [a, b] = runs;
        let mut game = Match::new(a, b);
        let verdict = game.against(side, &tricks);
        prop_assert_eq!(verdict.losers, side.other().alone());
        game.check_judge(verdict);
    }

    #[test]
    fn the_first_difference_that_is_found_is_that_of_a_linear_scan(
        rows in 1_u64..40,
        cols in 1_u64..900,
        lies in proptest::collection::vec((any::<prop::sample::Index>(), 1_u8..=255), 1..4),
        in_step in proptest::collection::vec((0_u16..3, any::<prop::sample::Index>(), 1_u8..=255), 0..4),
    ) {
        let toy = Toy::new(rows, cols, &the_job().tokens);
        let honest = Run::honest(&toy);
        let mut liar = honest.clone();
        for (byte, by) in &lies {
            liar = liar.lie(byte.index(honest.output.len()), *by);
        }
        for (step, byte, by) in &in_step {
            let len = toy.steps(0)[usize::from(*step)].bytes as usize;
            liar = liar.lie_in(*step, byte.index(len), *by);
        }
        prop_assume!(liar.output != honest.output);
        let mut game = Match::new(liar.clone(), honest.clone());
        let verdict = game.verdict();
        let differs = |a: &[u8], b: &[u8], width: usize| a.chunks(width).zip(b.chunks(width)).position(|(a, b)| a != b);
        let chunk = differs(&liar.output, &honest.output, CHUNK_BYTES).unwrap() as u64;
        let (mut liar, mut honest) = (liar, honest);
        let in_steps = (0..3_u16).find_map(|step| {
            let width = usize::from(toy.steps(chunk)[usize::from(step)].width);
            let bytes = liar.tensor(Some(chunk), Tensor::Step(step)).to_vec();
            Some((step, differs(&bytes, honest.tensor(Some(chunk), Tensor::Step(step)), width)? as u64))
        });
        let in_output = differs(&liar.output, &honest.output, 4).unwrap() as u64 % (toy.row_bytes(4) / 4);
        let (step, element) = in_steps.unwrap_or((3, in_output));
        prop_assert_eq!((verdict.chunk, verdict.step, verdict.element), (Some(chunk), Some(step), Some(element)));
    }
}
