//! Token ids of a sequence: those of the prompt, then those in the words that were generated (SPEC 24.4).

use std::ops::Range;

use super::view::View;
use super::{Read, Source};
use crate::sampling::split_word;

/// Where ids lie, by position.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids {
    /// Positions of the prompt; those from here on were generated.
    prompt: u64,
}

impl Ids {
    /// Of a sequence with so many tokens of a prompt; none where it is nothing but that.
    pub(super) fn new(prompt: Option<u32>) -> Self {
        Self { prompt: prompt.map_or(u64::MAX, u64::from) }
    }

    fn source(source: Source) -> View {
        View { source, first: 0, row_bytes: 4, size: 4 }
    }

    /// Of one position.
    pub(super) fn one(self, position: u64) -> Read {
        match position.checked_sub(self.prompt) {
            None => Self::source(Source::Tokens).one(position, 0),
            Some(word) => Self::source(Source::Words).one(word, 0),
        }
    }

    /// Of some positions: one range, or one of the prompt's and then one of words.
    pub(super) fn read(self, positions: Range<u64>) -> Vec<Read> {
        let tokens = positions.start..positions.end.min(self.prompt);
        let words = positions.start.max(self.prompt)..positions.end;
        let view = |source| View { row_bytes: u64::MAX, ..Self::source(source) };
        let mut reads = Vec::new();
        if !tokens.is_empty() {
            reads.push(view(Source::Tokens).read(0, tokens));
        }
        if !words.is_empty() {
            reads.push(view(Source::Words).read(0, words.start - self.prompt..words.end - self.prompt));
        }
        reads
    }

    /// Whether a position was generated.
    pub(super) fn generated(self, position: u64) -> bool {
        position >= self.prompt
    }

    /// The id at a position, from what was read there.
    pub(super) fn id(self, position: u64, read: u32) -> u32 {
        if self.generated(position) { split_word(read).0 } else { read }
    }

    /// Most chunks that `len` neighbours touch, all of which were generated.
    pub(super) fn word_chunks(len: u64) -> u64 {
        View { row_bytes: u64::MAX, ..Self::source(Source::Words) }.chunks(len)
    }

    /// Most chunks that `len` neighbours touch; two ranges may end and begin inside of chunks.
    pub(super) fn chunks(self, len: u64) -> u64 {
        Self::word_chunks(len) + if len > 1 { 2 } else { 0 }
    }
}
