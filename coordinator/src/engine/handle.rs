//! The way to the engine, from any task.

use std::sync::Arc;

use lockstep_protocol::dispute::SignedMove;
use lockstep_protocol::ids::{DisputeId, JobId, ModelId};
use lockstep_protocol::machine::table::Stage;
use lockstep_protocol::machine::{Challenge, JobSpec, WorkerView};
use thiserror::Error;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{
    ChallengeOutcome, DisputeStatus, JobEnd, Message, MoveOutcome, Peer, Submission, SubmitRequest, View, Watch,
};
use crate::events::Event;
use crate::store::AccessDigest;

/// The engine has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the coordinator is shutting down")]
pub struct Stopped;

/// A connected worker, to show.
#[derive(Clone, Debug)]
pub struct WorkerStatus {
    /// As the machine sees it; of its models only those that are served.
    pub view: WorkerView,
    /// Its session: what it said about itself, and where it connects from.
    pub peer: Arc<Peer>,
}

/// An unfinished job, to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStatus {
    /// Where it stands; `None` where it has ended and its end is being written.
    pub stage: Option<Stage>,
    /// On which model.
    pub model: ModelId,
    /// Whether a worker has it.
    pub leased: bool,
}

/// A job on its way into the store.
#[derive(Debug)]
pub struct Submitted {
    outcome: oneshot::Receiver<Submission>,
    end: oneshot::Receiver<JobEnd>,
}

impl Submitted {
    /// Waits until it is known how the submission went. The receiver gets the end of a job that is kept.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn outcome(self) -> Result<(Submission, oneshot::Receiver<JobEnd>), Stopped> {
        let outcome = self.outcome.await.map_err(|_| Stopped)?;
        Ok((outcome, self.end))
    }
}

/// The way to the engine. Clones share it.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    inputs: mpsc::Sender<Message>,
    events: broadcast::Sender<Event>,
}

impl EngineHandle {
    pub(super) fn new(inputs: mpsc::Sender<Message>, events: broadcast::Sender<Event>) -> Self {
        Self { inputs, events }
    }

    /// Waits until the engine has ended: after an order to stop, or because the store has.
    pub async fn ended(&self) {
        self.inputs.closed().await;
    }

    /// Watches from now on. A watcher that lags far behind loses the oldest events, and is told so.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Sends a message, waiting while the queue is full.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn send(&self, message: Message) -> Result<(), Stopped> {
        self.inputs.send(message).await.map_err(|_| Stopped)
    }

    /// Submits a job. Its outcome comes once it is durable, so that many can be submitted before the first is waited
    /// for. With `wait`, the end of the job can be waited for too.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn submit(&self, spec: JobSpec, wait: bool) -> Result<Submitted, Stopped> {
        self.submit_with(spec, wait, None, true).await
    }

    /// Submits a job as a client of the network does: `token` opens it from then on; before its end only where the job
    /// was not submitted before, or the client is its `owner`.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn submit_with(
        &self,
        spec: JobSpec,
        wait: bool,
        token: Option<AccessDigest>,
        owner: bool,
    ) -> Result<Submitted, Stopped> {
        let (reply, outcome) = oneshot::channel();
        let (answer, end) = oneshot::channel();
        let request = SubmitRequest { reply, answer: wait.then_some(answer), token, owner };
        self.send(Message::Submit(spec, Box::new(request))).await?;
        Ok(Submitted { outcome, end })
    }

    /// Brings a signed move of a dispute, whoever has it. Its outcome comes once it is durable.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn make_move(&self, signed: SignedMove) -> Result<MoveOutcome, Stopped> {
        let (reply, outcome) = oneshot::channel();
        self.send(Message::Move(Box::new(signed), Some(reply))).await?;
        outcome.await.map_err(|_| Stopped)
    }

    /// Disputes a run of a job that has ended. Its outcome comes once it is durable.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn challenge(&self, challenge: Challenge) -> Result<ChallengeOutcome, Stopped> {
        let (reply, outcome) = oneshot::channel();
        self.send(Message::Challenge(Box::new(challenge), reply)).await?;
        outcome.await.map_err(|_| Stopped)
    }

    /// Hears what comes of a job from now on; first all its words so far. `None` where no job of this id is unfinished: one
    /// that has ended is in the store.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn watch(&self, job: JobId) -> Result<Option<Watch>, Stopped> {
        let (reply, watch) = oneshot::channel();
        self.send(Message::Watch(job, reply)).await?;
        watch.await.map_err(|_| Stopped)
    }

    /// Says that a client wants a job no more: it ends as failed, unless somebody else waits for it or watches it, or runs
    /// of it differ already. The caller's own watch and wait have to be dropped before.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn cancel(&self, job: JobId) -> Result<(), Stopped> {
        self.send(Message::Cancel(job)).await
    }

    /// Where a dispute stands; `None` where none of this id is being played.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn dispute(&self, dispute: DisputeId) -> Result<Option<DisputeStatus>, Stopped> {
        self.ask(move |view| view.disputes.status(&dispute)).await
    }

    /// Looks at the state.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&View<'_>) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (reply, replied) = oneshot::channel();
        let ask = move |view: &View<'_>| drop(reply.send(question(view)));
        self.send(Message::Ask(Box::new(ask))).await?;
        replied.await.map_err(|_| Stopped)
    }

    /// The connected workers, in order of their keys.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn workers(&self) -> Result<Vec<WorkerStatus>, Stopped> {
        self.ask(|view| {
            let status = |mut worker: WorkerView| {
                worker.models.retain(|model| view.models.of_job(model).is_some());
                worker.models.shrink_to_fit();
                Some(WorkerStatus { peer: Arc::clone(view.peers.get(&worker.node)?), view: worker })
            };
            view.machine.workers().filter_map(status).collect()
        })
        .await
    }

    /// An unfinished job; `None` where there is none of this id.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn job(&self, job: JobId) -> Result<Option<JobStatus>, Stopped> {
        self.ask(move |view| {
            let live = view.jobs.get(&job)?;
            let seen = view.machine.job(&job);
            Some(JobStatus {
                stage: seen.as_ref().map(|seen| seen.stage),
                model: live.spec.job.model,
                leased: seen.is_some_and(|seen| !seen.leases.is_empty()),
            })
        })
        .await
    }
}
