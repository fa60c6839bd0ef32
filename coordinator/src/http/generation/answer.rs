//! Answers in OpenAI's shapes, with our object beside them.

use std::sync::Arc;

use lockstep_protocol::generation::{Generation, WordFinish, word_finish, word_token};
use lockstep_protocol::ids::JobId;
use lockstep_protocol::receipt::{Receipt, split_output};
use serde_json::{Map, Value, json};

use super::logprobs::Telling;
use super::prepare::{Prepared, Shape};
use super::text::{Step, TextStream};
use crate::clock::wall;
use crate::engine::Word;
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
        let words = receipt.words();
        let reason = match words.last().and_then(|word| word_finish(*word)) {
            Some(WordFinish::StopToken | WordFinish::StopString) => "stop",
            _ => "length",
        };
        Self { reason, tokens: words.len(), receipt }
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
        receipt.words().into_iter().map(|word| self.push(&mut text, word)).collect()
    }

    /// The words of an answer, with the log-probabilities that were asked for.
    pub fn words(&self, receipt: &Receipt) -> Vec<Word> {
        let width = receipt.job.kind.generation().map_or(0, Generation::logprob_values);
        let (_, values) = split_output(&receipt.output, &receipt.worker.receipt);
        let row = |index: usize| values.get(index * width..).and_then(|rest| rest.get(..width)).unwrap_or_default();
        let words = receipt.words().into_iter().enumerate();
        words.map(|(index, word)| Word { word, logprobs: row(index).to_vec() }).collect()
    }

    /// The log-probabilities of the next words of a choice; null where they were not asked for.
    pub fn logprobs(&self, telling: &mut Telling, words: &[Word]) -> Value {
        if !self.prepared.logprobs {
            return Value::Null;
        }
        telling.tell(&self.prepared.model, self.prepared.shape, words)
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
            let logprobs = self.logprobs(&mut Telling::default(), &self.words(&ended.receipt));
            self.choice(index, said, logprobs, Some(ended.reason))
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

    /// A chunk of a stream in which a choice says something more.
    pub fn piece(&self, index: usize, piece: &str, logprobs: Value) -> Map<String, Value> {
        self.chunk(index, Some(piece), logprobs, None)
    }

    /// The chunk with which a choice ends.
    pub fn end(&self, index: usize, reason: &str) -> Map<String, Value> {
        self.chunk(index, None, Value::Null, Some(reason))
    }

    fn chunk(&self, index: usize, piece: Option<&str>, logprobs: Value, reason: Option<&str>) -> Map<String, Value> {
        let said = match (self.prepared.shape, piece) {
            (Shape::Completion, piece) => json!({"text": piece.unwrap_or_default()}),
            (Shape::Chat, Some(piece)) => json!({"delta": {"content": piece}}),
            (Shape::Chat, None) => json!({"delta": {}}),
        };
        self.event(vec![self.choice(index, said, logprobs, reason)])
    }

    /// The first chunk of a choice.
    pub fn opening(&self, index: usize) -> Map<String, Value> {
        match self.prepared.shape {
            Shape::Completion => self.chunk(index, None, Value::Null, None),
            Shape::Chat => {
                let said = json!({"delta": {"role": "assistant", "content": ""}});
                self.event(vec![self.choice(index, said, Value::Null, None)])
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

    fn choice(&self, index: usize, said: Value, logprobs: Value, reason: Option<&str>) -> Value {
        let mut choice = said;
        choice["index"] = json!(index);
        choice["logprobs"] = logprobs;
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
