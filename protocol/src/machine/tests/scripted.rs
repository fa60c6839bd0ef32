use super::*;
use crate::limits::{LEASE_MAX_MS, LEASE_MIN_MS, MAX_FAILURES, PAUSE_MIN_MS, SILENCE_MS};
use crate::messages::FailureCode;
use crate::receipt::Standing;

fn has(actions: &[Action], test: impl Fn(&Action) -> bool) -> bool {
    actions.iter().any(test)
}

#[test]
fn an_unaudited_job_runs_once_and_is_done() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, NEVER)));
    assert_eq!(shell.assigned.len(), 1);
    shell.run_right(0);
    let outcome = shell.outcome(job(1).id()).unwrap();
    assert_eq!((outcome.others.len(), outcome.audits_wanted), (0, 0));
    assert_eq!(shell.machine.unfinished_jobs(), 0);
    let again = shell.feed(Input::Submit(spec(1, NEVER)));
    assert_eq!(again, [Action::AlreadyKnown { job: job(1).id(), ended: true, policy: NEVER }]);
}

#[test]
fn the_records_of_an_action_come_with_it() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    let output = shell.machine.handle(shell.now, Input::Submit(spec(1, NEVER)));
    assert!(matches!(output.records[..], [Record::Submitted(_), Record::Assigned { .. }]));
    assert!(matches!(output.actions[..], [Action::Submitted { .. }, Action::Assign { .. }]));
}

#[test]
fn the_same_job_twice_is_one_job_under_the_stricter_policy() {
    let mut shell = Shell::new();
    shell.feed(Input::Submit(spec(1, NEVER)));
    let again = shell.feed(Input::Submit(spec(1, always(1, true))));
    assert_eq!(again, [Action::AlreadyKnown { job: job(1).id(), ended: false, policy: always(1, true) }]);
    assert!(matches!(shell.records[..], [Record::Submitted(_), Record::Tightened { .. }]));
    // The laxer policy of a third submission changes nothing, and the audit happens.
    shell.feed(Input::Submit(spec(1, NEVER)));
    assert_eq!(shell.records.len(), 2);
    shell.crash();
    shell.feed(joined(1, 1));
    shell.feed(joined(2, 1));
    shell.run_right(0);
    assert!(shell.outcome(job(1).id()).is_none(), "it is held");
    shell.run_right(0);
    assert_eq!(shell.outcome(job(1).id()).unwrap().audits_wanted, 1);
}

#[test]
fn an_audit_that_agrees_closes_the_job() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 4));
    shell.feed(Input::Submit(spec(1, always(1, false))));
    shell.run_right(0);
    assert!(shell.assigned.is_empty(), "nobody audits itself");
    shell.feed(joined(2, 4));
    let actions = shell.run_right(0);
    assert!(has(&actions, |action| matches!(action, Action::JobDone { .. })));
    let outcome = shell.outcome(job(1).id()).unwrap().clone();
    let receipt = outcome.receipt(&job(1), None, &keys(100), Millis(5));
    let standing = Standing { matched: 1, mismatched: 0, refuted: None, withdrawn: false };
    assert_eq!(receipt.check(), Ok(standing));
}

#[test]
fn a_wrong_auditor_is_found_and_the_answer_stands() {
    let mut shell = Shell::new();
    for number in 1..=2 {
        shell.feed(joined(number, 1));
    }
    shell.feed(Input::Submit(spec(1, always(1, false))));
    shell.run_right(0);
    let (auditor, ..) = shell.assigned[0];
    let actions = shell.run_wrong(0);
    assert!(has(&actions, |action| matches!(
        action,
        Action::Mismatch { difference, auditor: found, .. }
            if difference.place.layer == 2 && *found == auditor
    )));
    assert!(has(&actions, |action| matches!(
        action,
        Action::Quarantine { node, place, .. } if *node == auditor && place.layer == 2
    )));
    let differs =
        |action: &Action| matches!(action, Action::Committed { roots, .. } if roots.iter().any(|root| root.differs));
    assert!(has(&actions, differs));
    // The audit that was wanted is still wanted.
    shell.feed(joined(3, 1));
    shell.run_right(0);
    let outcome = shell.outcome(job(1).id()).unwrap().clone();
    assert_eq!(outcome.refutations.len(), 1);
    let receipt = outcome.receipt(&job(1), None, &keys(100), Millis(5));
    let standing = Standing { matched: 1, mismatched: 1, refuted: None, withdrawn: false };
    assert_eq!(receipt.check(), Ok(standing));
}

#[test]
fn a_wrong_first_run_is_replaced_by_the_honest_auditors() {
    let mut shell = Shell::new();
    for number in 1..=2 {
        shell.feed(joined(number, 1));
    }
    shell.feed(Input::Submit(spec(1, always(1, true))));
    let (cheat, ..) = shell.assigned[0];
    shell.run_wrong(0);
    let honest = shell.assigned[0].0;
    shell.run_right(0);
    shell.feed(joined(3, 1));
    shell.run_right(0);
    let outcome = shell.outcome(job(1).id()).unwrap().clone();
    assert_eq!(outcome.result.receipt.receipt.worker, honest);
    assert_eq!(outcome.refutations[0].worker, cheat);
    assert_eq!(shell.machine.quarantined().collect::<Vec<_>>(), [&cheat]);
    assert!(outcome.receipt(&job(1), None, &keys(100), Millis(5)).check().is_ok());
    // The cheat gets nothing any more, not even a connection.
    let number = if keys(1).id() == cheat { 1 } else { 2 };
    let refused = shell.feed(joined(number, 1));
    let code = RefusalCode::Quarantined;
    assert_eq!(refused, [Action::RefuseWorker { node: cheat, code }]);
}

#[test]
fn a_late_result_of_an_old_lease_is_refused() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, NEVER)));
    let (node, epoch, assigned) = shell.assigned[0].clone();
    shell.feed(Input::WorkerLeft { node });
    shell.feed(joined(2, 1));
    let (second, next_epoch, _) = shell.assigned[1].clone();
    assert!(next_epoch > epoch && second != node);
    let result = Box::new(crate::testing::run(&keys(1), &assigned, epoch));
    let late = shell.feed(Input::Completed { node, job: assigned.id(), epoch, result, salt: salt(1) });
    assert_eq!(late, [Action::Cancel { node, job: assigned.id(), epoch }]);
    // Nor does a result count that another worker sends under the live lease.
    let stolen = Box::new(crate::testing::run(&keys(1), &assigned, next_epoch));
    let input = Input::Completed { node, job: assigned.id(), epoch: next_epoch, result: stolen, salt: salt(1) };
    assert!(matches!(shell.feed(input)[..], [Action::Cancel { .. }]));
    assert!(shell.outcome(assigned.id()).is_none());
}

#[test]
fn a_result_that_was_kept_is_acknowledged_again() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, always(1, false))));
    let (node, epoch, assigned) = shell.assigned[0].clone();
    shell.run_right(0);
    let result = Box::new(crate::testing::run(&keys(1), &assigned, epoch));
    let again = shell.feed(Input::Completed { node, job: assigned.id(), epoch, result, salt: salt(1) });
    assert_eq!(again, [Action::Accepted { node, job: assigned.id(), epoch }]);
}

#[test]
fn a_lease_ends_at_its_deadline_and_silence_ends_a_session() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, NEVER)));
    let (node, epoch, _) = shell.assigned[0].clone();
    // Heartbeats keep the session, not the lease.
    let deadline = shell.now.plus(LEASE_MAX_MS);
    let mut cancelled = None;
    while cancelled.is_none() && shell.now < deadline {
        let before = shell.actions.len();
        shell.wait(SILENCE_MS / 2);
        shell.feed(Input::Heartbeat { node });
        let actions = shell.actions[before..].to_vec();
        if actions.contains(&Action::Cancel { node, job: job(1).id(), epoch }) {
            cancelled = Some(shell.now);
        }
    }
    assert!(cancelled.unwrap() >= Millis(1_000).plus(LEASE_MIN_MS));
    shell.wait(PAUSE_MIN_MS);
    assert_eq!(shell.assigned.len(), 1, "it is tried again");
    shell.wait(SILENCE_MS);
    assert!(shell.actions.contains(&Action::Disconnect { node }));
    assert_eq!(shell.machine.workers().count(), 0);
}

/// The holder of the newest assignment gives it back.
fn give_back(shell: &mut Shell) -> NodeId {
    let (node, epoch, assigned) = shell.assigned.pop().unwrap();
    shell.feed(Input::Failed { node, job: assigned.id(), epoch, code: FailureCode::Backend, reason: String::new() });
    node
}

#[test]
fn a_job_at_which_enough_workers_fail_is_given_up() {
    let mut shell = Shell::new();
    for number in 1..=MAX_FAILURES as u8 + 2 {
        shell.feed(joined(number, 1));
    }
    shell.feed(Input::Submit(spec(1, NEVER)));
    let mut asked = BTreeSet::new();
    while !shell.assigned.is_empty() {
        assert!(asked.insert(give_back(&mut shell)), "others are asked first");
    }
    assert_eq!(asked.len(), MAX_FAILURES);
    let reason = JobFailure::Attempts;
    assert!(shell.actions.contains(&Action::JobFailed { job: job(1).id(), reason, said: None }));
    assert_eq!(shell.machine.unfinished_jobs(), 0);
}

#[test]
fn one_worker_alone_is_asked_again_after_pauses_and_does_not_sink_the_job() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, NEVER)));
    let node = keys(1).id();
    for _ in 0..4 * MAX_FAILURES {
        give_back(&mut shell);
        assert!(shell.assigned.is_empty(), "there is a pause");
        while shell.assigned.is_empty() {
            shell.wait(SILENCE_MS / 2);
            shell.feed(Input::Heartbeat { node });
        }
    }
    assert_eq!(shell.machine.unfinished_jobs(), 1);
    shell.run_right(0);
    assert!(shell.outcome(job(1).id()).is_some());
}

#[test]
fn a_worker_that_failed_waits_for_others_and_takes_other_jobs_meanwhile() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, NEVER)));
    shell.feed(joined(2, 1));
    shell.feed(Input::Submit(spec(2, NEVER)));
    // The second worker fails at its job; the first is busy, so the job waits for it.
    assert_eq!(give_back(&mut shell), keys(2).id());
    assert_eq!(shell.assigned.len(), 1);
    shell.feed(Input::Submit(spec(3, NEVER)));
    assert_eq!((shell.assigned[1].0, shell.assigned[1].2.id()), (keys(2).id(), job(3).id()));
    shell.run_right(0);
    assert_eq!((shell.assigned[1].0, shell.assigned[1].2.id()), (keys(1).id(), job(2).id()));
    shell.run_right(1);
    assert!(shell.outcome(job(2).id()).is_some());
}

#[test]
fn what_breaks_the_rules_ends_its_session_and_does_not_use_up_the_job() {
    let mut shell = Shell::new();
    shell.feed(Input::Submit(spec(1, NEVER)));
    for number in 10..10 + 4 * MAX_FAILURES as u8 {
        shell.feed(joined(number, 2));
        let (node, epoch, assigned) = shell.assigned[0].clone();
        let result = Box::new(crate::testing::run(&keys(number), &assigned, epoch));
        let actions = shell.feed(Input::Completed { node, job: assigned.id(), epoch, result, salt: salt(1) });
        assert!(matches!(actions[..], [Action::Rejected { reason: RejectReason::NotAsStreamed, .. }]));
        assert!(shell.machine.workers().all(|worker| worker.node != node));
        // It may come back, and gets other jobs, but never this one.
        shell.feed(joined(number, 2));
        assert!(shell.assigned.is_empty());
    }
    shell.feed(joined(1, 1));
    assert_eq!(shell.assigned[0].0, keys(1).id());
    shell.run_right(0);
    assert!(shell.outcome(job(1).id()).is_some());
}

#[test]
fn a_draining_worker_finishes_what_it_has_and_gets_nothing_new() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 4));
    shell.feed(Input::Submit(spec(1, NEVER)));
    shell.feed(Input::Draining { node: keys(1).id() });
    shell.feed(Input::Submit(spec(2, NEVER)));
    assert_eq!(shell.assigned.len(), 1);
    shell.run_right(0);
    assert!(shell.outcome(job(1).id()).is_some());
    assert!(shell.assigned.is_empty());
}

#[test]
fn roots_out_of_order_or_not_as_signed_are_rejected() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, NEVER)));
    let (node, epoch, assigned) = shell.assigned[0].clone();
    let (id, place) = (assigned.id(), geometry(&assigned).place(1).unwrap());
    let out_of_order = Input::root((node, id, epoch), place, root(1));
    let reason = RejectReason::OutOfOrder { found: place };
    assert!(shell.feed(out_of_order).contains(&Action::Rejected { node, job: id, epoch, reason }));
    // Nothing was streamed under the next lease, so its result does not count.
    shell.feed(joined(2, 1));
    let (node, epoch, assigned) = shell.assigned[0].clone();
    let result = Box::new(crate::testing::run(&keys(2), &assigned, epoch));
    let actions = shell.feed(Input::Completed { node, job: id, epoch, result, salt: salt(2) });
    let reason = RejectReason::NotAsStreamed;
    assert!(actions.contains(&Action::Rejected { node, job: id, epoch, reason }));
    assert!(shell.outcome(id).is_none());
}

#[test]
fn placement_prefers_holders_then_the_idle_then_the_fast() {
    let mut shell = Shell::new();
    let capabilities =
        Capabilities { macs_per_second: u64::MAX, max_in_flight: 4, models: vec![], operator: None, pipeline: None };
    shell.feed(Input::WorkerJoined { node: keys(9).id(), capabilities });
    shell.feed(joined(1, 1));
    shell.feed(joined(3, 2));
    shell.feed(joined(2, 2));
    for number in 1..=6 {
        shell.feed(Input::Submit(spec(number, NEVER)));
    }
    let order: Vec<_> = shell.assigned.iter().map(|(node, ..)| *node).collect();
    assert_eq!(order, [3, 2, 1, 3, 2, 9].map(|number| keys(number).id()));
}

#[test]
fn speed_is_measured_by_coordinator_time() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    let speed = |shell: &Shell| shell.machine.workers().next().unwrap().macs_per_ms;
    assert_eq!(speed(&shell), 1_000_000);
    for number in 0..20 {
        shell.feed(Input::Submit(spec(number, NEVER)));
        let (node, epoch, assigned) = shell.assigned[0].clone();
        shell.feed(Input::Began { node, job: assigned.id(), epoch });
        shell.now = shell.now.plus(500);
        shell.run_right(0);
    }
    let measured = WORK / 500;
    assert!((measured..measured + measured / 20).contains(&speed(&shell)), "{}", speed(&shell));
}

#[test]
fn jobs_that_are_not_allowed_are_refused() {
    let mut shell = Shell::new();
    let changes: [fn(&mut JobSpec); 5] = [
        |spec| spec.layers = 0,
        |spec| spec.output_count = 0,
        |spec| spec.policy.per_mille = 1_001,
        |spec| spec.policy.auditors = 0,
        |spec| Arc::make_mut(&mut spec.job).spec_version += 1,
    ];
    for change in changes {
        let mut changed = spec(1, NEVER);
        change(&mut changed);
        let actions = shell.feed(Input::Submit(changed));
        assert!(matches!(actions[..], [Action::RefuseJob { .. }]), "{actions:?}");
    }
    assert!(shell.records.is_empty());
}

#[test]
fn records_that_can_not_follow_each_other_are_refused() {
    let id = job(1).id();
    let submitted = Record::Submitted(spec(1, NEVER));
    let assigned = |epoch| Record::Assigned { job: id, epoch: LeaseEpoch(epoch), node: keys(1).id() };
    let ran = |epoch| Record::Ran {
        job: id,
        result: Box::new(crate::testing::run(&keys(1), &job(1), LeaseEpoch(epoch))),
        before: Vec::new(),
        salt: salt(1),
        operator: None,
    };
    let finished = Record::Finished { job: id };
    let restore =
        |records: &[Record]| Machine::restore(config(), records.to_vec(), LeaseEpoch(9), Ledger::default()).err();
    assert_eq!(restore(&[submitted.clone(), assigned(1), ran(1)]), None);
    assert_eq!(restore(&[assigned(1)]), Some(ReplayError::UnknownJob(id)));
    let twice = restore(&[submitted.clone(), submitted.clone()]);
    assert!(matches!(twice, Some(ReplayError::Submission { .. })));
    let old = restore(&[submitted.clone(), assigned(2), assigned(2)]);
    assert!(matches!(old, Some(ReplayError::Epoch { .. })));
    let never_leased = restore(&[submitted.clone(), ran(1)]);
    assert!(matches!(never_leased, Some(ReplayError::Epoch { .. })));
    let early = restore(&[submitted, assigned(1), finished]);
    assert!(matches!(early, Some(ReplayError::Step { .. })));
}

/// An ended job's records may be gone after a restart; its epochs are not free for all that.
#[test]
fn an_epoch_of_an_ended_job_is_not_given_again_after_a_restart() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, NEVER)));
    let (_, used, _) = shell.assigned[0].clone();
    shell.run_right(0);
    shell.machine = Machine::restore(config(), [], used, Ledger::default()).unwrap();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(2, NEVER)));
    assert_eq!(shell.assigned[0].1, LeaseEpoch(used.0 + 1));
    // A high-water mark that was not written with its record is found out.
    let records = [Record::Submitted(spec(1, NEVER)), shell.records[1].clone()];
    let behind = Machine::restore(config(), records, LeaseEpoch(used.0 - 1), Ledger::default()).err();
    assert_eq!(behind, Some(ReplayError::LastEpoch { stored: LeaseEpoch(used.0 - 1), found: used }));
}

#[test]
fn after_a_crash_at_any_record_the_job_ends_all_the_same() {
    // One whole story, then a crash after each of its records.
    let mut story = Shell::new();
    for number in 1..=2 {
        story.feed(joined(number, 1));
    }
    story.feed(Input::Submit(spec(1, always(1, true))));
    story.run_wrong(0);
    story.run_right(0);
    story.feed(joined(3, 1));
    story.run_right(0);
    assert!(story.outcome(job(1).id()).is_some());
    for count in 1..story.records.len() {
        let mut shell = Shell::new();
        shell.records = story.records[..count].to_vec();
        let highest = shell.records.iter().filter_map(|record| match record {
            Record::Assigned { epoch, .. } => Some(*epoch),
            _ => None,
        });
        let highest = highest.max();
        shell.crash();
        for number in 1..=4 {
            shell.feed(joined(number, 1));
        }
        while !shell.assigned.is_empty() {
            assert!(Some(shell.assigned[0].1) > highest, "a fresh epoch");
            shell.run_right(0);
        }
        assert_eq!(shell.machine.unfinished_jobs(), 0, "crash after record {count}");
    }
}
