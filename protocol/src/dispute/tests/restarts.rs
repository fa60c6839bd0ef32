//! Restarts at every entry, and the judge.

use super::*;

/// Plays on from these entries, however far they got.
fn go_on(entries: &[SignedEntry], toy: &Toy, runs: [Run; 2]) -> Match {
    let mut referee = Referee::restore(entries, coordinator(), toy).unwrap();
    let now = entries.last().unwrap().entry.at.plus(1);
    let out = referee.resume(now);
    let mut game =
        Match { toy: toy.clone(), runs, referee, now, asked: [false; 2], refused: Vec::new(), recompute: None };
    game.note(out);
    game
}

fn assert_same_at_every_entry(game: &Match) {
    let (entries, verdict) = (game.referee.entries().to_vec(), game.referee.verdict().unwrap());
    for count in 1..=entries.len() {
        let mut again = go_on(&entries[..count], &game.toy, game.runs.clone());
        assert_eq!(again.verdict(), verdict, "after {count} entries");
        again.check_judge(verdict);
    }
}

#[test]
fn a_referee_that_is_restored_at_any_entry_gives_the_same_verdict() {
    let toy = small();
    for step in 0..3 {
        let mut game = Match::about(|run| run.lie(at(&toy, 3, 411), 4).lie_in(step, 0, 1));
        game.verdict();
        assert_same_at_every_entry(&game);
    }
}

#[test]
fn a_loss_that_was_written_down_before_a_crash_is_the_verdict_after_it() {
    let mut game = Match::about(|run| run.lie(at(&small(), 3, 411), 4));
    game.step(Side::Claimant);
    let made = game.referee.entries()[1].clone();
    let What::Moved { signed, .. } = made.entry.what else { panic!("a move") };
    let second = Move { body: MoveBody::Concede, ..signed.made }.sign(&key_of(Side::Claimant));
    game.send(Input::Move(second));
    game.ended(CLAIMANT, Reason::Equivocation);
    let entries = game.referee.entries();
    let restored = go_on(&entries[..3], &game.toy, game.runs.clone());
    assert_eq!(restored.referee.verdict(), game.referee.verdict());
}

#[test]
fn a_computation_that_was_asked_for_before_a_crash_is_asked_for_again() {
    let mut game = Match::about(|run| run.lie(at(&small(), 3, 411), 4));
    game.reach(Phase::Recompute);
    let asked = game.recompute.clone();
    assert!(asked.is_some());
    let again = go_on(game.referee.entries(), &game.toy, game.runs.clone());
    assert_eq!(again.recompute, asked);
}

#[test]
fn both_sides_are_asked_again_after_a_restart() {
    let mut game = Match::about(|run| run.lie(at(&small(), 3, 411), 4));
    game.step(Side::Claimant);
    let again = go_on(game.referee.entries(), &game.toy, game.runs.clone());
    assert_eq!(again.asked, [false, true]);
}

#[test]
fn silence_is_the_same_verdict_after_a_restart() {
    let mut game = Match::about(|run| run.lie(at(&small(), 3, 411), 4));
    game.step(Side::Challenger);
    while game.referee.verdict().is_none() {
        game.now = game.referee.next_wake().unwrap();
        game.referee.handle(game.now, Input::Tick, &game.toy);
    }
    let (entries, verdict) = (game.referee.entries().to_vec(), game.referee.verdict());
    for count in 2..entries.len() {
        let mut referee = Referee::restore(&entries[..count], coordinator(), &game.toy).unwrap();
        while referee.verdict().is_none() {
            let wake = referee.next_wake().unwrap();
            referee.handle(wake, Input::Tick, &game.toy);
        }
        assert_eq!(referee.verdict(), verdict);
    }
}

/// Signs an altered entry, and what follows it, as a coordinator could that lies about a dispute.
fn forged(game: &Match, index: usize, what: impl Fn(&mut What)) -> Result<Verdict, TranscriptError> {
    let mut entries: Vec<SignedEntry> = Vec::new();
    for (at, entry) in game.referee.entries().iter().enumerate() {
        let mut entry = entry.entry.clone();
        if at == index {
            what(&mut entry.what);
        }
        if let Some(last) = entries.last() {
            entry.previous = last.entry.digest();
        }
        entries.push(entry.sign(&coordinator()));
    }
    judge(&entries, &game.toy, &mut Toy::evaluate)
}

#[test]
fn the_judge_believes_no_verdict_that_does_not_follow() {
    let mut game = Match::about(|run| run.lie(at(&small(), 3, 411), 4));
    game.verdict();
    let last = game.referee.entries().len() - 1;
    assert_eq!(forged(&game, last, |_| ()), Ok(game.referee.verdict().unwrap()));
    let wrong = Err(TranscriptError::Entry { index: last, error: EntryError::Verdict });
    let change = |change: &dyn Fn(&mut Verdict)| {
        forged(&game, last, |what| {
            let What::Verdict(verdict) = what else { panic!("the last entry is the verdict") };
            change(verdict);
        })
    };
    assert_eq!(change(&|verdict| verdict.losers = CHALLENGER), wrong);
    assert_eq!(change(&|verdict| verdict.element = Some(0)), wrong);
    assert_eq!(change(&|verdict| verdict.kind = VerdictKind::Timeout), wrong);
    assert_eq!(change(&|verdict| verdict.reason = Reason::Recomputed { value: 1 }), wrong);
    assert_eq!(change(&|verdict| verdict.reason = Reason::Silence), wrong);
}

#[test]
fn the_judge_believes_no_notice_before_its_time_and_no_move_of_the_other_side() {
    let mut game = Match::about(|run| run.lie(at(&small(), 3, 411), 4));
    game.verdict();
    let early = forged(&game, 2, |what| *what = What::Notice { side: Side::Challenger });
    assert_eq!(early, Err(TranscriptError::Entry { index: 2, error: EntryError::Notice(Side::Challenger) }));
    let swapped = forged(&game, 1, |what| {
        let What::Moved { side, .. } = what else { panic!("a move") };
        *side = side.other();
    });
    let error = EntryError::Side { side: Side::Challenger, round: 0 };
    assert_eq!(swapped, Err(TranscriptError::Entry { index: 1, error }));
}

#[test]
fn the_judge_gives_no_verdict_on_half_a_dispute() {
    let mut game = Match::about(|run| run.lie(at(&small(), 3, 411), 4));
    game.reach(Phase::Reveal);
    let judged = judge(game.referee.entries(), &game.toy, &mut Toy::evaluate);
    assert_eq!(judged, Err(TranscriptError::NotOver { last: game.referee.entries().len() - 1 }));
    assert_eq!(judge(&[], &game.toy, &mut Toy::evaluate), Err(TranscriptError::Empty));
}
