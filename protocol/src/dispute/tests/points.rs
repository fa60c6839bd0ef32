//! Disputes about jobs with several points: what was agreed before, the words as a tensor, and perjury.

use super::*;
use crate::generation::words_root;
use crate::testing::{LAYERS, generated, generation, roots_of_words};

const WORDS: [u32; 3] = [5, 6, 1 << 24 | 7];

fn text() -> Job {
    Job { model: blake3::hash(MANIFEST).into(), ..generation(7, 4) }
}

/// The toy at the third point: three tokens and two words before it give six rows.
fn toy() -> Toy {
    let tokens = text().tokens;
    Toy::with_words(tokens.len() as u64 + 2, 700, &tokens, &WORDS[..2])
}

fn root_of(toy: &Toy, output: &[u8], rows: u64) -> Root {
    blake3::hash(&output[..(rows * toy.row_bytes(4)) as usize]).into()
}

/// The terms of two runs that differ in layer 2 at the third point. Before that both signed the truth.
fn terms(runs: [&Run; 2]) -> Terms {
    let (job, toy) = (text(), toy());
    let claims = [0, 1].map(|side| {
        let mut roots = roots_of_words(job.id(), &WORDS);
        let (before, at) = (5, 9);
        roots[before] = root_of(&toy, &Run::honest(&toy).output, toy.rows - 1);
        roots[at - 1] = blake3::hash(&runs[side].input).into();
        roots[at] = runs[side].root();
        let keys = key_of(Side::BOTH[side]);
        let result = generated(&keys, &job, LeaseEpoch(side as u64 + 1), &WORDS, roots.clone());
        (Signed::Receipt(result.receipt), roots)
    });
    let held = claims.each_ref().map(|(signed, roots)| Held { signed, roots, words: &WORDS, logprobs: &[] });
    Terms::of_runs(coordinator().id(), job.header(), LAYERS, held, [BUDGET; 2]).unwrap()
}

fn game(liar: Run) -> Match {
    let honest = Run::honest(&toy());
    Match::with(terms([&liar, &honest]), toy(), [liar, honest])
}

#[test]
fn what_is_agreed_before_the_disputed_point_follows_from_the_claims() {
    let honest = Run::honest(&toy());
    let terms = terms([&honest.clone().lie(at(&toy(), 5, 9), 1), &honest]);
    let ground = terms.check().unwrap();
    assert_eq!((ground.place, ground.index), (Place { point: 5, layer: 2 }, 2));
    assert_eq!(ground.prefix, Some((5, root_of(&toy(), &honest.output, 5))));
    assert_eq!(ground.words, WORDS[..2]);
    assert_eq!(crate::canonical::from_bytes::<Terms>(&to_bytes(&terms)), Ok(terms));
}

#[test]
fn a_lie_about_what_the_words_give_is_proven_by_opening_the_words() {
    let toy = toy();
    // Row 5: column 0 reads token 5 + 0 of four tokens and two words, which is the last word.
    let mut game = game(Run::honest(&toy).lie(at(&toy, 5, 0), 1).lie_in(2, 0, 1));
    game.reach(Phase::Open);
    let MoveBody::Open { openings } = game.body(Side::Claimant) else { panic!("it is time to open") };
    let words: Vec<u8> = WORDS[..2].iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!((&openings[0], blake3::hash(&words).into()), (&words, words_root(&WORDS[..2])));
    let mut forged = openings.clone();
    forged[0][0] ^= 1;
    assert!(game.say(Side::Claimant, MoveBody::Open { openings: forged }).entries.is_empty());
    let verdict = game.verdict();
    assert_eq!((verdict.losers, verdict.step, verdict.place.point), (CLAIMANT, Some(2), 5));
    game.check_judge(verdict);
}

#[test]
fn who_changes_a_row_that_had_a_root_at_an_earlier_point_has_perjured_itself() {
    let toy = toy();
    for row in 0..5 {
        let mut game = game(Run::honest(&toy).lie(at(&toy, row, 9), 1));
        game.reach(Phase::Open);
        // The liar can't open its chunk; the honest side can.
        let silent = game.player(Side::Claimant).next(&mut game.runs[0], &toy);
        assert!(matches!(silent, Err(PlayerError::NotWhatWasSigned(_))));
        let verdict = {
            let honest = game.signed(Side::Challenger);
            game.now = game.now.plus(BUDGET);
            game.send(Input::Move(honest));
            game.referee.verdict().unwrap()
        };
        assert_eq!((verdict.losers, verdict.reason, verdict.element), (CLAIMANT, Reason::Perjury, None));
        game.check_judge(verdict);
    }
    // The newest row has none.
    let mut game = game(Run::honest(&toy).lie(at(&toy, 5, 9), 1));
    assert!(matches!(game.verdict().reason, Reason::Recomputed { .. }));
}
