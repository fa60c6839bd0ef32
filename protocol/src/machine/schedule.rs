//! Leases: who gets which job, for how long, and what ends them.

use super::{Action, Machine, Output, Record};
use crate::commitment::RunCommitment;
use crate::ids::{JobId, LeaseEpoch, Millis, NodeId};
use crate::limits::{FORGIVEN_FAILURES, MAX_STUCK_JOBS_TRIED, PAUSE_MIN_MS, REVEAL_MS, SILENCE_MS};
use crate::machine::crew::{Member, Placement};
use crate::machine::entry::{Entry, Lease};
use crate::machine::table::Stage;
use crate::machine::workers::{LeaseTimes, Worker, pause_ms};

/// What a point in time is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The end of a lease.
    Lease(JobId, LeaseEpoch),
    /// The end of patience with a silent worker.
    Silence(NodeId),
    /// The end of the audit.
    Patience(JobId),
    /// The next look for somebody who could audit.
    Absence(JobId),
    /// The end of the time in which halted workers sign.
    Halt(JobId),
    /// The end of a worker's pause.
    Rest(NodeId),
    /// The end of a job's pause.
    Retry(JobId),
    /// The next look whether anybody is there for a job that a client waits for.
    Awaited(JobId),
}

impl Machine {
    /// Gives out what can be given out: audits first, because their jobs hold memory, then first runs
    /// in order of submission.
    pub(super) fn schedule(&mut self, out: &mut Output) {
        while self.workers.has_free() && self.schedule_audits(out) {}
        while self.workers.has_free() && self.schedule_first_run(out) {}
    }

    /// Tries some of the waiting audits, going round, and says whether one was given out. Those whose
    /// workers are all busy or have run the job already must not hold up the rest.
    fn schedule_audits(&mut self, out: &mut Output) -> bool {
        let cursor = (self.audit_cursor, JobId::from_bytes([0; 32]));
        let candidates: Vec<_> = (self.auditing.range(cursor..))
            .chain(self.auditing.range(..cursor))
            .take(MAX_STUCK_JOBS_TRIED)
            .copied()
            .collect();
        let mut placed = false;
        for (order, job) in candidates {
            if let Some(placement) = self.place(job) {
                self.assign(job, placement, out);
                placed = true;
            }
            self.audit_cursor = order + 1;
        }
        placed
    }

    /// Gives out the oldest first run that one of the free workers may have, and says whether there was one. Half of those
    /// that are tried are the oldest. The others go round: jobs that nobody may have, or at which all free workers failed,
    /// must not hold up the rest.
    fn schedule_first_run(&mut self, out: &mut Output) -> bool {
        let cursor = (self.open_cursor, JobId::from_bytes([0; 32]));
        let tried = MAX_STUCK_JOBS_TRIED / 2;
        let oldest = self.open.iter().take(tried);
        let candidates: Vec<_> = oldest.chain(self.open.range(cursor..).take(tried)).copied().collect();
        for (_, job) in &candidates {
            self.workers.look_for(&self.jobs[job].header.model);
            if let Some(placement) = self.place(*job) {
                self.assign(*job, placement, out);
                return true;
            }
        }
        let next = candidates.last().map_or(0, |(order, _)| order + 1);
        let is_end = self.open.last().is_none_or(|(last, _)| *last < next);
        self.open_cursor = if is_end { 0 } else { next };
        false
    }

    /// The worker for a job's next run: one that has not failed at it while any such is connected.
    pub(super) fn pick(&self, job: JobId) -> Option<NodeId> {
        let entry = self.jobs.get(&job)?;
        let model = &entry.header.model;
        let pick = |barred: &dyn Fn(&NodeId) -> bool| match (&entry.draw, entry.stage) {
            (Some(draw), Stage::Auditing) => self.workers.pick_auditor(model, draw, barred),
            _ => self.workers.pick(model, barred),
        };
        let may_run = |node: &NodeId| self.workers.get(node).is_some_and(|worker| self.may_run(entry, node, worker));
        let is_fresh = |node: &NodeId| may_run(node) && !entry.failures.contains_key(node);
        let fresh = pick(&|node| !is_fresh(node));
        if fresh.is_some() || entry.failures.is_empty() {
            return fresh;
        }
        let waits = entry.retry_at > self.now || self.has_fresh(entry);
        if waits { None } else { pick(&|node| !may_run(node)) }
    }

    /// Whether a worker is connected, free or busy, that may still run the job and has not failed at it.
    fn has_fresh(&self, entry: &Entry) -> bool {
        self.candidates(entry).any(|node| !entry.failures.contains_key(node))
    }

    /// The connected workers, free or busy, that may still run a job.
    pub(super) fn candidates(&self, entry: &Entry) -> impl Iterator<Item = &NodeId> {
        let is_candidate = |(node, worker): &(&NodeId, &Worker)| !worker.draining && self.may_run(entry, node, worker);
        self.workers.iter().filter(is_candidate).map(|(node, _)| node)
    }

    /// Whether a worker may be given a job, once it has a free place.
    fn may_run(&self, entry: &Entry, node: &NodeId, worker: &Worker) -> bool {
        self.may_share(entry, node, worker) && self.can_hold(entry, worker) && !worker.refused.contains(&entry.id)
    }

    /// The same for some layers of it.
    pub(super) fn may_share(&self, entry: &Entry, node: &NodeId, worker: &Worker) -> bool {
        worker.may_have(&entry.header.model, self.now)
            && !entry.excludes(node)
            && entry.allows_operator(worker.operator.as_deref())
            && self.can_bond(entry, node)
    }

    fn assign(&mut self, job: JobId, placement: Placement, out: &mut Output) {
        let node = match placement {
            Placement::Alone(node) => node,
            Placement::Crew(crew) => return self.assign_crew(job, crew, out),
        };
        let epoch = LeaseEpoch(self.last_epoch.0 + 1);
        self.record(Record::Assigned { job, epoch, node }, out);
        self.hold_bond(job, epoch, node, out);
        let entry = &self.jobs[&job];
        let hint = entry.hint();
        let worker = self.workers.get(&node).expect("the chosen worker is connected");
        let times = worker.lease_times(&entry.spec, !hint.is_empty());
        let action = Action::Assign { node, epoch, job: entry.spec.job.clone(), hint: hint.clone() };
        self.begin_lease((job, epoch, node), worker.operator.clone(), Vec::new(), times, !hint.is_empty());
        self.queue(job);
        out.actions.push(action);
    }

    /// Starts the clock of a new lease, and takes a place of each of its workers: of a pipeline's members, or of the one.
    pub(super) fn begin_lease(
        &mut self,
        (job, epoch, node): (JobId, LeaseEpoch, NodeId),
        operator: Option<String>,
        crew: Vec<Member>,
        times: LeaseTimes,
        is_hinted: bool,
    ) {
        let (deadline, last_deadline) = (self.now.plus(times.begin), self.now.plus(times.whole));
        let lease = Lease {
            node,
            operator,
            deadline,
            last_deadline,
            first_ms: times.first,
            step_ms: times.step,
            began: None,
            roots: Vec::new(),
            words: Vec::new(),
            logprobs: Vec::new(),
            is_hinted,
            commitment: None,
            revealing: false,
            crew,
            is_shown: false,
            result: None,
        };
        self.timers.insert((deadline, Timer::Lease(job, epoch)));
        for node in lease.nodes() {
            self.workers.update(&node, |worker| {
                worker.leases.insert((job, epoch));
            });
        }
        let entry = self.jobs.get_mut(&job).expect("an assignment keeps the job");
        entry.leases.insert(epoch, lease);
    }

    /// Puts a job into the queue in which its stage and leases want it, and out of the others.
    pub(super) fn queue(&mut self, job: JobId) {
        let Some(entry) = self.jobs.get(&job) else {
            return;
        };
        let (key, stage, wanted) = ((entry.order, job), entry.stage, entry.wanted_leases() > 0 && !entry.parked);
        for (queue, of) in [(&mut self.open, Stage::Open), (&mut self.auditing, Stage::Auditing)] {
            if wanted && stage == of {
                queue.insert(key);
            } else {
                queue.remove(&key);
            }
        }
    }

    /// Takes a job that is about to end out of queues and timers.
    pub(super) fn unqueue(&mut self, job: JobId) {
        let Some(entry) = self.jobs.get_mut(&job) else {
            return;
        };
        let key = (entry.order, job);
        self.parked.remove(&job);
        self.timers.remove(&(entry.retry_at, Timer::Retry(job)));
        self.open.remove(&key);
        self.auditing.remove(&key);
        self.disarm(job);
        self.stop_looking(job);
    }

    /// Ends a lease without a run.
    pub(super) fn end_lease(&mut self, job: JobId, epoch: LeaseEpoch) -> Option<Lease> {
        let lease = self.drop_lease(job, epoch)?;
        self.ended_leases.extend(lease.nodes().into_iter().map(|node| (node, job, epoch)));
        if !lease.crew.is_empty() {
            self.orphans.extend(lease.nodes().into_iter().map(|node| (node, job, epoch)));
        }
        Some(lease)
    }

    /// Takes a lease away from job, worker and timers.
    pub(super) fn drop_lease(&mut self, job: JobId, epoch: LeaseEpoch) -> Option<Lease> {
        let lease = self.jobs.get_mut(&job)?.leases.remove(&epoch)?;
        self.timers.remove(&(lease.deadline, Timer::Lease(job, epoch)));
        for node in lease.nodes() {
            self.workers.update(&node, |worker| {
                worker.leases.remove(&(job, epoch));
                worker.waiting.remove(&(job, epoch));
            });
        }
        Some(lease)
    }

    /// Gives a lease the time for one more step, because there was progress.
    pub(super) fn extend(&mut self, job: JobId, epoch: LeaseEpoch) {
        let now = self.now;
        let entry = self.jobs.get_mut(&job).filter(|entry| !entry.is_halted(epoch));
        if let Some(lease) = entry.and_then(|entry| entry.leases.get_mut(&epoch)) {
            self.timers.remove(&(lease.deadline, Timer::Lease(job, epoch)));
            let step_ms = if lease.roots.is_empty() { lease.first_ms } else { lease.step_ms };
            lease.deadline = now.plus(step_ms).min(lease.last_deadline);
            self.timers.insert((lease.deadline, Timer::Lease(job, epoch)));
        }
    }

    /// Stops a lease's clock: its worker committed to a run and waits until it may show it.
    pub(super) fn suspend(&mut self, job: JobId, epoch: LeaseEpoch, commitment: RunCommitment) {
        if let Some(lease) = self.jobs.get_mut(&job).and_then(|entry| entry.leases.get_mut(&epoch)) {
            lease.commitment = Some(commitment);
            self.stop_clock(job, epoch);
        }
    }

    /// Lets no deadline end a lease any more.
    pub(super) fn stop_clock(&mut self, job: JobId, epoch: LeaseEpoch) {
        if let Some(lease) = self.jobs.get(&job).and_then(|entry| entry.leases.get(&epoch)) {
            self.timers.remove(&(lease.deadline, Timer::Lease(job, epoch)));
        }
    }

    /// Gives a worker that is told to reveal its run the time for that.
    pub(super) fn resume_lease(&mut self, job: JobId, epoch: LeaseEpoch) {
        let deadline = self.now.plus(REVEAL_MS);
        if let Some(lease) = self.jobs.get_mut(&job).and_then(|entry| entry.leases.get_mut(&epoch)) {
            lease.revealing = true;
            lease.deadline = deadline;
            self.timers.insert((deadline, Timer::Lease(job, epoch)));
        }
    }

    /// Gives a worker nothing until then.
    pub(super) fn rest_until(&mut self, node: &NodeId, until: Millis) {
        if let Some(before) = self.workers.get(node).map(|worker| worker.conduct.rest_until) {
            self.timers.remove(&(before, Timer::Rest(*node)));
            self.workers.update(node, |worker| worker.conduct.rest_until = before.max(until));
            self.rest(node);
        }
    }

    /// Begins a worker's new session: its pause, and those of the jobs at which it failed, are cut short, as what made it fail
    /// may be mended. That it failed is remembered, so that the next pause is longer; and to come again and again is no way to
    /// fail without pauses.
    pub(super) fn welcome(&mut self, node: &NodeId) {
        let soon = self.now.plus(PAUSE_MIN_MS);
        self.workers.update(node, |worker| worker.conduct.rest_until = worker.conduct.rest_until.min(soon));
        self.rest(node);
        for job in std::mem::take(&mut self.parked) {
            if let Some(entry) = self.jobs.get_mut(&job).filter(|entry| entry.failures.contains_key(node)) {
                self.timers.remove(&(entry.retry_at, Timer::Retry(job)));
                entry.retry_at = entry.retry_at.min(soon);
                self.timers.insert((entry.retry_at, Timer::Retry(job)));
            }
            // It may be the one that can do what the others could not.
            self.unpark(job);
        }
    }

    /// Starts or ends a worker's pause, as its conduct has it.
    pub(super) fn rest(&mut self, node: &NodeId) {
        let now = self.now;
        let mut until = None;
        self.workers.update(node, |worker| {
            worker.resting = worker.conduct.rest_until > now;
            until = worker.resting.then_some(worker.conduct.rest_until);
        });
        self.timers.extend(until.map(|at| (at, Timer::Rest(*node))));
    }

    /// Lets a job be tried again.
    pub(super) fn unpark(&mut self, job: JobId) {
        self.parked.remove(&job);
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.parked = false;
            self.queue(job);
        }
    }

    /// Keeps a job out of the queues until its pause ends, where all who are there have failed at it: jobs
    /// that nobody can run must not hold up the rest.
    fn park(&mut self, job: JobId) {
        let retry_at = self.jobs[&job].retry_at;
        if retry_at > self.now {
            self.timers.insert((retry_at, Timer::Retry(job)));
            if !self.has_fresh(&self.jobs[&job]) {
                self.jobs.get_mut(&job).expect("it was there").parked = true;
                self.parked.insert(job);
            }
        }
    }

    /// Counts a failure of a worker, and lets it rest after too many in a row.
    fn blame(&mut self, node: &NodeId) {
        let mut failures = 0;
        self.workers.update(node, |worker| {
            worker.conduct.failures = worker.conduct.failures.saturating_add(1);
            failures = worker.conduct.failures;
        });
        if failures >= FORGIVEN_FAILURES {
            self.rest_until(node, self.now.plus(pause_ms(failures - FORGIVEN_FAILURES + 1)));
        }
    }

    /// Ends a lease at which a worker failed. A job at which too many failed, or that all refused, is given up. `counts` is
    /// false where the worker only could not get the model.
    pub(super) fn fail_lease(
        &mut self,
        (node, job, epoch): (NodeId, JobId, LeaseEpoch),
        counts: bool,
        out: &mut Output,
    ) {
        if self.end_lease(job, epoch).is_none() {
            return;
        }
        if counts {
            self.blame(&node);
        }
        let now = self.now;
        let entry = self.jobs.get_mut(&job).expect("it had the lease");
        self.timers.remove(&(entry.retry_at, Timer::Retry(job)));
        if entry.fail(node, counts, now) || self.is_refused(job) {
            let record = self.jobs[&job].give_up();
            self.give_up(record, out);
        } else {
            self.park(job);
            self.queue(job);
        }
    }

    pub(super) fn cancel_leases(&mut self, job: JobId, out: &mut Output) {
        let epochs: Vec<_> = self.jobs.get(&job).map(|e| e.leases.keys().copied().collect()).unwrap_or_default();
        for epoch in epochs {
            self.cancel_lease(job, epoch, out);
        }
    }

    pub(super) fn cancel_lease(&mut self, job: JobId, epoch: LeaseEpoch, out: &mut Output) {
        if let Some(lease) = self.end_lease(job, epoch) {
            out.actions.push(Action::Cancel { node: lease.node, job, epoch });
        }
    }

    pub(super) fn fire_timers(&mut self, out: &mut Output) {
        while let Some((at, timer)) = self.timers.first().copied() {
            if at > self.now {
                break;
            }
            self.timers.pop_first();
            match timer {
                Timer::Lease(job, epoch) => self.lease_ended(job, epoch, out),
                Timer::Silence(node) => self.silence_ended(node, out),
                Timer::Patience(job) => self.patience_ended(job, out),
                Timer::Halt(job) => self.halt_ended(job, out),
                Timer::Absence(job) => self.look_for_auditors(job),
                Timer::Rest(node) => self.rest(&node),
                Timer::Retry(job) => self.unpark(job),
                Timer::Awaited(job) => self.look_for_workers(job, out),
            }
        }
    }

    fn lease_ended(&mut self, job: JobId, epoch: LeaseEpoch, out: &mut Output) {
        if let Some(lease) = self.jobs.get(&job).and_then(|entry| entry.leases.get(&epoch)) {
            let (lead, late) = (lease.node, lease.laggard());
            out.actions.push(Action::Cancel { node: lead, job, epoch });
            self.fail_lease((late, job, epoch), true, out);
        }
    }

    fn silence_ended(&mut self, node: NodeId, out: &mut Output) {
        let Some(heard) = self.workers.get(&node).map(|worker| worker.heard) else {
            return;
        };
        let at = heard.plus(SILENCE_MS);
        if at > self.now {
            self.workers.update(&node, |worker| worker.silence_at = at);
            self.timers.insert((at, Timer::Silence(node)));
        } else {
            self.left(node);
            out.actions.push(Action::Disconnect { node });
        }
    }
}
