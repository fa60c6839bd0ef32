//! Random sequences of events, with the invariants checked after each.

use proptest::prelude::*;

use super::*;
use crate::ledger::Purpose;
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
    Submit(u8, u8, bool, bool),
    /// The holder of some assignment runs it.
    Run(usize),
    /// It fails instead.
    Fail(usize),
    /// It streams some roots and goes silent.
    Stall(usize),
    /// Time goes on.
    Wait(u64),
    /// The newest dispute ends.
    Judge,
    /// A worker challenges the first run of a job that stands.
    Challenge(u8, u8),
    /// A worker takes back what it ran last.
    Retract(u8),
    /// An assignment of the past is answered again.
    Replay(usize),
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..=WORKERS).prop_map(Step::Join),
        1 => (1..=WORKERS).prop_map(Step::Leave),
        1 => (1..=WORKERS).prop_map(Step::Drain),
        3 => (1..=JOBS, 0_u8..3, any::<bool>(), any::<bool>()).prop_map(|(j, a, h, l)| Step::Submit(j, a, h, l)),
        8 => any::<usize>().prop_map(Step::Run),
        1 => any::<usize>().prop_map(Step::Fail),
        1 => any::<usize>().prop_map(Step::Stall),
        2 => (0..SILENCE_MS * 2).prop_map(Step::Wait),
        2 => Just(Step::Judge),
        1 => (1..=WORKERS, 1..=JOBS).prop_map(|(w, j)| Step::Challenge(w, j)),
        1 => (HONEST + 1..=WORKERS).prop_map(Step::Retract),
        1 => any::<usize>().prop_map(Step::Replay),
        1 => Just(Step::Crash),
    ]
}

fn job_number(number: u8) -> JobId {
    job(number).id()
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
        let mut shell = Shell::new();
        shell.judges = false;
        shell.signs = true;
        Self {
            shell,
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
            Step::Submit(number, auditors, hold, lockstep) => {
                let policy = if *auditors == 0 { NEVER } else { always(*auditors, *hold) };
                let policy = AuditPolicy { lockstep: *lockstep, ..policy };
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
                    self.shell.feed(Input::Failed { node, job: job.id(), epoch, code, reason: String::new() });
                }
            }
            Step::Stall(index) => {
                if let Some(index) = pick(index) {
                    let (node, epoch, job) = self.shell.assigned.remove(index);
                    let (place, root) = (geometry(&job).place(0).unwrap(), right_roots(job.id())[0]);
                    let job = job.id();
                    self.shell.feed(Input::root((node, job, epoch), place, root));
                }
            }
            Step::Wait(milliseconds) => {
                self.shell.wait(*milliseconds);
            }
            Step::Judge => self.judge(),
            Step::Challenge(number, job) => self.challenge(*number, job_number(*job)),
            Step::Retract(number) => self.retract(*number),
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

    fn judge(&mut self) {
        if !self.shell.disputes.is_empty() {
            self.shell.judge();
        }
    }

    fn challenge(&mut self, number: u8, job: JobId) {
        let standing = self.shell.machine.jobs.get(&job).and_then(|entry| entry.standing().next().cloned());
        if let Some(run) = standing {
            let mut roots = right_roots(job);
            if !World::is_honest(keys(number).id()) {
                roots[1] = root(number ^ 0x5a);
            }
            self.shell.challenge(&run.result.receipt, number, roots);
        }
    }

    fn retract(&mut self, number: u8) {
        let node = keys(number).id();
        let last = self.history.iter().rev().find(|(_, _, assigned)| *assigned == node);
        if let Some((job, epoch, _)) = last.copied() {
            self.shell.feed(Input::Retracted { node, job, epoch });
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
        self.shell.feed(Input::Completed { node, job: id, epoch, result, salt: salt(number) });
        self.shell.forget(node, id, epoch);
    }

    fn disconnect(&mut self, number: u8) {
        self.shell.assigned.retain(|(node, ..)| *node != keys(number).id());
    }

    fn check(&mut self) {
        self.check_records();
        self.check_actions();
        let machine = &self.shell.machine;
        assert!(machine.workers.are_in_order());
        for worker in machine.workers() {
            assert!(!self.quarantined.contains(&worker.node), "a quarantined worker is connected");
            assert!(worker.in_flight <= worker.max_in_flight);
        }
        for entry in machine.jobs.values() {
            let nodes: Vec<_> = entry
                .leases
                .values()
                .map(|lease| lease.node)
                .chain(entry.runs.iter().map(|run| run.receipt().worker))
                .collect();
            assert_eq!(BTreeSet::from_iter(&nodes).len(), nodes.len(), "a worker runs a job twice");
            assert!(entry.leases.len() <= 1 + usize::from(entry.auditors));
            assert!(entry.leases.values().all(|lease| machine.workers.get(&lease.node).is_some()));
        }
        let running = |entry: &Entry| entry.leases.values().filter(|lease| lease.is_running()).count();
        let leases: usize = machine.jobs.values().map(running).sum();
        assert_eq!(leases, machine.workers().map(|worker| worker.in_flight).sum::<usize>());
        self.check_ledger();
        let machine = &self.shell.machine;
        let restored = restore(&self.shell.records).unwrap();
        assert_eq!(durable(&restored), durable(machine));
        assert_eq!(restored.quarantined, machine.quarantined);
        assert_eq!(restored.ended, machine.ended);
    }

    fn check_ledger(&self) {
        let (machine, ledger) = (&self.shell.machine, self.shell.machine.ledger());
        assert_eq!(&Ledger::fold(&self.shell.postings).unwrap(), ledger);
        // What is held is the bonds of live leases and of runs that stand, and nothing else.
        let leases = |entry: &Entry| entry.leases.iter().map(|(epoch, lease)| (entry.id, *epoch, lease.node)).collect();
        let runs = |entry: &Entry| {
            let run = |run: &super::standing::Run| (entry.id, run.epoch(), run.receipt().worker);
            entry.standing().map(run).collect()
        };
        let halted = |entry: &Entry| {
            let claims = entry.dispute.iter().flat_map(|terms| [&terms.claimant, &terms.challenger]);
            let partials = claims.filter(|claim| claim.receipt().is_none());
            partials.map(|claim| (entry.id, claim.epoch(), claim.worker())).collect()
        };
        let bonds = |entry: &Entry| -> [Vec<_>; 3] { [leases(entry), runs(entry), halted(entry)] };
        let bound = machine.jobs.values().flat_map(bonds).flatten();
        let bound: BTreeSet<(JobId, LeaseEpoch, NodeId)> = bound.collect();
        let mut held = BTreeSet::new();
        for (node, account) in ledger.accounts() {
            for (purpose, _) in account.held() {
                match purpose {
                    Purpose::Lease { job, epoch } => drop(held.insert((*job, *epoch, *node))),
                    Purpose::Dispute { dispute } => assert!(machine.challenges.pending.contains_key(dispute)),
                    Purpose::Admission {} => panic!("nothing is held for admission"),
                }
            }
        }
        assert_eq!(held, bound);
        // The honest never lose a credit.
        for number in (1..=HONEST).chain([LATECOMER]) {
            let node = keys(number).id();
            if let Some(account) = ledger.account(&node) {
                let all = account.free() + account.held().map(|(_, amount)| amount).sum::<u64>();
                assert!(all >= GRANT, "worker {number} lost credits");
            }
        }
    }

    fn check_records(&mut self) {
        for record in &self.shell.records[self.seen_records..] {
            let bytes = crate::canonical::to_bytes(record);
            assert_eq!(crate::canonical::from_bytes::<Record>(&bytes).as_ref(), Ok(record));
            assert!(!self.ended.contains(&record.job()) || record.outlives_job());
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
                // A verdict confirms nothing, so where all who ran the job are wrong a wrong run may be left. No audit
                // that stands says the same, and nobody who was right was there.
                let is_right = |run: &crate::messages::JobResult| run.receipt.receipt.roots == right_roots(*id);
                assert!(right || standing.matched == 0, "an audit let it pass");
                assert!(right || !outcome.others.iter().any(is_right), "it stands against a right run");
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
            if !self.shell.disputes.is_empty() {
                self.judge();
            } else if self.shell.assigned.is_empty() {
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
