//! The one encoding of everything that is hashed, signed, stored or sent.
//!
//! Integers are little-endian of fixed width; a boolean is one byte, 0 or 1; an enum is its tag and
//! then its fields; an optional value is a boolean and then the value; a fixed array is its bytes; a
//! string or sequence is its length as `u32` and then its items. There are no defaults, no optional
//! trailing fields and no padding, so a value has exactly one encoding. [`from_bytes`] proves that of
//! what it accepts: it decodes, demands that nothing is left, encodes again and compares.
//!
//! A decoder treats every length as hostile: it is compared with a cap and with the bytes that are
//! actually there before anything is allocated.

use thiserror::Error;

/// Why bytes are not the canonical encoding of a value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The bytes end inside a value.
    #[error("the bytes end early: {needed} more needed, {left} left")]
    UnexpectedEnd {
        /// Bytes that the value still needs.
        needed: usize,
        /// Bytes that are there.
        left: usize,
    },
    /// Bytes follow the value.
    #[error("{left} bytes follow the value")]
    TrailingBytes {
        /// How many.
        left: usize,
    },
    /// A boolean is neither 0 nor 1.
    #[error("a boolean is {value}, not 0 or 1")]
    InvalidBool {
        /// The byte found.
        value: u8,
    },
    /// An enum's tag names no variant.
    #[error("{what} has no variant {tag}")]
    InvalidTag {
        /// The enum.
        what: &'static str,
        /// The tag found.
        tag: u32,
    },
    /// A length is above its cap.
    #[error("{what} has length {len}, above the limit of {cap}")]
    OverCap {
        /// What the length counts.
        what: &'static str,
        /// The length found.
        len: u64,
        /// The cap.
        cap: u64,
    },
    /// A string is not UTF-8.
    #[error("{what} is not UTF-8")]
    InvalidUtf8 {
        /// Which string.
        what: &'static str,
    },
    /// A value that the type does not allow.
    #[error("{what} has a value that is not allowed")]
    InvalidValue {
        /// Which value.
        what: &'static str,
    },
    /// The bytes decode, but the value encodes to other bytes.
    #[error("the encoding is not canonical")]
    NotCanonical,
}

/// A type with one canonical encoding.
pub trait Canonical: Sized {
    /// The fewest bytes that a value takes, at least 1. A sequence is refused before allocation when
    /// the bytes that are left can't hold that many items of this size.
    const MIN_BYTES: usize;

    /// Appends the encoding.
    fn encode(&self, writer: &mut Writer);

    /// Reads one value.
    ///
    /// # Errors
    /// Any [`DecodeError`] but [`DecodeError::TrailingBytes`] and [`DecodeError::NotCanonical`], which
    /// [`from_bytes`] adds.
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

/// The canonical bytes of a value.
pub fn to_bytes<T: Canonical>(value: &T) -> Vec<u8> {
    let mut writer = Writer::new();
    value.encode(&mut writer);
    writer.into_bytes()
}

/// The value whose canonical encoding these bytes are: all of them, and in no other way.
///
/// # Errors
/// Any [`DecodeError`].
pub fn from_bytes<T: Canonical>(bytes: &[u8]) -> Result<T, DecodeError> {
    let mut reader = Reader::new(bytes);
    let value = T::decode(&mut reader)?;
    if reader.left() != 0 {
        return Err(DecodeError::TrailingBytes { left: reader.left() });
    }
    // Most often as many bytes as were read, and never taken from a length in them.
    let mut again = Writer { bytes: Vec::with_capacity(bytes.len()) };
    value.encode(&mut again);
    if again.into_bytes() != bytes {
        return Err(DecodeError::NotCanonical);
    }
    Ok(value)
}

/// Collects canonical bytes.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

macro_rules! write_integer {
    ($($name:ident),*) => {$(
        #[doc = concat!("Appends a `", stringify!($name), "`, little-endian.")]
        pub fn $name(&mut self, value: $name) {
            self.bytes.extend_from_slice(&value.to_le_bytes());
        }
    )*};
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Self {
        Self::default()
    }

    write_integer!(u8, u16, u32, u64, i8, i16, i32, i64);

    /// Appends a boolean.
    pub fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    /// Appends bytes of a length that the reader knows.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends the length of a sequence.
    ///
    /// # Panics
    /// When it does not fit `u32`: every sequence of the protocol has a cap far below that.
    pub fn length(&mut self, length: usize) {
        self.u32(u32::try_from(length).expect("a canonical sequence has fewer than 2^32 items"));
    }

    /// Appends bytes with their length.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.raw(bytes);
    }

    /// Appends a string with its length in bytes.
    pub fn string(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Appends a sequence.
    pub fn seq<T: Canonical>(&mut self, items: &[T]) {
        self.length(items.len());
        for item in items {
            item.encode(self);
        }
    }

    /// Appends an optional value.
    pub fn option<T: Canonical>(&mut self, value: Option<&T>) {
        self.bool(value.is_some());
        if let Some(value) = value {
            value.encode(self);
        }
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads canonical bytes from the front.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

macro_rules! read_integer {
    ($($name:ident),*) => {$(
        #[doc = concat!("Reads a `", stringify!($name), "`, little-endian.")]
        ///
        /// # Errors
        /// [`DecodeError::UnexpectedEnd`].
        pub fn $name(&mut self) -> Result<$name, DecodeError> {
            Ok($name::from_le_bytes(self.array()?))
        }
    )*};
}

impl<'a> Reader<'a> {
    /// Reads from these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.bytes.len()
    }

    read_integer!(u8, u16, u32, u64, i8, i16, i32, i64);

    /// Reads a boolean: one byte, 0 or 1.
    ///
    /// # Errors
    /// [`DecodeError::UnexpectedEnd`], [`DecodeError::InvalidBool`].
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::InvalidBool { value }),
        }
    }

    /// Reads `count` bytes.
    ///
    /// # Errors
    /// [`DecodeError::UnexpectedEnd`].
    pub fn raw(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self
            .bytes
            .split_at_checked(count)
            .ok_or(DecodeError::UnexpectedEnd { needed: count, left: self.bytes.len() })?;
        self.bytes = tail;
        Ok(head)
    }

    /// Reads a fixed array.
    ///
    /// # Errors
    /// [`DecodeError::UnexpectedEnd`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let head = self.raw(N)?;
        Ok(head.try_into().expect("raw returns as many bytes as were asked for"))
    }

    /// Reads the length of a sequence of `what`, whose items take at least `min_item_bytes` each.
    ///
    /// # Errors
    /// [`DecodeError::OverCap`] above `cap`; [`DecodeError::UnexpectedEnd`] when the bytes that are
    /// left can't hold so many items.
    pub fn length(&mut self, what: &'static str, cap: usize, min_item_bytes: usize) -> Result<usize, DecodeError> {
        let length = self.u32()?;
        if u64::from(length) > cap as u64 {
            return Err(DecodeError::OverCap { what, len: length.into(), cap: cap as u64 });
        }
        let length = length as usize;
        let needed = length.saturating_mul(min_item_bytes);
        if needed > self.left() {
            return Err(DecodeError::UnexpectedEnd { needed, left: self.left() });
        }
        Ok(length)
    }

    /// Reads bytes with their length.
    ///
    /// # Errors
    /// As [`Reader::length`].
    pub fn bytes(&mut self, what: &'static str, cap: usize) -> Result<&'a [u8], DecodeError> {
        let length = self.length(what, cap, 1)?;
        self.raw(length)
    }

    /// Reads a string of at most `cap` bytes.
    ///
    /// # Errors
    /// As [`Reader::length`], and [`DecodeError::InvalidUtf8`].
    pub fn string(&mut self, what: &'static str, cap: usize) -> Result<&'a str, DecodeError> {
        let bytes = self.bytes(what, cap)?;
        std::str::from_utf8(bytes).map_err(|_| DecodeError::InvalidUtf8 { what })
    }

    /// Reads a sequence of at most `cap` items.
    ///
    /// # Errors
    /// As [`Reader::length`], and what an item's decoder says.
    pub fn seq<T: Canonical>(&mut self, what: &'static str, cap: usize) -> Result<Vec<T>, DecodeError> {
        const { assert!(T::MIN_BYTES > 0, "an item takes at least one byte") };
        let length = self.length(what, cap, T::MIN_BYTES)?;
        (0..length).map(|_| T::decode(self)).collect()
    }

    /// Reads an optional value.
    ///
    /// # Errors
    /// As [`Reader::bool`], and what the value's decoder says.
    pub fn option<T: Canonical>(&mut self) -> Result<Option<T>, DecodeError> {
        Ok(if self.bool()? { Some(T::decode(self)?) } else { None })
    }

    /// Reads a value.
    ///
    /// # Errors
    /// What the value's decoder says.
    pub fn value<T: Canonical>(&mut self) -> Result<T, DecodeError> {
        T::decode(self)
    }
}

macro_rules! canonical_integer {
    ($($name:ident),*) => {$(
        impl Canonical for $name {
            const MIN_BYTES: usize = size_of::<$name>();
            fn encode(&self, writer: &mut Writer) {
                writer.$name(*self);
            }
            fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                reader.$name()
            }
        }
    )*};
}

canonical_integer!(u8, u16, u32, u64, i8, i16, i32, i64);

impl Canonical for bool {
    const MIN_BYTES: usize = 1;
    fn encode(&self, writer: &mut Writer) {
        writer.bool(*self);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.bool()
    }
}

impl<const N: usize> Canonical for [u8; N] {
    const MIN_BYTES: usize = N;
    fn encode(&self, writer: &mut Writer) {
        writer.raw(self);
    }
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.array()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One of everything, as a stranger would lay it out by hand.
    #[test]
    fn the_layout_is_as_specified() {
        let mut writer = Writer::new();
        writer.u8(0xab);
        writer.u16(0x0102);
        writer.i32(-2);
        writer.u64(3);
        writer.bool(true);
        writer.string("né");
        writer.seq(&[1_u16, 2]);
        writer.option(Some(&5_u8));
        writer.option::<u8>(None);
        writer.raw(&[9, 9]);
        let expected = [
            &[0xab, 0x02, 0x01, 0xfe, 0xff, 0xff, 0xff, 3, 0, 0, 0, 0, 0, 0, 0, 1][..],
            &[3, 0, 0, 0, b'n', 0xc3, 0xa9, 2, 0, 0, 0, 1, 0, 2, 0, 1, 5, 0, 9, 9],
        ]
        .concat();
        assert_eq!(writer.into_bytes(), expected);
    }

    #[test]
    fn what_is_not_canonical_is_refused() {
        assert_eq!(from_bytes::<bool>(&[2]), Err(DecodeError::InvalidBool { value: 2 }));
        assert_eq!(from_bytes::<u16>(&[1, 2, 3]), Err(DecodeError::TrailingBytes { left: 1 }));
        let end = DecodeError::UnexpectedEnd { needed: 2, left: 1 };
        assert_eq!(from_bytes::<u16>(&[1]), Err(end));
        let invalid = Reader::new(&[1, 0, 0, 0, 0xff]).string("name", 4).map(str::to_owned);
        assert_eq!(invalid, Err(DecodeError::InvalidUtf8 { what: "name" }));
        let long = Reader::new(&[5, 0, 0, 0]).bytes("blob", 4).map(<[u8]>::to_vec);
        assert_eq!(long, Err(DecodeError::OverCap { what: "blob", len: 5, cap: 4 }));
        let missing = Reader::new(&[4, 0, 0, 0, 0]).seq::<u32>("items", 4);
        assert_eq!(missing, Err(DecodeError::UnexpectedEnd { needed: 16, left: 1 }));
    }

    /// A type whose decoder is careless: the comparison in [`from_bytes`] catches it.
    #[derive(Debug, PartialEq)]
    struct Careless(u8);

    impl Canonical for Careless {
        const MIN_BYTES: usize = 1;
        fn encode(&self, writer: &mut Writer) {
            writer.u8(self.0 & 0x7f);
        }
        fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
            reader.u8().map(Self)
        }
    }

    #[test]
    fn the_comparison_catches_a_careless_decoder() {
        assert_eq!(from_bytes::<Careless>(&[0x7f]), Ok(Careless(0x7f)));
        assert_eq!(from_bytes::<Careless>(&[0xff]), Err(DecodeError::NotCanonical));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = from_bytes::<crate::messages::ToWorker>(&bytes) {
                prop_assert_eq!(to_bytes(&message), bytes.clone());
            }
            let _ = from_bytes::<crate::messages::ToCoordinator>(&bytes);
            let _ = from_bytes::<crate::messages::JobMessage>(&bytes);
            let _ = from_bytes::<crate::messages::PackageReply>(&bytes);
            let _ = from_bytes::<crate::machine::Record>(&bytes);
            let _ = from_bytes::<crate::log::Entry>(&bytes);
            let _ = from_bytes::<crate::receipt::SignedStatement>(&bytes);
        }
    }
}
