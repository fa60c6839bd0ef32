//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use std::borrow::Cow;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lockstep_protocol::ids::{JobId, Nonce};
use lockstep_protocol::limits::{DEFAULT_WORKER_WAIT_MS, HTTP_RETRY_AFTER_SECONDS};
use serde::Serialize;

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    /// After how many seconds to try again, where that makes sense.
    #[serde(skip)]
    retry_after: u64,
    error: Body,
    /// Which jobs are kept all the same, and under which nonces.
    #[serde(skip_serializing_if = "Option::is_none")]
    lockstep: Option<Box<KeptJobs>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Body {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<Cow<'static, str>>,
    code: Option<&'static str>,
}

/// Jobs that a client can ask about later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptJobs {
    /// Their ids, in the order of the inputs.
    pub jobs: Vec<JobId>,
    /// Their nonces, in the same order.
    pub request_nonces: Vec<Nonce>,
    /// Opens them all: with it, and nothing else, they can be asked about.
    pub access: String,
}

impl ApiError {
    /// An error of this status.
    pub fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        let error = Body { message: message.into(), kind, param: None, code };
        Self { status, retry_after: HTTP_RETRY_AFTER_SECONDS, error, lockstep: None }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
    }

    /// One parameter of the request is wrong.
    pub fn parameter(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::invalid(message).with_param(param)
    }

    /// What was asked for is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("not_found"), message)
    }

    /// No such model.
    pub fn no_model(name: &str) -> Self {
        let message = format!("The model {name:?} is not served here; GET /v1/models lists those that are.");
        let error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("model_not_found"), message);
        error.with_param("model")
    }

    /// The coordinator can't do it now.
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some(code), message)
    }

    /// Nobody is there who could do it.
    pub fn no_worker() -> Self {
        let message = "No worker is connected that can run this model: try again later.";
        Self::unavailable("no_worker", message).with_retry_after(Duration::from_millis(DEFAULT_WORKER_WAIT_MS))
    }

    /// The coordinator is going down.
    pub fn stopping() -> Self {
        Self::unavailable("shutting_down", "The coordinator is shutting down.")
    }

    /// Which parameter is wrong, where it is one.
    #[cfg(test)]
    pub fn param(&self) -> Option<&str> {
        self.error.param.as_deref()
    }

    /// What is told to people.
    pub fn message(&self) -> &str {
        &self.error.message
    }

    /// Whether it only says that the jobs have not ended.
    pub fn is_no_answer_yet(&self) -> bool {
        self.error.code == Some("no_answer_yet")
    }

    /// Whether it says that nobody was there to do it.
    pub fn is_no_worker(&self) -> bool {
        self.error.code == Some("no_worker")
    }

    /// The coordinator failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, message)
    }

    /// Says when it makes sense to try again.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1);
        self
    }

    /// Names the parameter.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.error.param = Some(param.into());
        self
    }

    /// Names the kind of error, for programs.
    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.error.code = Some(code);
        self
    }

    /// Names the jobs that are kept.
    #[must_use]
    pub fn with_jobs(mut self, kept: KeptJobs) -> Self {
        self.lockstep = Some(Box::new(kept));
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(&self)).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(self.retry_after));
            }
            _ => {}
        }
        response
    }
}
