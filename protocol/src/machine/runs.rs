//! What workers say about their assignments.

use super::{Action, Input, Machine, Output, Record, RejectReason};
use crate::ids::NodeId;
use crate::ids::{JobId, LeaseEpoch, Place, Root};
use crate::limits::PAUSE_MIN_MS;
use crate::machine::entry::Lease;
use crate::machine::table::Stage;
use crate::messages::{FailureCode, JobResult};

/// Who speaks about which assignment.
type Assignment = (NodeId, JobId, LeaseEpoch);

impl Machine {
    /// The live lease of an assignment. Where there is none the worker is told so: it was given up,
    /// or the worker made it up.
    fn lease(&mut self, (node, job, epoch): Assignment, out: &mut Output) -> Option<&mut Lease> {
        self.touch(&node);
        let lease =
            self.jobs.get_mut(&job).and_then(|entry| entry.leases.get_mut(&epoch)).filter(|lease| lease.node == node);
        if lease.is_none() {
            out.actions.push(Action::Cancel { node, job, epoch });
        }
        lease
    }

    pub(super) fn began(&mut self, node: NodeId, job: JobId, epoch: LeaseEpoch, out: &mut Output) {
        let now = self.now;
        if let Some(lease) = self.lease((node, job, epoch), out)
            && lease.began.is_none()
        {
            lease.began = Some(now);
            self.extend(job, epoch);
        }
    }

    pub(super) fn layer_root(&mut self, assignment: Assignment, place: Place, root: Root, out: &mut Output) {
        let (node, job, epoch) = assignment;
        let Some(index) = self.lease(assignment, out).map(|lease| lease.roots.len()) else {
            return;
        };
        let entry = self.jobs.get_mut(&job).expect("its lease is live");
        if entry.geometry.place(index) != Some(place) {
            let reason = RejectReason::OutOfOrder { found: place };
            self.reject(assignment, reason, out);
            return;
        }
        let differs = entry.differs_at(index, &root);
        entry.leases.get_mut(&epoch).expect("it is live").roots.push(root);
        self.extend(job, epoch);
        out.actions.push(Action::Committed { node, job, epoch, place, root, differs });
    }

    pub(super) fn completed(&mut self, assignment: Assignment, result: Box<JobResult>, out: &mut Output) {
        let (node, job, epoch) = assignment;
        if self.has_run(&assignment) {
            // The worker did not hear that its result is kept.
            self.touch(&node);
            out.actions.push(Action::Accepted { node, job, epoch });
            return;
        }
        if self.lease(assignment, out).is_none() {
            return;
        }
        let entry = &self.jobs[&job];
        if let Err(reason) = entry.check_result(&node, epoch, &result) {
            self.reject(assignment, reason, out);
            return;
        }
        let work_units = entry.spec.work_units;
        let now = self.now;
        if let Some(began) = self.drop_lease(job, epoch).and_then(|lease| lease.began) {
            self.workers.update(&node, |worker| worker.measure(work_units, now.since(began)));
        }
        self.workers.update(&node, |worker| worker.conduct.failures = 0);
        self.record(Record::Ran { job, result: result.clone() }, out);
        out.actions.push(Action::Accepted { node, job, epoch });
        self.report_run(job, result, out);
        self.punish(job, out);
        self.advance(job, out);
    }

    pub(super) fn failed(&mut self, assignment: Assignment, code: FailureCode, out: &mut Output) {
        let (node, job, epoch) = assignment;
        if code == FailureCode::Draining {
            self.dispatch(Input::Draining { node }, out);
        }
        let live = self.jobs.get(&job).and_then(|entry| entry.leases.get(&epoch));
        if live.is_none_or(|lease| lease.node != node) {
            return;
        }
        match code {
            FailureCode::Draining => {
                self.drop_lease(job, epoch);
                self.queue(job);
            }
            FailureCode::Busy => {
                // No failure, but without a pause it would be asked again at once.
                self.drop_lease(job, epoch);
                self.rest_until(&node, self.now.plus(PAUSE_MIN_MS));
                self.queue(job);
            }
            FailureCode::ModelUnavailable | FailureCode::ModelRefused => {
                let model = self.jobs[&job].header.model;
                let now = self.now;
                self.workers.update(&node, |worker| worker.lacks(model, now));
                self.fail_lease(job, epoch, false, out);
            }
            _ => self.fail_lease(job, epoch, true, out),
        }
    }

    /// What the client and the page get to see of an accepted run.
    fn report_run(&mut self, job: JobId, result: Box<JobResult>, out: &mut Output) {
        let entry = &self.jobs[&job];
        match entry.stage {
            Stage::Drawing if !entry.spec.policy.hold => {
                out.actions.push(Action::Answer { job, result });
            }
            Stage::Settling => {
                if let Some((difference, first, auditor)) = entry.last_difference() {
                    out.actions.push(Action::Mismatch { job, difference, first, auditor });
                }
            }
            _ => {}
        }
    }

    fn has_run(&self, (node, job, epoch): &Assignment) -> bool {
        self.jobs.get(job).is_some_and(|entry| {
            entry.runs.iter().any(|run| {
                let receipt = &run.receipt.receipt;
                receipt.worker == *node && receipt.epoch == *epoch
            })
        })
    }

    /// Ends the session of a worker that broke the rules. Its job goes on without it.
    fn reject(&mut self, (node, job, epoch): Assignment, reason: RejectReason, out: &mut Output) {
        self.jobs.get_mut(&job).expect("its lease is live").bar(node);
        self.left(node);
        out.actions.push(Action::Rejected { node, job, epoch, reason });
    }
}
