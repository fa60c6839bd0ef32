//! The bodies of `POST /v1/chat/completions` and `POST /v1/completions`.
//!
//! Fields that are not here are ignored, as OpenAI's clients send more and more of them. Those that ask for something
//! that would change the answer and that is not done here are refused by name.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use lockstep_protocol::ids::Seed;
use lockstep_protocol::limits::{MAX_COMPLETION_LOGPROBS, MAX_LOGPROBS};
use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::Value;

use crate::http::error::ApiError;
use crate::http::read::shown;
use crate::http::request::{AuditWish, Inputs, Nonces};

/// A conversation to go on with: what [`Common`] does not have.
#[derive(Debug, Deserialize)]
pub struct ChatRequest {
    /// What was said.
    pub messages: Vec<Message>,
    /// Most tokens of the answer; the older name.
    #[serde(default)]
    pub max_tokens: Option<u64>,
    /// The same; the newer name.
    #[serde(default)]
    pub max_completion_tokens: Option<u64>,
    /// Whether log-probabilities are asked for.
    #[serde(default)]
    logprobs: Option<bool>,
    /// Of how many of the likeliest tokens.
    #[serde(default)]
    top_logprobs: Option<u64>,
    /// Functions that the model may call.
    #[serde(default)]
    tools: Option<Value>,
    #[serde(default)]
    tool_choice: Option<Value>,
    #[serde(default)]
    functions: Option<Value>,
    #[serde(default)]
    function_call: Option<Value>,
    #[serde(default)]
    response_format: Option<Value>,
    #[serde(default)]
    modalities: Option<Value>,
    #[serde(default)]
    audio: Option<Value>,
    #[serde(default)]
    web_search_options: Option<Value>,
}

/// A text to go on with: what [`Common`] does not have.
#[derive(Debug, Deserialize)]
pub struct CompletionRequest {
    /// Texts, or token ids.
    pub prompt: Inputs,
    /// Most tokens of the answer.
    #[serde(default)]
    pub max_tokens: Option<u64>,
    /// Of how many of the likeliest tokens log-probabilities are asked for, beside those of the answer's own.
    #[serde(default)]
    logprobs: Option<u64>,
    #[serde(default)]
    best_of: Option<u64>,
    #[serde(default)]
    echo: Option<bool>,
    #[serde(default)]
    suffix: Option<String>,
}

/// What both kinds of request have. A body is read once as this and once as what is its own: flattened into one, it would be
/// copied first, and what is wrong in it would have no name.
#[derive(Debug, Deserialize)]
pub struct Common {
    /// Name or id of a model.
    pub model: String,
    /// How many answers.
    #[serde(default)]
    pub n: Option<u64>,
    /// Whether the answer comes as server-sent events.
    #[serde(default)]
    pub stream: Option<bool>,
    /// How.
    #[serde(default)]
    pub stream_options: Option<StreamOptions>,
    /// Decides every draw; a secret random one where it is missing.
    #[serde(default)]
    pub seed: Option<i64>,
    /// Texts that end an answer.
    #[serde(default)]
    pub stop: Option<Stop>,
    /// Tokens that end an answer beside the model's own.
    #[serde(default)]
    pub stop_token_ids: Option<Vec<u32>>,
    /// 0 takes the likeliest token each time.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// Which share of the probability is drawn from.
    #[serde(default)]
    pub top_p: Option<f64>,
    /// How many of the likeliest tokens are drawn from; 0 or -1 is all.
    #[serde(default)]
    pub top_k: Option<i64>,
    /// Which part of the likeliest token's probability a token needs.
    #[serde(default)]
    pub min_p: Option<f64>,
    /// What logits of tokens that were there before are divided by.
    #[serde(default)]
    pub repetition_penalty: Option<f64>,
    /// What is taken off the logits of tokens that were drawn before.
    #[serde(default)]
    pub presence_penalty: Option<f64>,
    /// The same for each time that a token was drawn.
    #[serde(default)]
    pub frequency_penalty: Option<f64>,
    /// What is added to the logits of tokens, by their ids in decimal.
    #[serde(default)]
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// What OpenAI does not have.
    #[serde(default)]
    pub lockstep: Option<Extension>,
}

/// How an answer is streamed.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct StreamOptions {
    /// Whether the last chunk has the counts of tokens.
    #[serde(default)]
    pub include_usage: Option<bool>,
}

/// One text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "it has to be a text or a list of texts")]
pub enum Stop {
    /// The only one.
    One(String),
    /// All of them.
    Many(Vec<String>),
}

/// The `lockstep` object of a request.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extension {
    /// `false`: answer with the job ids as soon as the jobs are kept.
    #[serde(default)]
    pub wait: Option<bool>,
    /// The secret nonce of each job, in hexadecimal; drawn where it is missing.
    #[serde(default)]
    pub nonce: Option<Nonces>,
    /// The seed in full, in hexadecimal, instead of `seed`.
    #[serde(default)]
    pub seed: Option<Seed>,
    /// More audit than the coordinator's policy asks for.
    #[serde(default)]
    pub audit: Option<AuditWish>,
    /// The date that a chat template sees, `YYYY-MM-DD`.
    #[serde(default)]
    pub date: Option<String>,
}

/// A message of a conversation.
#[derive(Debug, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: String,
    /// What is said.
    #[serde(default)]
    pub content: Option<Content>,
    /// The speaker's name.
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    tool_calls: Option<Value>,
    #[serde(default)]
    function_call: Option<Value>,
}

/// A text, or parts of one.
#[derive(Debug)]
pub enum Content {
    /// In one piece.
    Text(String),
    /// In parts.
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Debug, Deserialize)]
pub struct Part {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

/// Reads it as it comes, so that what is wrong in a part has its place.
struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list of parts, each with its type")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
        Ok(Content::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<Content, A::Error> {
        Deserialize::deserialize(SeqAccessDeserializer::new(parts)).map(Content::Parts)
    }
}

impl Message {
    /// What is said, parts one to a line. `place` is that of this message in the body.
    ///
    /// # Errors
    /// It is no text, or nothing; of the assistant too, which has no tools here that it could have called instead.
    pub fn text(&self, place: &str) -> Result<String, ApiError> {
        let asks = |value: &Option<Value>| value.as_ref().is_some_and(|value| !is_nothing(value));
        for (field, asked) in [
            ("tool_calls", asks(&self.tool_calls)),
            ("function_call", asks(&self.function_call)),
            ("role", matches!(self.role.as_str(), "tool" | "function")),
        ] {
            if asked {
                return Err(not_done(format!("{place}.{field}"), "calls of tools"));
            }
        }
        match &self.content {
            None => Err(missing(format!("{place}.content"))),
            Some(Content::Text(text)) => Ok(text.clone()),
            Some(Content::Parts(parts)) => {
                let text = |(index, part): (usize, &Part)| part.text(&format!("{place}.content[{index}]"));
                let texts: Vec<_> = parts.iter().enumerate().map(text).collect::<Result<_, _>>()?;
                Ok(texts.join("\n"))
            }
        }
    }
}

impl Part {
    fn text(&self, place: &str) -> Result<String, ApiError> {
        if self.kind != "text" {
            return Err(not_done(format!("{place}.type"), &format!("content of type {:?}", shown(&self.kind))));
        }
        self.text.clone().ok_or_else(|| missing(format!("{place}.text")))
    }
}

impl ChatRequest {
    /// Refuses what is not done here.
    ///
    /// # Errors
    /// The first such field, by name.
    pub fn check(&self) -> Result<(), ApiError> {
        let is = |value: &Option<Value>, harmless: &[&str]| {
            let is_harmless = |value: &Value| value.as_str().is_some_and(|text| harmless.contains(&text));
            value.as_ref().is_some_and(|value| !is_nothing(value) && !is_harmless(value))
        };
        let format = self.response_format.as_ref().map(|format| format["type"].clone());
        let modalities = self.modalities.as_ref().filter(|asked| **asked != serde_json::json!(["text"])).cloned();
        for (param, asked, what) in [
            ("tools", is(&self.tools, &[]), "tools"),
            ("tool_choice", is(&self.tool_choice, &["none", "auto"]), "tools"),
            ("functions", is(&self.functions, &[]), "functions"),
            ("function_call", is(&self.function_call, &["none", "auto"]), "functions"),
            ("response_format", is(&format, &["text"]), "a response_format other than text"),
            ("modalities", is(&modalities, &[]), "modalities other than text"),
            ("audio", is(&self.audio, &[]), "audio"),
            ("web_search_options", is(&self.web_search_options, &[]), "web search"),
        ] {
            if asked {
                return Err(not_done(param, what));
            }
        }
        Ok(())
    }

    /// Which log-probabilities are wanted, as a job says it.
    ///
    /// # Errors
    /// Too many, or a number without the wish.
    pub fn logprobs(&self) -> Result<u8, ApiError> {
        match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (true, top) => wanted("top_logprobs", top.unwrap_or(0), MAX_LOGPROBS),
            (false, None | Some(0)) => Ok(0),
            (false, Some(_)) => Err(ApiError::parameter("top_logprobs", "top_logprobs is given without logprobs.")),
        }
    }

    /// Most tokens of the answer.
    ///
    /// # Errors
    /// Both names are used, with different numbers.
    pub fn max_tokens(&self) -> Result<Option<u64>, ApiError> {
        match (self.max_completion_tokens, self.max_tokens) {
            (Some(new), Some(old)) if new != old => {
                Err(ApiError::parameter("max_tokens", "max_tokens and max_completion_tokens are not the same."))
            }
            (new, old) => Ok(new.or(old)),
        }
    }
}

impl CompletionRequest {
    /// Refuses what is not done here.
    ///
    /// # Errors
    /// The first such field, by name.
    pub fn check(&self, common: &Common) -> Result<(), ApiError> {
        if self.best_of.is_some_and(|best| best != common.n.unwrap_or(1)) {
            return Err(not_done("best_of", "best_of other than n"));
        }
        if self.echo == Some(true) {
            return Err(not_done("echo", "echo"));
        }
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(not_done("suffix", "a suffix"));
        }
        Ok(())
    }

    /// Which log-probabilities are wanted, as a job says it.
    ///
    /// # Errors
    /// Too many.
    pub fn logprobs(&self) -> Result<u8, ApiError> {
        self.logprobs.map_or(Ok(0), |top| wanted("logprobs", top, MAX_COMPLETION_LOGPROBS))
    }
}

impl Stop {
    /// The texts.
    pub fn texts(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }
}

fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

fn not_done(param: impl Into<Cow<'static, str>>, what: &str) -> ApiError {
    ApiError::parameter(param, format!("This coordinator does not serve {what}.")).with_code("unsupported_parameter")
}

fn missing(place: String) -> ApiError {
    let message = format!("{place} is missing.");
    ApiError::parameter(place, message)
}

/// Log-probabilities of the answer's tokens, and of so many of the likeliest ones.
fn wanted(param: &'static str, top: u64, most: u8) -> Result<u8, ApiError> {
    match u8::try_from(top) {
        Ok(top) if top <= most => Ok(top + 1),
        _ => Err(ApiError::parameter(param, format!("{param} is {top}; 0 to {most} are allowed."))),
    }
}
