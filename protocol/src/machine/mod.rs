//! The coordinator's job machine: leases, placement, audits, disputes and credits, without a clock, a socket
//! or a file.
//!
//! # Call order
//! 1. [`Machine::restore`] with the stored records, the highest stored epoch and the ledger of all postings, then
//!    [`Machine::resume`] once.
//! 2. For whatever happens, [`Machine::handle`] with the time on one monotonic clock of the coordinator.
//! 3. Each [`Output`]: make all its `records` and `postings` durable *in one transaction*, together with the highest
//!    epoch of them ([`Record::epoch`]) where it is above the stored one, then carry out its `actions`
//!    in order. Outputs are carried out in the order in which they were returned. The next
//!    input need not wait for the transaction, so that many outputs can share one.
//! 4. At [`Machine::next_wake`], feed [`Input::Tick`]. Times may go on early or late; never back.
//!
//! # What it holds to
//! - Every state that survives a crash follows from the records: live steps and replay both go
//!   through the same `apply`, and every step is in one table ([`table::TABLE`]).
//! - A lease epoch is given once, to one worker, also over restarts and after the records of its job
//!   are gone. A result counts only under the lease that is live, so a worker that was given up can't
//!   come back with a late one. After a restart no old lease is live: its jobs are given out again
//!   under higher epochs.
//! - The audit draw is asked for after the first run's record, so that it is made from durable bytes; that of a lockstep
//!   audit after the job's record, before anybody has it.
//! - No worker runs a job twice, and a quarantined worker gets nothing. Nor does one without the credits for the bond
//!   of a lease, which is held until the run is given up, or the job ends, or the run is refuted and the bond lost.
//! - Nobody shows a run before everybody who is wanted has committed to one (SPEC.md 12.5), and nothing of a job leaves
//!   before it has ended: an answer that went out earlier would tell a late auditor what to say.
//! - All times are the coordinator's. Nothing that a worker says about time is believed.
//!
//! # When a job is given up
//! A worker fails at a job when it gives it back, and when its lease ends. It gets the job again only
//! when no worker is connected, free or busy, that has not failed at it, and then after a pause that
//! doubles. The job is given up once [`MAX_FAILURES`] different workers have failed at it. Where fewer
//! are there, it is tried for [`JOB_PATIENCE_MS`] from its first failure, and given up at the next one. So a
//! job that no backend survives reaches few workers, and one worker alone can't sink a job that others may have.
//!
//! A worker that refuses a job says that it can't be run there; it is not asked again before its next session. Where nobody
//! is connected, paused or not, who could still have a job that was refused, the job fails at once, with what the last of
//! them said. While nobody at all is there who could run a job, those who wait for it are told so, once that has lasted for
//! as long as they say ([`Input::Awaited`]); they may cancel it.
//!
//! A worker that can't get a model is not asked for that model until it says that it has it, or a pause
//! ends. One that failed several times in a row, at whatever jobs, is given nothing for a pause that
//! doubles until it succeeds; it keeps that record over its sessions, but a new one cuts the pause short. To be busy or draining is no failure.
//!
//! Audits are given up when nobody is connected, and not paused, who could make them, within half a minute, or after a longer patience
//! with those who are. The job then ends without them, or fails where its client wants no answer without them
//! ([`AuditPolicy::hold`]).
//!
//! # When runs differ
//! Once all audits are in, the first run that stands and the first that differs from it are disputed
//! ([`Action::OpenDispute`]), with clocks that are in the record, so that a restart asks for the same dispute. A verdict
//! refutes the losers and confirms nothing: runs that still differ are disputed next, each key for itself; where fewer
//! agree than are wanted, audits are asked for again; where none stands, the job is open again. (A run that is left alone
//! after verdicts about others is as unaudited as any: the receipt shows no audit that matches.) A run also falls when
//! its worker takes it back, or loses a challenge by somebody who has no lease ([`Challenge`]), also after the job has
//! ended. A job that is run in lockstep is disputed at its first differing root, by what both signed so far.
//!
//! # Deadlines
//! A lease ends when its worker does not begin in time, streams no root for too long, or takes too long
//! in all. While it waits to be told to reveal, no time counts; then it has a short one. Until its speed is measured, a
//! worker is taken to be no slower than the default, whatever it says.
//! Only [`Input::Tick`] lets deadlines pass, and the coordinator's own downtime counts for none of them.
//!
//! What breaks the rules does not count: a root out of order, or a result that does not check, ends
//! its worker's session and bars it from the job, and the job goes on as if it had not been there. Nor
//! does a session count that ends, but for that of a worker that was told to halt and has not signed. Workers whose
//! runs are proven wrong are quarantined, those that lose by silence are set aside for a while, and their job runs until
//! somebody is right. (Where keys cost nothing, whoever brings enough of them can still sink a
//! job by giving it back each time; it can't change its answer.)
//!
//! [`MAX_FAILURES`]: crate::limits::MAX_FAILURES
//! [`JOB_PATIENCE_MS`]: crate::limits::JOB_PATIENCE_MS

mod attendance;
mod audit;
mod audits;
mod challenges;
mod credits;
mod crew;
mod disputes;
mod draw;
mod entry;
mod faults;
mod judge;
mod lockstep;
mod reasons;
mod record;
mod rows;
mod runs;
mod schedule;
mod standing;
mod stream;
pub mod table;
mod types;
mod work;
mod workers;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub use self::audit::{AuditDraw, AuditPolicy, DrawSubject, audit_draw, check_draw, lockstep_draw};
use self::challenges::Challenges;
pub use self::challenges::{Challenge, ChallengeError};
pub use self::crew::Footprint;
pub use self::draw::{DrawChain, DrawSecret};
use self::entry::Entry;
pub use self::entry::ReplayError;
use self::faults::Fault;
pub use self::reasons::{RejectReason, SubmitError};
pub use self::record::{JobFailure, Record};
use self::schedule::Timer;
pub use self::stream::{CommittedRoot, Streamed};
use self::table::Stage;
pub use self::types::{Action, Input, JobSpec, Outcome, Output};
pub use self::work::Work;
pub use self::workers::Capabilities;
use self::workers::{Worker, Workers};
use crate::ids::{JobId, LeaseEpoch, Millis, ModelId, NodeId};
use crate::ledger::Ledger;
use crate::limits::{
    MAX_HELD_MODELS, MAX_REMEMBERED_JOBS, MAX_UNFINISHED_JOBS, MAX_UNFINISHED_TOKENS, MAX_WORKERS, STALL_MS, TICK_MS,
};
use crate::messages::RefusalCode;

/// What a machine is told about its coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The coordinator's key: who referees the disputes.
    pub coordinator: NodeId,
    /// Credits that a worker gets when it joins for the first time.
    pub grant: u64,
    /// Most workers that get them in an hour; the others get theirs later.
    pub grants_per_hour: u32,
}

/// The job machine. See the [module](self) for the order of calls.
#[derive(Clone, Debug)]
pub struct Machine {
    config: Config,
    ledger: Ledger,
    /// Leases that ended without a run since the last output: their bonds are to be freed.
    ended_leases: Vec<(NodeId, JobId, LeaseEpoch)>,
    /// Time that was served: the coordinator's own downtime is left out.
    now: Millis,
    /// Members of pipelines whose lease ended with somebody else: to be told.
    orphans: Vec<(NodeId, JobId, LeaseEpoch)>,
    /// What the parameters of models take.
    footprints: BTreeMap<ModelId, Footprint>,
    /// The downtime that was left out so far, in milliseconds.
    lost_ms: u64,
    workers: Workers,
    quarantined: BTreeSet<NodeId>,
    challenges: Challenges,
    /// Workers that took a run back.
    faults: BTreeMap<NodeId, Fault>,
    jobs: BTreeMap<JobId, Entry>,
    /// How each ended job was audited.
    ended: BTreeMap<JobId, AuditPolicy>,
    /// The same in order of ending, so that the oldest is forgotten first.
    ended_order: VecDeque<JobId>,
    submissions: u64,
    /// The highest epoch of any job: one count for all, so that an epoch tells a worker nothing.
    last_epoch: LeaseEpoch,
    /// What all unfinished jobs hold of the memory, in tokens ([`JobSpec::weight`]).
    held_tokens: usize,
    /// Jobs that want a first run, in order of submission.
    open: BTreeSet<(u64, JobId)>,
    /// The order at which the next scheduling round goes on in `open`, beside the oldest.
    open_cursor: u64,
    /// The hour in which credits were granted last, and how often in it.
    grants: (u64, u32),
    /// Jobs that want an audit, in order of submission.
    auditing: BTreeSet<(u64, JobId)>,
    /// The order at which the next scheduling round goes on in `auditing`.
    audit_cursor: u64,
    /// Jobs that wait until those who failed at them are asked again, or a new worker comes.
    parked: BTreeSet<JobId>,
    /// Jobs whose workers were told to halt.
    halted: BTreeSet<JobId>,
    /// Jobs whose missing audits are given up, until those that are under way have come.
    short: BTreeSet<JobId>,
    timers: BTreeSet<(Millis, Timer)>,
}

/// A connected worker, to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerView {
    /// Its key.
    pub node: NodeId,
    /// Multiply-accumulates a millisecond, as measured so far.
    pub macs_per_ms: u64,
    /// Leases that it is running; runs that wait to be revealed take no place.
    pub in_flight: usize,
    /// Leases that it may hold.
    pub max_in_flight: usize,
    /// Whether it takes nothing new.
    pub draining: bool,
    /// Models that it holds.
    pub models: Vec<ModelId>,
}

/// An unfinished job, to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobView {
    /// What was submitted.
    pub spec: JobSpec,
    /// Where it stands.
    pub stage: Stage,
    /// Its live leases.
    pub leases: Vec<(LeaseEpoch, NodeId)>,
    /// How many runs were accepted.
    pub runs: usize,
}

impl Machine {
    /// A machine without jobs and workers, and with an empty ledger.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            ledger: Ledger::default(),
            ended_leases: Vec::new(),
            orphans: Vec::new(),
            footprints: BTreeMap::new(),
            now: Millis(0),
            lost_ms: 0,
            workers: Workers::default(),
            quarantined: BTreeSet::new(),
            challenges: Challenges::default(),
            faults: BTreeMap::new(),
            jobs: BTreeMap::new(),
            ended: BTreeMap::new(),
            ended_order: VecDeque::new(),
            submissions: 0,
            last_epoch: LeaseEpoch(0),
            held_tokens: 0,
            open: BTreeSet::new(),
            open_cursor: 0,
            grants: (0, 0),
            auditing: BTreeSet::new(),
            audit_cursor: 0,
            parked: BTreeSet::new(),
            halted: BTreeSet::new(),
            short: BTreeSet::new(),
            timers: BTreeSet::new(),
        }
    }

    /// The machine that wrote these records, without its workers. `last_epoch` is the highest epoch of
    /// all records that were ever stored, those of ended jobs too; `ledger` is the fold of all postings that were
    /// ever stored. Call [`Machine::resume`] next.
    ///
    /// # Errors
    /// [`ReplayError`] when the records are not what a machine wrote, or `last_epoch` is below theirs.
    pub fn restore(
        config: Config,
        records: impl IntoIterator<Item = Record>,
        last_epoch: LeaseEpoch,
        ledger: Ledger,
    ) -> Result<Self, ReplayError> {
        let mut machine = Self { ledger, ..Self::new(config) };
        for record in records {
            machine.apply(&record)?;
        }
        if machine.last_epoch > last_epoch {
            return Err(ReplayError::LastEpoch { stored: last_epoch, found: machine.last_epoch });
        }
        machine.last_epoch = last_epoch;
        Ok(machine)
    }

    /// Goes on after [`Machine::restore`]: frees the bonds of leases that are gone, and asks again for draws and disputes
    /// that were under way.
    pub fn resume(&mut self, now: Millis) -> Output {
        self.now = now;
        let mut out = Output::default();
        self.release_dead(&mut out);
        self.resume_challenges(&mut out);
        let jobs: Vec<_> = self.jobs.values().map(|entry| (entry.order, entry.id)).collect();
        for (_, job) in BTreeSet::from_iter(jobs) {
            self.punish(job, &mut out);
            self.advance(job, &mut out);
        }
        out
    }

    /// Takes one input.
    pub fn handle(&mut self, now: Millis, input: Input) -> Output {
        self.serve_until(now);
        let mut out = Output::default();
        let is_tick = input == Input::Tick;
        self.dispatch(input, &mut out);
        if is_tick {
            self.fire_timers(&mut out);
        }
        self.close_short(&mut out);
        self.release_ended(&mut out);
        self.schedule(&mut out);
        out
    }

    /// When to feed [`Input::Tick`] at the latest: every [`TICK_MS`] while anything is waited for.
    pub fn next_wake(&self) -> Option<Millis> {
        let (first, _) = self.timers.first()?;
        Some((*first).min(self.now.plus(TICK_MS)).plus(self.lost_ms))
    }

    /// Lets time go on. A gap that is too long to be a pause between two calls was the coordinator's own
    /// downtime: what workers sent meanwhile is not read yet, so all deadlines move by it.
    fn serve_until(&mut self, now: Millis) {
        let gap = now.since(self.now.plus(self.lost_ms));
        if gap > STALL_MS && !self.timers.is_empty() {
            self.lost_ms += gap - TICK_MS;
        }
        self.now = self.now.max(Millis(now.0.saturating_sub(self.lost_ms)));
    }

    /// How many jobs have not ended.
    pub fn unfinished_jobs(&self) -> usize {
        self.jobs.len()
    }

    /// The connected workers, in order of their keys.
    pub fn workers(&self) -> impl Iterator<Item = WorkerView> + '_ {
        self.workers.iter().map(|(node, worker)| WorkerView {
            node: *node,
            macs_per_ms: worker.speed,
            in_flight: worker.leases.len(),
            max_in_flight: worker.max_in_flight,
            draining: worker.draining,
            models: worker.models.iter().copied().collect(),
        })
    }

    /// The workers that were found wrong.
    pub fn quarantined(&self) -> impl Iterator<Item = &NodeId> {
        self.quarantined.iter()
    }

    /// A job that has not ended.
    pub fn job(&self, job: &JobId) -> Option<JobView> {
        self.jobs.get(job).map(|entry| JobView {
            spec: entry.spec.clone(),
            stage: entry.stage,
            leases: entry.leases.iter().map(|(epoch, lease)| (*epoch, lease.node)).collect(),
            runs: entry.runs.len(),
        })
    }

    fn dispatch(&mut self, input: Input, out: &mut Output) {
        match input {
            Input::WorkerJoined { node, capabilities } => self.joined(node, capabilities, out),
            Input::WorkerLeft { node } => self.left(node),
            Input::Heartbeat { node } => {
                self.touch(&node);
                self.grant(node, out);
            }
            Input::ModelHeld { node, model } => self.workers.update(&node, |worker| {
                worker.unfit.remove(&model);
                if worker.models.len() < MAX_HELD_MODELS {
                    worker.models.insert(model);
                }
            }),
            Input::Draining { node } => self.workers.update(&node, |worker| worker.draining = true),
            Input::Submit(spec) => self.submit(spec, out),
            Input::Began { node, job, epoch } => self.began(node, job, epoch, out),
            Input::Streamed { node, job, epoch, said } => self.streamed((node, job, epoch), said, out),
            Input::Committed { node, job, epoch, commitment } => {
                self.committed((node, job, epoch), commitment, out);
            }
            Input::Completed { node, job, epoch, result, salt } => {
                self.completed((node, job, epoch), result, salt, out);
            }
            Input::Failed { node, job, epoch, code, reason } => self.failed((node, job, epoch), code, reason, out),
            Input::Awaited { job, patience_ms } => self.awaited(job, patience_ms, out),
            Input::Retracted { node, job, epoch } => self.retracted(node, job, epoch, out),
            Input::HandedOver { node, job, epoch, signed } => self.handed_over((node, job, epoch), *signed, out),
            Input::Proof { node, job, epoch, proof } => self.proof((node, job, epoch), *proof, out),
            Input::StageEnded { node, job, epoch, saturations } => {
                self.stage_ended((node, job, epoch), saturations, out);
            }
            Input::Segment { node, job, epoch, signed } => self.segment((node, job, epoch), *signed, out),
            Input::Cancel { job } => self.cancel(job, out),
            Input::Partial { node, partial } => self.partial(node, &partial, out),
            Input::Challenge(challenge) => self.challenge(&challenge, out),
            Input::Drawn { job, draw } => self.drawn(job, draw, out),
            Input::Judged { job, dispute, verdict } => self.judged(job, dispute, &verdict, out),
            Input::Tick => {}
        }
    }

    fn joined(&mut self, node: NodeId, capabilities: Capabilities, out: &mut Output) {
        self.left(node);
        let refusal = if self.quarantined.contains(&node) {
            Some(RefusalCode::Quarantined)
        } else if self.is_set_aside(&node) {
            Some(RefusalCode::Faulty)
        } else if self.workers.len() >= MAX_WORKERS {
            Some(RefusalCode::Full)
        } else {
            None
        };
        if let Some(code) = refusal {
            out.actions.push(Action::RefuseWorker { node, code });
            return;
        }
        let worker = Worker::new(capabilities, self.now);
        self.timers.insert((worker.silence_at, Timer::Silence(node)));
        self.workers.insert(node, worker);
        self.grant(node, out);
        self.welcome(&node);
        self.halt_again(node, out);
    }

    /// Ends a worker's session. Its leases are over, and that is nobody's failure.
    fn left(&mut self, node: NodeId) {
        let Some(worker) = self.workers.remove(&node) else {
            return;
        };
        self.timers.remove(&(worker.silence_at, Timer::Silence(node)));
        self.timers.remove(&(worker.conduct.rest_until, Timer::Rest(node)));
        for (job, epoch) in worker.leases.into_iter().chain(worker.waiting) {
            // A halted worker still has to sign: to leave is no way out.
            if !self.jobs.get(&job).is_some_and(|entry| entry.is_halted(epoch)) {
                self.end_lease(job, epoch);
                self.queue(job);
            }
        }
    }

    fn touch(&mut self, node: &NodeId) {
        let now = self.now;
        self.workers.update(node, |worker| worker.heard = now);
    }

    fn submit(&mut self, spec: JobSpec, out: &mut Output) {
        let job = spec.job.id();
        if let Some(policy) = self.ended.get(&job) {
            out.actions.push(Action::AlreadyKnown { job, ended: true, policy: *policy });
            return;
        }
        if let Some(known) = self.jobs.get(&job).map(|entry| entry.spec.policy) {
            if !spec.policy.is_valid() {
                out.actions.push(Action::RefuseJob { job, reason: SubmitError::Policy });
                return;
            }
            let policy = known.stricter(spec.policy);
            if policy != known {
                self.record(Record::Tightened { job, policy }, out);
                self.queue(job);
            }
            out.actions.push(Action::AlreadyKnown { job, ended: false, policy });
            return;
        }
        let tokens = self.held_tokens.saturating_add(spec.weight());
        let checked = if self.jobs.len() >= MAX_UNFINISHED_JOBS || tokens > MAX_UNFINISHED_TOKENS {
            Err(SubmitError::Busy)
        } else {
            Entry::new(spec.clone(), self.submissions).map(drop)
        };
        if let Err(reason) = checked {
            out.actions.push(Action::RefuseJob { job, reason });
            return;
        }
        self.record(Record::Submitted(spec), out);
        out.actions.push(Action::Submitted { job });
        self.advance(job, out);
    }

    /// Takes a live step: into the durable state, and out to be stored.
    fn record(&mut self, record: Record, out: &mut Output) {
        self.apply(&record).expect("a live step is in the table of transitions");
        out.records.push(record);
    }

    /// Takes a record into the durable state.
    fn apply(&mut self, record: &Record) -> Result<(), ReplayError> {
        match record {
            Record::Submitted(spec) => {
                let job = spec.job.id();
                let refuse = |reason| ReplayError::Submission { job, reason };
                if self.jobs.contains_key(&job) || self.ended.contains_key(&job) {
                    return Err(refuse("it is there already".to_owned()));
                }
                let entry = Entry::new(spec.clone(), self.submissions).map_err(|error| refuse(error.to_string()))?;
                self.submissions += 1;
                self.held_tokens += spec.weight();
                self.jobs.insert(job, entry);
            }
            Record::Quarantined { node, .. } => {
                self.quarantined.insert(*node);
            }
            // What follows from it has records of its own.
            Record::HandedOverWrong { .. } => {}
            Record::Challenged { job, terms } => {
                self.challenges.insert(*job, (**terms).clone());
            }
            Record::ChallengeEnded { job, dispute, upheld, at } => {
                if !self.challenges.remove(dispute, *upheld, *at) {
                    return Err(ReplayError::Dispute(*job));
                }
            }
            Record::SetAside { node, until, .. } => {
                self.faults.insert(*node, Fault { until: *until, accepted: 0 });
            }
            Record::Redeemed { node, job, accepted } => {
                let fault = self.faults.get_mut(node).ok_or(ReplayError::Fault(*job))?;
                fault.accepted = *accepted;
            }
            _ => {
                let job = record.job();
                let entry = self.jobs.get_mut(&job).ok_or(ReplayError::UnknownJob(job))?;
                entry.apply(record)?;
                if let Record::Assigned { epoch, .. } = record {
                    self.last_epoch = self.last_epoch.max(*epoch);
                }
                if record.ends_job() {
                    let policy = entry.spec.policy;
                    self.held_tokens -= entry.spec.weight();
                    self.jobs.remove(&job);
                    self.remember(job, policy);
                }
            }
        }
        Ok(())
    }

    fn remember(&mut self, job: JobId, policy: AuditPolicy) {
        self.ended.insert(job, policy);
        self.ended_order.push_back(job);
        if self.ended_order.len() > MAX_REMEMBERED_JOBS
            && let Some(oldest) = self.ended_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }
}
