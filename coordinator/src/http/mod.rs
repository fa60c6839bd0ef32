//! HTTP for clients: OpenAI's completions, chats and embeddings with receipts beside the answer; disputes, challenges, the
//! log and the ledger for everybody; and what can be looked at.

mod abandon;
mod access;
mod challenges;
mod disputes;
mod embeddings;
mod error;
mod generation;
mod info;
mod jobs;
mod ledger;
mod log;
mod objects;
mod prepare;
mod rate;
mod read;
mod request;
mod request_id;
mod serve;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use lockstep_protocol::ids::{Millis, NodeId};
use lockstep_protocol::limits::{HTTP_WORK_PER_CORE, MAX_HTTP_REQUESTS};
use lockstep_protocol::machine::AuditPolicy;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use self::error::ApiError;
pub use self::generation::conversation_text;
use self::rate::{Client, ClientAddress, Measures};
pub use self::serve::serve;
use crate::config::{ApiKey, ClientCaps};
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
    caps: ClientCaps,
    http_wait: Duration,
    started: Millis,
    /// Whether the coordinator goes down: then clients that are cut off have not gone away.
    stopping: watch::Receiver<bool>,
    /// Moves of disputes by where they come from.
    moves: Measures,
    /// Requests for work by who asks, where they are counted.
    work: Option<Measures>,
    /// Tokens by who asks for them, where they are counted.
    tokens: Option<Measures>,
    /// Requests that are being answered.
    requests: Arc<Semaphore>,
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
    /// What one client may ask for.
    pub caps: ClientCaps,
    /// How long clients wait.
    pub http_wait: Duration,
    /// Turns true when the coordinator goes down.
    pub stopping: watch::Receiver<bool>,
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
            work: (parts.caps.requests_per_second > 0)
                .then(|| Measures::new(parts.caps.request_burst, parts.caps.requests_per_second)),
            tokens: (parts.caps.tokens_per_minute > 0).then(|| Measures::per_minute(parts.caps.tokens_per_minute)),
            caps: parts.caps,
            http_wait: parts.http_wait,
            started: parts.started,
            stopping: parts.stopping,
            moves: Measures::of_moves(),
            requests: Arc::new(Semaphore::new(MAX_HTTP_REQUESTS)),
            blocking: Semaphore::new(HTTP_WORK_PER_CORE * cores),
        })
    }

    /// Counts the tokens of a request for work: those of its prompts, and those that its answers may come to.
    fn charge(&self, place: &Place, tokens: u64, now: Instant) -> Result<(), ApiError> {
        let (Some(measures), Some(client)) = (&self.tokens, place.client) else {
            return Ok(());
        };
        let most = self.caps.tokens_per_minute;
        if tokens > most {
            let message =
                format!("The request comes to {tokens} tokens, prompts and answers; each client has {most} a minute.");
            return Err(ApiError::invalid(message).with_code("too_many_tokens"));
        }
        measures.take_at(client, tokens, now).map_err(|wait| {
            let message =
                format!("Too many tokens: each client has {most} a minute, and this request comes to {tokens}.");
            too_many("rate_limit_exceeded", &message).with_retry_after(wait)
        })
    }

    /// Takes back what [`App::charge`] counted, where nothing came of it.
    fn refund(&self, place: &Place, tokens: u64) {
        if let (Some(measures), Some(client)) = (&self.tokens, place.client) {
            measures.give_back(client, tokens);
        }
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
    let work = Router::new()
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/completions", post(generation::completions))
        .route("/v1/chat/completions", post(generation::chat))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&app), measure));
    let api = work
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
    api.merge(health).with_state(app).layer(middleware::from_fn(request_id::name))
}

/// The place that a request takes among those that are answered, for as long as its answer goes on.
#[derive(Clone, Debug)]
struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
    /// For whom it is counted.
    client: Option<Client>,
}

/// Lets a request in: with a key where keys are asked for, and while there is room.
async fn admit(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let key = key_of(&app.api_keys, &request);
    if !app.api_keys.is_empty() && key.is_none() {
        let message = "No API key, or a wrong one: send one as \"Authorization: Bearer KEY\".";
        let kind = "invalid_request_error";
        return ApiError::new(StatusCode::UNAUTHORIZED, kind, Some("invalid_api_key"), message).into_response();
    }
    let Ok(permit) = Arc::clone(&app.requests).try_acquire_owned() else {
        return too_many("too_many_requests", "Too many requests at a time: try again later.").into_response();
    };
    let client = key.map(Client::Key).or_else(|| address_of(&request));
    let place = Place { _permit: Arc::new(permit), client };
    request.extensions_mut().insert(place.clone());
    let response = next.run(request).await;
    drop(place);
    response
}

/// Counts a request for work.
async fn measure(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let client = request.extensions().get().and_then(|place: &Place| place.client);
    let is_within = match (&app.work, client) {
        (Some(measures), Some(client)) => measures.take(client),
        _ => true,
    };
    if is_within {
        return next.run(request).await;
    }
    let ClientCaps { requests_per_second, request_burst, .. } = app.caps;
    let message = format!(
        "Too many requests: each client may send {request_burst} at once and {requests_per_second} a second from then on."
    );
    too_many("rate_limit_exceeded", &message).into_response()
}

fn too_many(code: &'static str, message: &str) -> ApiError {
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some(code), message)
}

fn address_of(request: &Request) -> Option<Client> {
    request.extensions().get().map(|ClientAddress(address)| Client::Address(*address))
}

/// Which of the keys a request has.
fn key_of(keys: &[ApiKey], request: &Request) -> Option<usize> {
    let value = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, secret) = value.and_then(|value| value.split_once(' '))?;
    // All keys are compared, whichever fits.
    let compare = |found: Option<usize>, (index, key): (usize, &ApiKey)| {
        let fits = key.matches(secret.trim());
        found.or(fits.then_some(index))
    };
    let found = keys.iter().enumerate().fold(None, compare);
    found.filter(|_| scheme.eq_ignore_ascii_case("bearer"))
}
