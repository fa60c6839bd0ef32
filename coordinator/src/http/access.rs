//! Who may look at a job: whoever submitted it, by a token that no worker has.
//!
//! A worker knows its job's id and all that the job is made of. Could it ask how the job stands, an auditor would
//! learn that it is one, and could sign the first run's roots without running anything.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Query};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use lockstep_protocol::ids::JobId;
use serde::Deserialize;

use super::App;
use super::error::ApiError;
use crate::store::{Access, AccessDigest, Commit, Write};

/// The header that carries a token.
const HEADER: &str = "lockstep-access";
const TOKEN_BYTES: usize = 32;

/// A new token, and its hash.
///
/// # Errors
/// The system gives no random numbers.
pub fn draw() -> Result<(String, AccessDigest), ApiError> {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| ApiError::internal(format!("no random numbers: {error}")))?;
    let token = blake3::Hash::from_bytes(bytes).to_hex().to_string();
    let digest = AccessDigest::of(&token);
    Ok((token, digest))
}

/// The token of a request, by its hash; none where it has none.
#[derive(Clone, Copy, Debug)]
pub struct Presented(Option<AccessDigest>);

#[derive(Deserialize)]
struct AccessQuery {
    access: Option<String>,
}

impl Presented {
    /// From the header alone.
    pub fn in_headers(headers: &HeaderMap) -> Self {
        let token = headers.get(HEADER).and_then(|value| value.to_str().ok());
        Self(token.map(|token| AccessDigest::of(token.trim())))
    }

    /// What it opens of a job.
    ///
    /// # Errors
    /// What the store says.
    pub async fn to(self, app: &Arc<App>, job: JobId) -> Result<Option<Access>, ApiError> {
        let Some(digest) = self.0 else {
            return Ok(None);
        };
        let reader = Arc::clone(app);
        let found = app.blocking(move || reader.store.access(&job, &digest)).await?;
        found.map_err(|error| ApiError::internal(format!("The store: {error}")))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Presented {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let in_headers = Self::in_headers(&parts.headers);
        if in_headers.0.is_some() {
            return Ok(in_headers);
        }
        let query = Query::<AccessQuery>::from_request_parts(parts, state).await;
        let token = query.ok().and_then(|Query(query)| query.access);
        Ok(Self(token.map(|token| AccessDigest::of(&token))))
    }
}

/// Opens an ended job to a token, durably.
///
/// # Errors
/// The coordinator is going down.
pub async fn grant(app: &Arc<App>, job: JobId, digest: AccessDigest) -> Result<(), ApiError> {
    let (kept, done) = tokio::sync::oneshot::channel();
    let then = Box::new(move || {
        // Whoever waits may have gone.
        let _ = kept.send(());
    });
    let writes = vec![Write::Access { job, digest, access: Access::WhenEnded }];
    let writer = Arc::clone(app);
    let queued = app.blocking(move || writer.store.submit(Commit { writes, then })).await?;
    queued.map_err(|_| ApiError::stopping())?;
    done.await.map_err(|_| ApiError::stopping())
}
