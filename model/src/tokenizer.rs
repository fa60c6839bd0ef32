//! Text to token ids, from the `tokenizer.json` inside a package.

use tokenizers::PostProcessor;
use tokenizers::tokenizer::{PaddingParams, TruncationDirection, TruncationParams};

use crate::error::ModelError;

/// What happens to a text with more tokens than the model has positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TooLong {
    /// [`TokenizeError::TooLong`].
    #[default]
    Refuse,
    /// The end is cut off; special tokens stay.
    Truncate,
}

/// Why a text has no tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenizeError {
    /// The text does not fit the model.
    #[error("the text has {tokens} tokens; this model takes at most {limit}: shorten it, or ask for truncation")]
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
    inner: tokenizers::Tokenizer,
    limit: usize,
    vocab_size: u32,
}

impl Tokenizer {
    /// Loads `tokenizer.json`. Its own truncation and padding are dropped: the limit is the model's.
    ///
    /// # Errors
    /// When it does not load, or has tokens outside the model's vocabulary.
    pub fn from_json(json: &[u8], max_positions: u32, vocab_size: u32) -> Result<Self, ModelError> {
        let bad = |e: tokenizers::Error| ModelError::Tokenizer(e.to_string());
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(bad)?;
        inner.with_truncation(None::<TruncationParams>).map_err(bad)?;
        inner.with_padding(None::<PaddingParams>);
        // The order of this map is random, and the maximum does not depend on it.
        let outside = inner.get_vocab(true).into_iter().filter(|(_, id)| *id >= vocab_size).max_by_key(|(_, id)| *id);
        if let Some((token, id)) = outside {
            return Err(ModelError::Tokenizer(format!("token {token:?} is {id}; the model has {vocab_size} tokens")));
        }
        Ok(Self { inner, limit: max_positions as usize, vocab_size })
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
        let failed = |e: tokenizers::Error| TokenizeError::Failed(e.to_string());
        let mut plain = self.inner.encode_fast(text, false).map_err(failed)?;
        if too_long == TooLong::Truncate {
            let special = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(false));
            plain.truncate(self.limit.saturating_sub(special), 0, TruncationDirection::Right);
        }
        let whole = self.inner.post_process(plain, None, true).map_err(failed)?;
        let ids = whole.get_ids();
        if ids.is_empty() {
            return Err(TokenizeError::Empty);
        }
        if ids.len() > self.limit {
            return Err(TokenizeError::TooLong { tokens: ids.len(), limit: self.limit });
        }
        if let Some(id) = ids.iter().find(|id| **id >= self.vocab_size) {
            return Err(TokenizeError::Failed(format!("token {id} is outside the model's vocabulary")));
        }
        Ok(ids.to_vec())
    }
}
