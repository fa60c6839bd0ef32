//! Text to token ids and back, from the `tokenizer.json` inside a package.

mod bytes;
mod components;
mod inspect;

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::tokenizer::TruncationDirection;
use tokenizers::{PostProcessor, PostProcessorWrapper};

use crate::error::ModelError;
use bytes::Writing;

pub use bytes::{MAX_TABLE_COLS, TokenBytes};

/// What happens to a text with more tokens than the model has positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TooLong {
    /// [`TokenizeError::TooLong`].
    #[default]
    Refuse,
    /// The end is cut off; special tokens stay.
    Truncate,
    /// All tokens are given; the caller cuts them.
    Keep,
}

/// Why a text has no tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenizeError {
    /// The text does not fit the model.
    #[error("the text has {tokens} tokens; this model takes at most {limit}: shorten it")]
    TooLong {
        /// Tokens of the text, with special ones.
        tokens: usize,
        /// The model's limit.
        limit: usize,
    },
    /// The tokenizer makes no token of this text, not even a special one.
    #[error("the text has no tokens")]
    Empty,
    /// The tokenizer gives up.
    #[error("the tokenizer fails on this text: {0}")]
    Failed(String),
}

/// A loaded tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    /// Without its post-processor.
    inner: tokenizers::Tokenizer,
    post_processor: Option<PostProcessorWrapper>,
    /// How many times the post-processor repeats the text.
    copies: usize,
    /// How its decoder reads tokens; encoders need none.
    writing: Option<Writing>,
    limit: usize,
    vocab_size: u32,
}

/// The library's failures and panics alike.
fn caught<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the tokenizers library panicked".into()),
    }
}

impl Tokenizer {
    /// Loads `tokenizer.json`. Its own truncation and padding are dropped: the limit is the model's.
    ///
    /// # Errors
    /// When it names a component that is not supported, does not load, or has tokens outside the model's vocabulary.
    pub fn from_json(json: &[u8], max_positions: u32, vocab_size: u32) -> Result<Self, ModelError> {
        let checked = inspect::inspect(json, vocab_size).map_err(ModelError::Tokenizer)?;
        let load = || tokenizers::Tokenizer::from_bytes(&checked.json);
        let mut inner = caught(load).map_err(ModelError::Tokenizer)?;
        // The order of this map is random, and the maximum does not depend on it.
        let outside = inner.get_vocab(true).into_iter().filter(|(_, id)| *id >= vocab_size).max_by_key(|(_, id)| *id);
        if let Some((token, id)) = outside {
            return Err(ModelError::Tokenizer(format!("token {token:?} is {id}; the model has {vocab_size} tokens")));
        }
        let post_processor = inner.get_post_processor().cloned();
        inner.with_post_processor(None::<PostProcessorWrapper>);
        let (copies, writing, limit) = (checked.copies, checked.writing, max_positions as usize);
        Ok(Self { inner, post_processor, copies, writing, limit, vocab_size })
    }

    /// The bytes of every token.
    ///
    /// # Errors
    /// A tokenizer without a decoder, two tokens with one id, and a token that is too long.
    pub fn token_bytes(&self) -> Result<TokenBytes, ModelError> {
        let fail = |reason: String| Err(ModelError::Tokenizer(reason));
        let Some(writing) = self.writing else {
            return fail("it has no decoder of bytes: ByteLevel, Metaspace or ByteFallback".into());
        };
        let special = self.inner.get_added_tokens_decoder();
        let special = |id: &u32| special.get(id).is_some_and(|token| token.special);
        let mut tokens: Vec<Option<String>> = Vec::new();
        for (token, id) in self.inner.get_vocab(true) {
            let at = id as usize;
            tokens.resize(tokens.len().max(at + 1), None);
            if tokens[at].replace(token).is_some() {
                return fail(format!("two tokens have the id {id}"));
            }
        }
        let bytes = |(id, token): (usize, Option<String>)| match token {
            Some(token) if !special(&(id as u32)) => writing.bytes(&token),
            _ => Vec::new(),
        };
        TokenBytes::new(tokens.into_iter().enumerate().map(bytes))
    }

    /// Most tokens of a text, special ones included.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The ids of a text with the special tokens around it.
    ///
    /// # Errors
    /// See [`TokenizeError`].
    pub fn encode(&self, text: &str, too_long: TooLong) -> Result<Vec<u32>, TokenizeError> {
        self.checked(too_long, || self.ids(text, too_long))
    }

    /// The ids of a text that has its special tokens already, as a rendered chat template has.
    ///
    /// # Errors
    /// See [`TokenizeError`].
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, TokenizeError> {
        self.checked(TooLong::Refuse, || Ok(self.inner.encode_fast(text, false)?.get_ids().to_vec()))
    }

    /// What the vocabulary calls a token.
    pub fn name(&self, token: u32) -> Option<String> {
        self.inner.id_to_token(token)
    }

    /// The special token that is put before every text, where there is one.
    pub fn before_text(&self) -> Option<u32> {
        self.encode("", TooLong::Refuse).ok()?.first().copied()
    }

    fn checked(
        &self,
        too_long: TooLong,
        ids: impl FnOnce() -> tokenizers::Result<Vec<u32>>,
    ) -> Result<Vec<u32>, TokenizeError> {
        let ids = caught(ids).map_err(TokenizeError::Failed)?;
        if ids.is_empty() {
            return Err(TokenizeError::Empty);
        }
        if too_long != TooLong::Keep && ids.len() > self.limit {
            return Err(TokenizeError::TooLong { tokens: ids.len(), limit: self.limit });
        }
        if let Some(id) = ids.iter().find(|id| **id >= self.vocab_size) {
            return Err(TokenizeError::Failed(format!("token {id} is outside the model's vocabulary")));
        }
        Ok(ids)
    }

    fn ids(&self, text: &str, too_long: TooLong) -> tokenizers::Result<Vec<u32>> {
        let mut plain = self.inner.encode_fast(text, false)?;
        if too_long == TooLong::Truncate {
            let special = self.post_processor.as_ref().map_or(0, |p| p.added_tokens(false));
            let room = self.limit.saturating_sub(special) / self.copies;
            plain.truncate(room, 0, TruncationDirection::Right);
        }
        let whole = match &self.post_processor {
            Some(processor) => processor.process(plain, None, true)?,
            None => plain,
        };
        Ok(whole.get_ids().to_vec())
    }
}
