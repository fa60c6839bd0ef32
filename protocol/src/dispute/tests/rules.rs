//! The rules of moves, one test each.

use super::*;
use crate::identity::Signature;
use crate::limits::{MAX_MOVE_VALUES, MAX_REFUSED_MOVES};

fn lying() -> Match {
    Match::about(|run| run.lie(at(&small(), 3, 411), 4))
}

/// A move is refused without effect: no entry, the same position.
fn refused(game: &mut Match, signed: SignedMove, side: Option<Side>, reason: &Refusal) {
    let before = game.referee.entries().len();
    let out = game.send(Input::Move(signed));
    assert_eq!(out.actions, [Action::Refuse { side, reason: reason.clone() }]);
    assert_eq!((out.entries.len(), game.referee.entries().len()), (0, before));
}

#[test]
fn unsigned_moves_are_refused_without_effect() {
    let mut game = lying();
    let mut signed = game.signed(Side::Claimant);
    signed.signature = Signature::from_bytes([1; 64]);
    refused(&mut game, signed, None, &Refusal::Signature);
    let stranger = game.signed(Side::Claimant).made.sign(&keys(200));
    refused(&mut game, stranger, None, &Refusal::Signature);
}

#[test]
fn each_key_plays_its_own_moves() {
    let mut game = lying();
    let body = game.body(Side::Claimant);
    // Signed by the challenger it is a move of the challenger, which contradicts its own root.
    let out = game.say(Side::Challenger, body);
    assert!(matches!(out.entries[0].entry.what, What::Moved { side: Side::Challenger, .. }));
    game.ended(CHALLENGER, Reason::Contradiction);
}

#[test]
fn moves_of_another_dispute_are_refused_without_effect() {
    let mut game = lying();
    let mut other = Match::about(|run| run.lie(at(&small(), 3, 411), 8));
    let signed = other.signed(Side::Challenger);
    assert_eq!(signed.made.body, game.body(Side::Challenger));
    refused(&mut game, signed, None, &Refusal::AnotherDispute);
}

#[test]
fn moves_for_another_round_or_history_are_refused_without_effect() {
    let mut game = lying();
    let made = game.signed(Side::Claimant).made;
    let later = Move { round: 1, ..made.clone() }.sign(&key_of(Side::Claimant));
    refused(&mut game, later, None, &Refusal::Round { expected: 0, found: 1 });
    let previous = crate::ids::Digest::from_bytes([0; 32]);
    let elsewhere = Move { previous, ..made }.sign(&key_of(Side::Claimant));
    refused(&mut game, elsewhere, Some(Side::Claimant), &Refusal::History);
}

#[test]
fn a_repeated_move_is_answered_the_same_and_changes_nothing() {
    let mut game = lying();
    let signed = game.signed(Side::Claimant);
    let entry = game.send(Input::Move(signed.clone())).entries.remove(0);
    for _ in 0..3 {
        let out = game.send(Input::Move(signed.clone()));
        let entry = Box::new(entry.clone());
        assert_eq!(out, Output { entries: vec![], actions: vec![Action::Repeated { side: Side::Claimant, entry }] });
    }
    // Also in later rounds, and after the verdict.
    game.verdict();
    let out = game.send(Input::Move(signed));
    assert!(matches!(out.actions[..], [Action::Repeated { .. }]));
}

#[test]
fn a_second_different_move_for_one_round_is_equivocation_and_loses_at_once() {
    for later in [false, true] {
        let mut game = lying();
        let made = game.signed(Side::Challenger).made;
        game.step(Side::Challenger);
        if later {
            game.step(Side::Claimant);
        }
        let second = Move { body: MoveBody::Concede, ..made }.sign(&key_of(Side::Challenger));
        game.send(Input::Move(second));
        game.ended(CHALLENGER, Reason::Equivocation);
    }
}

#[test]
fn a_second_move_after_another_history_is_refused_and_no_equivocation() {
    let mut game = lying();
    let made = game.signed(Side::Challenger).made;
    game.step(Side::Challenger);
    let previous = Digest::from_bytes([9; 32]);
    let second = Move { previous, body: MoveBody::Concede, ..made }.sign(&key_of(Side::Challenger));
    let out = game.send(Input::Move(second));
    let refused = Action::Refuse { side: Some(Side::Challenger), reason: Refusal::History };
    assert_eq!(out, Output { entries: vec![], actions: vec![refused] });
    assert_eq!(game.verdict().losers, CLAIMANT);
}

#[test]
fn children_that_do_not_merge_to_ones_own_value_lose_at_once() {
    let mut game = lying();
    let MoveBody::Descend { mut values } = game.body(Side::Claimant) else { panic!("the row is looked for") };
    values[1][0] ^= 1;
    game.say(Side::Claimant, MoveBody::Descend { values });
    game.ended(CLAIMANT, Reason::Contradiction);
}

#[test]
fn a_revealed_chunk_that_does_not_hash_to_ones_own_value_loses_at_once() {
    let mut game = lying();
    game.reach(Phase::Reveal);
    let MoveBody::Reveal { mut chunk } = game.body(Side::Challenger) else { panic!("it is time to reveal") };
    chunk[1_023] ^= 1;
    game.say(Side::Challenger, MoveBody::Reveal { chunk });
    game.ended(CHALLENGER, Reason::Contradiction);
}

#[test]
fn who_concedes_loses() {
    let mut game = lying();
    game.say(Side::Claimant, MoveBody::Concede);
    game.ended(CLAIMANT, Reason::Conceded);
}

#[test]
fn other_kinds_counts_and_lengths_than_follow_from_the_game_are_refused() {
    let mut game = lying();
    let deadline = game.referee.next_wake();
    for phase in [Phase::Row, Phase::Ops, Phase::Reveal, Phase::Open] {
        game.reach(phase);
        let right = game.body(Side::Claimant);
        let mut wrong: Vec<MoveBody> = match &right {
            MoveBody::Descend { values } => [&values[1..], &[&values[..], &values[..1]].concat()]
                .map(|values| MoveBody::Descend { values: values.to_vec() })
                .into(),
            MoveBody::Ops { values } => [&values[1..], &[&values[..], &values[..1]].concat()]
                .map(|values| MoveBody::Ops { values: values.to_vec() })
                .into(),
            MoveBody::Reveal { chunk } => vec![MoveBody::Reveal { chunk: chunk[1..].to_vec() }],
            MoveBody::Open { openings } => {
                let longer = [&openings[..], &openings[..1]].concat();
                [vec![], openings[1..].to_vec(), longer].map(|openings| MoveBody::Open { openings }).into()
            }
            MoveBody::Concede => panic!("nobody concedes"),
        };
        wrong.push(if phase == Phase::Ops {
            MoveBody::Descend { values: vec![] }
        } else {
            MoveBody::Ops { values: vec![] }
        });
        for body in wrong {
            game.refused.clear();
            let out = game.say(Side::Claimant, body);
            assert!(out.entries.is_empty());
            let count = |refusal: &Refusal| matches!(refusal, Refusal::Count { .. } | Refusal::Kind { .. });
            assert!(game.refused.iter().all(|(_, refusal)| count(refusal)));
        }
        if phase == Phase::Row {
            // The clock runs on.
            assert_eq!(game.referee.next_wake(), deadline);
        }
    }
}

/// A move has no length in it: the tensor has the chunks that the program says, whatever its root was made of.
#[test]
fn lengths_follow_from_the_program_and_never_from_a_message() {
    for chunks in [14, 16] {
        let honest = Run::honest(&small());
        let mut liar = honest.clone();
        liar.output.resize(chunks * 1_024, 0);
        let mut game = Match::new(liar.clone(), honest);
        assert_eq!(game.referee.scope().chunks, 0..15);
        let values = |count: usize| -> Vec<[u8; 32]> {
            (0..count as u64).map(|index| toy::block_value(&liar.output, 0, index)).collect()
        };
        let all = game.say(Side::Claimant, MoveBody::Descend { values: values(chunks) });
        let reason = Refusal::Count { what: "chaining values", expected: 15, found: chunks };
        assert_eq!(all.actions, [Action::Refuse { side: Some(Side::Claimant), reason }]);
        let mut as_many = values(chunks);
        as_many.resize(15, [0; 32]);
        game.say(Side::Claimant, MoveBody::Descend { values: as_many });
        game.ended(CLAIMANT, Reason::Contradiction);
    }
}

#[test]
fn longer_moves_than_any_game_has_are_not_even_decoded() {
    let values = vec![[0; 32]; MAX_MOVE_VALUES + 1];
    let bytes = to_bytes(&MoveBody::Descend { values });
    assert!(crate::canonical::from_bytes::<MoveBody>(&bytes).is_err());
    let bytes = to_bytes(&MoveBody::Reveal { chunk: vec![0; 1_025] });
    assert!(crate::canonical::from_bytes::<MoveBody>(&bytes).is_err());
}

#[test]
fn after_many_refused_moves_a_side_is_ignored_until_it_keeps_the_rules() {
    let mut game = lying();
    for number in 0..2 * MAX_REFUSED_MOVES {
        let out = game.say(Side::Claimant, MoveBody::Ops { values: vec![] });
        assert_eq!(out.actions.len(), usize::from(number < MAX_REFUSED_MOVES));
    }
    game.say(Side::Challenger, MoveBody::Reveal { chunk: vec![] });
    assert_eq!(game.refused.len() as u32, MAX_REFUSED_MOVES + 1, "the other side is not ignored");
    game.verdict();
    game.ended(CLAIMANT, game.referee.verdict().unwrap().reason);
}

#[test]
fn openings_with_bad_proofs_are_refused_and_good_ones_of_either_side_are_taken() {
    for opener in Side::BOTH {
        let mut game = lying();
        game.reach(Phase::Open);
        let MoveBody::Open { openings } = game.body(opener) else { panic!("it is time to open") };
        for index in 0..openings.len() {
            let mut bad = openings.clone();
            *bad[index].last_mut().unwrap() ^= 1;
            game.refused.clear();
            let out = game.say(opener, MoveBody::Open { openings: bad });
            assert!(out.entries.is_empty());
            assert!(
                matches!(&game.refused[..], [(Some(side), Refusal::Opening { index: at, .. })] if (*side, *at) == (opener, index))
            );
        }
        let mut swapped = openings.clone();
        swapped.swap(0, 1);
        assert!(game.say(opener, MoveBody::Open { openings: swapped }).entries.is_empty());
        game.say(opener, MoveBody::Open { openings });
        game.compute();
        game.ended(CLAIMANT, game.referee.verdict().unwrap().reason);
    }
}

#[test]
fn what_depends_on_data_is_opened_after_the_data() {
    let toy = small();
    let mut game = Match::about(|run| run.lie(at(&toy, 1, 8), 1).lie_in(2, 8 * 4, 1));
    game.reach(Phase::Open);
    let MoveBody::Open { openings } = game.body(Side::Claimant) else { panic!("it is time to open") };
    assert_eq!(openings.len(), 2, "the token, and the parameter that it names");
    game.say(Side::Claimant, MoveBody::Open { openings: openings[..1].to_vec() });
    let reason = Refusal::Count { what: "openings", expected: 2, found: 1 };
    assert_eq!(game.refused, [(Some(Side::Claimant), reason)]);
    game.verdict();
    game.ended(CLAIMANT, game.referee.verdict().unwrap().reason);
}

#[test]
fn neither_side_sees_the_others_move_before_it_has_moved_itself() {
    let mut game = lying();
    loop {
        let (phase, shown) = (game.referee.phase(), game.referee.ask(the_job(), Side::Challenger).moves);
        if phase >= Phase::Open {
            break;
        }
        let out = game.step(Side::Claimant);
        assert_eq!(out.actions, [], "the challenger is not told, and the claimant not asked again");
        assert_eq!(game.referee.ask(the_job(), Side::Challenger).moves, shown);
        game.step(Side::Challenger);
        assert_eq!(game.referee.ask(the_job(), Side::Claimant).moves.len(), shown.len() + 2);
    }
}

#[test]
fn late_moves_after_a_verdict_are_refused() {
    let mut game = lying();
    game.reach(Phase::Open);
    let late = game.signed(Side::Challenger);
    game.verdict();
    refused(&mut game, late.clone(), Some(Side::Challenger), &Refusal::Late);
    let round = game.referee.round();
    let second = Move { round: 0, body: MoveBody::Concede, ..late.made };
    assert!(round > 0);
    refused(&mut game, second.sign(&key_of(Side::Claimant)), Some(Side::Claimant), &Refusal::Late);
}

#[test]
fn a_verdict_needs_the_answer_to_its_own_question() {
    let mut game = lying();
    let out = game.send(Input::Recomputed { value: 1 });
    assert_eq!(out, Output::default());
}

#[test]
fn claims_that_are_no_dispute_are_refused() {
    let honest = Run::honest(&small());
    let liar = honest.clone().lie(5, 1);
    let (id, job, layers) = (coordinator().id(), the_job().header(), crate::testing::LAYERS);
    let of = |a: Claim, b: Claim| Terms::between(id, job.clone(), layers, [a, b], Vec::new(), [1, 1]);
    let (a, b) = (claim(Side::Claimant, &liar), claim(Side::Challenger, &honest));
    assert!(of(a.clone(), b.clone()).is_ok());
    assert_eq!(of(a.clone(), a.clone()), Err(TermsError::OneKey(a.worker())));
    let same = run_with(&key_of(Side::Challenger), &the_job(), LeaseEpoch(9), a.last_roots().to_vec());
    assert_eq!(of(a.clone(), same.receipt.into()), Err(TermsError::NoDifference));
    let mut forged = b.receipt().unwrap().clone();
    forged.receipt.roots[1] = other_root();
    let forged = of(a.clone(), forged.into());
    assert!(matches!(forged, Err(TermsError::Claim { side: Side::Challenger, .. })));
    let before = Terms { before: vec![other_root()], ..of(a.clone(), b.clone()).unwrap() };
    assert_eq!(before.check(), Err(TermsError::Before), "an embedding has no point before");
    let at = Claim { at: a.last_roots().to_vec(), ..a.clone() };
    assert_eq!(of(at, b.clone()), Err(TermsError::At(Side::Claimant)), "they are signed themselves");
    let words = Claim { words: vec![1], ..a };
    assert!(matches!(of(words, b), Err(TermsError::Claim { error: ClaimError::Words, .. })));
}

#[test]
fn a_partial_run_can_be_disputed_as_far_as_it_is_signed() {
    let honest = Run::honest(&small());
    let liar = honest.clone().lie(5, 1);
    let (id, job, layers) = (coordinator().id(), the_job().header(), crate::testing::LAYERS);
    let (b, roots) = (claim(Side::Challenger, &honest), claim(Side::Claimant, &liar).last_roots().to_vec());
    let partial = |count: usize| {
        let (geometry, keys) = (job.geometry(layers).unwrap(), key_of(Side::Claimant));
        let partial = Partial::of_roots(job.id(), &geometry, LeaseEpoch(1), &roots[..count], &[], keys.id());
        partial.unwrap().sign(&keys)
    };
    let of = |a: Claim| Terms::between(id, job.clone(), layers, [a, b.clone()], Vec::new(), [1, 1]);
    assert_eq!(of(partial(2).into()).unwrap().check().unwrap().place, PLACE);
    assert_eq!(of(partial(1).into()), Err(TermsError::NoDifference), "an unsigned tail is no claim");
    let mut forged = partial(2);
    forged.partial.roots[1] = other_root();
    assert!(matches!(of(forged.into()), Err(TermsError::Claim { side: Side::Claimant, .. })));
}

#[test]
fn a_player_signs_no_second_move_for_a_round_and_none_for_another_key() {
    let mut game = lying();
    let (player, body) = (game.player(Side::Claimant), game.body(Side::Claimant));
    let first = player.sign(body.clone(), &key_of(Side::Claimant), &[]).unwrap();
    let before = [first.clone()];
    assert_eq!(player.sign(body.clone(), &key_of(Side::Claimant), &before), Ok(first));
    let second = player.sign(MoveBody::Concede, &key_of(Side::Claimant), &before);
    assert_eq!(second, Err(PlayerError::Signed(0)));
    let other = player.sign(body, &key_of(Side::Challenger), &[]);
    assert_eq!(other, Err(PlayerError::NotMySide(Side::Claimant)));
}

#[test]
fn a_player_does_not_trust_the_coordinators_account() {
    let mut game = lying();
    game.reach(Phase::Reveal);
    let moves: Vec<_> = game.referee.moves().cloned().collect();
    let new = |moves: &[SignedMove]| Player::new(game.referee.terms(), Side::Claimant, moves, &game.toy).map(|_| ());
    assert_eq!(new(&moves), Ok(()));
    assert_eq!(new(&moves[1..]), Err(PlayerError::HalfRound));
    let mut swapped = moves.clone();
    swapped.swap(0, 1);
    assert!(matches!(new(&swapped), Err(PlayerError::Account { error: Refusal::Signature, .. })));
    assert!(matches!(new(&moves[2..]), Err(PlayerError::Account { error: Refusal::Round { .. }, .. })));
    let mut forged = moves.clone();
    forged[3].signature = Signature::from_bytes([3; 64]);
    assert!(matches!(new(&forged), Err(PlayerError::Account { side: Side::Challenger, round: 1, .. })));
}

#[test]
fn a_player_whose_run_is_not_what_it_signed_says_nothing() {
    let mut game = lying();
    let (player, toy) = (game.player(Side::Challenger), small());
    let mut broken = game.runs[1].clone().lie(17, 1);
    assert!(matches!(player.next(&mut broken, &toy), Err(PlayerError::NotWhatWasSigned(_))));
    game.verdict();
}
