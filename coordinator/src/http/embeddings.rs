//! `POST /v1/embeddings`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lockstep_protocol::ids::{JobId, ModelId, Nonce};
use lockstep_protocol::limits::{HTTP_BODY_MS, MAX_HTTP_BODY_BYTES};
use lockstep_protocol::receipt::Receipt;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::App;
use super::access::{self, Presented};
use super::error::{ApiError, KeptJobs};
use super::prepare::{Prepared, prepare};
use super::request::Encoding;
use crate::engine::{JobEnd, Submission};
use crate::models::Model;
use crate::store::{Access, AccessDigest, Stored};

/// An answered request, in OpenAI's shape and with our object beside it.
#[derive(Serialize)]
struct Answer<'a> {
    object: &'static str,
    data: Vec<Item>,
    model: &'a str,
    usage: Usage,
    lockstep: Extra<'a>,
}

#[derive(Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Numbers,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Numbers {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

#[derive(Serialize)]
struct Extra<'a> {
    model_id: ModelId,
    jobs: Vec<JobId>,
    request_nonces: Vec<Nonce>,
    access: String,
    receipts: Vec<&'a Receipt>,
}

/// What a client gets that does not wait.
#[derive(Serialize)]
struct Accepted {
    object: &'static str,
    lockstep: AcceptedJobs,
}

#[derive(Serialize)]
struct AcceptedJobs {
    model_id: ModelId,
    #[serde(flatten)]
    kept: KeptJobs,
}

/// Answers a request: reads it, keeps its jobs, waits for their results.
///
/// # Errors
/// What to tell the client.
pub async fn embeddings(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let deadline = Instant::now() + app.http_wait;
    let body = read_body(body, MAX_HTTP_BODY_BYTES).await?;
    let reader = Arc::clone(&app);
    let prepared = app.blocking(move || prepare(&reader.models, reader.audit, &body)).await??;
    let (access, token) = access::draw()?;
    let kept = KeptJobs {
        jobs: prepared.jobs.iter().map(|(id, _)| *id).collect(),
        request_nonces: prepared.jobs.iter().map(|(_, spec)| spec.job.nonce).collect(),
        access,
    };
    let pending = submit(&app, &prepared, token, Presented::in_headers(&headers)).await?;
    if !prepared.wait {
        let lockstep = AcceptedJobs { model_id: prepared.model.id(), kept };
        return Ok((StatusCode::ACCEPTED, axum::Json(Accepted { object: "lockstep.jobs", lockstep })).into_response());
    }
    let mut receipts = Vec::with_capacity(pending.len());
    for (job, pending) in kept.jobs.iter().zip(pending) {
        receipts.push(wait(*job, pending, deadline).await.map_err(|error| error.with_jobs(kept.clone()))?);
    }
    let json = app.blocking(move || answer(&prepared, &receipts, kept)).await??;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// Reads a body of at most so many bytes, with patience for slow clients but not for all.
///
/// # Errors
/// It is longer, breaks off, or takes too long.
pub(super) async fn read_body(body: Body, most: usize) -> Result<axum::body::Bytes, ApiError> {
    let too_long = |error: &axum::Error| {
        let mut source: Option<&dyn std::error::Error> = Some(error);
        while let Some(error) = source {
            if error.to_string() == "length limit exceeded" {
                return true;
            }
            source = error.source();
        }
        false
    };
    let kind = "invalid_request_error";
    let bytes = axum::body::to_bytes(body, most);
    match tokio::time::timeout(Duration::from_millis(HTTP_BODY_MS), bytes).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if too_long(&error) => {
            let message = format!("The body is longer than {most} bytes.");
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, kind, None, message))
        }
        Ok(Err(error)) => Err(ApiError::invalid(format!("The body could not be read: {error}"))),
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, kind, None, "The body took too long to come.")),
    }
}

/// An answer that is there, or comes.
enum Pending {
    Ready(JobEnd),
    Coming(oneshot::Receiver<JobEnd>),
}

/// Submits all jobs of a request, then waits until all are kept. Jobs that the store has already are not run again.
async fn submit(
    app: &Arc<App>,
    prepared: &Prepared,
    token: AccessDigest,
    presented: Presented,
) -> Result<Vec<Pending>, ApiError> {
    let mut sent = Vec::with_capacity(prepared.jobs.len());
    for (id, spec) in &prepared.jobs {
        let known = if prepared.chosen_nonces { stored(app, *id).await? } else { None };
        sent.push(match known {
            Some(end) => {
                check_audits(*id, &end, prepared)?;
                access::grant(app, *id, token).await?;
                Err(end)
            }
            None => {
                let owner = presented.to(app, *id).await? == Some(Access::Owner);
                let sent = app.engine.submit_with(spec.clone(), prepared.wait, Some(token), owner).await;
                Ok(sent.map_err(|_| ApiError::stopping())?)
            }
        });
    }
    let mut pending = Vec::with_capacity(sent.len());
    for (sent, (id, _)) in sent.into_iter().zip(&prepared.jobs) {
        pending.push(match sent {
            Err(end) => Pending::Ready(end),
            Ok(sent) => match sent.outcome().await.map_err(|_| ApiError::stopping())? {
                (Submission::Kept | Submission::Known, answer) => Pending::Coming(answer),
                (Submission::Ended, _) => {
                    let end = stored(app, *id).await?;
                    let end = end.ok_or_else(|| ApiError::internal("An ended job is not in the store."))?;
                    check_audits(*id, &end, prepared)?;
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
fn check_audits(job: JobId, end: &JobEnd, prepared: &Prepared) -> Result<(), ApiError> {
    let (asked, found) = match end {
        JobEnd::Answer(receipt) => (prepared.audits_asked, receipt.audits.len()),
        JobEnd::Failed(_) => return Ok(()),
    };
    if found >= asked {
        return Ok(());
    }
    let message = format!(
        "Job {job} has ended with {found} audits, and no more can follow; this request asks for {asked}. Ask with \
         another nonce to have it run and audited again, or without lockstep.audit for the answer as it is."
    );
    Err(ApiError::new(StatusCode::CONFLICT, "invalid_request_error", Some("ended_without_audit"), message))
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

async fn wait(job: JobId, pending: Pending, deadline: Instant) -> Result<Arc<Receipt>, ApiError> {
    let end = match pending {
        Pending::Ready(end) => end,
        Pending::Coming(answer) => match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(end)) => end,
            Ok(Err(_)) => return Err(ApiError::stopping()),
            Err(_) => {
                let message = format!(
                    "No worker has answered in time. The job is kept and will be run: see GET /v1/jobs/{job}, and \
                     GET /v1/jobs/{job}/receipt once it is answered, with lockstep.access as Lockstep-Access."
                );
                return Err(ApiError::unavailable("no_answer_yet", message));
            }
        },
    };
    match end {
        JobEnd::Answer(receipt) => Ok(receipt),
        JobEnd::Failed(reason) => Err(ApiError::internal(format!("Job {job} failed: {reason}."))),
    }
}

fn answer(prepared: &Prepared, receipts: &[Arc<Receipt>], kept: KeptJobs) -> Result<Vec<u8>, ApiError> {
    let model = &prepared.model;
    let item = |(index, receipt): (usize, &Arc<Receipt>)| Item {
        object: "embedding",
        index,
        embedding: numbers(model, &receipt.output, prepared.encoding),
    };
    let tokens = prepared.jobs.iter().map(|(_, spec)| spec.job.tokens.len()).sum();
    let answer = Answer {
        object: "list",
        data: receipts.iter().enumerate().map(item).collect(),
        model: model.name(),
        usage: Usage { prompt_tokens: tokens, total_tokens: tokens },
        lockstep: Extra {
            model_id: model.id(),
            jobs: kept.jobs,
            request_nonces: kept.request_nonces,
            access: kept.access,
            receipts: receipts.iter().map(|receipt| &**receipt).collect(),
        },
    };
    serde_json::to_vec(&answer).map_err(|error| ApiError::internal(error.to_string()))
}

/// The real numbers that an output stands for, each rounded once to 32 bits.
fn numbers(model: &Model, output: &[i32], encoding: Encoding) -> Numbers {
    let reals = lockstep_model::embed::to_real(output, model.package().manifest().output_frac);
    let floats = reals.into_iter().map(|real| real as f32);
    match encoding {
        Encoding::Float => Numbers::Float(floats.collect()),
        Encoding::Base64 => {
            let bytes: Vec<u8> = floats.flat_map(f32::to_le_bytes).collect();
            Numbers::Base64(STANDARD.encode(&bytes))
        }
    }
}
