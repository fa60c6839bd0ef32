//! The transparency log: heads, proofs of a job's entries, and that later heads continue earlier ones.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use lockstep_protocol::ids::JobId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::access::Presented;
use super::error::ApiError;
use super::info::{no_job, not_yet, parse, stored};
use crate::store::{ProofRequest, Store, StoreError};

/// `GET /v1/log/head`: a signed head over all that was in the log when it was asked for, and nothing else, as
/// `lockstep log verify` takes it. Askers wait for their turn, so that they don't make the coordinator sign all the time.
pub async fn head(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let (mut head, due) = read(&app, Store::log_head).await?;
    if let Some(due) = due {
        tokio::time::sleep(due).await;
        head = read(&app, Store::sign_head).await?;
    }
    Ok(([(header::CONTENT_TYPE, "application/json")], head.to_json()).into_response())
}

/// What is asked of [`proof`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofQuery {
    job: String,
    /// Size of the head; without it, the newest one.
    size: Option<u64>,
    /// Size of an earlier log that must be shown to be continued.
    from: Option<u64>,
    /// The access token, which [`Presented`] reads; named here so that it is not unknown.
    #[serde(rename = "access")]
    _access: Option<serde::de::IgnoredAny>,
}

/// `GET /v1/log/proof?job=ID[&size=N][&from=N]`: the entries of a job with their paths, for whoever may see its receipt.
pub async fn proof(
    State(app): State<Arc<App>>,
    presented: Presented,
    query: Result<Query<ProofQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    let job = parse(&query.job)?;
    presented.to(&app, job).await?.ok_or_else(|| no_job(job))?;
    check_ended(&app, job).await?;
    let request = ProofRequest { job, size: query.size, from: query.from };
    let proof = read(&app, move |store| store.log_proof(&request)).await?;
    let proof = proof.ok_or_else(|| ApiError::not_found("There is no such head of the log."))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], proof.to_json()).into_response())
}

/// Of a job that has not ended nothing is told, to nobody: its entries would tell its workers whether others run it.
async fn check_ended(app: &Arc<App>, job: JobId) -> Result<(), ApiError> {
    let live = app.engine.job(job).await.map_err(|_| ApiError::stopping())?;
    match (live, stored(app, job).await) {
        (_, Ok(_)) => Ok(()),
        (Some(_), Err(_)) => Err(not_yet(job)),
        (None, Err(error)) => Err(error),
    }
}

/// What is asked of [`consistency`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsistencyQuery {
    from: u64,
    to: u64,
}

/// `GET /v1/log/consistency?from=SIZE&to=SIZE`: that the later log continues the earlier one.
pub async fn consistency(
    State(app): State<Arc<App>>,
    query: Result<Query<ConsistencyQuery>, QueryRejection>,
) -> Result<axum::Json<Value>, ApiError> {
    let Query(ConsistencyQuery { from, to }) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    let path = read(&app, move |store| store.log_consistency(from, to)).await?;
    let path = path.ok_or_else(|| ApiError::not_found(format!("The log has no sizes from {from} to {to}.")))?;
    Ok(axum::Json(json!({"object": "lockstep.log_consistency", "from": from, "to": to, "path": path})))
}

async fn read<T: Send + 'static>(
    app: &Arc<App>,
    question: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let reader = Arc::clone(app);
    app.blocking(move || question(&reader.store)).await?.map_err(|error| match error {
        StoreError::Busy => ApiError::unavailable("store_busy", "The store can't be written at the moment."),
        error => ApiError::internal(format!("The store: {error}")),
    })
}
