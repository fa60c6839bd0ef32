//! Carrying out effects whose writes are durable.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lockstep_model::rerun::rerun;
use lockstep_protocol::ids::JobId;
use lockstep_protocol::job::Job;
use lockstep_protocol::machine::{Input, audit_draw};
use lockstep_protocol::receipt::Receipt;
use tokio::sync::oneshot;

use super::effects::Effect;
use super::{Engine, JobEnd, Live, Message, Submission, SubmitRequest};
use crate::events::Event;

impl Engine {
    /// The oldest commit is durable.
    pub(super) fn perform_next(&mut self) {
        for effect in self.pending.pop_front().unwrap_or_default() {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Send(peer, message) => peer.send(message),
            Effect::Close(peer) => peer.kill(),
            Effect::Replace(peer) => peer.replace(),
            Effect::Reply(job, outcome, request) => self.reply(job, outcome, *request),
            Effect::Answer(job, receipt) => self.answer(job, &receipt),
            Effect::Done(job, receipt) => self.done(job, &receipt),
            Effect::Failed(job, reason) => {
                let waiters = self.jobs.remove(&job).map(Live::into_waiters);
                tell(waiters.into_iter().flatten(), &JobEnd::Failed(reason.clone()));
                self.emit(Event::Failed { job, reason });
            }
            Effect::Draw(job, head, nonce) => {
                let draw = audit_draw(&self.secret, &head, &nonce);
                self.own.push_back(Input::Drawn { job, draw });
            }
            Effect::Settle(job) => self.settle(job),
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
                live.late.retain(|waiter| !waiter.is_closed());
                match (&live.visible, request.answer) {
                    (_, waiter) if !request.owner => live.late.extend(waiter),
                    (Some(receipt), Some(waiter)) => tell([waiter], &JobEnd::Answer(Arc::clone(receipt))),
                    (None, waiter) => live.waiters.extend(waiter),
                    (Some(_), None) => {}
                }
                outcome
            }
        };
        // A client that went away does not need the reply; its job is kept all the same.
        let _ = request.reply.send(outcome);
    }

    fn answer(&mut self, job: JobId, receipt: &Arc<Receipt>) {
        if let Some(live) = self.jobs.get_mut(&job) {
            live.visible = Some(Arc::clone(receipt));
            tell(std::mem::take(&mut live.waiters), &JobEnd::Answer(Arc::clone(receipt)));
        }
    }

    fn done(&mut self, job: JobId, receipt: &Arc<Receipt>) {
        let waiters = self.jobs.remove(&job).map(Live::into_waiters);
        tell(waiters.into_iter().flatten(), &JobEnd::Answer(Arc::clone(receipt)));
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

    /// Recomputes a job beside everything else, and feeds the outcome back.
    fn settle(&self, job: Arc<Job>) {
        let (models, oracle, inputs) = (Arc::clone(&self.models), self.oracle.clone(), self.inputs.clone());
        let turn = Arc::clone(&self.settlements);
        self.runtime.spawn(async move {
            let Ok(_turn) = turn.acquire_owned().await else {
                return;
            };
            let id = job.id();
            let recompute = move || {
                let model = models.of_job(&job.model).ok_or("the model is not served any more".to_owned())?;
                // The file may have been overwritten under its mapping; a verdict must not rest on that.
                let package = model.package();
                package.verify(NonZeroUsize::MIN).map_err(|error| error.to_string())?;
                let right = rerun(package, &*oracle.0, &job.tokens).map_err(|error| error.to_string())?;
                package.verify(NonZeroUsize::MIN).map_err(|error| error.to_string())?;
                Ok::<_, String>(right)
            };
            let truth = match tokio::task::spawn_blocking(recompute).await {
                Ok(Ok(right)) => Some(right.roots),
                Ok(Err(error)) => {
                    tracing::error!(job = %id, error, "the job can't be recomputed");
                    None
                }
                Err(error) => {
                    tracing::error!(job = %id, %error, "recomputing the job failed");
                    None
                }
            };
            // Where the engine has stopped, the next start asks again.
            let _ = inputs.send(Message::Own(Input::Settled { job: id, truth })).await;
        });
    }

    fn emit(&self, event: Event) {
        match &event {
            Event::Mismatch { job, place, first, auditor, .. } => {
                tracing::warn!(%job, %place, %first, %auditor, "two runs differ");
            }
            Event::Quarantined { node, job, place } => {
                tracing::warn!(%node, %job, %place, "the worker was wrong and gets nothing any more");
            }
            Event::Rejected { node, job, reason, .. } => tracing::warn!(%node, %job, reason, "a result was refused"),
            Event::Failed { job, reason } => tracing::warn!(%job, reason, "the job failed"),
            other => tracing::debug!(?other),
        }
        // Nobody has to watch.
        let _ = self.events.send(event);
    }
}

/// Answers all waiters; those that went away are passed over.
fn tell(waiters: impl IntoIterator<Item = oneshot::Sender<JobEnd>>, end: &JobEnd) {
    for waiter in waiters {
        let _ = waiter.send(end.clone());
    }
}
