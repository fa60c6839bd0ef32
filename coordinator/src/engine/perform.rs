//! Carrying out effects whose writes are durable.

use std::sync::Arc;

use lockstep_protocol::ids::{JobId, LeaseEpoch, NodeId, Root};
use lockstep_protocol::machine::{CommittedRoot, JobSpec};
use lockstep_protocol::receipt::Receipt;

use super::effects::Effect;
use super::planted::planted;
use super::{Due, Engine, JobEnd, Submission, SubmitRequest};
use crate::events::Event;

impl Engine {
    /// The oldest commit is durable.
    pub(super) fn perform_next(&mut self) {
        for effect in self.pending.pop_front().unwrap_or_default() {
            self.perform(effect);
        }
        self.books.publish(|job| self.jobs.contains_key(job));
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Send(peer, message) => peer.send(message),
            Effect::Ask(peer, message) => peer.offer(message),
            Effect::Close(peer) => peer.kill(),
            Effect::Replace(peer) => peer.replace(),
            Effect::Reply(job, outcome, request) => self.reply(job, outcome, *request),
            Effect::Done(job, receipt, roots) => self.done(job, &receipt, &roots),
            Effect::Word(job, index, word) => self.word(job, index, word),
            Effect::Failed(job, reason) => {
                if let Some(live) = self.jobs.remove(&job) {
                    live.end(&JobEnd::Failed(reason.clone()));
                }
                self.emit(Event::Failed { job, reason });
            }
            Effect::Deserted(job) => {
                if let Some(live) = self.jobs.get_mut(&job) {
                    live.desert();
                    tracing::warn!(%job, "nobody is connected who could run a job; those who wait for it are told");
                }
            }
            Effect::Draw(job, subject, nonce) => self.due.push_back(Due::Draw(job, subject, nonce)),
            Effect::MoveMade(reply, outcome) => {
                // Whoever brought it may be gone.
                let _ = reply.send(outcome);
            }
            Effect::Challenged(reply, outcome) => {
                // As above.
                let _ = reply.send(outcome);
            }
            Effect::Opened(dispute) => self.disputes.is_kept(&dispute),
            Effect::Amended(job) => self.amended_is_kept(job),
            Effect::Posted(postings) => postings.into_iter().for_each(|posting| self.books.take(posting)),
            Effect::Committed(assignment, roots) => self.show_roots(assignment, &roots),
            Effect::Emit(event) => self.emit(event),
        }
    }

    fn reply(&mut self, job: JobId, outcome: Submission, request: SubmitRequest) {
        let outcome = match (outcome, self.jobs.get_mut(&job)) {
            (outcome @ (Submission::Busy | Submission::Refused(_)), _) => outcome,
            (_, None) => Submission::Ended,
            (outcome, Some(live)) => {
                // Clients that gave up waiting leave their places.
                live.waiters.retain(|waiter| !waiter.is_closed());
                live.waiters.extend(request.answer);
                outcome
            }
        };
        // A client that went away does not need the reply; its job is kept all the same.
        let _ = request.reply.send(outcome);
    }

    fn done(&mut self, job: JobId, receipt: &Arc<Receipt>, roots: &[Root]) {
        if let Some(live) = self.jobs.remove(&job) {
            self.plant(&live.spec, receipt, roots);
            live.end(&JobEnd::Answer(Arc::clone(receipt)));
        }
        match receipt.check() {
            Ok(standing) => self.emit(Event::Done {
                job,
                worker: receipt.worker.receipt.worker,
                matched: standing.matched,
                mismatched: standing.mismatched,
            }),
            Err(error) => tracing::error!(%job, %error, "the coordinator wrote a receipt that does not check"),
        }
    }

    fn plant(&mut self, spec: &JobSpec, receipt: &Receipt, roots: &[Root]) {
        let mut random = [0; 40];
        if self.planted_per_mille == 0 || self.models.of_job(&spec.job.model).is_none() {
            return;
        }
        match getrandom::fill(&mut random) {
            Ok(()) => {
                let planted = planted(spec, (receipt, roots), self.planted_per_mille, &random);
                self.due.extend(planted.map(|spec| Due::Plant(Box::new(spec))));
            }
            Err(error) => tracing::error!(%error, "no job is planted: the system gives no random numbers"),
        }
    }

    /// Shows roots one by one. There are far too many of them to do that for nobody.
    fn show_roots(&self, (node, job, epoch): (NodeId, JobId, LeaseEpoch), roots: &[CommittedRoot]) {
        if self.events.receiver_count() == 0 && !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        for CommittedRoot { place, root, differs } in roots.iter().copied() {
            self.emit(Event::Committed { job, epoch, node, place, root, differs });
        }
    }

    fn emit(&self, event: Event) {
        match &event {
            Event::Mismatch { job, place, first, auditor, .. } => {
                tracing::warn!(%job, %place, %first, %auditor, "two runs differ");
            }
            Event::Quarantined { node, job, place, .. } => {
                tracing::warn!(%node, %job, %place, "the worker was wrong and gets nothing any more");
            }
            Event::Retracted { node, job } => tracing::warn!(%node, %job, "a worker took its run back"),
            Event::Diverged { job, place, nodes: [a, b] } => {
                tracing::warn!(%job, %place, %a, %b, "two runs side by side differ; the job has stopped");
            }
            Event::DisputeJudged { dispute, job, kind, losers, .. } => {
                tracing::warn!(%dispute, %job, ?kind, ?losers, "a dispute has a verdict");
            }
            Event::Rejected { node, job, reason, .. } => tracing::warn!(%node, %job, reason, "a result was refused"),
            Event::Failed { job, reason } => tracing::warn!(%job, reason, "the job failed"),
            other => tracing::debug!(?other),
        }
        // Nobody has to watch.
        let _ = self.events.send(event);
    }
}
