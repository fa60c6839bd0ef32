//! Random sequences of events, with the invariants checked after each.

use proptest::prelude::*;

use super::*;
use crate::limits::SILENCE_MS;
use crate::messages::FailureCode;

/// Workers 1 to 3 are honest, 4 to 6 sign wrong roots. When all winds down one more comes, who is honest too.
const WORKERS: u8 = 6;
const HONEST: u8 = 3;
const LATECOMER: u8 = 7;
const JOBS: u8 = 5;

#[derive(Clone, Debug)]
enum Step {
    Join(u8),
    Leave(u8),
    Drain(u8),
    Submit(u8, u8, bool),
    /// The holder of some assignment runs it.
    Run(usize),
    /// It fails instead.
    Fail(usize),
    /// It streams some roots and goes silent.
    Stall(usize),
    /// Time goes on.
    Wait(u64),
    /// An assignment of the past is answered again.
    Replay(usize),
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..=WORKERS).prop_map(Step::Join),
        1 => (1..=WORKERS).prop_map(Step::Leave),
        1 => (1..=WORKERS).prop_map(Step::Drain),
        3 => (1..=JOBS, 0_u8..3, any::<bool>()).prop_map(|(j, a, h)| Step::Submit(j, a, h)),
        8 => any::<usize>().prop_map(Step::Run),
        1 => any::<usize>().prop_map(Step::Fail),
        1 => any::<usize>().prop_map(Step::Stall),
        2 => (0..SILENCE_MS * 2).prop_map(Step::Wait),
        1 => any::<usize>().prop_map(Step::Replay),
        1 => Just(Step::Crash),
    ]
}

struct World {
    shell: Shell,
    /// All assignments ever given, in the order of their records.
    history: Vec<(JobId, LeaseEpoch, NodeId)>,
    seen_records: usize,
    seen_actions: usize,
    ended: BTreeSet<JobId>,
    quarantined: BTreeSet<NodeId>,
}

impl World {
    fn new() -> Self {
        Self {
            shell: Shell::new(),
            history: Vec::new(),
            seen_records: 0,
            seen_actions: 0,
            ended: BTreeSet::new(),
            quarantined: BTreeSet::new(),
        }
    }

    fn is_honest(node: NodeId) -> bool {
        (1..=HONEST).chain([LATECOMER]).any(|number| keys(number).id() == node)
    }

    fn run(&mut self, index: usize) {
        if World::is_honest(self.shell.assigned[index].0) {
            self.shell.run_right(index);
        } else {
            self.shell.run_wrong(index);
        }
    }

    fn take(&mut self, step: &Step) {
        let live = self.shell.assigned.len();
        let pick = |index: &usize| (live > 0).then(|| index % live.max(1));
        match step {
            Step::Join(number) => {
                self.disconnect(*number);
                self.shell.feed(joined(*number, 2));
            }
            Step::Leave(number) => {
                self.disconnect(*number);
                self.shell.feed(Input::WorkerLeft { node: keys(*number).id() });
            }
            Step::Drain(number) => {
                self.shell.feed(Input::Draining { node: keys(*number).id() });
            }
            Step::Submit(number, auditors, hold) => {
                let policy = if *auditors == 0 { NEVER } else { always(*auditors, *hold) };
                self.shell.feed(Input::Submit(spec(*number, policy)));
            }
            Step::Run(index) => {
                if let Some(index) = pick(index) {
                    self.run(index);
                }
            }
            Step::Fail(index) => {
                if let Some(index) = pick(index) {
                    let (node, epoch, job) = self.shell.assigned.remove(index);
                    let code = FailureCode::Internal;
                    self.shell.feed(Input::Failed { node, job: job.id(), epoch, code });
                }
            }
            Step::Stall(index) => {
                if let Some(index) = pick(index) {
                    let (node, epoch, job) = self.shell.assigned.remove(index);
                    let (place, root) = (geometry(&job).place(0).unwrap(), right_roots(job.id())[0]);
                    let job = job.id();
                    self.shell.feed(Input::LayerRoot { node, job, epoch, place, root });
                }
            }
            Step::Wait(milliseconds) => {
                self.shell.wait(*milliseconds);
            }
            Step::Replay(index) => self.replay(*index),
            Step::Crash => {
                let before = durable(&self.shell.machine);
                self.shell.crash();
                // Nothing that was known is lost: the same jobs, and none of them further back.
                let after = durable(&self.shell.machine);
                assert_eq!(before, after);
            }
        }
    }

    /// A worker answers an assignment of the past, live or not.
    fn replay(&mut self, index: usize) {
        if self.history.is_empty() {
            return;
        }
        let (id, epoch, node) = self.history[index % self.history.len()];
        let number = (1..=WORKERS).find(|number| keys(*number).id() == node).unwrap();
        let job = (1..=JOBS).map(job).find(|job| job.id() == id).unwrap();
        let result = Box::new(crate::testing::run(&keys(number), &job, epoch));
        self.shell.feed(Input::Completed { node, job: id, epoch, result });
        self.shell.forget(node, id, epoch);
    }

    fn disconnect(&mut self, number: u8) {
        self.shell.assigned.retain(|(node, ..)| *node != keys(number).id());
    }

    fn check(&mut self) {
        self.check_records();
        self.check_actions();
        let machine = &self.shell.machine;
        for worker in machine.workers() {
            assert!(!self.quarantined.contains(&worker.node), "a quarantined worker is connected");
            assert!(worker.in_flight <= worker.max_in_flight);
        }
        for entry in machine.jobs.values() {
            let nodes: Vec<_> = entry
                .leases
                .values()
                .map(|lease| lease.node)
                .chain(entry.runs.iter().map(|run| run.receipt.receipt.worker))
                .collect();
            assert_eq!(BTreeSet::from_iter(&nodes).len(), nodes.len(), "a worker runs a job twice");
            assert!(entry.leases.len() <= 1 + usize::from(entry.auditors));
            assert!(entry.leases.values().all(|lease| machine.workers.get(&lease.node).is_some()));
        }
        let leases: usize = machine.jobs.values().map(|entry| entry.leases.len()).sum();
        assert_eq!(leases, machine.workers().map(|worker| worker.in_flight).sum::<usize>());
        let restored = restore(&self.shell.records).unwrap();
        assert_eq!(durable(&restored), durable(machine));
        assert_eq!(restored.quarantined, machine.quarantined);
        assert_eq!(restored.ended, machine.ended);
    }

    fn check_records(&mut self) {
        for record in &self.shell.records[self.seen_records..] {
            let bytes = crate::canonical::to_bytes(record);
            assert_eq!(crate::canonical::from_bytes::<Record>(&bytes).as_ref(), Ok(record));
            assert!(!self.ended.contains(&record.job()) || matches!(record, Record::Quarantined { .. }));
            match record {
                Record::Assigned { job, epoch, node } => {
                    let used = |(_, e, _): &(JobId, LeaseEpoch, NodeId)| e >= epoch;
                    assert!(!self.history.iter().any(used), "an epoch is given twice");
                    assert!(!self.quarantined.contains(node), "a quarantined worker gets a lease");
                    self.history.push((*job, *epoch, *node));
                }
                Record::Quarantined { node, .. } => {
                    assert!(!World::is_honest(*node), "an honest worker is quarantined");
                    self.quarantined.insert(*node);
                }
                record if record.ends_job() => {
                    self.ended.insert(record.job());
                }
                _ => {}
            }
        }
        self.seen_records = self.shell.records.len();
    }

    fn check_actions(&mut self) {
        for action in &self.shell.actions[self.seen_actions..] {
            if let Action::JobDone { job: id, outcome } = action {
                let job = (1..=JOBS).map(job).find(|job| job.id() == *id).unwrap();
                let receipt = outcome.receipt(&job, None, &keys(100), Millis(1));
                let standing = receipt.check().unwrap();
                assert_eq!(standing.refuted, None);
                let roots = &outcome.result.receipt.receipt.roots;
                let right = *roots == right_roots(*id);
                assert!(right || standing.matched + standing.mismatched == 0, "an audit let it pass");
            }
        }
        self.seen_actions = self.shell.actions.len();
    }

    /// From here on all honest workers live and work: every job must end.
    fn wind_down(&mut self) {
        for number in 1..=LATECOMER {
            self.take(&Step::Join(number));
        }
        for _ in 0..2_000 {
            if self.shell.machine.unfinished_jobs() == 0 {
                return;
            }
            if self.shell.assigned.is_empty() {
                let connected: Vec<_> = self.shell.machine.workers().map(|worker| worker.node).collect();
                for node in connected {
                    self.shell.feed(Input::Heartbeat { node });
                }
                self.shell.wait(SILENCE_MS / 2);
            } else {
                self.run(0);
            }
            self.check();
        }
        panic!("jobs that never end: {:?}", durable(&self.shell.machine));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_of_events_keeps_the_invariants(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
            world.check();
        }
        world.wind_down();
    }

    #[test]
    fn the_machine_is_deterministic(steps in proptest::collection::vec(step(), 1..40)) {
        let run = || {
            let mut world = World::new();
            steps.iter().for_each(|step| world.take(step));
            (world.shell.records, world.shell.actions)
        };
        prop_assert_eq!(run(), run());
    }
}
