//! The job machine under scripted and random events.

mod fairness;
mod random;
mod scripted;

use std::sync::Arc;

use super::*;
use crate::commitment::Geometry;
use crate::ids::Root;
use crate::testing::{LAYERS, OUTPUT, WORK, job, keys, right_roots, root, run_with};

/// A policy that audits every job with so many auditors.
fn always(auditors: u8, hold: bool) -> AuditPolicy {
    AuditPolicy { per_mille: 1_000, auditors, hold }
}

const NEVER: AuditPolicy = AuditPolicy { per_mille: 0, auditors: 1, hold: false };

fn spec(number: u8, policy: AuditPolicy) -> JobSpec {
    JobSpec { job: Arc::new(job(number)), layers: LAYERS, output_count: OUTPUT.len() as u32, work_units: WORK, policy }
}

fn joined(number: u8, max_in_flight: u32) -> Input {
    let capabilities =
        Capabilities { macs_per_second: 1_000_000_000 * u64::from(number), max_in_flight, models: vec![job(0).model] };
    Input::WorkerJoined { node: keys(number).id(), capabilities }
}

fn geometry(job: &crate::job::Job) -> Geometry {
    job.header().geometry(LAYERS).unwrap()
}

/// A machine with the shell that the tests need: it answers draws and settlements, keeps the records
/// and the assignments that workers got.
struct Shell {
    machine: Machine,
    now: Millis,
    records: Vec<Record>,
    /// Everything that was asked for, in order.
    actions: Vec<Action>,
    /// Assignments that are live as far as the workers know.
    assigned: Vec<(NodeId, LeaseEpoch, Arc<crate::job::Job>)>,
    /// Whether the shell can recompute jobs.
    oracle: bool,
}

impl Shell {
    fn new() -> Self {
        Self {
            machine: Machine::new(),
            now: Millis(1_000),
            records: Vec::new(),
            actions: Vec::new(),
            assigned: Vec::new(),
            oracle: true,
        }
    }

    /// Feeds an input and all answers of the shell to what follows; returns the new actions.
    fn feed(&mut self, input: Input) -> Vec<Action> {
        let before = self.actions.len();
        let output = self.machine.handle(self.now, input);
        self.carry_out(output);
        self.actions[before..].to_vec()
    }

    /// Lets time go on as a coordinator does that is up all the while.
    fn wait(&mut self, milliseconds: u64) {
        let until = self.now.plus(milliseconds);
        while self.now < until {
            self.now = self.now.plus(crate::limits::TICK_MS).min(until);
            self.feed(Input::Tick);
        }
    }

    fn carry_out(&mut self, output: Output) {
        self.records.extend(output.records);
        for action in output.actions {
            self.actions.push(action.clone());
            match action {
                Action::Assign { node, epoch, job } => self.assigned.push((node, epoch, job)),
                Action::Cancel { node, job, epoch } => self.forget(node, job, epoch),
                Action::Rejected { node, .. } => self.assigned.retain(|(assigned, ..)| *assigned != node),
                Action::NeedDraw { job, head, nonce } => {
                    let draw = audit_draw(&[77; 32], &head, &nonce);
                    let output = self.machine.handle(self.now, Input::Drawn { job, draw });
                    self.carry_out(output);
                }
                Action::NeedSettlement { job } => {
                    let truth = self.oracle.then(|| right_roots(job.id()));
                    let input = Input::Settled { job: job.id(), truth };
                    let output = self.machine.handle(self.now, input);
                    self.carry_out(output);
                }
                _ => {}
            }
        }
    }

    fn forget(&mut self, node: NodeId, job: JobId, epoch: LeaseEpoch) {
        self.assigned.retain(|(n, e, j)| (*n, *e, j.id()) != (node, epoch, job));
    }

    /// The worker of an assignment runs it to the end, with these roots.
    fn run_with(&mut self, index: usize, roots: Vec<Root>) -> Vec<Action> {
        let (node, epoch, job) = self.assigned.remove(index);
        let number = (0..=u8::MAX).find(|number| keys(*number).id() == node).unwrap();
        let id = job.id();
        let before = self.actions.len();
        self.feed(Input::Began { node, job: id, epoch });
        for (place, root) in geometry(&job).places().zip(&roots) {
            self.feed(Input::LayerRoot { node, job: id, epoch, place, root: *root });
        }
        let result = Box::new(run_with(&keys(number), &job, epoch, roots));
        self.feed(Input::Completed { node, job: id, epoch, result });
        self.actions[before..].to_vec()
    }

    fn run_right(&mut self, index: usize) -> Vec<Action> {
        let roots = right_roots(self.assigned[index].2.id());
        self.run_with(index, roots)
    }

    /// A run with a wrong root at layer 2 that depends on who is wrong.
    fn run_wrong(&mut self, index: usize) -> Vec<Action> {
        let mut roots = right_roots(self.assigned[index].2.id());
        roots[1] = root(self.assigned[index].0.as_bytes()[0] ^ 0x5a);
        self.run_with(index, roots)
    }

    fn outcome(&self, job: JobId) -> Option<&Outcome> {
        self.actions.iter().find_map(|action| match action {
            Action::JobDone { job: done, outcome } if *done == job => Some(&**outcome),
            _ => None,
        })
    }

    /// Loses everything but the records.
    fn crash(&mut self) {
        self.machine = restore(&self.records).unwrap();
        self.assigned.clear();
        let output = self.machine.resume(self.now);
        self.carry_out(output);
    }
}

/// The machine that wrote these records, all of which are there.
fn restore(records: &[Record]) -> Result<Machine, ReplayError> {
    let last = records.iter().filter_map(Record::epoch).max();
    Machine::restore(records.to_vec(), last.unwrap_or_default())
}

/// The durable state of a machine, to compare.
fn durable(machine: &Machine) -> Vec<(JobId, u64, Stage, LeaseEpoch, usize, u8, bool)> {
    let view = |entry: &Entry| {
        (entry.id, entry.order, entry.stage, entry.epoch, entry.runs.len(), entry.auditors, entry.truth.is_some())
    };
    machine.jobs.values().map(view).collect()
}
