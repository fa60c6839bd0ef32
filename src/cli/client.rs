//! Asking a coordinator over HTTP.

use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use serde_json::Value;
use ureq::http::Response;
use ureq::{Body, RequestBuilder};

use crate::exit::{Exit, Failure};
use crate::secret::Secret;

/// How long one answer may take.
const ASK_TIME: Duration = Duration::from_secs(30);
/// Longest answer to what is posted.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Which coordinator, and how it knows us.
#[derive(Args)]
pub struct Address {
    /// Where the coordinator serves clients, like http://127.0.0.1:8420 (with or without /v1).
    #[arg(long = "url", visible_alias = "coordinator-url", value_name = "URL")]
    url: String,
    /// The API key, where the coordinator asks for one.
    #[arg(long, env = "LOCKSTEP_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<Secret>,
}

impl Address {
    /// The text at a path below `/v1`, of at most `limit` bytes; with the access token of what it is about.
    ///
    /// # Errors
    /// The coordinator can't be reached, or says no: its own words.
    pub fn get(&self, path: &str, access: Option<&Secret>, limit: usize) -> Result<String, Failure> {
        let bytes = self.get_bytes(path, access, limit)?;
        Ok(String::from_utf8(bytes).context("the answer is no text")?)
    }

    /// The bytes at a path below `/v1`, at most `limit`.
    ///
    /// # Errors
    /// As of [`Address::get`].
    pub fn get_bytes(&self, path: &str, access: Option<&Secret>, limit: usize) -> Result<Vec<u8>, Failure> {
        let request = agent().get(format!("{}/v1/{path}", self.base()));
        let answer = self.with_secrets(request, access).call();
        self.body(answer.with_context(|| format!("cannot ask {}", self.base()))?, limit)
    }

    /// Posts JSON to a path below `/v1`, and reads the JSON that is answered.
    ///
    /// # Errors
    /// As of [`Address::get`].
    pub fn post(&self, path: &str, access: Option<&Secret>, body: &Value) -> Result<Value, Failure> {
        let request = agent().post(format!("{}/v1/{path}", self.base()));
        let answer = self.with_secrets(request, access).send_json(body);
        let answer = self.body(answer.with_context(|| format!("cannot ask {}", self.base()))?, MAX_ANSWER_BYTES)?;
        Ok(serde_json::from_slice(&answer).context("the answer is no JSON")?)
    }

    fn base(&self) -> &str {
        self.url.trim_end_matches('/').trim_end_matches("/v1")
    }

    fn with_secrets<Body>(&self, mut request: RequestBuilder<Body>, access: Option<&Secret>) -> RequestBuilder<Body> {
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {}", key.expose()));
        }
        if let Some(access) = access {
            request = request.header("lockstep-access", access.expose());
        }
        request
    }

    /// What was answered, if it was yes.
    fn body(&self, mut response: Response<Body>, limit: usize) -> Result<Vec<u8>, Failure> {
        let (base, status) = (self.base(), response.status());
        let body = response.body_mut().with_config().limit(limit as u64 + 1).read_to_vec();
        let body = body.with_context(|| format!("{base} answers badly"))?;
        let exit = match status.as_u16() {
            200 | 202 => return Ok(body),
            401 => Exit::Authentication,
            _ => Exit::Failed,
        };
        Err(Failure { exit, error: anyhow!("{base} says {status}: {}", message(&String::from_utf8_lossy(&body))) })
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(ASK_TIME)).http_status_as_error(false).build().into()
}

/// The message of an error in OpenAI's shape, or the start of whatever it is.
fn message(body: &str) -> String {
    let json: Option<Value> = serde_json::from_str(body).ok();
    let told = json.as_ref().and_then(|json| json["error"]["message"].as_str()).map(str::to_owned);
    told.unwrap_or_else(|| body.chars().take(200).collect())
}
