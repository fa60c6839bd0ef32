//! `POST /v1/chat/completions` and `POST /v1/completions`.
//!
//! - [`request`]: the bodies, and what of them is not done here. [`decimal`]: their decimals as integers.
//! - [`prepare`]: to jobs. [`conversation`]: to text. [`text`]: tokens back to text.
//! - [`answer`], [`logprobs`]: in OpenAI's shapes. [`stream`]: as server-sent events while the words come.

mod answer;
mod conversation;
mod decimal;
mod logprobs;
mod prepare;
mod request;
mod stream;
mod text;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lockstep_protocol::limits::{HTTP_WAIT_PER_TOKEN_MS, MAX_HTTP_BODY_BYTES};
use tokio::time::Instant;

use self::answer::Answering;
pub use self::conversation::conversation_text;
use self::prepare::{Prepared, Shape, Terms};
use super::abandon::Abandon;
use super::access::{self, Presented};
use super::embeddings::read_body;
use super::error::ApiError;
use super::jobs::{self, Accepted, Pending};
use super::{App, Place};

/// `POST /v1/chat/completions`.
///
/// # Errors
/// What to tell the client.
pub async fn chat(
    State(app): State<Arc<App>>,
    Extension(place): Extension<Place>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    handle(app, place, headers, body, Shape::Chat).await
}

/// `POST /v1/completions`.
///
/// # Errors
/// What to tell the client.
pub async fn completions(
    State(app): State<Arc<App>>,
    Extension(place): Extension<Place>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    handle(app, place, headers, body, Shape::Completion).await
}

async fn handle(
    app: Arc<App>,
    place: Place,
    headers: HeaderMap,
    body: Body,
    shape: Shape,
) -> Result<Response, ApiError> {
    let body = read_body(body, MAX_HTTP_BODY_BYTES).await?;
    let reader = Arc::clone(&app);
    let prepare = move || {
        let terms = Terms { models: &reader.models, audit: reader.audit, caps: reader.caps };
        match shape {
            Shape::Chat => terms.chat(&body),
            Shape::Completion => terms.completion(&body),
        }
    };
    let prepared = app.blocking(prepare).await??;
    app.charge(&place, prepared.order.tokens(), std::time::Instant::now())?;
    let (access, token) = access::draw()?;
    let kept = prepared.order.kept(access);
    let pending = jobs::submit(&app, &prepared.order, token, Presented::in_headers(&headers)).await?;
    if !prepared.order.wait {
        return Ok((StatusCode::ACCEPTED, axum::Json(Accepted::new(prepared.model.id(), kept))).into_response());
    }
    let is_new = |pending: &Pending| matches!(pending, Pending::Coming { is_new: true, .. });
    let new = kept.jobs.iter().zip(&pending).filter(|(_, pending)| is_new(pending)).map(|(job, _)| *job);
    let abandon = Abandon::new(&app, new.collect());
    let deadline = Instant::now() + patience(&app, &prepared);
    let stream = prepared.stream;
    let answering = Answering::new(prepared, kept);
    if stream {
        return Ok(stream::respond(app, answering, pending, abandon, place));
    }
    whole(&app, answering, pending, (abandon, place), deadline).await
}

/// How long a client waits for a whole answer before it is told to come back.
fn patience(app: &App, prepared: &Prepared) -> Duration {
    let tokens = |spec: &lockstep_protocol::machine::JobSpec| spec.job.kind.max_points();
    let longest = prepared.order.jobs.iter().map(|(_, spec)| tokens(spec)).max().unwrap_or(0);
    app.http_wait + Duration::from_millis(HTTP_WAIT_PER_TOKEN_MS * u64::from(longest))
}

/// Whether jobs are cancelled and not counted, because nobody was there to run them. Those whose nonces the client chose are
/// kept: a cancelled job can't be asked for again, and it would be the same one.
fn is_for_nothing(answering: &Answering, error: &ApiError) -> bool {
    error.is_no_worker() && !answering.prepared.order.chosen_nonces
}

/// Answers when all jobs have ended.
async fn whole(
    app: &Arc<App>,
    answering: Answering,
    pending: Vec<Pending>,
    (mut abandon, place): (Abandon, Place),
    deadline: Instant,
) -> Result<Response, ApiError> {
    let mut receipts = Vec::with_capacity(pending.len());
    for (job, pending) in answering.kept.jobs.iter().zip(pending) {
        match jobs::wait(*job, pending, deadline).await {
            Ok(receipt) => receipts.push(receipt),
            Err(error) if is_for_nothing(&answering, &error) => {
                app.refund(&place, answering.prepared.order.tokens());
                return Err(error);
            }
            Err(error) => {
                // The client is told how to come back for them.
                abandon.keep_all();
                return Err(error.with_jobs(answering.kept.clone()));
            }
        }
        abandon.ended(job);
    }
    let json = app.blocking(move || answering.whole(&receipts)).await??;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}
