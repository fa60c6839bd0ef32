//! Answers in OpenAI's shapes, with our object beside them.

use std::sync::Arc;

use lockstep_protocol::generation::{WordFinish, word_finish, word_token, words_of};
use lockstep_protocol::ids::JobId;
use lockstep_protocol::receipt::Receipt;
use serde_json::{Map, Value, json};

use super::prepare::{Prepared, Shape};
use super::text::{Step, TextStream};
use crate::clock::wall;
use crate::http::error::{ApiError, KeptJobs};
use crate::http::jobs::Extra;

/// Digits of the ids in answers.
const ID_DIGITS: usize = 24;
/// Digits of the model id that are the fingerprint.
const FINGERPRINT_DIGITS: usize = 16;

/// A request that is being answered.
#[derive(Debug)]
pub struct Answering {
    /// The request.
    pub prepared: Prepared,
    /// What the client needs to come back for its jobs.
    pub kept: KeptJobs,
    /// When it came, in seconds since the Unix epoch.
    created: u64,
}

/// An answer that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its receipt.
    pub receipt: Arc<Receipt>,
    /// What OpenAI calls the reason of its end.
    pub reason: &'static str,
    /// Its tokens, the last one included.
    pub tokens: usize,
}

impl Ended {
    /// From its receipt.
    pub fn new(receipt: Arc<Receipt>) -> Self {
        let reason = match receipt.output.last().and_then(|word| word_finish(word.cast_unsigned())) {
            Some(WordFinish::StopToken | WordFinish::StopString) => "stop",
            _ => "length",
        };
        Self { reason, tokens: receipt.output.len(), receipt }
    }
}

/// What a word does to the text.
pub fn step(word: u32) -> Step {
    match word_finish(word) {
        Some(WordFinish::GoesOn) => Step::GoesOn,
        Some(WordFinish::StopToken) => Step::StopToken,
        Some(WordFinish::StopString) => Step::StopString,
        Some(WordFinish::Length) | None => Step::Length,
    }
}

impl Answering {
    /// From now on.
    pub fn new(prepared: Prepared, kept: KeptJobs) -> Self {
        Self { prepared, kept, created: wall().0 / 1_000 }
    }

    /// The text that begins.
    pub fn text(&self) -> TextStream {
        TextStream::new(&self.prepared.stops)
    }

    /// What a word adds to a text.
    pub fn push(&self, text: &mut TextStream, word: u32) -> String {
        text.push(&self.prepared.model.token_bytes(word_token(word)), step(word))
    }

    /// The whole text of an answer.
    pub fn content(&self, receipt: &Receipt) -> String {
        let mut text = self.text();
        words_of(&receipt.output).into_iter().map(|word| self.push(&mut text, word)).collect()
    }

    /// The whole answer, in JSON.
    ///
    /// # Errors
    /// It can't be written.
    pub fn whole(&self, receipts: &[Arc<Receipt>]) -> Result<Vec<u8>, ApiError> {
        let ended: Vec<_> = receipts.iter().map(|receipt| Ended::new(Arc::clone(receipt))).collect();
        let choice = |(index, ended): (usize, &Ended)| {
            let content = self.content(&ended.receipt);
            let said = match self.prepared.shape {
                Shape::Chat => json!({"message": {"role": "assistant", "content": content, "refusal": null}}),
                Shape::Completion => json!({"text": content}),
            };
            self.choice(index, said, Some(ended.reason))
        };
        let choices = ended.iter().enumerate().map(choice).collect();
        let object = match self.prepared.shape {
            Shape::Chat => "chat.completion",
            Shape::Completion => "text_completion",
        };
        let mut answer = self.object(object, choices);
        answer.insert("usage".into(), self.usage(&ended));
        answer.insert("lockstep".into(), self.extra(Some(receipts.iter()))?);
        serde_json::to_vec(&answer).map_err(|error| ApiError::internal(error.to_string()))
    }

    /// A chunk of a stream in which a choice says something more, or ends.
    pub fn chunk(&self, index: usize, piece: Option<&str>, reason: Option<&str>) -> Map<String, Value> {
        let said = match (self.prepared.shape, piece) {
            (Shape::Completion, piece) => json!({"text": piece.unwrap_or_default()}),
            (Shape::Chat, Some(piece)) => json!({"delta": {"content": piece}}),
            (Shape::Chat, None) => json!({"delta": {}}),
        };
        self.event(vec![self.choice(index, said, reason)])
    }

    /// The first chunk of a choice.
    pub fn opening(&self, index: usize) -> Map<String, Value> {
        match self.prepared.shape {
            Shape::Completion => self.chunk(index, None, None),
            Shape::Chat => {
                let said = json!({"delta": {"role": "assistant", "content": ""}});
                self.event(vec![self.choice(index, said, None)])
            }
        }
    }

    /// A chunk of these choices.
    pub fn event(&self, choices: Vec<Value>) -> Map<String, Value> {
        let object = match self.prepared.shape {
            Shape::Chat => "chat.completion.chunk",
            Shape::Completion => "text_completion",
        };
        let mut event = self.object(object, choices);
        if self.prepared.include_usage {
            event.insert("usage".into(), Value::Null);
        }
        event
    }

    /// The counts of tokens.
    pub fn usage(&self, ended: &[Ended]) -> Value {
        let (prompt, completion) = (self.prepared.prompt_tokens, ended.iter().map(|ended| ended.tokens).sum::<usize>());
        json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
    }

    /// Our object, with receipts where all jobs have ended.
    ///
    /// # Errors
    /// It can't be written.
    pub fn extra<'a>(&self, receipts: Option<impl Iterator<Item = &'a Arc<Receipt>>>) -> Result<Value, ApiError> {
        let extra = Extra {
            model_id: self.prepared.model.id(),
            kept: &self.kept,
            prompt: self.prepared.rendered.as_deref().filter(|_| receipts.is_some()),
            receipts: receipts.map(|receipts| receipts.map(|receipt| &**receipt).collect()),
        };
        serde_json::to_value(extra).map_err(|error| ApiError::internal(error.to_string()))
    }

    fn choice(&self, index: usize, said: Value, reason: Option<&str>) -> Value {
        let mut choice = said;
        choice["index"] = json!(index);
        choice["logprobs"] = Value::Null;
        choice["finish_reason"] = json!(reason);
        choice
    }

    fn object(&self, object: &str, choices: Vec<Value>) -> Map<String, Value> {
        let first: String = self.kept.jobs.first().map(JobId::to_string).unwrap_or_default();
        let kind = match self.prepared.shape {
            Shape::Chat => "chatcmpl",
            Shape::Completion => "cmpl",
        };
        let fingerprint = self.prepared.model.id().to_string();
        let fields = [
            ("id", json!(format!("{kind}-{}", &first[..ID_DIGITS.min(first.len())]))),
            ("object", json!(object)),
            ("created", json!(self.created)),
            ("model", json!(self.prepared.model.name())),
            ("system_fingerprint", json!(&fingerprint[..FINGERPRINT_DIGITS])),
            ("choices", Value::Array(choices)),
        ];
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}
