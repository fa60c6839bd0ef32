//! Leases: who gets which job, for how long, and what ends them.

use super::{Action, Machine, Output, Record};
use crate::ids::{JobId, LeaseEpoch, NodeId};
use crate::limits::{MAX_STUCK_JOBS_TRIED, SILENCE_MS};
use crate::machine::entry::Lease;
use crate::machine::table::Stage;

/// What a point in time is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The end of a lease.
    Lease(JobId, LeaseEpoch),
    /// The end of patience with a silent worker.
    Silence(NodeId),
    /// The end of the search for auditors.
    Patience(JobId),
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
            if let Some(node) = self.pick(job) {
                self.assign(job, node, out);
                placed = true;
            }
            self.audit_cursor = order + 1;
        }
        placed
    }

    /// Gives out the oldest first run that one of the free workers may have, and says whether there was
    /// one. Those at which all free workers failed must not hold up the rest.
    fn schedule_first_run(&mut self, out: &mut Output) -> bool {
        let candidates = self.open.iter().take(MAX_STUCK_JOBS_TRIED);
        let Some((job, node)) = candidates.filter_map(|(_, job)| Some((*job, self.pick(*job)?))).next() else {
            return false;
        };
        self.assign(job, node, out);
        true
    }

    /// The worker for a job's next run: one that has not failed at it while any such is connected.
    fn pick(&self, job: JobId) -> Option<NodeId> {
        let entry = self.jobs.get(&job)?;
        let model = &entry.header.model;
        let pick = |barred: &dyn Fn(&NodeId) -> bool| match (&entry.draw, entry.stage) {
            (Some(draw), Stage::Auditing) => self.workers.pick_auditor(model, draw, barred),
            _ => self.workers.pick(model, barred),
        };
        let is_fresh = |node: &NodeId| !entry.excludes(node) && !entry.failures.contains_key(node);
        let fresh = pick(&|node| !is_fresh(node));
        if fresh.is_some() || entry.failures.is_empty() {
            return fresh;
        }
        let waits = self.workers.iter().any(|(node, worker)| !worker.draining && is_fresh(node));
        if waits { None } else { pick(&|node| entry.excludes(node)) }
    }

    fn assign(&mut self, job: JobId, node: NodeId, out: &mut Output) {
        let epoch = LeaseEpoch(self.last_epoch.0 + 1);
        self.record(Record::Assigned { job, epoch, node }, out);
        let entry = self.jobs.get_mut(&job).expect("an assignment keeps the job");
        let (model, work_units) = (entry.header.model, entry.spec.work_units);
        let worker = self.workers.get(&node).expect("the chosen worker is connected");
        let deadline = self.now.plus(worker.lease_ms(work_units, &model));
        entry.leases.insert(epoch, Lease { node, deadline, began: None, roots: Vec::new() });
        let action = Action::Assign { node, epoch, job: entry.spec.job.clone() };
        self.timers.insert((deadline, Timer::Lease(job, epoch)));
        self.workers.update(&node, |worker| {
            worker.leases.insert((job, epoch));
        });
        self.queue(job);
        out.actions.push(action);
    }

    /// Puts a job into the queue in which its stage and leases want it, and out of the others.
    pub(super) fn queue(&mut self, job: JobId) {
        let Some(entry) = self.jobs.get(&job) else {
            return;
        };
        let (key, stage, wanted) = ((entry.order, job), entry.stage, entry.wanted_leases() > 0);
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
        if let Some(at) = entry.patience.take() {
            self.timers.remove(&(at, Timer::Patience(job)));
        }
        self.open.remove(&key);
        self.auditing.remove(&key);
    }

    /// Takes a lease away from job, worker and timers.
    pub(super) fn drop_lease(&mut self, job: JobId, epoch: LeaseEpoch) -> Option<Lease> {
        let lease = self.jobs.get_mut(&job)?.leases.remove(&epoch)?;
        self.timers.remove(&(lease.deadline, Timer::Lease(job, epoch)));
        self.workers.update(&lease.node, |worker| {
            worker.leases.remove(&(job, epoch));
        });
        Some(lease)
    }

    /// Ends a lease whose worker failed at it. A job at which too many failed is given up.
    pub(super) fn fail_lease(&mut self, job: JobId, epoch: LeaseEpoch, out: &mut Output) {
        let Some(lease) = self.drop_lease(job, epoch) else {
            return;
        };
        let entry = self.jobs.get_mut(&job).expect("it had the lease");
        if entry.fail(lease.node) {
            let record = entry.give_up();
            self.give_up(record, out);
        } else {
            self.queue(job);
        }
    }

    pub(super) fn cancel_leases(&mut self, job: JobId, out: &mut Output) {
        let epochs: Vec<_> = self.jobs.get(&job).map(|e| e.leases.keys().copied().collect()).unwrap_or_default();
        for epoch in epochs {
            if let Some(lease) = self.drop_lease(job, epoch) {
                out.actions.push(Action::Cancel { node: lease.node, job, epoch });
            }
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
            }
        }
    }

    fn lease_ended(&mut self, job: JobId, epoch: LeaseEpoch, out: &mut Output) {
        if let Some(lease) = self.jobs.get(&job).and_then(|entry| entry.leases.get(&epoch)) {
            out.actions.push(Action::Cancel { node: lease.node, job, epoch });
            self.fail_lease(job, epoch, out);
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

    fn patience_ended(&mut self, job: JobId, out: &mut Output) {
        let Some(entry) = self.jobs.get_mut(&job) else {
            return;
        };
        entry.patience = None;
        if entry.stage != Stage::Auditing {
            return;
        }
        if entry.leases.is_empty() {
            let record = entry.give_up();
            self.give_up(record, out);
        } else {
            self.arm_patience(job);
        }
    }
}
