//! Disputes: what is being played, how it ended, and the evidence.
//!
//! While a job runs, nobody is told that it is disputed: its auditors would learn that they are auditors, and what they
//! have to say. So a dispute shows its job, its sides, its place and its transcript only when the job has ended, or to
//! whoever submitted the job. After that a transcript is public, but for one that may hold tokens of the job's prompt.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use lockstep_protocol::canonical::{from_bytes, to_bytes};
use lockstep_protocol::dispute::{DisputeFile, Reason, Side, SignedEntry, SignedMove, Terms, Verdict, What};
use lockstep_protocol::ids::{DisputeId, NodeId};
use lockstep_protocol::limits::{MAX_LISTED_DISPUTES, MAX_MOVE_BYTES};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::access::Presented;
use super::embeddings::read_body;
use super::error::ApiError;
use super::rate::{Client, ClientAddress};
use crate::engine::{DisputeStatus, MoveOutcome};
use crate::store::{Access, DisputeRow, Store, StoreError};

/// What is asked of [`disputes`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// Only disputes that were opened before the one of this number.
    before: Option<i64>,
}

/// `GET /v1/disputes[?before=NUMBER]`: the newest disputes, newest first.
pub async fn disputes(
    State(app): State<Arc<App>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<axum::Json<Value>, ApiError> {
    let Query(ListQuery { before }) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    let found = read(&app, move |store| store.disputes(before.unwrap_or(i64::MAX), MAX_LISTED_DISPUTES)).await?;
    let mut data = Vec::with_capacity(found.len());
    for (row, entries) in found {
        let shown = Shown::of(&app, &row, None).await?;
        data.push(summary(&row, &entries, &shown));
    }
    Ok(axum::Json(json!({"object": "list", "data": data})))
}

/// `GET /v1/disputes/{id}`.
pub async fn dispute(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    presented: Presented,
) -> Result<axum::Json<Value>, ApiError> {
    let (row, entries) = find(&app, &id).await?;
    let access = presented.to(&app, row.job).await?;
    let shown = Shown::of(&app, &row, access).await?;
    let mut json = summary(&row, &entries, &shown);
    let entries: Vec<_> = entries.iter().map(entry_json).collect();
    json["entries"] = Value::Array(entries);
    Ok(axum::Json(json))
}

/// `GET /v1/disputes/{id}/file`: manifest and transcript in one file, as `lockstep judge` takes it.
pub async fn file(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    presented: Presented,
) -> Result<Response, ApiError> {
    let (row, entries) = find(&app, &id).await?;
    let access = presented.to(&app, row.job).await?;
    let shown = Shown::of(&app, &row, access).await?;
    if !shown.transcript {
        let message = format!(
            "The transcript of dispute {} is shown to whoever has the access token of its job{}.",
            row.dispute,
            if shown.job { "" } else { ", and to others once the job has ended" },
        );
        return Err(ApiError::new(StatusCode::FORBIDDEN, "invalid_request_error", Some("needs_access"), message));
    }
    let manifest = read(&app, move |store| store.manifest(&row.model)).await?;
    let manifest = manifest.ok_or_else(|| ApiError::internal("The model's manifest is not in the store."))?;
    let bytes = DisputeFile { manifest, entries }.to_bytes();
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

/// `POST /v1/disputes/{id}/moves`: a signed move in canonical bytes, from whoever brings it. The answer is the
/// coordinator's signed entry about it, in canonical bytes, once that is durable.
///
/// What no side has signed, or comes too fast from one address, does not reach the disputes.
pub async fn moves(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Extension(ClientAddress(address)): Extension<ClientAddress>,
    body: Body,
) -> Result<Response, ApiError> {
    let id = parse(&id)?;
    if !app.moves.take(Client::Address(address)) {
        let message = "Too many moves from this address: try again later.";
        let kind = "rate_limit_error";
        return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, kind, Some("too_many_requests"), message));
    }
    let body = read_body(body, MAX_MOVE_BYTES).await?;
    let signed: SignedMove =
        from_bytes(&body).map_err(|error| ApiError::invalid(format!("The body is no signed move: {error}.")))?;
    if signed.made.dispute != id {
        return Err(ApiError::invalid(format!("The move is one in dispute {}.", signed.made.dispute)));
    }
    let terms = read(&app, move |store| store.dispute_terms(&id)).await?.ok_or_else(|| no_dispute(id))?;
    if !Side::BOTH.iter().any(|side| signed.check(&terms.key(*side)).is_ok()) {
        return Err(refused("it is signed by neither side"));
    }
    match app.engine.make_move(signed).await.map_err(|_| ApiError::stopping())? {
        MoveOutcome::Kept(entry) => {
            Ok(([(header::CONTENT_TYPE, "application/octet-stream")], to_bytes(&*entry)).into_response())
        }
        MoveOutcome::NoDispute => {
            let message = format!("Dispute {id} has ended; its verdict stands.");
            Err(ApiError::new(StatusCode::CONFLICT, "invalid_request_error", Some("dispute_ended"), message))
        }
        MoveOutcome::Refused(reason) => Err(refused(&reason)),
    }
}

fn refused(reason: &str) -> ApiError {
    let (status, kind) = (StatusCode::UNPROCESSABLE_ENTITY, "invalid_request_error");
    ApiError::new(status, kind, Some("move_refused"), format!("The move is refused: {reason}."))
}

/// What may be shown of a dispute, and where it stands.
struct Shown {
    /// Its job, its sides, where they differ, and its verdict.
    job: bool,
    /// Its transcript.
    transcript: bool,
    /// Where it stands, while it is played.
    status: Option<DisputeStatus>,
}

impl Shown {
    async fn of(app: &Arc<App>, row: &DisputeRow, access: Option<Access>) -> Result<Self, ApiError> {
        let (job, dispute) = (row.job, row.dispute);
        let status = app.engine.dispute(dispute).await.map_err(|_| ApiError::stopping())?;
        let is_live = app.engine.job(job).await.map_err(|_| ApiError::stopping())?.is_some();
        let ended = !is_live && read(app, move |store| Ok(store.job(&job)?.is_some())).await?;
        let owner = access == Some(Access::Owner) || (access.is_some() && ended);
        Ok(Self { job: owner || ended, transcript: owner || (ended && !row.shows_tokens), status })
    }
}

fn summary(row: &DisputeRow, entries: &[SignedEntry], shown: &Shown) -> Value {
    let opened = entries.first().map(|signed| &signed.entry);
    let terms = opened.and_then(|entry| match &entry.what {
        What::Opened(terms) => Some(&**terms),
        _ => None,
    });
    let verdict = entries.last().and_then(|signed| match &signed.entry.what {
        What::Verdict(verdict) => Some(verdict),
        _ => None,
    });
    let sides = |terms: &Terms| Side::BOTH.map(|side| terms.key(side));
    let (status, shown_terms) = (shown.status.as_ref(), terms.filter(|_| shown.job));
    json!({
        "id": row.dispute,
        "object": "lockstep.dispute",
        "number": row.number,
        "status": if row.ended.is_some() { "judged" } else { "open" },
        "model_id": row.model,
        "job": shown.job.then_some(row.job),
        "claimant": shown_terms.map(|terms| terms.key(Side::Claimant)),
        "challenger": shown_terms.map(|terms| terms.key(Side::Challenger)),
        "place": shown_terms.and_then(place),
        "opened_ms": opened.map(|entry| entry.at),
        "ended_ms": row.ended,
        "stage": status.map(|status| status.stage),
        "round": status.map(|status| status.round),
        "narrowed": status.filter(|_| shown.job).map(|status| &status.narrowed),
        "verdict": verdict.zip(shown_terms).map(|(verdict, terms)| verdict_json(verdict, &sides(terms))),
    })
}

/// The first place at which the claims differ.
fn place(terms: &Terms) -> Option<Value> {
    terms.check().ok().map(|ground| json!(ground.place))
}

fn verdict_json(verdict: &Verdict, sides: &[NodeId; 2]) -> Value {
    let losers: Vec<_> = sides.iter().zip(verdict.losers).filter(|(_, lost)| *lost).map(|(node, _)| node).collect();
    json!({
        "kind": verdict.kind,
        "losers": losers,
        "chunk": verdict.chunk,
        "step": verdict.step,
        "element": verdict.element,
        "reason": verdict.reason.to_string(),
        "value": match verdict.reason {
            Reason::Recomputed { value } => Some(value),
            _ => None,
        },
    })
}

fn entry_json(signed: &SignedEntry) -> Value {
    let entry = &signed.entry;
    let mut json = json!({"index": entry.index, "at_ms": entry.at, "digest": entry.digest()});
    let (what, more) = match &entry.what {
        What::Opened(terms) => ("opened", json!({"budgets_ms": terms.budgets_ms})),
        What::Moved { side, signed } => {
            let (made, bytes) = (&signed.made, to_bytes(signed).len());
            ("moved", json!({"side": side.to_string(), "round": made.round, "move": made.body.name(), "bytes": bytes}))
        }
        What::Credited { ms } => ("credited", json!({"ms": ms})),
        What::Notice { side } => ("notice", json!({"side": side.to_string()})),
        What::Verdict(_) => ("verdict", json!({})),
    };
    json["what"] = json!(what);
    if let (Value::Object(json), Value::Object(more)) = (&mut json, more) {
        json.extend(more);
    }
    json
}

fn parse(id: &str) -> Result<DisputeId, ApiError> {
    id.parse().map_err(|_| ApiError::not_found(format!("{id:?} is not the id of a dispute: 64 hexadecimal digits.")))
}

fn no_dispute(id: DisputeId) -> ApiError {
    ApiError::not_found(format!("There is no dispute {id}."))
}

async fn find(app: &Arc<App>, id: &str) -> Result<(DisputeRow, Vec<SignedEntry>), ApiError> {
    let id = parse(id)?;
    read(app, move |store| store.dispute(&id)).await?.ok_or_else(|| no_dispute(id))
}

async fn read<T: Send + 'static>(
    app: &Arc<App>,
    question: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let reader = Arc::clone(app);
    let answer = app.blocking(move || question(&reader.store)).await?;
    answer.map_err(|error| ApiError::internal(format!("The store: {error}")))
}
