//! Whether anybody is there for a job: clients that wait for one that nobody can run are told soon, and a job that all who
//! could have it refuse ends at once.

use super::{Action, Machine, Output};
use crate::ids::{JobId, Millis, NodeId};
use crate::limits::{MAX_REFUSED_JOBS, TICK_MS};
use crate::machine::entry::Entry;
use crate::machine::schedule::Timer;
use crate::machine::table::Stage;

/// A client waits for a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Awaited {
    /// How long it waits while nobody is there who could run the job.
    patience_ms: u64,
    /// Since when nobody is, as far as it was looked.
    deserted: Option<Millis>,
    /// When it is looked next.
    look: Millis,
}

impl Machine {
    /// A client waits for a job from now on.
    pub(super) fn awaited(&mut self, job: JobId, patience_ms: u64, out: &mut Output) {
        self.stop_looking(job);
        let look = self.now;
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.awaited = Some(Awaited { patience_ms, deserted: None, look });
            self.look_for_workers(job, out);
        }
    }

    /// Looks whether anybody is there for a job that is waited for. Where nobody was for too long, that is told once, to
    /// all who wait now.
    pub(super) fn look_for_workers(&mut self, job: JobId, out: &mut Output) {
        let now = self.now;
        let Some((entry, awaited)) = self.jobs.get(&job).and_then(|entry| Some((entry, entry.awaited?))) else {
            return;
        };
        // A job that is to be run in lockstep may have no run in any of these stages.
        let is_waiting = matches!(entry.stage, Stage::Open | Stage::Auditing) && entry.standing().next().is_none();
        let is_deserted = is_waiting && entry.leases.is_empty() && !self.is_attended(entry);
        let deserted = is_deserted.then(|| awaited.deserted.unwrap_or(now));
        let is_over = deserted.is_some_and(|since| now.since(since) >= awaited.patience_ms);
        let look = now.plus(TICK_MS);
        let entry = self.jobs.get_mut(&job).expect("it was there");
        entry.awaited = (!is_over).then_some(Awaited { deserted, look, ..awaited });
        if is_over {
            out.actions.push(Action::Deserted { job });
        } else {
            self.timers.insert((look, Timer::Awaited(job)));
        }
    }

    /// Looks no more.
    pub(super) fn stop_looking(&mut self, job: JobId) {
        if let Some(awaited) = self.jobs.get_mut(&job).and_then(|entry| entry.awaited.take()) {
            self.timers.remove(&(awaited.look, Timer::Awaited(job)));
        }
    }

    /// Whether a worker is connected, free or busy, that may run the job, or several that may share it, and no pause
    /// keeps them from it.
    pub(super) fn is_attended(&self, entry: &Entry) -> bool {
        let is_awake = |node: &NodeId| self.workers.get(node).is_some_and(|worker| !worker.resting);
        self.candidates(entry).any(is_awake) || self.has_crew(entry, &is_awake)
    }

    /// Remembers that a worker refused a job that it would have to run alone: it does not get it again in this session.
    pub(super) fn note_refusal(&mut self, node: &NodeId, job: JobId, reason: String) {
        self.workers.update(node, |worker| {
            if worker.refused.len() >= MAX_REFUSED_JOBS {
                worker.refused.pop_first();
            }
            worker.refused.insert(job);
        });
        self.note_refused(job, reason);
    }

    /// Remembers why a job was refused.
    pub(super) fn note_refused(&mut self, job: JobId, reason: String) {
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.refusal = Some(reason);
        }
    }

    /// Whether a job was refused, and nobody is connected, paused or not, who could still have it.
    pub(super) fn is_refused(&self, job: JobId) -> bool {
        let of = |entry: &Entry| {
            let is_open = entry.stage == Stage::Open && entry.leases.is_empty();
            let is_asked = is_open && entry.refusal.is_some();
            is_asked && self.candidates(entry).next().is_none() && !self.has_crew(entry, &|_| true)
        };
        self.jobs.get(&job).is_some_and(of)
    }
}
