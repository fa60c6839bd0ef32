//! Words to text, as they come.

use std::fmt;
use std::sync::Arc;

use lockstep_kernels::program::{Op, ParamId, Program};
use lockstep_kernels::sampling::TokenBytes;
use lockstep_kernels::value::{ParamData, Params};

/// The bytes of every token, from the table that the program itself stops by.
#[derive(Clone)]
pub struct TokenText {
    params: Arc<dyn Params>,
    table: ParamId,
    width: usize,
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenText").field("table", &self.table).field("width", &self.width).finish_non_exhaustive()
    }
}

impl TokenText {
    /// The table of a decoder; `None` where the program samples nothing.
    pub fn of(program: &Program, params: Arc<dyn Params>) -> Option<Self> {
        let table = program.layers.iter().flat_map(|layer| &layer.ops).find_map(|op| match op {
            Op::Sample { token_bytes, .. } => Some(*token_bytes),
            _ => None,
        })?;
        Some(Self { params, table, width: program.param(table).cols as usize })
    }

    /// The bytes of a token, none for one that stands for no text or is outside the vocabulary.
    pub fn bytes(&self, token: u32) -> Vec<u8> {
        match self.params.param(self.table) {
            ParamData::I8(rows) => TokenBytes { rows, width: self.width }.of(token).collect(),
            _ => Vec::new(),
        }
    }

    /// The text of tokens; bytes that are no UTF-8 become U+FFFD.
    pub fn text(&self, tokens: impl IntoIterator<Item = u32>) -> String {
        let bytes: Vec<u8> = tokens.into_iter().flat_map(|token| self.bytes(token)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Text that comes in pieces, which may end inside a character. The pieces given out make the same text as all bytes at
/// once, bytes that are no UTF-8 as U+FFFD.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Takes bytes in and gives out the text that is certain now: all but a character that may still become whole.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut certain = self.pending.len();
        // The start of a character is at most three bytes long.
        for back in 1..=self.pending.len().min(3) {
            let tail = &self.pending[self.pending.len() - back..];
            if std::str::from_utf8(tail).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none()) {
                certain = self.pending.len() - back;
            }
        }
        let pending = self.pending.split_off(certain);
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending = pending;
        text
    }

    /// What never became whole.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn in_pieces(bytes: &[u8], size: usize) -> String {
        let mut stream = Utf8Stream::default();
        let mut text: String = bytes.chunks(size).map(|piece| stream.push(piece)).collect();
        text.push_str(&stream.finish());
        text
    }

    #[test]
    fn a_character_comes_out_when_it_is_whole() {
        let mut stream = Utf8Stream::default();
        let euro = "€".as_bytes();
        assert_eq!(stream.push(b"a"), "a");
        assert_eq!(stream.push(&euro[..1]), "");
        assert_eq!(stream.push(&euro[1..2]), "");
        assert_eq!(stream.push(&euro[2..]), "€");
        assert_eq!(stream.push(&[0xe2, 0x82]), "");
        assert_eq!(stream.finish(), "\u{fffd}");
    }

    proptest! {
        #[test]
        fn any_pieces_make_the_same_text(
            parts in prop::collection::vec(prop_oneof![".{0,4}".prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..4)], 0..8),
            size in 1_usize..6,
        ) {
            let bytes = parts.concat();
            prop_assert_eq!(in_pieces(&bytes, size), String::from_utf8_lossy(&bytes));
        }
    }
}
