//! From a request's bytes to jobs. Blocks: runs on a thread for blocking work.

use std::sync::Arc;

use lockstep_model::tokenizer::{TokenizeError, TooLong};
use lockstep_protocol::ids::Seed;
use lockstep_protocol::job::RequestInput;
use lockstep_protocol::limits::MAX_TEXT_BYTES;
use lockstep_protocol::machine::AuditPolicy;

use super::error::ApiError;
use super::jobs::{Order, nonces, wished};
use super::read::read;
use super::request::{EmbeddingsRequest, Encoding};
use crate::models::{Model, Models};

/// A request as jobs.
#[derive(Debug)]
pub struct Prepared {
    /// On which model.
    pub model: Arc<Model>,
    /// A job for each input, in order.
    pub order: Order,
    /// How to write the numbers.
    pub encoding: Encoding,
}

/// Reads, checks and tokenises a request.
///
/// # Errors
/// What to tell the client.
pub fn prepare(models: &Models, policy: AuditPolicy, body: &[u8]) -> Result<Prepared, ApiError> {
    let request: EmbeddingsRequest = read(body)?;
    let model = models.resolve(&request.model).ok_or_else(|| ApiError::no_model(&request.model))?;
    if model.is_decoder() {
        let message = "This model generates text and makes no embeddings: see POST /v1/completions.";
        return Err(ApiError::parameter("model", message).with_code("wrong_kind_of_model"));
    }
    if request.dimensions.is_some_and(|dimensions| dimensions != u64::from(model.dimensions())) {
        let message = format!("This model has {} dimensions and no others.", model.dimensions());
        return Err(ApiError::parameter("dimensions", message));
    }
    let extension = request.lockstep.unwrap_or_default();
    let inputs = request.input.0;
    let nonces = nonces(extension.nonce.as_ref(), inputs.len())?;
    let seed = extension.seed.unwrap_or(Seed::from_bytes([0; 32]));
    let (policy, audits_asked) = wished(policy, extension.audit);
    let mut jobs = Vec::with_capacity(inputs.len());
    for (input, nonce) in inputs.iter().zip(nonces) {
        let spec = model.spec(input, tokens(model, input)?, nonce, seed, policy);
        jobs.push((spec.job.id(), spec));
    }
    let (wait, chosen_nonces) = (extension.wait.unwrap_or(true), extension.nonce.is_some());
    Ok(Prepared {
        model: Arc::clone(model),
        order: Order { jobs, wait, chosen_nonces, audits_asked },
        encoding: request.encoding_format.unwrap_or_default(),
    })
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
            TokenizeError::TooLong { tokens, .. } => too_long("input", limit, tokens),
            other => bad(format!("An input has no tokens: {other}")),
        }),
        RequestInput::Tokens(tokens) => check_tokens(model, "input", tokens),
    }
}

/// Tokens that a client names, if the model has them.
///
/// # Errors
/// There are too many, or one is none of the model's.
pub fn check_tokens(model: &Model, param: &'static str, tokens: &[u32]) -> Result<Vec<u32>, ApiError> {
    if tokens.len() > model.max_tokens() {
        return Err(too_long(param, model.max_tokens(), tokens.len()));
    }
    known_tokens(model, param, tokens)?;
    Ok(tokens.to_vec())
}

/// Tokens that a client names are all the model's.
///
/// # Errors
/// One is not.
pub fn known_tokens(model: &Model, param: &'static str, tokens: &[u32]) -> Result<(), ApiError> {
    let vocabulary = model.package().program().vocab_size;
    match tokens.iter().find(|token| **token >= vocabulary) {
        None => Ok(()),
        Some(token) => {
            let message = format!("Token {token} is not one of the model's {vocabulary} tokens.");
            Err(ApiError::parameter(param, message))
        }
    }
}

/// A prompt does not fit the model.
pub fn too_long(param: &'static str, limit: usize, found: usize) -> ApiError {
    let message = format!(
        "This model's maximum context length is {limit} tokens, however your {param} has {found}: shorten it or split it."
    );
    ApiError::parameter(param, message).with_code("context_length_exceeded")
}
