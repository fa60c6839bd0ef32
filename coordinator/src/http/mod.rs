//! HTTP for clients: OpenAI's embeddings with receipts beside the answer; disputes, challenges, the log and the ledger for
//! everybody; and what can be looked at.

mod access;
mod challenges;
mod disputes;
mod embeddings;
mod error;
mod info;
mod ledger;
mod log;
mod prepare;
mod rate;
mod request;
mod serve;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use lockstep_protocol::ids::{Millis, NodeId};
use lockstep_protocol::limits::{HTTP_WORK_PER_CORE, MAX_HTTP_REQUESTS};
use lockstep_protocol::machine::AuditPolicy;
use tokio::sync::Semaphore;

use self::error::ApiError;
pub use self::serve::serve;
use crate::config::ApiKey;
use crate::engine::EngineHandle;
use crate::models::Models;
use crate::store::SharedStore;

/// What all handlers share.
#[derive(Debug)]
pub struct App {
    node: NodeId,
    engine: EngineHandle,
    models: Arc<Models>,
    store: SharedStore,
    audit: AuditPolicy,
    api_keys: Vec<ApiKey>,
    http_wait: Duration,
    started: Millis,
    /// Moves of disputes by where they come from.
    moves: rate::Moves,
    /// Requests that are being answered.
    requests: Semaphore,
    /// Tokenising, hashing and reading that runs at a time.
    blocking: Semaphore,
}

/// What [`App::new`] is made from.
#[derive(Debug)]
pub struct AppParts {
    /// The coordinator's key.
    pub node: NodeId,
    /// The way to the engine.
    pub engine: EngineHandle,
    /// The served models.
    pub models: Arc<Models>,
    /// The store.
    pub store: SharedStore,
    /// How jobs are audited whose clients do not ask for more.
    pub audit: AuditPolicy,
    /// Keys of clients; without any, all are served.
    pub api_keys: Vec<ApiKey>,
    /// How long clients wait.
    pub http_wait: Duration,
    /// When the coordinator started.
    pub started: Millis,
}

impl App {
    /// From its parts.
    pub fn new(parts: AppParts) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            node: parts.node,
            engine: parts.engine,
            models: parts.models,
            store: parts.store,
            audit: parts.audit,
            api_keys: parts.api_keys,
            http_wait: parts.http_wait,
            started: parts.started,
            moves: rate::Moves::default(),
            requests: Semaphore::new(MAX_HTTP_REQUESTS),
            blocking: Semaphore::new(HTTP_WORK_PER_CORE * cores),
        })
    }

    /// Runs what blocks on a thread for such work, a bounded number at a time.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
        let _turn = self.blocking.acquire().await.map_err(|_| ApiError::stopping())?;
        tokio::task::spawn_blocking(work).await.map_err(|error| {
            tracing::error!(%error, "a request's work failed");
            ApiError::internal("The coordinator failed on this request.")
        })
    }
}

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/models", get(info::models))
        .route("/v1/models/{model}", get(info::model))
        .route("/v1/jobs/{id}", get(info::job))
        .route("/v1/jobs/{id}/receipt", get(info::receipt))
        .route("/v1/workers", get(info::workers))
        .route("/v1/challenges", post(challenges::challenge))
        .route("/v1/disputes", get(disputes::disputes))
        .route("/v1/disputes/{id}", get(disputes::dispute))
        .route("/v1/disputes/{id}/file", get(disputes::file))
        .route("/v1/disputes/{id}/moves", post(disputes::moves))
        .route("/v1/ledger", get(ledger::ledger))
        .route("/v1/log/head", get(log::head))
        .route("/v1/log/proof", get(log::proof))
        .route("/v1/log/consistency", get(log::consistency))
        .fallback(|| async { ApiError::not_found("There is nothing at this address.") })
        .method_not_allowed_fallback(|| async {
            let message = "This address does not take this method.";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", None, message)
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&app), admit))
        // The handler that reads a body caps it itself.
        .layer(DefaultBodyLimit::disable());
    let health = Router::new().route("/livez", get(info::livez)).route("/readyz", get(info::readyz));
    api.merge(health).with_state(app)
}

/// Lets a request in: with a key where keys are asked for, and while there is room.
async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if !app.api_keys.is_empty() && !has_key(&app.api_keys, &request) {
        let message = "No API key, or a wrong one: send one as \"Authorization: Bearer KEY\".";
        let kind = "invalid_request_error";
        return ApiError::new(StatusCode::UNAUTHORIZED, kind, Some("invalid_api_key"), message).into_response();
    }
    let Ok(_permit) = app.requests.try_acquire() else {
        let message = "Too many requests at a time: try again later.";
        let kind = "rate_limit_error";
        return ApiError::new(StatusCode::TOO_MANY_REQUESTS, kind, Some("too_many_requests"), message).into_response();
    };
    next.run(request).await
}

fn has_key(keys: &[ApiKey], request: &Request) -> bool {
    let value = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, secret)) = value.and_then(|value| value.split_once(' ')) else {
        return false;
    };
    // All keys are compared, whichever fits.
    let fits = keys.iter().fold(false, |fits, key| fits | key.matches(secret.trim()));
    fits && scheme.eq_ignore_ascii_case("bearer")
}
