//! Tokens to the bytes that they stand for (SPEC 20.11).

use crate::error::ModelError;

/// Most bytes of one row of a table, its length included.
pub const MAX_TABLE_COLS: usize = 1_024;
/// Bytes of the length in front of a row.
const LENGTH_BYTES: usize = 2;

/// How a tokenizer writes bytes as the characters of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writing {
    /// One character for each byte.
    ByteLevel,
    /// `▁` for a space, `<0x41>` for a byte that no piece has.
    Metaspace,
}

impl Writing {
    /// The bytes of a token.
    pub fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => token.chars().map(byte).collect::<Option<_>>().unwrap_or_else(|| token.into()),
            Self::Metaspace => match fallback_byte(token) {
                Some(byte) => vec![byte],
                None => token.replace('\u{2581}', " ").into_bytes(),
            },
        }
    }
}

/// The byte of a character of the byte-level alphabet: printable Latin-1 stands for itself, the other bytes, in order,
/// for the characters from U+0100 on.
fn byte(c: char) -> Option<u8> {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(c) {
        code @ 0..=0xff => Some(code as u8).filter(|b| printable(*b)),
        code => (0..=u8::MAX).filter(|b| !printable(*b)).nth(code as usize - 0x100),
    }
}

fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let plain = digits.len() == 2 && digits.bytes().all(|d| d.is_ascii_hexdigit());
    plain.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The bytes of every token that a tokenizer has. Special tokens have none: they are no text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenBytes {
    bytes: Vec<u8>,
    /// End of each token's bytes; they start where those of the token before end.
    ends: Vec<u32>,
}

impl TokenBytes {
    /// Bytes of the tokens `0..`.
    ///
    /// # Errors
    /// A token that is longer than a row of a table may be.
    pub fn new(tokens: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, ModelError> {
        let mut all = Self::default();
        for (id, token) in tokens.into_iter().enumerate() {
            if token.len() > MAX_TABLE_COLS - LENGTH_BYTES {
                return Err(ModelError::Tokenizer(format!("token {id} is {} bytes long", token.len())));
            }
            all.bytes.extend(token);
            let end = u32::try_from(all.bytes.len()).ok();
            all.ends.push(end.ok_or_else(|| ModelError::Tokenizer("all tokens together are too long".into()))?);
        }
        Ok(all)
    }

    /// The bytes of a token; none for a special one, and for one that the tokenizer does not have.
    pub fn get(&self, token: u32) -> &[u8] {
        let token = token as usize;
        let start = token.checked_sub(1).map_or(0, |before| self.ends.get(before).copied().unwrap_or(0));
        self.ends.get(token).map_or(&[], |end| &self.bytes[start as usize..*end as usize])
    }

    /// The table that sampling reads, `[vocab_size, cols]`: the length in two bytes, the bytes, zeros; as narrow as
    /// the longest token allows.
    ///
    /// # Errors
    /// Tokens beyond the vocabulary.
    pub fn table(&self, vocab_size: u32) -> Result<Vec<i8>, ModelError> {
        if self.ends.len() > vocab_size as usize {
            return Err(ModelError::Tokenizer(format!("it has tokens beyond the model's {vocab_size}")));
        }
        let longest = (0..vocab_size).map(|id| self.get(id).len()).max().unwrap_or(0);
        let cols = LENGTH_BYTES + longest;
        let mut table = vec![0; cols * vocab_size as usize];
        for (id, row) in (0..vocab_size).zip(table.chunks_exact_mut(cols)) {
            let bytes = self.get(id);
            let length = (bytes.len() as u16).to_le_bytes();
            row.iter_mut().zip(length.iter().chain(bytes)).for_each(|(to, byte)| *to = *byte as i8);
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_level_alphabet_has_every_byte_once() {
        let all: Vec<u8> = (0..0x200).filter_map(|c| byte(char::from_u32(c)?)).collect();
        let distinct: std::collections::BTreeSet<u8> = all.iter().copied().collect();
        assert_eq!((all.len(), distinct.len()), (256, 256));
        assert_eq!(byte('\u{120}'), Some(b' '));
        assert_eq!(byte('\u{10a}'), Some(b'\n'));
        assert_eq!(Writing::ByteLevel.bytes("\u{120}hi"), b" hi");
        assert_eq!(Writing::ByteLevel.bytes("a b"), b"a b", "an added token outside the alphabet is its own text");
    }

    #[test]
    fn pieces_and_fallback_bytes() {
        assert_eq!(Writing::Metaspace.bytes("\u{2581}a\u{2581}"), b" a ");
        assert_eq!(Writing::Metaspace.bytes("<0xE2>"), [0xe2]);
        assert_eq!(Writing::Metaspace.bytes("<0x+1>"), b"<0x+1>".to_vec());
    }

    #[test]
    fn tables_are_as_narrow_as_they_can_be() {
        let bytes = TokenBytes::new([b"ab".to_vec(), vec![], vec![0xff]]).unwrap();
        assert_eq!(bytes.table(4).unwrap(), [2, 0, 97, 98, 0, 0, 0, 0, 1, 0, -1, 0, 0, 0, 0, 0]);
        assert_eq!([bytes.get(0), bytes.get(1), bytes.get(2), bytes.get(9)], [&b"ab"[..], b"", &[0xff], b""]);
        assert!(bytes.table(2).is_err());
        assert!(TokenBytes::new([vec![0; 1_023]]).is_err());
    }
}
