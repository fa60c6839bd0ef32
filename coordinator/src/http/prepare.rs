//! From a request's bytes to jobs. Blocks: runs on a thread for blocking work.

use std::sync::Arc;

use lockstep_model::tokenizer::{TokenizeError, TooLong};
use lockstep_protocol::ids::{JobId, Nonce, Seed};
use lockstep_protocol::job::RequestInput;
use lockstep_protocol::limits::MAX_TEXT_BYTES;
use lockstep_protocol::machine::{AuditPolicy, JobSpec};

use super::error::ApiError;
use super::request::{AuditWish, EmbeddingsRequest, Encoding, Extension, Nonces};
use crate::models::{Model, Models};

/// A request as jobs.
#[derive(Debug)]
pub struct Prepared {
    /// On which model.
    pub model: Arc<Model>,
    /// A job for each input, in order, with its id.
    pub jobs: Vec<(JobId, JobSpec)>,
    /// How to write the numbers.
    pub encoding: Encoding,
    /// Whether the client waits for the answer.
    pub wait: bool,
    /// Whether the client chose the nonces, so that it may have submitted the same jobs before.
    pub chosen_nonces: bool,
    /// How many audits the client asks for in any case; 0 where it leaves that to the coordinator.
    pub audits_asked: usize,
}

/// Reads, checks and tokenises a request.
///
/// # Errors
/// What to tell the client.
pub fn prepare(models: &Models, policy: AuditPolicy, body: &[u8]) -> Result<Prepared, ApiError> {
    let request: EmbeddingsRequest =
        serde_json::from_slice(body).map_err(|error| ApiError::invalid(error.to_string()))?;
    let model = models.resolve(&request.model).ok_or_else(|| ApiError::no_model(&request.model))?;
    if request.dimensions.is_some_and(|dimensions| dimensions != u64::from(model.dimensions())) {
        let message = format!("This model has {} dimensions and no others.", model.dimensions());
        return Err(ApiError::parameter("dimensions", message));
    }
    let extension = request.lockstep.unwrap_or_default();
    let inputs = request.input.0;
    let nonces = nonces(&extension, inputs.len())?;
    let seed = extension.seed.unwrap_or(Seed::from_bytes([0; 32]));
    let policy = wished(policy, extension.audit);
    let asks = matches!(extension.audit, Some(AuditWish::Always | AuditWish::Hold));
    let mut jobs = Vec::with_capacity(inputs.len());
    for (input, nonce) in inputs.iter().zip(nonces) {
        let spec = model.spec(input, tokens(model, input)?, nonce, seed, policy);
        jobs.push((spec.job.id(), spec));
    }
    Ok(Prepared {
        model: Arc::clone(model),
        jobs,
        encoding: request.encoding_format.unwrap_or_default(),
        wait: extension.wait.unwrap_or(true),
        chosen_nonces: extension.nonce.is_some(),
        audits_asked: if asks { usize::from(policy.auditors) } else { 0 },
    })
}

fn nonces(extension: &Extension, count: usize) -> Result<Vec<Nonce>, ApiError> {
    let wrong = || {
        let message = format!("There are {count} inputs: give one nonce, as a list, for each.");
        ApiError::parameter("lockstep.nonce", message)
    };
    match &extension.nonce {
        None => (0..count).map(|_| draw()).collect(),
        Some(Nonces::One(nonce)) if count == 1 => Ok(vec![*nonce]),
        Some(Nonces::Each(nonces)) if nonces.len() == count => Ok(nonces.clone()),
        Some(_) => Err(wrong()),
    }
}

fn draw() -> Result<Nonce, ApiError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| ApiError::internal(format!("no random numbers: {error}")))?;
    Ok(Nonce::from_bytes(bytes))
}

fn wished(policy: AuditPolicy, wish: Option<AuditWish>) -> AuditPolicy {
    match wish {
        None | Some(AuditWish::Default) => policy,
        Some(AuditWish::Always) => AuditPolicy { per_mille: 1_000, ..policy },
        Some(AuditWish::Hold) => AuditPolicy { per_mille: 1_000, hold: true, ..policy },
    }
}

fn tokens(model: &Model, input: &RequestInput) -> Result<Vec<u32>, ApiError> {
    let bad = |message: String| ApiError::parameter("input", message);
    let limit = model.max_tokens();
    match input {
        RequestInput::Text(text) if text.is_empty() => Err(bad("An input is an empty string.".to_owned())),
        RequestInput::Text(text) if text.len() > MAX_TEXT_BYTES => {
            Err(bad(format!("An input has {} bytes; at most {MAX_TEXT_BYTES} are allowed.", text.len())))
        }
        RequestInput::Text(text) => model.tokenizer().encode(text, TooLong::Refuse).map_err(|error| match error {
            TokenizeError::TooLong { tokens, .. } => too_long(limit, tokens),
            other => bad(format!("An input has no tokens: {other}")),
        }),
        RequestInput::Tokens(tokens) if tokens.len() > limit => Err(too_long(limit, tokens.len())),
        RequestInput::Tokens(tokens) => {
            let vocabulary = model.package().program().vocab_size;
            match tokens.iter().find(|token| **token >= vocabulary) {
                None => Ok(tokens.clone()),
                Some(token) => Err(bad(format!("Token {token} is not one of the model's {vocabulary} tokens."))),
            }
        }
    }
}

fn too_long(limit: usize, found: usize) -> ApiError {
    let message = format!(
        "This model's maximum context length is {limit} tokens, however an input has {found}: shorten it or split it."
    );
    let status = axum::http::StatusCode::BAD_REQUEST;
    ApiError::new(status, "invalid_request_error", Some("context_length_exceeded"), message).with_param("input")
}
