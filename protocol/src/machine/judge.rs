//! From stage to stage: draws and ends.

use super::{Action, AuditDraw, JobFailure, Machine, Output, Record};
use crate::ids::JobId;
use crate::limits::MAX_AUDITORS;
use crate::machine::entry::Entry;
use crate::machine::table::Stage;

impl Machine {
    /// Does what a job's stage asks for. Called whenever the stage may have changed, and once for
    /// each job after a restart.
    pub(super) fn advance(&mut self, job: JobId, out: &mut Output) {
        let Some(entry) = self.jobs.get(&job) else {
            return;
        };
        if entry.stage != Stage::Auditing {
            self.disarm(job);
        }
        let entry = &self.jobs[&job];
        match entry.stage {
            Stage::Choosing => {
                out.actions.push(Action::NeedLockstepDraw { job, nonce: entry.header.nonce });
            }
            Stage::Drawing => {
                let first = entry.standing().next().expect("a job is drawn after its first run");
                out.actions.push(Action::NeedDraw { job, head: first.receipt().head, nonce: entry.header.nonce });
            }
            Stage::Auditing => {
                self.arm_search(job);
            }
            Stage::Disputing => {
                self.cancel_leases(job, out);
                self.dispute(job, out);
            }
            Stage::Closing => self.finish(job, out),
            Stage::Open | Stage::Done | Stage::Failed => {}
        }
        self.queue(job);
        self.reveal(job, out);
    }

    /// Goes on after a run fell that was not in a dispute of its own job. What was asked for at the same stage is not asked
    /// for again.
    pub(super) fn run_fell(&mut self, job: JobId, before: Stage, out: &mut Output) {
        if self.jobs[&job].stage == before {
            self.queue(job);
        } else {
            self.advance(job, out);
        }
    }

    pub(super) fn drawn(&mut self, job: JobId, draw: AuditDraw, out: &mut Output) {
        let asked = if draw.lockstep { Stage::Choosing } else { Stage::Drawing };
        let Some(entry) = self.jobs.get(&job).filter(|entry| entry.stage == asked) else {
            return;
        };
        let policy = &entry.spec.policy;
        let first = entry.standing().next();
        let planted = entry.spec.planted.as_ref();
        let is_not_as_planted = planted.is_some_and(|planted| first.is_none_or(|first| *planted != first.roots));
        let was_caught = first
            .is_some_and(|first| first.result.receipt.members().any(|(node, ..)| self.quarantined.contains(&node)));
        let auditors = match (is_not_as_planted, first) {
            // It is wrong, and so may be those who agree with it: everybody who can be asked is, so that one honest worker
            // among them is enough.
            (true, Some(_)) => MAX_AUDITORS as u8,
            // A planted job that is drawn before anybody ran it.
            (true, None) => policy.auditors,
            // Its worker was caught elsewhere since: nothing of it is taken unaudited.
            (false, _) if was_caught => policy.auditors,
            (false, _) => draw.auditors(policy),
        };
        self.record(Record::Drawn { job, draw, auditors }, out);
        self.advance(job, out);
    }

    /// Ends a job without a result, or its audits, with the record that says so.
    pub(super) fn give_up(&mut self, record: Record, out: &mut Output) {
        let job = record.job();
        self.end_halt(job);
        self.cancel_leases(job, out);
        if let Record::Failed { reason, .. } = record {
            self.unqueue(job);
            self.settle_accounts(job, false, out);
            let refusal = self.jobs.get_mut(&job).and_then(|entry| entry.refusal.take());
            let said = refusal.filter(|_| reason == JobFailure::Refused);
            self.record(record, out);
            out.actions.push(Action::JobFailed { job, reason, said });
        } else {
            self.record(record, out);
            self.advance(job, out);
        }
    }

    /// Ends a job that its client wants no more: whatever was done for it is not paid. Where runs of it differ, the one who
    /// lied is found out first, and the job goes on as if nobody had asked.
    pub(super) fn cancel(&mut self, job: JobId, out: &mut Output) {
        let may_end = |entry: &Entry| match entry.stage {
            Stage::Choosing | Stage::Open | Stage::Drawing => true,
            Stage::Auditing => !entry.is_contradicted(),
            Stage::Disputing | Stage::Closing | Stage::Done | Stage::Failed => false,
        };
        if self.jobs.get(&job).is_some_and(may_end) {
            self.disarm(job);
            self.give_up(Record::Failed { job, reason: JobFailure::Cancelled }, out);
        }
    }

    fn finish(&mut self, job: JobId, out: &mut Output) {
        self.cancel_leases(job, out);
        self.unqueue(job);
        let outcome = self.jobs[&job].outcome().expect("a job closes with a run that stands");
        self.settle_accounts(job, true, out);
        self.record(Record::Finished { job }, out);
        out.actions.push(Action::JobDone { job, outcome: Box::new(outcome) });
    }
}
