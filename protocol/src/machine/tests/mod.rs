//! The job machine under scripted and random events.

mod attendance;
mod audits;
mod challenges;
mod credits;
mod crews;
mod disputes;
mod fairness;
mod faults;
mod generation_worlds;
mod generations;
mod lockstep;
mod logprobs;
mod random;
mod rows;
mod scripted;
mod streams;
mod words;

use std::sync::Arc;

use super::*;
use crate::commitment::{Geometry, RunCommitment};
use crate::dispute::{Partial, Reason, Terms, Verdict};
use crate::ids::{Digest, Place, Root, VerdictKind};
use crate::ledger::Posting;
use crate::limits::DEFAULT_GRANTS_PER_HOUR;
use crate::testing::{LAYERS, OUTPUT, WORK, job, keys, right_roots, root, run_with, salt};

/// A policy that audits every job with so many auditors.
fn always(auditors: u8, hold: bool) -> AuditPolicy {
    AuditPolicy { per_mille: 1_000, auditors, hold, ..NEVER }
}

const NEVER: AuditPolicy =
    AuditPolicy { per_mille: 0, auditors: 1, hold: false, distinct_operators: false, lockstep: false };

const GRANT: u64 = 1_000_000_000;

fn config() -> Config {
    Config { coordinator: keys(100).id(), grant: GRANT, grants_per_hour: DEFAULT_GRANTS_PER_HOUR }
}

fn spec(number: u8, policy: AuditPolicy) -> JobSpec {
    let (layers, output_count) = (LAYERS, OUTPUT.len() as u32);
    JobSpec { job: Arc::new(job(number)), layers, output_count, work: Work::fixed(WORK), policy, planted: None }
}

fn joined(number: u8, max_in_flight: u32) -> Input {
    joined_of(number, max_in_flight, None)
}

/// A worker of an operator that the coordinator knows.
fn joined_of(number: u8, max_in_flight: u32, operator: Option<&str>) -> Input {
    let macs_per_second = 1_000_000_000 * u64::from(number);
    let (models, operator) = (vec![job(0).model], operator.map(str::to_owned));
    let capabilities = Capabilities { macs_per_second, max_in_flight, models, operator, pipeline: None };
    Input::WorkerJoined { node: keys(number).id(), capabilities }
}

fn geometry(job: &crate::job::Job) -> Geometry {
    job.header().geometry(LAYERS).unwrap()
}

/// A machine with the shell that the tests need: it answers draws and judges disputes, keeps the records,
/// the postings and the assignments that workers got.
struct Shell {
    machine: Machine,
    now: Millis,
    records: Vec<Record>,
    postings: Vec<Posting>,
    /// Everything that was asked for, in order.
    actions: Vec<Action>,
    /// Assignments that are live as far as the workers know.
    assigned: Vec<(NodeId, LeaseEpoch, Arc<crate::job::Job>)>,
    /// Results that workers committed to and were not told to reveal yet.
    committed: BTreeMap<(JobId, LeaseEpoch), Input>,
    /// Whether workers keep their results when they are told to reveal them.
    withhold: bool,
    /// Disputes that are being played. They end at once where the shell judges them.
    disputes: Vec<(JobId, Terms)>,
    /// What workers streamed to the end, and whether they sign it when they are told to halt.
    streamed: BTreeMap<(JobId, LeaseEpoch), (u8, Vec<Root>)>,
    signs: bool,
    /// When jobs ended.
    ended: BTreeMap<JobId, Millis>,
    /// Whether the shell judges disputes: who differs from the right roots has lost.
    judges: bool,
}

impl Shell {
    fn new() -> Self {
        Self {
            machine: Machine::new(config()),
            now: Millis(1_000),
            records: Vec::new(),
            postings: Vec::new(),
            actions: Vec::new(),
            assigned: Vec::new(),
            committed: BTreeMap::new(),
            withhold: false,
            disputes: Vec::new(),
            streamed: BTreeMap::new(),
            signs: false,
            ended: BTreeMap::new(),
            judges: true,
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
        self.postings.extend(output.postings);
        for action in output.actions {
            self.actions.push(action.clone());
            match action {
                Action::Assign { node, epoch, job, .. } => self.assigned.push((node, epoch, job)),
                Action::Cancel { node, job, epoch } => self.forget(node, job, epoch),
                Action::Reveal { job, epoch, .. } => {
                    if !self.withhold
                        && let Some(result) = self.committed.remove(&(job, epoch))
                    {
                        let output = self.machine.handle(self.now, result);
                        self.carry_out(output);
                    }
                }
                Action::Rejected { node, .. } => self.assigned.retain(|(assigned, ..)| *assigned != node),
                Action::NeedDraw { job, head, nonce } => {
                    let draw = audit_draw(&draw_secret(), &head, &nonce);
                    let output = self.machine.handle(self.now, Input::Drawn { job, draw });
                    self.carry_out(output);
                }
                Action::Unposted { posting, error } => panic!("{posting:?}: {error}"),
                Action::Halt { node, job, epoch, place } if self.signs => self.sign(node, job, epoch, place),
                Action::NeedLockstepDraw { job, nonce } => {
                    let draw = lockstep_draw(&draw_secret(), job, &nonce);
                    let output = self.machine.handle(self.now, Input::Drawn { job, draw });
                    self.carry_out(output);
                }
                Action::JobDone { job, .. } | Action::JobFailed { job, .. } => {
                    self.ended.insert(job, self.now);
                }
                Action::OpenDispute { job, terms } => {
                    self.disputes.push((job, *terms));
                    if self.judges {
                        self.judge();
                    }
                }
                _ => {}
            }
        }
    }

    /// Somebody challenges a run with roots of its own.
    fn challenge(&mut self, claimant: &crate::receipt::SignedReceipt, number: u8, roots: Vec<Root>) -> Vec<Action> {
        let of = (1..=9).map(job).find(|job| job.id() == claimant.receipt.job).unwrap();
        let challenger = run_with(&keys(number), &of, LeaseEpoch::CHALLENGE, roots).receipt;
        let ended = self.ended.get(&of.id()).copied();
        let (job, claimant, challenger) = (of.header(), claimant.clone().into(), challenger.into());
        let before = Vec::new();
        let challenge = Challenge { job, layers: LAYERS, work_units: WORK, ended, claimant, challenger, before };
        self.feed(Input::Challenge(Box::new(challenge)))
    }

    /// Ends the newest dispute as it has to end, with a proof.
    fn judge(&mut self) -> Vec<Action> {
        let (job, terms) = self.disputes.last().cloned().unwrap();
        let right = right_roots(job);
        let losers =
            [&terms.claimant, &terms.challenger].map(|claim| claim.last_roots() != &right[..claim.last_roots().len()]);
        self.end_dispute(losers, VerdictKind::Proven)
    }

    /// Ends the newest dispute.
    fn end_dispute(&mut self, losers: [bool; 2], kind: VerdictKind) -> Vec<Action> {
        self.end_with(verdict(losers, kind))
    }

    fn end_with(&mut self, verdict: Verdict) -> Vec<Action> {
        let (job, terms) = self.disputes.pop().unwrap();
        let before = self.actions.len();
        let input = Input::Judged { job, dispute: terms.id(), verdict: Box::new(verdict) };
        let output = self.machine.handle(self.now, input);
        self.carry_out(output);
        self.actions[before..].to_vec()
    }

    /// A halted worker signs what it streams.
    fn sign(&mut self, node: NodeId, id: JobId, epoch: LeaseEpoch, place: Place) {
        let (number, roots) = self.streamed[&(id, epoch)].clone();
        let of = (1..=9).map(job).find(|job| job.id() == id).unwrap();
        let (geometry, end) = (geometry(&of), geometry(&of).index_of(place).unwrap() + 1);
        let partial = Partial::of_roots(id, &geometry, epoch, &roots[..end], &[], node).unwrap().sign(&keys(number));
        let output = self.machine.handle(self.now, Input::Partial { node, partial: Box::new(partial) });
        self.carry_out(output);
    }

    fn forget(&mut self, node: NodeId, job: JobId, epoch: LeaseEpoch) {
        self.assigned.retain(|(n, e, j)| (*n, *e, j.id()) != (node, epoch, job));
    }

    /// The worker of an assignment runs it to the end, with these roots, and reveals its result when it is told to.
    fn run_with(&mut self, index: usize, roots: Vec<Root>) -> Vec<Action> {
        let (node, epoch, job) = self.assigned.remove(index);
        let number = (0..=u8::MAX).find(|number| keys(*number).id() == node).unwrap();
        let id = job.id();
        let before = self.actions.len();
        self.streamed.insert((id, epoch), (number, roots.clone()));
        self.feed(Input::Began { node, job: id, epoch });
        for (place, root) in geometry(&job).places().zip(&roots) {
            self.feed(Input::root((node, id, epoch), place, *root));
        }
        let head = geometry(&job).head(id, epoch, &roots).unwrap();
        let (commitment, salt) = (RunCommitment::of(id, epoch, node, &salt(number), &head), salt(number));
        let result = Box::new(run_with(&keys(number), &job, epoch, roots));
        self.committed.insert((id, epoch), Input::Completed { node, job: id, epoch, result, salt });
        self.feed(Input::Committed { node, job: id, epoch, commitment });
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
        let (records, postings) = (self.records.clone(), self.postings.clone());
        self.machine = restore_with(&records, &postings).unwrap();
        assert_eq!(self.machine.ledger(), &Ledger::fold(&postings).unwrap());
        self.assigned.clear();
        self.disputes.clear();
        self.committed.clear();
        let output = self.machine.resume(self.now);
        self.carry_out(output);
    }
}

/// Lets time go on while all workers are heard.
fn keep_alive(shell: &mut Shell, milliseconds: u64) {
    let until = shell.now.plus(milliseconds);
    while shell.now < until {
        let nodes: Vec<_> = shell.machine.workers().map(|worker| worker.node).collect();
        for node in nodes {
            shell.feed(Input::Heartbeat { node });
        }
        shell.wait(1_000);
    }
}

/// The machine that wrote these records, all of which are there.
fn restore(records: &[Record]) -> Result<Machine, ReplayError> {
    restore_with(records, &[])
}

fn restore_with(records: &[Record], postings: &[Posting]) -> Result<Machine, ReplayError> {
    let last = records.iter().filter_map(Record::epoch).max();
    Machine::restore(config(), records.to_vec(), last.unwrap_or_default(), Ledger::fold(postings).unwrap())
}

fn draw_secret() -> DrawSecret {
    DrawSecret { number: 0, secret: Digest::from_bytes([77; 32]) }
}

fn verdict(losers: [bool; 2], kind: VerdictKind) -> Verdict {
    let reason = match kind {
        VerdictKind::Proven => Reason::Contradiction,
        VerdictKind::Timeout => Reason::Silence,
    };
    let place = Place { point: 3, layer: 2 };
    Verdict { kind, losers, place, chunk: None, step: None, element: None, reason }
}

/// The durable state of a machine, to compare.
fn durable(machine: &Machine) -> Vec<String> {
    let view = |entry: &Entry| {
        let runs: Vec<_> = entry.runs.iter().map(|run| (run.epoch(), &run.operator, run.fate)).collect();
        let dispute = entry.dispute.as_ref().map(Terms::id);
        format!("{:?}", (entry.id, entry.order, entry.stage, entry.epoch, runs, entry.auditors, dispute))
    };
    machine.jobs.values().map(view).collect()
}
