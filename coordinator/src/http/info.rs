//! What can be looked at: models, jobs, workers, health.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use lockstep_protocol::ids::JobId;
use lockstep_protocol::machine::table::Stage;
use serde_json::{Value, json};

use super::App;
use super::access::Presented;
use super::error::ApiError;
use crate::engine::{JobStatus, WorkerStatus};
use crate::models::Model;
use crate::store::{Access, Stored};

/// `GET /v1/models`.
pub async fn models(State(app): State<Arc<App>>) -> axum::Json<Value> {
    let data: Vec<_> = app.models.served().iter().map(|model| model_json(&app, model)).collect();
    axum::Json(json!({"object": "list", "data": data}))
}

/// `GET /v1/models/{model}`.
pub async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<axum::Json<Value>, ApiError> {
    let model = app.models.resolve(&name).ok_or_else(|| ApiError::no_model(&name))?;
    Ok(axum::Json(model_json(&app, model)))
}

fn model_json(app: &App, model: &Arc<Model>) -> Value {
    let manifest = model.package().manifest();
    // Of several models of one name, that name means the first; the others go by their ids.
    let named = app.models.resolve(model.name()).is_some_and(|first| Arc::ptr_eq(first, model));
    json!({
        "id": if named { model.name().to_owned() } else { model.id().to_string() },
        "object": "model",
        "created": app.started.0 / 1_000,
        "owned_by": "lockstep",
        "lockstep": {
            "model_id": model.id(),
            "name": model.name(),
            "family": manifest.family,
            "weights": manifest.weights.to_string(),
            "spec_version": manifest.spec_version,
            "capabilities": capabilities(model),
            "dimensions": (!model.is_decoder()).then(|| model.dimensions()),
            "max_tokens": model.max_tokens(),
            "max_generated_tokens": model.is_decoder().then(|| model.max_generated(app.caps.max_tokens).min(model.max_tokens())),
        },
    })
}

/// At which addresses a model answers.
fn capabilities(model: &Model) -> &'static [&'static str] {
    match (model.is_decoder(), model.chat_template().is_some()) {
        (false, _) => &["embeddings"],
        (true, false) => &["completions"],
        (true, true) => &["completions", "chat.completions"],
    }
}

/// `GET /v1/workers`.
pub async fn workers(State(app): State<Arc<App>>) -> Result<axum::Json<Value>, ApiError> {
    let workers = app.engine.workers().await.map_err(|_| ApiError::stopping())?;
    let data: Vec<_> = workers.iter().map(worker_json).collect();
    Ok(axum::Json(json!({"object": "list", "data": data})))
}

fn worker_json(worker: &WorkerStatus) -> Value {
    let (view, hello) = (&worker.view, &worker.peer.hello);
    json!({
        "id": view.node,
        "object": "lockstep.worker",
        "software": hello.software,
        "backend": hello.backend,
        "threads": hello.threads,
        "memory_bytes": hello.memory_bytes,
        "declared_macs_per_second": hello.macs_per_second,
        "measured_macs_per_second": view.macs_per_ms.saturating_mul(1_000),
        "in_flight": view.in_flight,
        "max_in_flight": view.max_in_flight,
        "draining": view.draining,
        "models": view.models,
    })
}

/// `GET /v1/jobs/{id}`.
pub async fn job(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    presented: Presented,
) -> Result<axum::Json<Value>, ApiError> {
    let id = parse(&id)?;
    let access = presented.to(&app, id).await?.ok_or_else(|| no_job(id))?;
    // The engine first: a job that ends in between is in the store by then.
    let live = app.engine.job(id).await.map_err(|_| ApiError::stopping())?;
    if let Some(job) = live {
        return Ok(axum::Json(live_json(id, &job, access)));
    }
    let (status, reason) = match stored(&app, id).await? {
        Stored::Done(_) => ("done", None),
        Stored::Failed(reason) => ("failed", Some(reason)),
    };
    let answered = status != "failed";
    Ok(axum::Json(
        json!({"id": id, "object": "lockstep.job", "status": status, "answered": answered, "reason": reason}),
    ))
}

/// All that a client hears that did not submit the job first.
fn unfinished_json(id: JobId) -> Value {
    json!({"id": id, "object": "lockstep.job", "status": "unfinished", "answered": false})
}

fn live_json(id: JobId, job: &JobStatus, access: Access) -> Value {
    if access == Access::WhenEnded {
        return unfinished_json(id);
    }
    let status = match job.stage {
        Some(Stage::Choosing) => "queued",
        Some(Stage::Open) if !job.leased => "queued",
        Some(Stage::Open) => "running",
        Some(Stage::Drawing | Stage::Auditing) => "auditing",
        Some(Stage::Disputing) => "disputing",
        Some(Stage::Closing | Stage::Done | Stage::Failed) | None => "closing",
    };
    json!({
        "id": id,
        "object": "lockstep.job",
        "status": status,
        "answered": false,
        "model_id": job.model,
    })
}

/// `GET /v1/jobs/{id}/receipt`: the receipt and nothing else, as `lockstep verify` takes it.
pub async fn receipt(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    presented: Presented,
) -> Result<Response, ApiError> {
    let id = parse(&id)?;
    presented.to(&app, id).await?.ok_or_else(|| no_job(id))?;
    let live = app.engine.job(id).await.map_err(|_| ApiError::stopping())?;
    match (live, stored(&app, id).await) {
        (_, Ok(Stored::Done(json))) => Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response()),
        (_, Ok(Stored::Failed(reason))) => Err(ApiError::not_found(format!("Job {id} failed: {reason}."))),
        (Some(_), Err(_)) => Err(not_yet(id)),
        (None, Err(error)) => Err(error),
    }
}

/// Of a job that has nothing yet that the client may see.
pub(super) fn not_yet(id: JobId) -> ApiError {
    let message = format!("Job {id} has no answer yet: see GET /v1/jobs/{id}.");
    ApiError::new(StatusCode::CONFLICT, "invalid_request_error", Some("no_answer_yet"), message)
}

/// The same for jobs that are not there and for those that the client may not see.
pub(super) fn no_job(id: JobId) -> ApiError {
    ApiError::not_found(format!("There is no job {id}, or it needs the access token that its submission returned."))
}

/// Reads a job's id.
pub(super) fn parse(id: &str) -> Result<JobId, ApiError> {
    id.parse().map_err(|_| ApiError::not_found(format!("{id:?} is not the id of a job: 64 hexadecimal digits.")))
}

/// What the store has of a job.
pub(super) async fn stored(app: &Arc<App>, job: JobId) -> Result<Stored, ApiError> {
    let reader = Arc::clone(app);
    let found = app.blocking(move || reader.store.job(&job)).await?;
    let found = found.map_err(|error| ApiError::internal(format!("The store: {error}")))?;
    found.ok_or_else(|| no_job(job))
}

/// `GET /livez`: the process answers.
pub async fn livez() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the store is writable and a model is served. Looks only; wakes nothing.
pub async fn readyz(State(app): State<Arc<App>>) -> Response {
    let problems: Vec<_> = [
        (!app.store.is_writable(), "the store can't be written"),
        (app.models.served().is_empty(), "no model is served"),
    ]
    .into_iter()
    .filter_map(|(is, problem)| is.then_some(problem))
    .collect();
    if problems.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", problems.join("; "))).into_response()
}
