//! `POST /v1/embeddings`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lockstep_protocol::limits::{HTTP_BODY_MS, MAX_HTTP_BODY_BYTES};
use lockstep_protocol::receipt::Receipt;
use serde::Serialize;
use tokio::time::Instant;

use super::abandon::Abandon;
use super::access::{self, Presented};
use super::error::{ApiError, KeptJobs};
use super::jobs::{self, Accepted, Extra, Pending};
use super::prepare::{Prepared, prepare};
use super::request::Encoding;
use super::{App, Place};
use crate::models::Model;

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

/// Answers a request: reads it, keeps its jobs, waits for their results.
///
/// # Errors
/// What to tell the client.
pub async fn embeddings(
    State(app): State<Arc<App>>,
    Extension(place): Extension<Place>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let deadline = Instant::now() + app.http_wait;
    let body = read_body(body, MAX_HTTP_BODY_BYTES).await?;
    let reader = Arc::clone(&app);
    let prepared = app.blocking(move || prepare(&reader.models, reader.audit, &body)).await??;
    app.charge(&place, prepared.order.tokens(), std::time::Instant::now())?;
    let (access, token) = access::draw()?;
    let kept = prepared.order.kept(access);
    let pending = jobs::submit(&app, &prepared.order, token, Presented::in_headers(&headers)).await?;
    if !prepared.order.wait {
        return Ok((StatusCode::ACCEPTED, axum::Json(Accepted::new(prepared.model.id(), kept))).into_response());
    }
    let receipts = match wait_for_all(&kept, pending, deadline).await {
        Ok(receipts) => receipts,
        Err(error) if error.is_no_worker() && !prepared.order.chosen_nonces => {
            // They can't be asked for again.
            app.refund(&place, prepared.order.tokens());
            drop(Abandon::new(&app, kept.jobs));
            return Err(error);
        }
        Err(error) => return Err(error.with_jobs(kept)),
    };
    let json = app.blocking(move || answer(&prepared, &receipts, &kept)).await??;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

async fn wait_for_all(
    kept: &KeptJobs,
    pending: Vec<Pending>,
    deadline: Instant,
) -> Result<Vec<Arc<Receipt>>, ApiError> {
    let mut receipts = Vec::with_capacity(pending.len());
    for (job, pending) in kept.jobs.iter().zip(pending) {
        receipts.push(jobs::wait(*job, pending, deadline).await?);
    }
    Ok(receipts)
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

fn answer(prepared: &Prepared, receipts: &[Arc<Receipt>], kept: &KeptJobs) -> Result<Vec<u8>, ApiError> {
    let model = &prepared.model;
    let item = |(index, receipt): (usize, &Arc<Receipt>)| Item {
        object: "embedding",
        index,
        embedding: numbers(model, &receipt.output, prepared.encoding),
    };
    let tokens = prepared.order.jobs.iter().map(|(_, spec)| spec.job.tokens.len()).sum();
    let answer = Answer {
        object: "list",
        data: receipts.iter().enumerate().map(item).collect(),
        model: model.name(),
        usage: Usage { prompt_tokens: tokens, total_tokens: tokens },
        lockstep: Extra {
            model_id: model.id(),
            kept,
            prompt: None,
            receipts: Some(receipts.iter().map(|receipt| &**receipt).collect()),
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
