//! Values that flow through a program, and the parameters it reads.

use std::ops::Range;
use std::sync::Arc;

use crate::program::ParamId;
use crate::sampling::Sampling;

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

impl Value {
    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::I32(v) => v.is_empty(),
            Self::I16(v) => v.is_empty(),
            Self::Bfp { codes, .. } => codes.is_empty(),
        }
    }
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

    /// The elements if they are `i8`.
    pub fn as_i8(&self) -> Option<&'a [i8]> {
        match self {
            Self::I8(v) => Some(v),
            _ => None,
        }
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

    /// Says that a backend has the elements in a layout of its own and will hardly read them here again. Whoever can get
    /// them back from elsewhere may let go of memory; [`Params::param`] goes on to return them.
    fn release(&self, _id: ParamId) {}
}

/// Name of a sequence's keys and values in an executor; the caller chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheId(pub u64);

/// How the points of one sequence in one pass are sampled (SPEC 5.17).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Settings of the whole generation.
    pub sampling: Arc<Sampling>,
    /// One draw for each point of this pass, in order of position; or for the last few of them, and then the others are
    /// not sampled and cost nothing in the last layer.
    pub draws: Vec<u64>,
}

/// One sequence of a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids of all positions up to the last one of this pass, those before `start` included.
    pub tokens: Vec<u32>,
    /// First position that this pass computes. The keys and values of those before are in the cache; without one it is 0.
    pub start: usize,
    /// Keeps the keys and values of this pass; made by its first use, with `start` 0. For decoders only.
    pub cache: Option<CacheId>,
    /// Samples the points of this pass; without one it has none. For decoders only.
    pub sampler: Option<Sampler>,
}

impl Sequence {
    /// All positions of `tokens`, without cache and sampler.
    pub fn new(tokens: Vec<u32>) -> Self {
        Self { tokens, ..Self::default() }
    }

    /// Number of positions that this pass computes.
    pub fn rows(&self) -> usize {
        self.tokens.len().saturating_sub(self.start)
    }

    /// Positions of this pass after which a word is sampled: from the last one of the prompt on, or the last of these
    /// where there are fewer draws.
    pub fn points(&self) -> Range<usize> {
        let end = self.tokens.len();
        let first = self.sampler.as_ref().map_or(end, |s| s.sampling.prompt_tokens.saturating_sub(1) as usize);
        let first = first.max(self.start).min(end);
        match self.sampler.as_ref().map_or(0, |s| s.draws.len()) {
            0 => first..end,
            draws => first.max(end.saturating_sub(draws))..end,
        }
    }
}

/// Sequences that run together in one pass. Their rows are concatenated in order; no result depends on who shares a
/// batch, nor on how many passes a sequence is cut into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The sequences.
    pub sequences: Vec<Sequence>,
}

impl Batch {
    /// A batch of one sequence, without cache and sampler.
    pub fn single(tokens: Vec<u32>) -> Self {
        Self::of(vec![tokens])
    }

    /// A batch of sequences without caches and samplers.
    pub fn of(sequences: Vec<Vec<u32>>) -> Self {
        Self { sequences: sequences.into_iter().map(Sequence::new).collect() }
    }

    /// Row range of each sequence in the concatenated tensors with a row for each position.
    pub fn spans(&self) -> Vec<Range<usize>> {
        spans(self.sequences.iter().map(Sequence::rows))
    }

    /// Row range of each sequence in the concatenated tensors with a row for each point.
    pub fn point_spans(&self) -> Vec<Range<usize>> {
        spans(self.sequences.iter().map(|s| s.points().len()))
    }

    /// Number of positions that all sequences compute together.
    pub fn rows(&self) -> usize {
        self.sequences.iter().map(Sequence::rows).sum()
    }

    /// Number of points of all sequences together.
    pub fn points(&self) -> usize {
        self.sequences.iter().map(|s| s.points().len()).sum()
    }
}

fn spans(lengths: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut end = 0;
    let span = |length| {
        let start = end;
        end += length;
        start..end
    };
    lengths.map(span).collect()
}
