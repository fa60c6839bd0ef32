//! Where elements of a tensor lie, and typed access to what was read.

use std::ops::Range;

use super::{CHUNK_BYTES, Read, Source};

/// A tensor that elements read from.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) source: Source,
    /// Number of its first row.
    pub(super) first: u64,
    /// Distance of two rows.
    pub(super) row_bytes: u64,
    /// Bytes of one element.
    pub(super) size: u64,
}

impl View {
    /// The elements `cols` of a row.
    pub(super) fn read(&self, row: u64, cols: Range<u64>) -> Read {
        let start = (row - self.first) * self.row_bytes;
        Read { source: self.source, bytes: start + cols.start * self.size..start + cols.end * self.size }
    }

    /// One element.
    pub(super) fn one(&self, row: u64, col: u64) -> Read {
        self.read(row, col..col + 1)
    }

    /// Most chunks that `len >= 1` neighbours in a row touch. They start at a multiple of their size, so at most a
    /// chunk less one element into a chunk; and a row of whole chunks has no more of them.
    pub(super) fn chunks(&self, len: u64) -> u64 {
        let touched = (len * self.size - self.size).div_ceil(CHUNK_BYTES) + 1;
        if self.row_bytes.is_multiple_of(CHUNK_BYTES) { touched.min(self.row_bytes / CHUNK_BYTES) } else { touched }
    }
}

/// An activation tensor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Activation {
    /// `i32` or `i16`.
    Plain(View),
    /// Codes and row exponents.
    Bfp {
        /// `i16`.
        codes: View,
        /// `i32`, one column.
        exponents: View,
    },
}

/// The bytes of an element's reads, in order. Whatever is missing reads as nothing, and one number of it as 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Data<'a>(pub(super) &'a [&'a [u8]]);

impl<'a> Data<'a> {
    fn bytes(self, read: usize) -> &'a [u8] {
        self.0.get(read).copied().unwrap_or_default()
    }

    fn numbers<const N: usize, T>(
        self,
        read: usize,
        from: fn([u8; N]) -> T,
    ) -> impl Iterator<Item = T> + use<'a, N, T> {
        self.bytes(read).as_chunks().0.iter().map(move |b| from(*b))
    }

    /// All numbers of a read of `i16`.
    pub(super) fn i16s(self, read: usize) -> impl Iterator<Item = i16> + use<'a> {
        self.numbers(read, i16::from_le_bytes)
    }

    /// All numbers of a read of `i32`.
    pub(super) fn i32s(self, read: usize) -> impl Iterator<Item = i32> + use<'a> {
        self.numbers(read, i32::from_le_bytes)
    }

    /// All numbers of a read of `i64`.
    pub(super) fn i64s(self, read: usize) -> impl Iterator<Item = i64> + use<'a> {
        self.numbers(read, i64::from_le_bytes)
    }

    /// All numbers of a read of `i8`.
    pub(super) fn i8s(self, read: usize) -> impl Iterator<Item = i8> + use<'a> {
        self.numbers(read, i8::from_le_bytes)
    }

    /// All bytes of a read.
    pub(super) fn u8s(self, read: usize) -> impl Iterator<Item = u8> + use<'a> {
        self.bytes(read).iter().copied()
    }

    /// The first number of a read of `i64`.
    pub(super) fn i64(self, read: usize) -> i64 {
        self.i64s(read).next().unwrap_or_default()
    }

    /// The first number of a read of `i16`.
    pub(super) fn i16(self, read: usize) -> i16 {
        self.i16s(read).next().unwrap_or_default()
    }

    /// The first number of a read of `i32`.
    pub(super) fn i32(self, read: usize) -> i32 {
        self.i32s(read).next().unwrap_or_default()
    }

    /// The first number of a read of `u16`.
    pub(super) fn u16(self, read: usize) -> u16 {
        self.i16(read) as u16
    }

    /// The first number of a read of `u32`.
    pub(super) fn u32(self, read: usize) -> u32 {
        self.i32(read) as u32
    }

    /// How many reads there are.
    pub(super) fn len(self) -> usize {
        self.0.len()
    }
}
