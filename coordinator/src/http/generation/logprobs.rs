//! Log-probabilities in OpenAI's shapes. What is signed are integers in units of 2^-20, to base 2; here, and only here,
//! they become decimals of the natural logarithm.

use std::f64::consts::LN_2;

use lockstep_model::generation::Utf8Stream;
use lockstep_protocol::generation::word_token;
use lockstep_protocol::logprobs::Logprobs;
use serde_json::{Map, Value, json};

use super::answer::step;
use super::prepare::Shape;
use super::text::Step;
use crate::engine::Word;
use crate::models::Model;

/// How many units make the logarithm of 2.
const ONE: f64 = (1 << 20) as f64;

/// How far the log-probabilities of one choice were told.
#[derive(Clone, Debug, Default)]
pub struct Telling {
    text: Utf8Stream,
    /// Characters of the text before the next token.
    offset: usize,
}

/// Whether a word is a token of the answer's text; the one that stops it is not.
pub fn is_told(word: &Word) -> bool {
    step(word.word) != Step::StopToken
}

impl Telling {
    /// The next words of the choice.
    pub fn tell(&mut self, model: &Model, shape: Shape, words: &[Word]) -> Value {
        let told: Vec<_> = words.iter().filter(|word| is_told(word)).collect();
        match shape {
            Shape::Chat => {
                let content: Vec<_> = told.into_iter().map(|word| chat_entry(model, word)).collect();
                json!({"content": content, "refusal": null})
            }
            Shape::Completion => {
                let tokens = told.iter().map(|word| written(model, word_token(word.word)));
                let own = told.iter().map(|word| real(Logprobs::of(&word.logprobs).token()));
                let top = told.iter().map(|word| top_map(model, word));
                let mut lists = json!({
                    "tokens": tokens.collect::<Vec<_>>(), "token_logprobs": own.collect::<Vec<_>>(),
                    "top_logprobs": top.collect::<Vec<_>>(),
                });
                lists["text_offset"] = told.iter().map(|word| self.pass(model, word)).collect();
                lists
            }
        }
    }

    /// Where a token begins in the text, in characters; the next one begins after it.
    fn pass(&mut self, model: &Model, word: &Word) -> usize {
        let more = self.text.push(&model.token_bytes(word_token(word.word))).chars().count();
        let at = self.offset;
        self.offset += more;
        at
    }
}

/// The natural logarithm that a value stands for.
fn real(value: i32) -> f64 {
    f64::from(value) * (LN_2 / ONE)
}

/// A token as a text: its own, or its bytes where they are no text, or its name where it has no bytes.
fn written(model: &Model, token: u32) -> String {
    let bytes = model.token_bytes(token);
    if bytes.is_empty() {
        return model.tokenizer().name(token).unwrap_or_default();
    }
    let escaped = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    String::from_utf8(bytes).unwrap_or_else(|error| format!("bytes:{}", escaped(error.as_bytes())))
}

fn entry(model: &Model, token: u32, value: i32) -> Value {
    let bytes = Some(model.token_bytes(token)).filter(|bytes| !bytes.is_empty());
    json!({"token": written(model, token), "logprob": real(value), "bytes": bytes})
}

fn chat_entry(model: &Model, word: &Word) -> Value {
    let row = Logprobs::of(&word.logprobs);
    let mut said = entry(model, word_token(word.word), row.token());
    said["top_logprobs"] = row.top().map(|(token, value)| entry(model, token, value)).collect();
    said
}

/// The likeliest tokens by their text. Of two with the same text the likelier one is told.
fn top_map(model: &Model, word: &Word) -> Map<String, Value> {
    let mut map = Map::new();
    for (token, value) in Logprobs::of(&word.logprobs).top() {
        map.entry(written(model, token)).or_insert_with(|| json!(real(value)));
    }
    map
}
