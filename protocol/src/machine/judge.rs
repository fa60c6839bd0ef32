//! From stage to stage: draws, settlements, quarantine, ends.

use super::{Action, AuditDraw, JobFailure, Machine, Output, Record};
use crate::ids::{JobId, Root};
use crate::limits::{AUDIT_PATIENCE_MS, DEFAULT_MACS_PER_MS, LEASE_MAX_MS};
use crate::machine::schedule::Timer;
use crate::machine::table::Stage;
use crate::machine::workers::run_ms;

impl Machine {
    /// Does what a job's stage asks for. Called whenever the stage may have changed, and once for
    /// each job after a restart.
    pub(super) fn advance(&mut self, job: JobId, out: &mut Output) {
        let Some(entry) = self.jobs.get(&job) else {
            return;
        };
        match entry.stage {
            Stage::Drawing => {
                let first = entry.runs.first().expect("a job is drawn after its first run");
                out.actions.push(Action::NeedDraw { job, head: first.receipt.receipt.head, nonce: entry.header.nonce });
            }
            Stage::Auditing => {
                if entry.patience.is_none() {
                    self.arm_patience(job);
                }
            }
            Stage::Settling => {
                let action = Action::NeedSettlement { job: entry.spec.job.clone() };
                self.cancel_leases(job, out);
                out.actions.push(action);
            }
            Stage::Closing => self.finish(job, out),
            Stage::Open | Stage::Done | Stage::Failed => {}
        }
        self.queue(job);
    }

    pub(super) fn drawn(&mut self, job: JobId, draw: AuditDraw, out: &mut Output) {
        let Some(entry) = self.jobs.get(&job).filter(|entry| entry.stage == Stage::Drawing) else {
            return;
        };
        let policy = &entry.spec.policy;
        let first = entry.runs.first().expect("a job is drawn after its first run");
        let auditors = if self.quarantined.contains(&first.receipt.receipt.worker) {
            // Its worker was caught elsewhere since: nothing of it is taken unaudited.
            policy.auditors
        } else {
            draw.auditors(policy)
        };
        self.record(Record::Drawn { job, draw, auditors }, out);
        self.advance(job, out);
    }

    pub(super) fn settled(&mut self, job: JobId, truth: Option<Vec<Root>>, out: &mut Output) {
        let Some(entry) = self.jobs.get(&job).filter(|entry| entry.stage == Stage::Settling) else {
            return;
        };
        let truth = truth.filter(|truth| truth.len() == entry.geometry.len());
        if truth.is_none() && entry.spec.policy.hold {
            self.give_up(Record::Failed { job, reason: JobFailure::Unsettled }, out);
            return;
        }
        self.record(Record::Settled { job, truth }, out);
        self.punish(job, out);
        self.advance(job, out);
    }

    /// Quarantines everybody whose run of this job is refuted.
    pub(super) fn punish(&mut self, job: JobId, out: &mut Output) {
        let refutations = self.jobs.get(&job).map(|entry| entry.refutations()).unwrap_or_default();
        for refutation in refutations {
            let (node, place) = (refutation.worker, refutation.place);
            if !self.quarantined.contains(&node) {
                self.record(Record::Quarantined { node, job, place }, out);
                self.left(node);
                out.actions.push(Action::Quarantine { node, job, place });
            }
        }
    }

    /// Ends a job without a result, or its audits, with the record that says so.
    pub(super) fn give_up(&mut self, record: Record, out: &mut Output) {
        let job = record.job();
        self.cancel_leases(job, out);
        if let Record::Failed { reason, .. } = record {
            self.unqueue(job);
            self.record(record, out);
            out.actions.push(Action::JobFailed { job, reason });
        } else {
            self.record(record, out);
            self.advance(job, out);
        }
    }

    fn finish(&mut self, job: JobId, out: &mut Output) {
        self.cancel_leases(job, out);
        self.unqueue(job);
        let outcome = self.jobs[&job].outcome().expect("a job closes with a run that stands");
        self.record(Record::Finished { job }, out);
        out.actions.push(Action::JobDone { job, outcome: Box::new(outcome) });
    }

    pub(super) fn arm_patience(&mut self, job: JobId) {
        if let Some(entry) = self.jobs.get_mut(&job) {
            let at = self.now.plus(audit_ms(entry.spec.work_units));
            entry.patience = Some(at);
            self.timers.insert((at, Timer::Patience(job)));
        }
    }
}

/// How long all audits of a job may take together.
fn audit_ms(work_units: u64) -> u64 {
    AUDIT_PATIENCE_MS.saturating_add(run_ms(work_units, DEFAULT_MACS_PER_MS)).min(LEASE_MAX_MS)
}
