//! Values that flow through a program, and the parameters it reads.

use crate::program::ParamId;

/// An activation tensor on the host. Rows are positions (or sequences), row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `i32` in a static Q format.
    I32(Vec<i32>),
    /// 16-bit codes in a static Q format (queries, keys, values).
    I16(Vec<i16>),
    /// Block floating point: 16-bit codes and one exponent for each row, `x[t,i] = q[t,i] * 2^e[t]`.
    Bfp {
        /// Codes, `[rows, cols]`.
        codes: Vec<i16>,
        /// One exponent per row.
        exponents: Vec<i32>,
    },
}

/// A parameter's elements, borrowed from wherever the package lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamData<'a> {
    /// 8-bit codes (`w8`).
    I8(&'a [i8]),
    /// 16-bit codes (`w16`) or shifts.
    I16(&'a [i16]),
    /// Row mantissas.
    U16(&'a [u16]),
    /// Biases and norm vectors.
    I32(&'a [i32]),
}

impl<'a> ParamData<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::I8(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::I32(v) => v.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements if they are `i16`.
    pub fn as_i16(&self) -> Option<&'a [i16]> {
        match self {
            Self::I16(v) => Some(v),
            _ => None,
        }
    }

    /// The elements if they are `u16`.
    pub fn as_u16(&self) -> Option<&'a [u16]> {
        match self {
            Self::U16(v) => Some(v),
            _ => None,
        }
    }

    /// The elements if they are `i32`.
    pub fn as_i32(&self) -> Option<&'a [i32]> {
        match self {
            Self::I32(v) => Some(v),
            _ => None,
        }
    }
}

/// Where a backend reads a program's parameters from. Implementations guarantee that each parameter has the type and
/// the number of elements that the program declares.
pub trait Params: Send + Sync {
    /// The elements of one parameter, row-major.
    fn param(&self, id: ParamId) -> ParamData<'_>;
}

/// Sequences that run together. Their rows are concatenated in order; no result depends on who shares a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids of each sequence; positions count from 0 in each.
    pub sequences: Vec<Vec<u32>>,
}

impl Batch {
    /// A batch of one sequence.
    pub fn single(tokens: Vec<u32>) -> Self {
        Self { sequences: vec![tokens] }
    }

    /// Row range of each sequence in the concatenated tensors.
    pub fn spans(&self) -> Vec<std::ops::Range<usize>> {
        let mut start = 0;
        self.sequences
            .iter()
            .map(|s| {
                let span = start..start + s.len();
                start = span.end;
                span
            })
            .collect()
    }

    /// Number of rows of all sequences together.
    pub fn rows(&self) -> usize {
        self.sequences.iter().map(Vec::len).sum()
    }
}
