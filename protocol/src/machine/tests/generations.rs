//! Generations: streams of several points, words to the client, hints to auditors, and halts in their midst.

use super::*;
use crate::canonical::{from_bytes, to_bytes};
use crate::dispute::Side;
use crate::generation::word_root;
use crate::job::JobError;
use crate::ledger::price_of_work;
use crate::limits::{HALT_MS, MAX_RUN_ROOTS};
use crate::machine::credits::bond;
use crate::testing::{STOP, generated, generation, roots_of_words, work_of};

pub(super) const MAX: u32 = 4;
/// What the model draws.
pub(super) const WORDS: [u32; 3] = [5, 6, STOP];
/// What somebody says who draws another token at the second point.
const OTHER: [u32; 4] = [5, 7, 8, 3 << 24 | 9];

pub(super) fn text(number: u8) -> crate::job::Job {
    generation(number, MAX)
}

pub(super) fn spec_of(number: u8, policy: AuditPolicy) -> JobSpec {
    let work = Work::of_points([1, 2, 3].map(work_of));
    JobSpec { job: Arc::new(text(number)), layers: LAYERS, output_count: MAX, work, policy, planted: None }
}

pub(super) fn lockstep() -> AuditPolicy {
    AuditPolicy { lockstep: true, ..always(1, false) }
}

/// A shell with so many workers, and a job.
fn shell(workers: u8, policy: AuditPolicy) -> Shell {
    let mut shell = Shell::new();
    (1..=workers).for_each(|number| drop(shell.feed(joined(number, 2))));
    shell.feed(Input::Submit(spec_of(1, policy)));
    shell
}

pub(super) fn number_of(node: NodeId) -> u8 {
    (1..=9).find(|number| keys(*number).id() == node).unwrap()
}

/// Streams so many of the roots of a run, with the words where they are due.
pub(super) fn stream_some(shell: &mut Shell, index: usize, words: &[u32], roots: &[Root], from: usize) -> Vec<Action> {
    let (node, epoch, job) = shell.assigned[index].clone();
    let (id, geometry, before) = (job.id(), geometry(&job), shell.actions.len());
    if from == 0 {
        shell.feed(Input::Began { node, job: id, epoch });
    }
    for (at, root) in roots.iter().enumerate().skip(from) {
        let place = geometry.place(at).unwrap();
        if place.layer == geometry.streamed_layers() {
            shell.feed(Input::word((node, id, epoch), words[at / usize::from(place.layer)]));
        }
        shell.feed(Input::root((node, id, epoch), place, *root));
    }
    shell.actions[before..].to_vec()
}

/// Commits to a run that was streamed, and reveals it when it is told to.
pub(super) fn commit(shell: &mut Shell, index: usize, words: &[u32], roots: Vec<Root>) -> Vec<Action> {
    let (node, epoch, job) = shell.assigned.remove(index);
    let (number, before) = (number_of(node), shell.actions.len());
    let head = geometry(&job).head(job.id(), epoch, &roots).unwrap();
    let commitment = RunCommitment::of(job.id(), epoch, node, &salt(number), &head);
    let result = Box::new(generated(&keys(number), &job, epoch, words, roots));
    let completed = Input::Completed { node, job: job.id(), epoch, result, salt: salt(number) };
    shell.committed.insert((job.id(), epoch), completed);
    shell.feed(Input::Committed { node, job: job.id(), epoch, commitment });
    shell.actions[before..].to_vec()
}

fn run(shell: &mut Shell, index: usize, words: &[u32]) -> Vec<Action> {
    let roots = roots_of_words(shell.assigned[index].2.id(), words);
    run_roots(shell, index, words, roots)
}

fn run_roots(shell: &mut Shell, index: usize, words: &[u32], roots: Vec<Root>) -> Vec<Action> {
    let before = shell.actions.len();
    stream_some(shell, index, words, &roots, 0);
    commit(shell, index, words, roots);
    shell.actions[before..].to_vec()
}

fn told(actions: &[Action]) -> Vec<(u32, u32)> {
    let word = |action: &Action| match action {
        Action::Token { index, word, .. } => Some((*index, *word)),
        _ => None,
    };
    actions.iter().filter_map(word).collect()
}

fn hints(shell: &Shell) -> Vec<Vec<u32>> {
    let hint = |action: &Action| match action {
        Action::Assign { hint, .. } => Some(hint.clone()),
        _ => None,
    };
    shell.actions.iter().filter_map(hint).collect()
}

fn rejections(actions: &[Action]) -> Vec<RejectReason> {
    let reason = |action: &Action| match action {
        Action::Rejected { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    actions.iter().filter_map(reason).collect()
}

#[test]
fn words_are_told_as_they_come_and_the_work_that_was_done_is_paid() {
    let mut shell = shell(1, NEVER);
    let node = shell.assigned[0].0;
    assert_eq!(shell.machine.ledger().totals().held, bond(&spec_of(1, NEVER)));
    let actions = run(&mut shell, 0, &WORDS);
    assert_eq!(told(&actions), [(0, 5), (1, 6), (2, STOP)]);
    let outcome = shell.outcome(text(1).id()).unwrap();
    assert_eq!(outcome.result.output, WORDS.map(u32::cast_signed));
    assert_eq!(outcome.roots, roots_of_words(text(1).id(), &WORDS));
    let receipt = &outcome.result.receipt.receipt;
    assert_eq!((receipt.points.len(), receipt.roots.len(), receipt.work_units), (2, 4, work_of(3)));
    assert_eq!(shell.machine.ledger().free(&node), GRANT + price_of_work(work_of(3)));
    assert_eq!(shell.machine.ledger().totals().held, 0);
}

#[test]
fn a_run_ends_where_it_has_to_and_nowhere_else() {
    let id = text(1).id();
    // Too early, and too late: without an end, with two words at a point, without a word, and after the end.
    let cases: [(&str, &[u32], usize); 2] = [("early", &[5, 6], 8), ("long", &[5, 6, 7, 8], 15)];
    for (name, words, streamed) in cases {
        let mut shell = shell(2, NEVER);
        let roots = roots_of_words(id, words);
        let (node, epoch, _) = shell.assigned[0].clone();
        stream_some(&mut shell, 0, words, &roots[..streamed], 0);
        let actions = if name == "long" {
            // The last word that is allowed does not end the run.
            shell.feed(Input::word((node, id, epoch), 8))
        } else {
            let commitment = RunCommitment::from_bytes([1; 32]);
            shell.feed(Input::Committed { node, job: id, epoch, commitment })
        };
        assert_eq!(rejections(&actions).len(), 1, "{name}");
        assert!(shell.assigned.iter().all(|(other, ..)| *other != node), "{name}: another worker gets the job");
        assert_eq!(shell.assigned.len(), 1);
    }
    let mut shell = shell(1, NEVER);
    let (node, epoch, _) = shell.assigned[0].clone();
    let roots = roots_of_words(id, &WORDS);
    stream_some(&mut shell, 0, &WORDS, &roots, 0);
    let place = geometry(&text(1)).place(roots.len()).unwrap();
    let actions = shell.feed(Input::root((node, id, epoch), place, root(1)));
    assert_eq!(rejections(&actions), [RejectReason::OutOfOrder { found: place }], "it went on after a stop");
}

#[test]
fn a_word_comes_directly_before_its_root_and_only_there() {
    let (id, roots) = (text(1).id(), roots_of_words(text(1).id(), &WORDS));
    let rejected = |streamed: usize, inputs: &dyn Fn(NodeId, LeaseEpoch) -> Vec<Input>| {
        let mut shell = shell(1, NEVER);
        let (node, epoch, _) = shell.assigned[0].clone();
        stream_some(&mut shell, 0, &WORDS, &roots[..streamed], 0);
        let before = shell.actions.len();
        inputs(node, epoch).into_iter().for_each(|input| drop(shell.feed(input)));
        rejections(&shell.actions[before..])
    };
    let token = |node, epoch, word| Input::word((node, id, epoch), word);
    let last = geometry(&text(1)).place(3).unwrap();
    let output = |node, epoch, root| Input::root((node, id, epoch), last, root);
    assert_eq!(rejected(2, &|node, epoch| vec![token(node, epoch, 5)]), [RejectReason::WordOutOfOrder]);
    let twice = rejected(3, &|node, epoch| vec![token(node, epoch, 5), token(node, epoch, 5)]);
    assert_eq!(twice, [RejectReason::WordOutOfOrder]);
    let none = rejected(3, &|node, epoch| vec![output(node, epoch, word_root(5))]);
    assert_eq!(none, [RejectReason::NotTheWord { found: last }]);
    let other = rejected(3, &|node, epoch| vec![token(node, epoch, 5), output(node, epoch, word_root(6))]);
    assert_eq!(other, [RejectReason::NotTheWord { found: last }]);
    assert_eq!(rejected(3, &|node, epoch| vec![token(node, epoch, 3 << 24)]), [RejectReason::WordOutOfOrder]);
    assert_eq!(rejected(3, &|node, epoch| vec![token(node, epoch, u32::MAX)]), [RejectReason::WordOutOfOrder]);
    // An embedding has no words.
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, NEVER)));
    let (node, epoch, job) = shell.assigned[0].clone();
    let actions = shell.feed(Input::word((node, job.id(), epoch), 5));
    assert_eq!(rejections(&actions), [RejectReason::WordOutOfOrder]);
}

#[test]
fn a_result_has_the_words_that_were_streamed() {
    let mut shell = shell(1, NEVER);
    let (node, epoch, job) = shell.assigned[0].clone();
    let roots = roots_of_words(job.id(), &WORDS);
    stream_some(&mut shell, 0, &WORDS, &roots, 0);
    let head = geometry(&job).head(job.id(), epoch, &roots).unwrap();
    let commitment = RunCommitment::of(job.id(), epoch, node, &salt(1), &head);
    // The roots and the last word are those that were streamed.
    let result = Box::new(generated(&keys(1), &job, epoch, &[5, 9, STOP], roots));
    shell.feed(Input::Committed { node, job: job.id(), epoch, commitment });
    let actions = shell.feed(Input::Completed { node, job: job.id(), epoch, result, salt: salt(1) });
    assert_eq!(rejections(&actions), [RejectReason::NotAsStreamed]);
}

#[test]
fn auditors_are_told_what_is_claimed_and_agree_or_differ() {
    let mut shell = shell(2, always(1, false));
    run(&mut shell, 0, &WORDS);
    assert_eq!(hints(&shell), [vec![], WORDS.to_vec()]);
    let actions = run(&mut shell, 0, &WORDS);
    assert_eq!(told(&actions), [], "what an auditor draws tells the client nothing");
    assert_eq!(shell.outcome(text(1).id()).unwrap().others.len(), 1);
}

#[test]
fn an_auditor_that_echoes_the_words_without_the_run_is_disputed_and_loses() {
    let mut shell = shell(2, always(1, false));
    shell.judges = false;
    run(&mut shell, 0, &WORDS);
    let echo = number_of(shell.assigned[0].0);
    let mut roots: Vec<_> = (0..12).map(|value| root(0x80 | value)).collect();
    for (at, word) in WORDS.iter().enumerate() {
        roots[4 * at + 3] = word_root(*word);
    }
    run_roots(&mut shell, 0, &WORDS, roots);
    let (_, terms) = shell.disputes.last().cloned().unwrap();
    let ground = terms.check().unwrap();
    assert_eq!((ground.place, ground.index), (Place { point: 3, layer: 1 }, 0));
    shell.end_dispute(terms.side_of(&keys(echo).id()).unwrap().alone(), VerdictKind::Proven);
    assert_eq!(shell.machine.quarantined().collect::<Vec<_>>(), [&keys(echo).id()]);
}

#[test]
fn runs_that_differ_in_mid_generation_are_disputed_there_with_all_that_is_agreed() {
    let mut shell = shell(2, always(1, false));
    shell.judges = false;
    run(&mut shell, 0, &WORDS);
    run(&mut shell, 0, &OTHER);
    let (job, terms) = shell.disputes.last().cloned().unwrap();
    let ground = terms.check().unwrap();
    let right = roots_of_words(job, &WORDS);
    assert_eq!((ground.place, ground.index), (Place { point: 4, layer: LAYERS + 1 }, 1));
    assert_eq!((ground.words, ground.input), (vec![5], Some(right[6])));
    assert_eq!(
        (ground.prefix, terms.before.as_slice()),
        (None, &right[..4]),
        "the output has other rows at each point"
    );
    assert_eq!((terms.claimant.at.as_slice(), terms.challenger.at.len()), (&right[4..8], 4));
    // A run with another root of a layer at the third point: the rows before have a root.
    let mut shell = self::shell(2, always(1, false));
    shell.judges = false;
    run(&mut shell, 0, &WORDS);
    let mut lie = right.clone();
    lie[9] = root(0xdd);
    run_roots(&mut shell, 0, &WORDS, lie);
    let (_, terms) = shell.disputes.last().cloned().unwrap();
    let ground = terms.check().unwrap();
    assert_eq!((ground.place, ground.prefix), (Place { point: 5, layer: 2 }, Some((5, right[5]))));
    assert_eq!((ground.words, terms.claimant.at.len()), (vec![5, 6], 0), "the roots of a last point are signed");
}

#[test]
fn side_by_side_the_first_root_that_differs_halts_both_in_mid_generation() {
    let mut shell = shell(2, lockstep());
    (shell.judges, shell.signs) = (false, false);
    assert_eq!(hints(&shell), [Vec::<u32>::new(), vec![]], "who runs beside the first worker is told nothing");
    let id = text(1).id();
    let (right, wrong) = (roots_of_words(id, &WORDS), roots_of_words(id, &OTHER));
    let first = stream_some(&mut shell, 0, &WORDS, &right[..10], 0);
    assert_eq!(told(&first), [(0, 5), (1, 6)]);
    let second = stream_some(&mut shell, 1, &OTHER, &wrong[..8], 0);
    assert_eq!(told(&second), [], "the word that differs is not told");
    let place = Place { point: 4, layer: LAYERS + 1 };
    let halts = second.iter().filter(|action| matches!(action, Action::Halt { place: at, .. } if *at == place));
    assert_eq!(halts.count(), 2);
    // What was on its way is passed over.
    assert_eq!(rejections(&stream_some(&mut shell, 0, &WORDS, &right, 10)), []);
    let partial = |shell: &Shell, index: usize, words: &[u32], roots: &[Root]| {
        let (node, epoch, job) = shell.assigned[index].clone();
        let partial = Partial::of_roots(id, &geometry(&job), epoch, roots, words, node).unwrap();
        Input::Partial { node, partial: Box::new(partial.sign(&keys(number_of(node)))) }
    };
    let (a, b) = (partial(&shell, 0, &WORDS[..2], &right[..8]), partial(&shell, 1, &OTHER[..2], &wrong[..8]));
    let liar = shell.assigned[1].0;
    shell.feed(a);
    shell.feed(b);
    let (_, terms) = shell.disputes.last().cloned().unwrap();
    let ground = terms.check().unwrap();
    assert_eq!((ground.place, ground.words), (place, vec![5]));
    shell.end_dispute(terms.side_of(&liar).unwrap().alone(), VerdictKind::Proven);
    assert_eq!(shell.machine.quarantined().collect::<Vec<_>>(), [&liar]);
}

#[test]
fn one_that_stops_early_or_goes_on_too_long_beside_another_is_halted_at_its_word() {
    for words in [vec![5, STOP], vec![5, 6, 8, 3 << 24 | 9]] {
        let mut shell = shell(2, lockstep());
        let id = text(1).id();
        stream_some(&mut shell, 0, &WORDS, &roots_of_words(id, &WORDS), 0);
        let before = shell.actions.len();
        let roots = roots_of_words(id, &words);
        for end in 1..=roots.len() {
            if !shell.actions[before..].iter().any(|action| matches!(action, Action::Halt { .. })) {
                stream_some(&mut shell, 1, &words, &roots[..end], end - 1);
            }
        }
        let diverged = shell.actions[before..].iter().find_map(|action| match action {
            Action::Diverged { place, .. } => Some(*place),
            _ => None,
        });
        let differs = WORDS.iter().zip(&words).position(|(a, b)| a != b).unwrap();
        assert_eq!(diverged, Some(Place { point: 3 + differs as u32, layer: LAYERS + 1 }));
    }
}

#[test]
fn after_a_restart_a_job_is_given_out_again_and_its_words_come_anew() {
    let mut shell = shell(1, NEVER);
    let roots = roots_of_words(text(1).id(), &WORDS);
    stream_some(&mut shell, 0, &WORDS, &roots[..6], 0);
    shell.crash();
    shell.feed(joined(1, 1));
    assert_eq!(told(&run(&mut shell, 0, &WORDS)), [(0, 5), (1, 6), (2, STOP)]);
    assert!(shell.outcome(text(1).id()).is_some());
}

#[test]
fn a_dispute_about_a_generation_outlives_a_restart() {
    let mut shell = shell(2, always(1, false));
    shell.judges = false;
    run(&mut shell, 0, &WORDS);
    run(&mut shell, 0, &OTHER);
    let before = shell.disputes.last().cloned().unwrap();
    for record in &shell.records {
        assert_eq!(from_bytes::<Record>(&to_bytes(record)).as_ref(), Ok(record));
    }
    shell.crash();
    assert_eq!(shell.disputes, [before]);
}

#[test]
fn a_worker_that_is_lost_in_the_midst_leaves_words_that_another_one_confirms_or_replaces() {
    let mut shell = shell(2, NEVER);
    let id = text(1).id();
    let first = shell.assigned[0].0;
    let wrong = roots_of_words(id, &OTHER);
    assert_eq!(told(&stream_some(&mut shell, 0, &OTHER, &wrong[..12], 0)), [(0, 5), (1, 7), (2, 8)]);
    shell.assigned.clear();
    shell.feed(Input::WorkerLeft { node: first });
    assert_eq!(told(&run(&mut shell, 0, &WORDS)), [(1, 6), (2, STOP)], "what is the same is not told again");
}

#[test]
fn a_generation_may_take_its_time_but_not_stand_still() {
    let mut shell = shell(1, NEVER);
    let id = text(1).id();
    let (node, roots) = (shell.assigned[0].0, roots_of_words(id, &WORDS));
    let alive = |shell: &mut Shell, seconds: u64| {
        for _ in 0..seconds {
            shell.feed(Input::Heartbeat { node });
            shell.wait(1_000);
        }
    };
    for end in 1..=8 {
        stream_some(&mut shell, 0, &WORDS, &roots[..end], end - 1);
        alive(&mut shell, 10);
    }
    assert_eq!(shell.assigned.len(), 1, "it is slow, and goes on");
    alive(&mut shell, 60);
    assert!(shell.assigned.is_empty() || shell.assigned[0].1 > LeaseEpoch(1), "no root came for a minute");
}

#[test]
fn only_a_pass_over_many_positions_measures_a_worker() {
    let speed = |shell: &Shell| shell.machine.workers().next().unwrap().macs_per_ms;
    let mut shell = shell(1, NEVER);
    let before = speed(&shell);
    shell.wait(5_000);
    run(&mut shell, 0, &WORDS);
    assert_eq!(speed(&shell), before, "one token after the other says nothing");
    let mut shell = self::shell(2, always(1, false));
    run(&mut shell, 0, &WORDS);
    let before: Vec<_> = shell.machine.workers().map(|worker| worker.macs_per_ms).collect();
    run(&mut shell, 0, &WORDS);
    let after: Vec<_> = shell.machine.workers().map(|worker| worker.macs_per_ms).collect();
    assert_eq!(before.iter().zip(&after).filter(|(a, b)| a != b).count(), 1, "an audit is one pass");
}

#[test]
fn a_cancelled_job_ends_at_once_and_nobody_is_paid_or_loses_anything() {
    let id = text(1).id();
    for audited in [false, true] {
        let mut shell = shell(2, always(1, false));
        if audited {
            run(&mut shell, 0, &WORDS);
        }
        let (node, epoch, _) = shell.assigned[0].clone();
        let actions = shell.feed(Input::Cancel { job: id });
        assert!(actions.contains(&Action::Cancel { node, job: id, epoch }));
        assert!(actions.contains(&Action::JobFailed { job: id, reason: JobFailure::Cancelled, said: None }));
        assert_eq!((shell.machine.unfinished_jobs(), shell.machine.ledger().totals().held), (0, 0));
        assert!((1..=2).all(|number| shell.machine.ledger().free(&keys(number).id()) == GRANT));
        let again = shell.feed(Input::Cancel { job: id });
        assert_eq!(again, []);
        shell.crash();
        assert_eq!(shell.machine.unfinished_jobs(), 0);
    }
}

#[test]
fn who_lied_is_found_out_before_a_job_is_cancelled() {
    let id = text(1).id();
    let mut disputed = shell(2, always(1, false));
    disputed.judges = false;
    run(&mut disputed, 0, &WORDS);
    run(&mut disputed, 0, &OTHER);
    assert_eq!(disputed.feed(Input::Cancel { job: id }), []);
    assert_eq!(disputed.machine.unfinished_jobs(), 1);
    let mut split = shell(3, always(2, false));
    run(&mut split, 0, &WORDS);
    run(&mut split, 0, &OTHER);
    assert_eq!(split.feed(Input::Cancel { job: id }), [], "a third run is still under way");
    let mut halted = shell(2, lockstep());
    stream_some(&mut halted, 0, &WORDS, &roots_of_words(id, &WORDS)[..8], 0);
    stream_some(&mut halted, 1, &OTHER, &roots_of_words(id, &OTHER)[..8], 0);
    assert_eq!(halted.feed(Input::Cancel { job: id }), []);
    halted.wait(HALT_MS + 1_000);
    assert_eq!(halted.feed(Input::Cancel { job: id }).len(), 1, "nobody has signed, and the job is open again");
}

#[test]
fn jobs_that_could_fill_the_memory_are_refused() {
    let job = generation(1, 16_384);
    let layers = (MAX_RUN_ROOTS / 16_384) as u16;
    let spec = |layers| JobSpec { job: Arc::new(job.clone()), layers, ..spec_of(1, NEVER) };
    let mut shell = Shell::new();
    let refused = shell.feed(Input::Submit(spec(layers)));
    let found = 16_384 * (usize::from(layers) + 1);
    let reason = SubmitError::Job(JobError::Roots { found });
    assert_eq!(refused, [Action::RefuseJob { job: job.id(), reason }]);
    assert!(matches!(shell.feed(Input::Submit(spec(layers - 1)))[..], [Action::Submitted { .. }]));
    // Each of the largest holds a part of what all together may hold.
    let mut taken = 1;
    for number in 2..=u8::MAX {
        let spec = JobSpec { job: Arc::new(generation(number, 16_384)), ..spec(layers - 1) };
        taken += usize::from(matches!(shell.feed(Input::Submit(spec))[..], [Action::Submitted { .. }]));
    }
    assert_eq!(taken, crate::limits::MAX_UNFINISHED_TOKENS / (4 + 16 * MAX_RUN_ROOTS));
}

#[test]
fn a_side_can_play_only_for_its_own_key() {
    let mut shell = shell(2, always(1, false));
    shell.judges = false;
    run(&mut shell, 0, &WORDS);
    run(&mut shell, 0, &OTHER);
    let (_, terms) = shell.disputes.last().cloned().unwrap();
    // Words that are not those of the run, roots of another point, roots of a point before that nobody agreed to.
    let mut words = terms.clone();
    words.claimant.words[0] = 9;
    assert!(words.check().is_err());
    let mut at = terms.clone();
    at.challenger.at = at.before.clone();
    assert_eq!(at.check(), Err(crate::dispute::TermsError::At(Side::Challenger)));
    let mut before = terms.clone();
    before.before[1] = root(1);
    assert_eq!(before.check(), Err(crate::dispute::TermsError::Before));
    let none = Terms { before: Vec::new(), ..terms };
    assert_eq!(none.check(), Err(crate::dispute::TermsError::Before));
}
