//! Jobs that nobody can run, or that all refuse; and pauses, which a new session cuts short.

use super::*;
use crate::limits::{ABSENCE_LOOK_MS, ABSENCE_LOOKS, PAUSE_MAX_MS, PAUSE_MIN_MS};
use crate::messages::FailureCode;

const PATIENCE_MS: u64 = 5_000;

/// The holder of the newest assignment gives it back.
fn give_back(shell: &mut Shell, code: FailureCode) -> (NodeId, Vec<Action>) {
    let (node, epoch, job) = shell.assigned.pop().expect("an assignment");
    let reason = format!("{} has no room", node.as_bytes()[0]);
    (node, shell.feed(Input::Failed { node, job: job.id(), epoch, code, reason }))
}

fn refused(node: NodeId) -> Action {
    let said = Some(format!("{} has no room", node.as_bytes()[0]));
    Action::JobFailed { job: job(1).id(), reason: JobFailure::Refused, said }
}

/// How often it was told that nobody is there for job 1.
fn told(shell: &Shell) -> usize {
    shell.actions.iter().filter(|action| **action == Action::Deserted { job: job(1).id() }).count()
}

fn wait_for(shell: &mut Shell) {
    shell.feed(Input::Awaited { job: job(1).id(), patience_ms: PATIENCE_MS });
}

/// The worker of the only assignment fails at it, after so many failures that its pause is the longest.
fn fail_for_long(shell: &mut Shell) {
    let node = shell.assigned[0].0;
    shell.machine.workers.update(&node, |worker| worker.conduct.failures = 20);
    give_back(shell, FailureCode::Internal);
}

#[test]
fn a_job_that_everybody_refuses_fails_at_once_with_what_the_last_one_said() {
    for code in [FailureCode::JobRefused, FailureCode::ModelRefused] {
        let mut shell = Shell::new();
        (1..=2).for_each(|number| drop(shell.feed(joined(number, 1))));
        shell.feed(Input::Submit(spec(1, NEVER)));
        let (first, actions) = give_back(&mut shell, code);
        assert!(!actions.contains(&refused(first)), "the other one is asked");
        let (second, actions) = give_back(&mut shell, code);
        assert!(first != second && actions.contains(&refused(second)), "{actions:?}");
        assert_eq!(shell.machine.unfinished_jobs(), 0);
        assert_eq!(shell.machine.ledger().totals().held, 0);
        shell.crash();
        assert_eq!(shell.machine.unfinished_jobs(), 0, "the record says the same");
    }
}

#[test]
fn a_refused_job_waits_for_a_worker_that_is_busy_or_paused() {
    for is_paused in [false, true] {
        let mut shell = Shell::new();
        shell.feed(joined(1, 1));
        shell.feed(Input::Submit(spec(1, NEVER)));
        if is_paused {
            give_back(&mut shell, FailureCode::Busy);
        }
        shell.feed(joined(2, 1));
        if !is_paused {
            shell.feed(Input::Submit(spec(2, NEVER)));
        }
        assert_eq!(give_back(&mut shell, FailureCode::JobRefused).0, keys(2).id());
        assert!(shell.assigned.iter().all(|(node, ..)| *node == keys(1).id()), "who refused is not asked again");
        if is_paused {
            keep_alive(&mut shell, PAUSE_MIN_MS);
        } else {
            shell.run_right(0);
        }
        assert_eq!(shell.assigned[0].0, keys(1).id());
        shell.run_right(0);
        assert_eq!(shell.machine.unfinished_jobs(), 0);
        assert!(shell.outcome(job(if is_paused { 1 } else { 2 }).id()).is_some());
    }
}

#[test]
fn who_refused_a_job_may_have_it_in_its_next_session() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, NEVER)));
    shell.feed(joined(2, 1));
    shell.feed(Input::Submit(spec(2, NEVER)));
    assert_eq!(give_back(&mut shell, FailureCode::JobRefused).0, keys(2).id());
    shell.feed(Input::Draining { node: keys(1).id() });
    shell.run_right(0);
    keep_alive(&mut shell, 2 * PAUSE_MAX_MS);
    assert!(shell.assigned.is_empty() && shell.machine.unfinished_jobs() == 1);
    shell.feed(joined(2, 1));
    keep_alive(&mut shell, PAUSE_MIN_MS);
    assert_eq!(shell.assigned[0].2.id(), job(2).id());
}

#[test]
fn who_waits_for_a_job_is_told_once_nobody_was_there_for_so_long() {
    let mut shell = Shell::new();
    shell.feed(Input::Submit(spec(1, NEVER)));
    wait_for(&mut shell);
    shell.wait(PATIENCE_MS - 1_000);
    assert_eq!(told(&shell), 0);
    shell.wait(1_000);
    assert_eq!(told(&shell), 1);
    shell.wait(10 * PATIENCE_MS);
    assert_eq!((told(&shell), shell.machine.unfinished_jobs()), (1, 1), "it is kept, and told once");
    // Whoever waits next is told too.
    wait_for(&mut shell);
    shell.wait(PATIENCE_MS);
    assert_eq!(told(&shell), 2);
    shell.feed(Input::Cancel { job: job(1).id() });
    assert_eq!(shell.machine.unfinished_jobs(), 0);
    assert_eq!(shell.machine.next_wake(), None, "nothing is looked for any more");
}

#[test]
fn nobody_is_told_who_does_not_wait() {
    let mut shell = Shell::new();
    shell.feed(Input::Submit(spec(1, NEVER)));
    shell.wait(10 * PATIENCE_MS);
    assert_eq!(told(&shell), 0);
}

#[test]
fn a_job_that_is_to_be_run_in_lockstep_is_no_exception() {
    let mut shell = Shell::new();
    shell.feed(Input::Submit(spec(1, AuditPolicy { lockstep: true, ..always(1, false) })));
    wait_for(&mut shell);
    shell.wait(PATIENCE_MS);
    assert_eq!(told(&shell), 1);
}

#[test]
fn a_worker_that_comes_or_is_busy_is_waited_for() {
    let mut shell = Shell::new();
    shell.feed(Input::Submit(spec(1, NEVER)));
    wait_for(&mut shell);
    shell.wait(PATIENCE_MS - 1_000);
    shell.feed(joined(1, 1));
    // Here another job came first, and this one waits for the only worker.
    let mut other = Shell::new();
    other.feed(joined(1, 1));
    other.feed(Input::Submit(spec(2, NEVER)));
    other.feed(Input::Submit(spec(1, NEVER)));
    wait_for(&mut other);
    for shell in [&mut shell, &mut other] {
        keep_alive(shell, 2 * PATIENCE_MS);
        assert_eq!((told(shell), shell.assigned.len()), (0, 1));
    }
    // From when it leaves nobody is there again, and the patience begins anew.
    shell.feed(Input::WorkerLeft { node: keys(1).id() });
    shell.wait(PATIENCE_MS - 1_000);
    assert_eq!(told(&shell), 0);
    shell.wait(2_000);
    assert_eq!(told(&shell), 1);
}

#[test]
fn who_drains_or_pauses_is_not_there() {
    for is_paused in [false, true] {
        let mut shell = Shell::new();
        shell.feed(joined(1, 1));
        if is_paused {
            shell.feed(Input::Submit(spec(2, NEVER)));
            fail_for_long(&mut shell);
        } else {
            shell.feed(Input::Draining { node: keys(1).id() });
        }
        shell.feed(Input::Submit(spec(1, NEVER)));
        wait_for(&mut shell);
        keep_alive(&mut shell, PATIENCE_MS);
        assert_eq!(told(&shell), 1);
    }
}

#[test]
fn a_new_session_cuts_pauses_short_and_forgets_no_failure() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, NEVER)));
    fail_for_long(&mut shell);
    for _ in 0..3 {
        keep_alive(&mut shell, PAUSE_MAX_MS / 2);
        assert!(shell.assigned.is_empty(), "it pauses for long");
        shell.feed(Input::WorkerLeft { node: keys(1).id() });
        shell.feed(joined(1, 1));
        shell.feed(Input::Tick);
        assert!(shell.assigned.is_empty(), "some pause is left: to come again is no way around it");
        keep_alive(&mut shell, PAUSE_MIN_MS);
        assert_eq!(shell.assigned.len(), 1);
        // The next failure pauses it for as long as before.
        give_back(&mut shell, FailureCode::Internal);
    }
}

/// Two workers fail at all that they get; once both were started again, all goes at once.
#[test]
fn jobs_that_failed_before_a_restart_of_all_workers_go_on_soon_after_it() {
    let mut shell = Shell::new();
    (1..=2).for_each(|number| drop(shell.feed(joined(number, 1))));
    shell.feed(Input::Submit(spec(1, always(1, false))));
    let start = shell.now;
    while shell.now.since(start) < 2 * PAUSE_MAX_MS {
        keep_alive(&mut shell, 1_000);
        while !shell.assigned.is_empty() {
            give_back(&mut shell, FailureCode::Backend);
        }
    }
    (1..=2).for_each(|number| drop(shell.feed(joined(number, 1))));
    shell.feed(Input::Submit(spec(2, always(1, false))));
    let before = shell.now;
    keep_alive(&mut shell, PAUSE_MIN_MS);
    for _ in 0..4 {
        shell.run_right(0);
    }
    assert_eq!((shell.machine.unfinished_jobs(), shell.now.since(before)), (0, PAUSE_MIN_MS));
    assert_eq!(shell.outcome(job(1).id()).map(|outcome| outcome.others.len()), Some(1));
}

#[test]
fn a_paused_auditor_is_not_there() {
    let mut shell = Shell::new();
    shell.feed(joined(2, 1));
    shell.feed(Input::Submit(spec(2, NEVER)));
    fail_for_long(&mut shell);
    shell.feed(joined(1, 1));
    while shell.outcome(job(2).id()).is_none() {
        shell.run_right(0);
    }
    shell.feed(Input::Submit(spec(1, always(1, false))));
    shell.run_right(0);
    assert_eq!(shell.machine.unfinished_jobs(), 1);
    keep_alive(&mut shell, ABSENCE_LOOK_MS * u64::from(ABSENCE_LOOKS));
    assert_eq!(shell.outcome(job(1).id()).map(|outcome| (outcome.others.len(), outcome.audits_wanted)), Some((0, 1)));
}
