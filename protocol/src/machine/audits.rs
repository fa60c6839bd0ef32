//! The search for auditors, and its end.

use super::{Machine, Output};
use crate::ids::{JobId, LeaseEpoch};
use crate::limits::{ABSENCE_LOOK_MS, ABSENCE_LOOKS, AUDIT_PATIENCE_MS, DEFAULT_MACS_PER_MS, LEASE_MAX_MS};
use crate::machine::schedule::Timer;
use crate::machine::table::Stage;
use crate::machine::types::JobSpec;
use crate::machine::workers::{run_ms, tokens_ms};

impl Machine {
    /// Starts the search for a job's auditors, where it is not on yet.
    pub(super) fn arm_search(&mut self, job: JobId) {
        let now = self.now;
        if let Some(entry) = self.jobs.get_mut(&job).filter(|entry| entry.patience.is_none()) {
            let (end, look) = (now.plus(audit_ms(&entry.spec)), now.plus(ABSENCE_LOOK_MS));
            entry.patience = Some(end);
            entry.absence = Some((look, 0));
            self.timers.extend([(end, Timer::Patience(job)), (look, Timer::Absence(job))]);
        }
    }

    /// Ends the search for a job's auditors.
    pub(super) fn disarm(&mut self, job: JobId) {
        self.short.remove(&job);
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.short = false;
            if let Some(at) = entry.patience.take() {
                self.timers.remove(&(at, Timer::Patience(job)));
            }
            if let Some((at, _)) = entry.absence.take() {
                self.timers.remove(&(at, Timer::Absence(job)));
            }
        }
    }

    /// Gives up the missing audits of a job where nobody was there for some time who could make them. Who is kept from them
    /// by a pause is not there.
    pub(super) fn look_for_auditors(&mut self, job: JobId) {
        let Some(entry) = self.jobs.get(&job) else {
            return;
        };
        let is_absent = entry.wanted_leases() > 0 && !self.is_attended(entry);
        let looks = entry.absence.filter(|_| is_absent).map_or(0, |(_, looks)| looks + 1);
        let next = self.now.plus(ABSENCE_LOOK_MS);
        let entry = self.jobs.get_mut(&job).expect("it was there");
        if looks < ABSENCE_LOOKS {
            entry.absence = Some((next, looks));
            self.timers.insert((next, Timer::Absence(job)));
        } else {
            entry.absence = None;
            self.fall_short(job);
        }
    }

    /// The time for the audits of a job is over: those that are not committed to are given up.
    pub(super) fn patience_ended(&mut self, job: JobId, out: &mut Output) {
        let Some(entry) = self.jobs.get_mut(&job) else {
            return;
        };
        entry.patience = None;
        let entry = &self.jobs[&job];
        let is_cancelled = |epoch: &LeaseEpoch| entry.leases[epoch].is_running() && !entry.is_halted(*epoch);
        for epoch in entry.leases.keys().filter(|epoch| is_cancelled(epoch)).copied().collect::<Vec<_>>() {
            self.cancel_lease(job, epoch, out);
        }
        self.fall_short(job);
    }

    /// Looks for no more auditors of a job: it goes on with the audits that are under way.
    fn fall_short(&mut self, job: JobId) {
        if let Some(entry) = self.jobs.get_mut(&job).filter(|entry| entry.stage == Stage::Auditing) {
            entry.short = true;
            self.short.insert(job);
            self.queue(job);
        }
    }

    /// Goes on with the jobs whose missing audits were given up: who committed may reveal once nobody else is
    /// running, and the search ends when nobody is left.
    pub(super) fn close_short(&mut self, out: &mut Output) {
        for job in self.short.clone() {
            self.reveal(job, out);
            if let Some(entry) = self.jobs.get(&job).filter(|entry| entry.leases.is_empty()) {
                let record = entry.give_up();
                self.give_up(record, out);
            }
        }
    }
}

/// How long all audits of a job may take together.
fn audit_ms(spec: &JobSpec) -> u64 {
    let run = run_ms(spec.work_bound(), DEFAULT_MACS_PER_MS).saturating_add(tokens_ms(spec));
    AUDIT_PATIENCE_MS.saturating_add(run).min(LEASE_MAX_MS)
}
