//! Who fails, is slow or is not heard does no harm to jobs and to others.

use super::*;
use crate::limits::{BEGIN_MS, LEASE_MIN_MS, MAX_STUCK_JOBS_TRIED, SILENCE_MS};
use crate::messages::FailureCode;

/// One good worker that is full, and one that gives everything back at once.
#[test]
fn a_failing_worker_does_not_eat_the_queue_while_the_good_one_is_busy() {
    for code in [FailureCode::ModelUnavailable, FailureCode::Internal, FailureCode::Busy] {
        let mut shell = Shell::new();
        shell.feed(joined(1, 1));
        shell.feed(joined(2, 1));
        for number in 1..=200 {
            shell.feed(Input::Submit(spec(number, NEVER)));
        }
        let mut failures = 0;
        while let Some(index) = shell.assigned.iter().position(|(node, ..)| *node == keys(1).id()) {
            while let Some(bad) = shell.assigned.iter().position(|(node, ..)| *node == keys(2).id()) {
                let (node, epoch, job) = shell.assigned.remove(bad);
                shell.feed(Input::Failed { node, job: job.id(), epoch, code, reason: String::new() });
                failures += 1;
            }
            let index = index.min(shell.assigned.len() - 1);
            shell.run_right(index);
        }
        assert_eq!(shell.machine.unfinished_jobs(), 0, "{code:?}");
        assert!(shell.outcome(job(200).id()).is_some());
        assert!(failures <= 4, "{failures} of {code:?}");
    }
}

#[test]
fn a_slow_declared_speed_buys_no_long_lease() {
    let mut shell = Shell::new();
    let capabilities = Capabilities {
        macs_per_second: 1_000,
        max_in_flight: 1,
        models: vec![job(0).model],
        operator: None,
        pipeline: None,
    };
    let node = keys(1).id();
    shell.feed(Input::WorkerJoined { node, capabilities });
    shell.feed(Input::Submit(spec(1, NEVER)));
    let start = shell.now;
    while !shell.assigned.is_empty() {
        shell.feed(Input::Heartbeat { node });
        shell.wait(1_000);
    }
    assert!(shell.now.since(start) <= BEGIN_MS + 1_000);
}

#[test]
fn a_stall_of_the_coordinator_is_charged_to_nobody() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, NEVER)));
    shell.now = shell.now.plus(10 * LEASE_MIN_MS);
    assert!(shell.feed(Input::Tick).is_empty());
    assert_eq!(shell.machine.workers().count(), 1);
    // What other inputs say is heard before any deadline passes.
    shell.now = shell.now.plus(10 * SILENCE_MS);
    assert!(shell.feed(Input::Heartbeat { node: keys(1).id() }).is_empty());
    shell.run_right(0);
    assert!(shell.outcome(job(1).id()).is_some());
    // Nobody stalls now: silence ends the session.
    shell.wait(SILENCE_MS + 1_000);
    assert_eq!(shell.machine.workers().count(), 0);
}

#[test]
fn jobs_that_nobody_can_bond_do_not_hold_up_those_that_come_after_them() {
    let mut shell = Shell::new();
    let stuck = 3 * MAX_STUCK_JOBS_TRIED as u8 / 2;
    for number in 1..=stuck {
        shell.feed(Input::Submit(JobSpec { work: Work::fixed(u64::MAX), ..spec(number, NEVER) }));
    }
    for number in stuck + 1..=stuck + 20 {
        shell.feed(Input::Submit(spec(number, NEVER)));
    }
    shell.feed(joined(1, 1));
    for _ in 0..8 {
        shell.feed(Input::Heartbeat { node: keys(1).id() });
        shell.wait(crate::limits::TICK_MS);
        while !shell.assigned.is_empty() {
            shell.run_right(0);
        }
    }
    assert_eq!(shell.machine.unfinished_jobs(), usize::from(stuck));
}
