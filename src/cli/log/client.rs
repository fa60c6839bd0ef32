//! Asking a coordinator over HTTP.

use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;

use crate::exit::{Exit, Failure};
use crate::secret::Secret;

/// How long one answer may take.
const ASK_TIME: Duration = Duration::from_secs(30);

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
        let base = self.url.trim_end_matches('/').trim_end_matches("/v1");
        let agent: ureq::Agent =
            ureq::Agent::config_builder().timeout_global(Some(ASK_TIME)).http_status_as_error(false).build().into();
        let mut request = agent.get(format!("{base}/v1/{path}"));
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {}", key.expose()));
        }
        if let Some(access) = access {
            request = request.header("lockstep-access", access.expose());
        }
        let mut response = request.call().with_context(|| format!("cannot ask {base}"))?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(limit as u64 + 1).read_to_string();
        let body = body.with_context(|| format!("{base} answers badly"))?;
        let exit = match status.as_u16() {
            200 => return Ok(body),
            401 => Exit::Authentication,
            _ => Exit::Failed,
        };
        Err(Failure { exit, error: anyhow!("{base} says {status}: {}", message(&body)) })
    }
}

/// The message of an error in OpenAI's shape, or the start of whatever it is.
fn message(body: &str) -> String {
    let json: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let told = json.as_ref().and_then(|json| json["error"]["message"].as_str()).map(str::to_owned);
    told.unwrap_or_else(|| body.chars().take(200).collect())
}
