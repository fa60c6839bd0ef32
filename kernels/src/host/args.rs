//! What ops of the host get: parameters and activations, resolved to slices.

use std::ops::Range;
use std::sync::Arc;

use super::{HostPage, Page};
use crate::program::{Heads, Norm};
use crate::reference::attention::BLOCK;
use crate::sampling::{Sampling, TokenBytes};
use crate::value::ParamData;

/// Row codes with their scales, resolved.
#[derive(Clone, Copy, Debug)]
pub struct Scaled<'a> {
    /// `[rows, cols]`, `I8` or `I16`.
    pub codes: ParamData<'a>,
    /// `[rows]`.
    pub mantissa: &'a [u16],
    /// `[rows]`.
    pub shift: &'a [i16],
    /// Elements in a row.
    pub cols: usize,
}

/// Block floating point rows: codes `[rows, cols]` and exponents `[rows]`.
#[derive(Clone, Copy, Debug)]
pub struct BfpRows<'a> {
    /// Codes.
    pub codes: &'a [i16],
    /// Exponents.
    pub exponents: &'a [i32],
}

/// Where a matrix product goes.
#[derive(Debug)]
pub enum MatMulOut<'a> {
    /// Saturates at the range of `i32`.
    I32(&'a mut [i32]),
    /// Saturates at ±32,639.
    I16(&'a mut [i16]),
}

impl MatMulOut<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::I32(out) => out.len(),
            Self::I16(out) => out.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `count` elements, or as many as there are, and the rest.
    pub fn split(self, count: usize) -> (Self, Self) {
        let count = count.min(self.len());
        match self {
            Self::I32(out) => {
                let (first, rest) = out.split_at_mut(count);
                (Self::I32(first), Self::I32(rest))
            }
            Self::I16(out) => {
                let (first, rest) = out.split_at_mut(count);
                (Self::I16(first), Self::I16(rest))
            }
        }
    }
}

/// A matrix product, resolved, but for the rows that it multiplies. `M` is what [`prepare`](super::HostOps::prepare) makes of codes.
#[derive(Debug)]
pub struct MatMul<'a, M> {
    /// The matrix.
    pub weight: Scaled<'a>,
    /// Its codes, prepared.
    pub prepared: &'a M,
    /// `[columns]`.
    pub bias: Option<&'a [i32]>,
    /// `[rows, columns]`.
    pub out: MatMulOut<'a>,
}

/// Constants of a norm, resolved.
#[derive(Clone, Copy, Debug)]
pub struct NormArgs<'a> {
    /// `[cols]`.
    pub scale: &'a [i32],
    /// See [`Norm`].
    pub norm: Norm,
}

/// Inputs of attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// Queries, `[rows, heads * head_dim]`.
    pub q: &'a [i16],
    /// Shape and shifts.
    pub heads: &'a Heads,
    /// The sequences of the pass, in order of their rows.
    pub sequences: &'a [AttentionRows<'a>],
}

/// One sequence of an attention.
#[derive(Clone, Debug)]
pub struct AttentionRows<'a> {
    /// Its rows among the queries.
    pub rows: Range<usize>,
    /// Position of the first of them.
    pub start: usize,
    /// Keys and values of all positions up to that of the last row.
    pub keys: KeyValues<'a>,
}

impl<'a> AttentionRows<'a> {
    /// A whole sequence, out of keys and values `[rows, kv_heads * head_dim]` of all sequences.
    pub fn whole(rows: Range<usize>, k: &'a [i16], v: &'a [i16], heads: &Heads) -> Self {
        let width = usize::from(heads.kv_heads) * usize::from(heads.head_dim);
        let own = rows.start * width..rows.end * width;
        Self { rows, start: 0, keys: KeyValues::Rows { k: &k[own.clone()], v: &v[own] } }
    }

    /// Positions up to that of the last row.
    pub fn positions(&self) -> usize {
        self.start + self.rows.len()
    }

    /// Positions that a row sees.
    pub fn visible(&self, row: usize, heads: &Heads) -> usize {
        if heads.causal { self.start + row - self.rows.start + 1 } else { self.positions() }
    }
}

/// Keys and values of one sequence.
#[derive(Clone, Copy, Debug)]
pub enum KeyValues<'a> {
    /// `[positions, kv_heads * head_dim]` each.
    Rows {
        /// Keys.
        k: &'a [i16],
        /// Values.
        v: &'a [i16],
    },
    /// Pages of a cache.
    Pages(&'a [Arc<Page<HostPage>>]),
}

/// Keys and values of one head in one softmax block: position `j` of the block has `head_dim` elements from
/// `start + j * stride` on.
#[derive(Clone, Copy, Debug)]
pub struct HeadBlock<'a> {
    /// Keys.
    pub keys: &'a [i16],
    /// Values.
    pub values: &'a [i16],
    /// First element of the block's first position.
    pub start: usize,
    /// Elements from one position to the next.
    pub stride: usize,
}

impl<'a> KeyValues<'a> {
    /// Where softmax block `block` of key and value head `head` lies.
    pub fn block(&self, block: usize, head: usize, heads: &Heads) -> HeadBlock<'a> {
        let dim = usize::from(heads.head_dim);
        match *self {
            Self::Rows { k, v } => {
                let stride = usize::from(heads.kv_heads) * dim;
                HeadBlock { keys: k, values: v, start: block * BLOCK * stride + head * dim, stride }
            }
            Self::Pages(pages) => {
                let page: &HostPage = pages[block].data();
                HeadBlock { keys: &page.keys, values: &page.values, start: head * BLOCK * dim, stride: dim }
            }
        }
    }
}

/// Constants of a rotary embedding, resolved.
#[derive(Clone, Copy, Debug)]
pub struct RopeArgs<'a> {
    /// `[positions, rotary_dim]`: `cos_0, sin_0, cos_1, sin_1, ...` in Q1.30.
    pub table: &'a [i32],
    /// Elements of a head that are rotated; even.
    pub rotary_dim: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// One for each head.
    pub shift: &'a [u8],
}

impl<'a> RopeArgs<'a> {
    /// Angles of a position, which the table has.
    pub fn row(&self, position: u32) -> &'a [i32] {
        let at = position as usize * self.rotary_dim;
        &self.table[at..at + self.rotary_dim]
    }
}

/// What one point is sampled from.
#[derive(Clone, Copy, Debug)]
pub struct SampleArgs<'a> {
    /// `[vocabulary]`.
    pub logits: &'a [i32],
    /// Fractional bits of the logits, at most 31.
    pub frac: u32,
    /// Bytes of each token.
    pub token_bytes: TokenBytes<'a>,
    /// Settings of the generation.
    pub sampling: &'a Sampling,
    /// Tokens of the sequence up to the point, that is, the prompt and what was generated so far.
    pub history: &'a [u32],
    /// The point's draw.
    pub draw: u64,
}
