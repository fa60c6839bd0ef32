//! The ledger of credits.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use lockstep_protocol::ledger::Export;
use lockstep_protocol::limits::MAX_LEDGER_LINES;
use serde::Deserialize;

use super::App;
use super::error::ApiError;

/// What is asked of [`ledger`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerQuery {
    /// How many of the last postings to show; none where it is missing.
    #[serde(default)]
    history: u64,
}

/// `GET /v1/ledger[?history=N]`: accounts and sums, with the last N postings, as `lockstep ledger` checks it. What
/// was posted about a job that has not ended, and all after it, is left out.
pub async fn ledger(
    State(app): State<Arc<App>>,
    query: Result<Query<LedgerQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(LedgerQuery { history }) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    if history > MAX_LEDGER_LINES as u64 {
        let message = format!("At most {MAX_LEDGER_LINES} postings are shown at a time, not {history}.");
        return Err(ApiError::parameter("history", message));
    }
    let ledger = app.engine.ask(|view| view.books.public().clone()).await.map_err(|_| ApiError::stopping())?;
    let reader = Arc::clone(&app);
    let json = app.blocking(move || {
        let end = ledger.postings();
        let postings = reader.store.postings(end.saturating_sub(history), end)?;
        Ok::<_, crate::store::StoreError>(Export::of(&ledger, reader.node, postings).to_json())
    });
    let json = json.await?.map_err(|error| ApiError::internal(format!("The store: {error}")))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}
