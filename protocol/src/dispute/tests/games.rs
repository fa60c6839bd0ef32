//! Whole games: what is found, who loses, and what it costs.

use super::*;
use crate::dispute::game::{Game, Illegal};
use crate::dispute::player::honest_move;

#[test]
fn a_lie_in_any_step_is_found_and_the_honest_challenger_wins() {
    let toy = small();
    for step in 0..4_u16 {
        let mut game = Match::about(|run| {
            let run = run.lie(at(&toy, 3, 411) + 1, 4);
            let byte = [3 * toy.row_bytes(2) + 411 * 2, 411 * 8, 411 * 4][usize::from(step.min(2))] as usize;
            if step < 3 { run.lie_in(step, byte, 4) } else { run }
        });
        let verdict = game.verdict();
        assert!(matches!(verdict.reason, Reason::Recomputed { .. }));
        game.ended(CLAIMANT, verdict.reason);
        let element = [3 * toy.row_bytes(2) / 2 + 411, 411, 411, 411][usize::from(step)];
        assert_eq!((verdict.step, verdict.element), (Some(step), Some(element)));
        assert_eq!(verdict.chunk.map(|chunk| chunk / toy.row_chunks()), Some(3));
    }
}

#[test]
fn an_honest_claimant_wins_against_a_lying_challenger() {
    let honest = Run::honest(&small());
    let liar = honest.clone().lie(at(&small(), 0, 0), 1);
    let mut game = Match::new(honest, liar);
    let verdict = game.verdict();
    game.ended(CHALLENGER, verdict.reason);
}

#[test]
fn both_sides_can_lose() {
    let honest = Run::honest(&small());
    let byte = at(&small(), 2, 9);
    let mut game = Match::new(honest.clone().lie(byte, 1), honest.lie(byte, 2));
    let verdict = game.verdict();
    game.ended(BOTH, verdict.reason);
}

/// Why each key plays for itself: whoever has the same roots may say something else of the steps, and would sink an honest
/// twin with it.
#[test]
fn equal_roots_do_not_fix_what_is_said_of_the_steps() {
    let toy = small();
    let honest = Run::honest(&toy);
    let liar = honest.clone().lie(at(&toy, 3, 411), 4);
    let twin = honest.clone().lie_in(1, 8, 1);
    assert_eq!(twin.root(), honest.root());
    assert_eq!(Match::new(twin, liar.clone()).verdict().losers, CLAIMANT, "it says what is wrong of a step");
    assert_eq!(Match::new(honest, liar).verdict().losers, CHALLENGER);
}

#[test]
fn padding_that_is_not_zero_loses() {
    let toy = small();
    let mut game = Match::about(|run| run.lie(at(&toy, 4, 700), 9));
    game.verdict();
    game.ended(CLAIMANT, Reason::Recomputed { value: 0 });
    assert_eq!(game.referee.verdict().unwrap().element, Some(700));
    let mut game = Match::about(|run| run.lie(at(&toy, 4, 1), 9).lie_in(1, 701 * 8, 1));
    game.verdict();
    game.ended(CLAIMANT, Reason::Recomputed { value: 0 });
}

#[test]
fn a_tensor_of_one_chunk_needs_no_descent() {
    let toy = Toy::new(1, 3, &the_job().tokens);
    let honest = Run::honest(&toy);
    let mut game = Match::new(honest.clone().lie(4, 1), honest);
    assert_eq!(game.referee.phase(), Phase::Ops);
    game.verdict();
    game.ended(CLAIMANT, game.referee.verdict().unwrap().reason);
    assert_eq!(game.referee.round(), 2);
}

/// A dispute about rows that had a root at an earlier point already, which both had signed.
fn perjury(run: impl Fn(Run) -> Run) -> (Game, [Run; 2]) {
    let toy = small();
    let honest = Run::honest(&toy);
    let liars = [run(honest.clone()), honest.clone()];
    let prefix = blake3::hash(&honest.output[..at(&toy, 3, 0)]).into();
    let ground = Ground {
        place: Place { point: 4, layer: 2 },
        index: 1,
        roots: [liars[0].root(), liars[1].root()],
        input: Some(blake3::hash(&honest.input).into()),
        prefix: Some((3, prefix)),
        words: vec![7],
    };
    (Game::new(ground, &toy), liars)
}

/// Plays the rounds up to the opening.
fn to_opening(game: &mut Game, runs: &mut [Run; 2], toy: &Toy) {
    while game.phase() < Phase::Open {
        let bodies: Vec<_> = runs.iter_mut().map(|run| honest_move(game, toy, run).unwrap()).collect();
        for (side, body) in Side::BOTH.into_iter().zip(&bodies) {
            assert_eq!(game.check(side, body, toy), Ok(Vec::new()));
        }
        assert_eq!(game.play([&bodies[0], &bodies[1]], toy), None);
    }
}

#[test]
fn perjury_against_a_prefix_that_one_signed_earlier_loses() {
    let toy = small();
    let (mut game, mut runs) = perjury(|run| run.lie(at(&toy, 2, 5), 1));
    to_opening(&mut game, &mut runs, &toy);
    // The liar can't open its chunk against the earlier root.
    let false_opening = honest_move(&game, &toy, &mut runs[0]).unwrap();
    let refused = game.check(Side::Claimant, &false_opening, &toy);
    assert!(matches!(refused, Err(Illegal::Refused(Refusal::Opening { index: 0, .. }))));
    let body = honest_move(&game, &toy, &mut runs[1]).unwrap();
    let data = game.check(Side::Challenger, &body, &toy).unwrap();
    let verdict = game.open(data, &toy).unwrap();
    assert_eq!((verdict.losers, verdict.reason), (CLAIMANT, Reason::Perjury));
}

#[test]
fn rows_after_the_prefix_are_disputed_as_any_others() {
    let toy = small();
    let (mut game, mut runs) = perjury(|run| run.lie(at(&toy, 3, 5), 1));
    to_opening(&mut game, &mut runs, &toy);
    assert_eq!(game.prefix(&toy), None);
    let body = honest_move(&game, &toy, &mut runs[0]).unwrap();
    let data = game.check(Side::Claimant, &body, &toy).unwrap();
    assert_eq!(game.open(data, &toy), None);
    let value = Toy::evaluate(&game.recompute().unwrap());
    assert_eq!(game.decide(value).losers, CLAIMANT);
}

/// 2,048 positions of 2,048 numbers: the target of the design.
#[test]
fn a_large_layer_takes_at_most_six_rounds_and_128_kib() {
    let toy = Toy::new(2_048, 2_048, &the_job().tokens);
    assert_eq!((Lowering::output(&toy).bytes, toy.steps(0)[0].bytes), (16 << 20, 8 << 20));
    let honest = Run::honest(&toy);
    for (step, rounds) in [(Some(0), 6), (Some(1), 6), (None, 5)] {
        let liar = honest.clone().lie(at(&toy, 1_777, 1_999) + 1, 32);
        let byte = (1_777 * toy.row_bytes(2) + 1_999 * 2) as usize;
        let liar = match step {
            Some(0) => liar.lie_in(0, byte, 32),
            Some(step) => liar.lie_in(step, 1_999 * 8 + 1, 32),
            None => liar,
        };
        let mut game = Match::new(liar, honest.clone());
        let verdict = game.verdict();
        game.ended(CLAIMANT, verdict.reason);
        // The last round has one move, and is not counted as played.
        let played = game.referee.round() + 1;
        assert!(played <= rounds, "{played} rounds");
        assert!(game.bytes() <= 128 << 10, "{} bytes", game.bytes());
    }
}
