//! Lower-case hexadecimal, strictly: one text for one value.

use thiserror::Error;

/// Why a text is not the hexadecimal form of a value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HexError {
    /// The text has another length.
    #[error("expected {expected} hexadecimal digits, got {found} bytes")]
    Length {
        /// Digits that the value takes.
        expected: usize,
        /// Bytes of the text.
        found: usize,
    },
    /// A character is not one of `0123456789abcdef`.
    #[error("byte {at} is not a lower-case hexadecimal digit")]
    Digit {
        /// Its position.
        at: usize,
    },
}

/// Bytes of any number, shown as lower-case hexadecimal.
#[derive(Clone, Copy, Debug)]
pub struct Hex<'a>(pub &'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write(self.0, f)
    }
}

/// Writes bytes as lower-case hexadecimal.
pub fn write(bytes: &[u8], f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Reads exactly `2 * N` lower-case hexadecimal digits.
///
/// # Errors
/// [`HexError`].
pub fn parse<const N: usize>(text: &str) -> Result<[u8; N], HexError> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return Err(HexError::Length { expected: 2 * N, found: digits.len() });
    }
    let mut out = [0; N];
    for (index, pair) in digits.chunks_exact(2).enumerate() {
        let high = nibble(pair[0]).ok_or(HexError::Digit { at: 2 * index })?;
        let low = nibble(pair[1]).ok_or(HexError::Digit { at: 2 * index + 1 })?;
        out[index] = high << 4 | low;
    }
    Ok(out)
}

/// Reads any number of whole bytes.
///
/// # Errors
/// [`HexError`].
pub fn parse_bytes(text: &str) -> Result<Vec<u8>, HexError> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return Err(HexError::Length { expected: digits.len() + 1, found: digits.len() });
    }
    let byte = |(index, pair): (usize, &[u8])| {
        let high = nibble(pair[0]).ok_or(HexError::Digit { at: 2 * index })?;
        let low = nibble(pair[1]).ok_or(HexError::Digit { at: 2 * index + 1 })?;
        Ok(high << 4 | low)
    };
    digits.chunks_exact(2).enumerate().map(byte).collect()
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Gives a newtype over `[u8; N]` its text form, its serde form (the same text), its canonical form
/// (the raw bytes) and its accessors.
macro_rules! byte_newtype {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// From its bytes.
            pub const fn from_bytes(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::hex::write(&self.0, f)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "("))?;
                $crate::hex::write(&self.0, f)?;
                f.write_str(")")
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::hex::HexError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::hex::parse(text).map(Self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::hex::deserialize(deserializer).map(Self)
            }
        }

        impl $crate::canonical::Canonical for $name {
            const MIN_BYTES: usize = $bytes;
            fn encode(&self, writer: &mut $crate::canonical::Writer) {
                writer.raw(&self.0);
            }
            fn decode(
                reader: &mut $crate::canonical::Reader<'_>,
            ) -> Result<Self, $crate::canonical::DecodeError> {
                reader.array().map(Self)
            }
        }
    };
}
pub(crate) use byte_newtype;

/// Reads the hexadecimal form from a serde string.
pub(crate) fn deserialize<'de, const N: usize, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<[u8; N], D::Error> {
    struct Visitor<const N: usize>;

    impl<const N: usize> serde::de::Visitor<'_> for Visitor<N> {
        type Value = [u8; N];

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{} lower-case hexadecimal digits", 2 * N)
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            parse(text).map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Visitor)
}
