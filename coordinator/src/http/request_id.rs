//! A name for every request, in its answer's `x-request-id`, so that a client can say which one it means.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use super::jobs::random;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Names a request. Nothing else follows from the name. Without random numbers there is none.
pub async fn name(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    let Ok(random) = random() else { return response };
    let id: String = random[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    tracing::debug!(id, %method, path, status = response.status().as_u16(), "a request is answered");
    if let Ok(value) = HeaderValue::from_str(&format!("req_{id}")) {
        response.headers_mut().insert(HEADER, value);
    }
    response
}
