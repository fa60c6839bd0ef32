//! Runs that come in batches: what counts is the order, and not what came together.

use super::generations::{WORDS, commit, lockstep, spec_of, text};
use super::*;
use crate::testing::roots_of_words;

/// All that is streamed of a run of the job with these words.
fn said(words: &[u32]) -> Vec<Streamed> {
    let (job, roots) = (text(1), roots_of_words(text(1).id(), words));
    let geometry = geometry(&job);
    let mut said = Vec::new();
    for (place, root) in geometry.places().zip(roots) {
        if place.layer == geometry.streamed_layers() {
            said.push(Streamed::Word(words[(place.point - geometry.first_point()) as usize], Vec::new()));
        }
        said.push(Streamed::Root(place, root));
    }
    said
}

fn shell_with(workers: u8, policy: AuditPolicy) -> Shell {
    let mut shell = Shell::new();
    (1..=workers).for_each(|number| drop(shell.feed(joined(number, 2))));
    shell.feed(Input::Submit(spec_of(1, policy)));
    shell
}

fn stream(shell: &mut Shell, index: usize, said: Vec<Streamed>) -> Vec<Action> {
    let (node, epoch, job) = shell.assigned[index].clone();
    shell.feed(Input::Streamed { node, job: job.id(), epoch, said })
}

/// What was shown and told, without a trace of what was shown together.
fn flat(actions: &[Action]) -> (Vec<CommittedRoot>, Vec<Action>) {
    let (mut roots, mut others) = (Vec::new(), Vec::new());
    for action in actions {
        match action {
            Action::Committed { roots: some, .. } => roots.extend(some.iter().copied()),
            other => others.push(other.clone()),
        }
    }
    (roots, others)
}

#[test]
fn roots_that_come_together_count_as_those_that_come_one_by_one() {
    let all = said(&WORDS);
    let mut seen = Vec::new();
    for together in 1..=all.len() {
        let mut shell = shell_with(1, NEVER);
        let (node, epoch, job) = shell.assigned[0].clone();
        let mut actions = shell.feed(Input::Began { node, job: job.id(), epoch });
        for some in all.chunks(together) {
            actions.extend(stream(&mut shell, 0, some.to_vec()));
        }
        seen.push(flat(&actions));
        commit(&mut shell, 0, &WORDS, roots_of_words(job.id(), &WORDS));
        assert!(shell.outcome(job.id()).is_some(), "{together} together");
    }
    let (roots, told) = &seen[0];
    assert_eq!((roots.len(), told.len()), (WORDS.len() * (usize::from(LAYERS) + 1), WORDS.len()));
    assert!(seen.iter().all(|other| *other == seen[0]));
}

#[test]
fn what_comes_before_a_broken_rule_counts_and_nothing_behind_it() {
    let mut shell = shell_with(2, NEVER);
    let mut all = said(&WORDS);
    let twice = all[1].clone();
    all.insert(2, twice);
    let (node, epoch, job) = shell.assigned[0].clone();
    let (roots, others) = flat(&stream(&mut shell, 0, all));
    let place = geometry(&text(1)).place(1).unwrap();
    assert_eq!(roots.iter().map(|root| root.place).next_back(), Some(place));
    assert_eq!(roots.len(), 2);
    let rejected = Action::Rejected { node, job: job.id(), epoch, reason: RejectReason::OutOfOrder { found: place } };
    let about_it = |action: &&Action| matches!(action, Action::Rejected { .. } | Action::Cancel { .. });
    assert_eq!(others.iter().filter(about_it).collect::<Vec<_>>(), [&rejected]);
}

#[test]
fn a_batch_is_cut_at_the_root_that_differs_from_the_one_beside_it() {
    let mut shell = shell_with(2, lockstep());
    assert_eq!(shell.assigned.len(), 2, "side by side");
    (shell.judges, shell.signs) = (false, false);
    let (right, other) = (said(&WORDS), said(&[5, 7, 8]));
    stream(&mut shell, 0, right);
    // The second word is another one; what comes behind its root was on its way.
    let (roots, others) = flat(&stream(&mut shell, 1, other));
    let place = roots.last().unwrap().place;
    assert_eq!(place, geometry(&text(1)).place(2 * (usize::from(LAYERS) + 1) - 1).unwrap());
    let halts = |action: &&Action| matches!(action, Action::Halt { place: at, .. } if *at == place);
    assert_eq!(others.iter().filter(halts).count(), 2);
    assert!(others.iter().any(|action| matches!(action, Action::Diverged { place: at, .. } if *at == place)));
    assert!(stream(&mut shell, 0, said(&WORDS)).is_empty(), "of a run that was halted nothing is taken");
}
