//! Runs with the same roots and words, and other log-probabilities.

use super::generations::{MAX, WORDS, number_of};
use super::*;
use crate::dispute::{Claim, Side};
use crate::generation::Generation;
use crate::job::{Job, JobKind};
use crate::logprobs::ShownRow;
use crate::machine::stream::Streamed;
use crate::testing::{generated_with, generation, roots_of_words, work_of};

/// Each row has the drawn token's value, and a likely token with its own.
const RIGHT: [i32; 9] = [-5, 7, -1, -6, 8, -2, -7, 9, -3];

fn asked() -> Generation {
    Generation { logprobs: 2, ..Generation::greedy(MAX) }
}

fn text() -> Job {
    Job { kind: JobKind::Generation(Box::new(asked())), ..generation(1, MAX) }
}

/// The right values but for one.
fn wrong(at: usize, value: i32) -> [i32; 9] {
    let mut values = RIGHT;
    values[at] = value;
    values
}

fn place(point: u32) -> Place {
    Place { point, layer: LAYERS + 2 }
}

/// A shell with so many workers, and a job.
fn shell(workers: u8, policy: AuditPolicy) -> Shell {
    let mut shell = Shell::new();
    shell.judges = false;
    (1..=workers).for_each(|number| drop(shell.feed(joined(number, 2))));
    let work = Work::of_points([1, 2, 3].map(work_of));
    let spec = JobSpec { job: Arc::new(text()), layers: LAYERS, output_count: MAX, work, policy, planted: None };
    shell.feed(Input::Submit(spec));
    shell
}

/// The worker of the first assignment runs it with the right roots and words, and these log-probabilities. Who that is.
fn run(shell: &mut Shell, values: &[i32]) -> NodeId {
    let (node, epoch, job) = shell.assigned.remove(0);
    let (id, geometry, roots) = (job.id(), geometry(&job), roots_of_words(job.id(), &WORDS));
    shell.feed(Input::Began { node, job: id, epoch });
    let mut points = WORDS.iter().zip(values.chunks(3));
    for (place, root) in geometry.places().zip(&roots) {
        if place.layer == geometry.streamed_layers() {
            let (word, row) = points.next().unwrap();
            let said = vec![Streamed::Word(*word, row.to_vec())];
            shell.feed(Input::Streamed { node, job: id, epoch, said });
        }
        shell.feed(Input::root((node, id, epoch), place, *root));
    }
    let (number, head) = (number_of(node), geometry.head(id, epoch, &roots).unwrap());
    let commitment = RunCommitment::of(id, epoch, node, &salt(number), &head);
    let result = Box::new(generated_with(&keys(number), &job, epoch, (&WORDS, values), roots));
    shell.committed.insert((id, epoch), Input::Completed { node, job: id, epoch, result, salt: salt(number) });
    shell.feed(Input::Committed { node, job: id, epoch, commitment });
    node
}

#[test]
fn runs_with_the_same_log_probabilities_agree() {
    let mut shell = shell(2, always(1, false));
    run(&mut shell, &RIGHT);
    run(&mut shell, &RIGHT);
    assert!(shell.disputes.is_empty());
    assert_eq!(shell.outcome(text().id()).unwrap().others.len(), 1);
}

/// A value, which token is listed, and the drawn token's, at each point.
#[test]
fn runs_that_differ_in_log_probabilities_alone_are_disputed_at_the_first_point() {
    for (at, value, point) in [(0, -4, 3), (1, 6, 3), (2, 0, 3), (3, -5, 4), (8, -1, 5)] {
        let mut shell = shell(2, always(1, false));
        run(&mut shell, &RIGHT);
        let liar = run(&mut shell, &wrong(at, value));
        let (job, terms) = shell.disputes.last().cloned().unwrap();
        let ground = terms.check().unwrap();
        assert_eq!((ground.place, ground.index), (place(point), point as usize - 3));
        let difference = shell.actions.iter().find_map(|action| match action {
            Action::Mismatch { difference, auditor, .. } => Some((*difference, *auditor)),
            _ => None,
        });
        let (difference, auditor) = difference.unwrap();
        assert_eq!((difference.place, auditor, terms.side_of(&liar)), (ground.place, liar, Some(Side::Challenger)));
        assert_eq!([difference.a, difference.b], ground.roots.map(Some));
        // The same after a restart.
        shell.crash();
        assert_eq!(shell.disputes, [(job, terms)]);
    }
}

#[test]
fn who_lied_about_a_log_probability_loses_its_bond_and_the_receipt_says_where() {
    for liar_is_first in [true, false] {
        let mut shell = shell(2, always(1, false));
        let runs = [wrong(5, -1), RIGHT];
        let runs = if liar_is_first { runs } else { [runs[1], runs[0]] };
        let nodes = runs.map(|values| run(&mut shell, &values));
        let liar = nodes[usize::from(!liar_is_first)];
        let (_, terms) = shell.disputes.last().cloned().unwrap();
        let losers = terms.side_of(&liar).unwrap().alone();
        shell.end_with(Verdict { place: place(4), ..verdict(losers, VerdictKind::Proven) });
        assert_eq!(shell.machine.quarantined().collect::<Vec<_>>(), [&liar]);
        assert!(shell.machine.ledger().free(&liar) < GRANT);
        shell.feed(joined(3, 1));
        run(&mut shell, &RIGHT);
        let outcome = shell.outcome(text().id()).unwrap();
        assert_eq!(outcome.result.logprobs(), RIGHT);
        assert_eq!(outcome.refutations.iter().map(|of| (of.worker, of.place)).collect::<Vec<_>>(), [(liar, place(4))]);
        let receipt = outcome.receipt(&text(), None, &keys(100), Millis(5));
        receipt.check().unwrap();
        let json = receipt.to_json();
        assert_eq!(crate::receipt::Receipt::from_json(&json), Ok(receipt));
    }
}

#[test]
fn log_probabilities_of_an_ended_job_are_overturned_by_a_challenge() {
    let mut shell = shell(1, NEVER);
    let liar = run(&mut shell, &wrong(4, 3));
    let outcome = shell.outcome(text().id()).unwrap().clone();
    shell.feed(joined(2, 1));
    let roots = roots_of_words(text().id(), &WORDS);
    let own = generated_with(&keys(2), &text(), LeaseEpoch::CHALLENGE, (&WORDS, &RIGHT), roots.clone());
    let claim = |signed: crate::receipt::SignedReceipt, values: &[i32]| Claim {
        words: WORDS.to_vec(),
        at: roots[4..8].to_vec(),
        logprobs: ShownRow::of(values, &asked(), 1),
        ..signed.into()
    };
    let challenge = Challenge {
        job: text().header(),
        layers: LAYERS,
        work_units: work_of(3),
        ended: shell.ended.get(&text().id()).copied(),
        claimant: claim(outcome.result.receipt.clone(), outcome.result.logprobs()),
        challenger: claim(own.receipt, &RIGHT),
        before: Vec::new(),
    };
    let actions = shell.feed(Input::Challenge(Box::new(challenge)));
    assert!(matches!(actions[..], [Action::OpenDispute { .. }]), "{actions:?}");
    let verdict = Verdict { place: place(4), ..verdict([true, false], VerdictKind::Proven) };
    let actions = shell.end_with(verdict);
    assert!(actions.iter().any(|action| matches!(action, Action::Overturned { .. })));
    assert_eq!(shell.machine.quarantined().collect::<Vec<_>>(), [&liar]);
}
