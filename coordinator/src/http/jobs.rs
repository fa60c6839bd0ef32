//! Jobs of a request: submitted, waited for, and given up where the client goes away.

use std::sync::Arc;

use lockstep_protocol::ids::{JobId, ModelId, Nonce};
use lockstep_protocol::machine::{AuditPolicy, JobSpec};
use lockstep_protocol::receipt::Receipt;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::App;
use super::access::{self, Presented};
use super::error::{ApiError, KeptJobs};
use super::request::{AuditWish, Nonces};
use crate::engine::{JobEnd, Submission};
use crate::store::{Access, AccessDigest, Stored};

/// What a request comes to.
#[derive(Debug)]
pub struct Order {
    /// Its jobs, with their ids.
    pub jobs: Vec<(JobId, JobSpec)>,
    /// Whether the client waits for the answer.
    pub wait: bool,
    /// Whether the client chose the nonces, so that it may have submitted the same jobs before.
    pub chosen_nonces: bool,
    /// How many audits the client asks for in any case; 0 where it leaves that to the coordinator.
    pub audits_asked: usize,
}

impl Order {
    /// Tokens of all its jobs: those that are there, and those that may come.
    pub fn tokens(&self) -> u64 {
        let of = |spec: &JobSpec| {
            let asked = spec.job.kind.generation().map_or(0, |asked| u64::from(asked.max_tokens));
            asked.saturating_add(spec.job.tokens.len() as u64)
        };
        self.jobs.iter().fold(0, |sum, (_, spec)| sum.saturating_add(of(spec)))
    }

    /// What a client needs to come back for its jobs.
    pub fn kept(&self, access: String) -> KeptJobs {
        KeptJobs {
            jobs: self.jobs.iter().map(|(id, _)| *id).collect(),
            request_nonces: self.jobs.iter().map(|(_, spec)| spec.job.nonce).collect(),
            access,
        }
    }
}

/// Our object beside an answer.
#[derive(Serialize)]
pub struct Extra<'a> {
    /// The model, exactly.
    pub model_id: ModelId,
    /// What opens the jobs later.
    #[serde(flatten)]
    pub kept: &'a KeptJobs,
    /// The text that a conversation became.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<&'a str>,
    /// Of all jobs, in their order; missing where they have not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipts: Option<Vec<&'a Receipt>>,
}

/// What a client gets that does not wait.
#[derive(Serialize)]
pub struct Accepted {
    object: &'static str,
    lockstep: AcceptedJobs,
}

#[derive(Serialize)]
struct AcceptedJobs {
    model_id: ModelId,
    #[serde(flatten)]
    kept: KeptJobs,
}

impl Accepted {
    /// These jobs are kept, and will be run.
    pub fn new(model_id: ModelId, kept: KeptJobs) -> Self {
        Self { object: "lockstep.jobs", lockstep: AcceptedJobs { model_id, kept } }
    }
}

/// The nonces of so many jobs.
///
/// # Errors
/// Another number of them, or no random numbers.
pub fn nonces(asked: Option<&Nonces>, count: usize) -> Result<Vec<Nonce>, ApiError> {
    match asked {
        None => (0..count).map(|_| random().map(Nonce::from_bytes)).collect(),
        Some(Nonces::One(nonce)) if count == 1 => Ok(vec![*nonce]),
        Some(Nonces::Each(nonces)) if nonces.len() == count => Ok(nonces.clone()),
        Some(_) => {
            let message = format!("The request makes {count} jobs: give one nonce, as a list, for each.");
            Err(ApiError::parameter("lockstep.nonce", message))
        }
    }
}

/// Bytes that nobody can guess.
///
/// # Errors
/// The system has none.
pub fn random() -> Result<[u8; 32], ApiError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| ApiError::internal(format!("no random numbers: {error}")))?;
    Ok(bytes)
}

/// The policy for a client with this wish, and how many audits it asks for in any case.
pub fn wished(policy: AuditPolicy, wish: Option<AuditWish>) -> (AuditPolicy, usize) {
    let asked = usize::from(policy.auditors);
    match wish {
        None | Some(AuditWish::Default) => (policy, 0),
        Some(AuditWish::Always) => (AuditPolicy { per_mille: 1_000, ..policy }, asked),
        Some(AuditWish::Hold) => (AuditPolicy { per_mille: 1_000, hold: true, ..policy }, asked),
    }
}

/// An answer that is there, or comes.
#[derive(Debug)]
pub enum Pending {
    /// It is there.
    Ready(JobEnd),
    /// It comes. `is_new` where this request made the job.
    Coming {
        /// The end.
        end: oneshot::Receiver<JobEnd>,
        /// Whether nobody submitted the job before.
        is_new: bool,
    },
}

/// Submits all jobs of a request, then waits until all are kept. Jobs that the store has already are not run again.
///
/// # Errors
/// What to tell the client.
pub async fn submit(
    app: &Arc<App>,
    order: &Order,
    token: AccessDigest,
    presented: Presented,
) -> Result<Vec<Pending>, ApiError> {
    let mut sent = Vec::with_capacity(order.jobs.len());
    for (id, spec) in &order.jobs {
        let known = if order.chosen_nonces { stored(app, *id).await? } else { None };
        sent.push(match known {
            Some(end) => {
                check_audits(*id, &end, order)?;
                access::grant(app, *id, token).await?;
                Err(end)
            }
            None => {
                let owner = presented.to(app, *id).await? == Some(Access::Owner);
                let sent = app.engine.submit_with(spec.clone(), order.wait, Some(token), owner).await;
                Ok(sent.map_err(|_| ApiError::stopping())?)
            }
        });
    }
    let mut pending = Vec::with_capacity(sent.len());
    for (sent, (id, _)) in sent.into_iter().zip(&order.jobs) {
        pending.push(match sent {
            Err(end) => Pending::Ready(end),
            Ok(sent) => match sent.outcome().await.map_err(|_| ApiError::stopping())? {
                (Submission::Kept, end) => Pending::Coming { end, is_new: true },
                (Submission::Known, end) => Pending::Coming { end, is_new: false },
                (Submission::Ended, _) => {
                    let end = stored(app, *id).await?;
                    let end = end.ok_or_else(|| ApiError::internal("An ended job is not in the store."))?;
                    check_audits(*id, &end, order)?;
                    Pending::Ready(end)
                }
                (Submission::Busy, _) => return Err(busy()),
                (Submission::Refused(reason), _) => return Err(ApiError::invalid(reason)),
            },
        });
    }
    Ok(pending)
}

/// A job that has ended gets no more audits: whoever asks for more than it had must not take its answer for one that
/// was audited so.
fn check_audits(job: JobId, end: &JobEnd, order: &Order) -> Result<(), ApiError> {
    let (asked, found) = match end {
        JobEnd::Answer(receipt) => (order.audits_asked, receipt.audits.len()),
        JobEnd::Failed(_) | JobEnd::Deserted => return Ok(()),
    };
    if found >= asked {
        return Ok(());
    }
    let message = format!(
        "Job {job} has ended with {found} audits, and no more can follow; this request asks for {asked}. Ask with \
         another nonce to have it run and audited again, or without lockstep.audit for the answer as it is."
    );
    let status = axum::http::StatusCode::CONFLICT;
    Err(ApiError::new(status, "invalid_request_error", Some("ended_without_audit"), message))
}

fn busy() -> ApiError {
    ApiError::unavailable("overloaded", "Too many jobs are waiting: try again later.")
}

/// The end of a job as the store has it; `None` while it has not ended.
async fn stored(app: &Arc<App>, job: JobId) -> Result<Option<JobEnd>, ApiError> {
    let reader = Arc::clone(app);
    let broken = |error: String| ApiError::internal(format!("The store: {error}"));
    app.blocking(move || match reader.store.job(&job) {
        Ok(Some(Stored::Done(json))) => {
            let receipt = Receipt::from_json(&json).map_err(|error| broken(error.to_string()))?;
            Ok(Some(JobEnd::Answer(Arc::new(receipt))))
        }
        Ok(Some(Stored::Failed(reason))) => Ok(Some(JobEnd::Failed(reason))),
        Ok(None) => Ok(None),
        Err(error) => Err(broken(error.to_string())),
    })
    .await?
}

/// Waits for the answer.
///
/// # Errors
/// The job failed, or nothing came in time.
pub async fn wait(job: JobId, pending: Pending, deadline: Instant) -> Result<Arc<Receipt>, ApiError> {
    let end = match pending {
        Pending::Ready(end) => end,
        Pending::Coming { end, .. } => match tokio::time::timeout_at(deadline, end).await {
            Ok(Ok(end)) => end,
            Ok(Err(_)) => return Err(ApiError::stopping()),
            Err(_) => return Err(no_answer_yet(job)),
        },
    };
    answered(job, end)
}

/// The receipt of a job that has ended well.
///
/// # Errors
/// It has not.
pub fn answered(job: JobId, end: JobEnd) -> Result<Arc<Receipt>, ApiError> {
    match end {
        JobEnd::Answer(receipt) => Ok(receipt),
        JobEnd::Failed(reason) => Err(ApiError::internal(format!("Job {job} failed: {reason}."))),
        JobEnd::Deserted => Err(ApiError::no_worker()),
    }
}

/// Nothing came in time.
pub fn no_answer_yet(job: JobId) -> ApiError {
    let message = format!(
        "No worker has answered in time. The job is kept and will be run: see GET /v1/jobs/{job}, and \
         GET /v1/jobs/{job}/receipt once it is answered, with lockstep.access as Lockstep-Access."
    );
    ApiError::unavailable("no_answer_yet", message)
}
