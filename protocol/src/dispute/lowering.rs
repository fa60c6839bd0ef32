//! What the game must know of the program: the shapes of the disputed layer's tensors, and what each element is made of.
//! Answered from the model's manifest alone, without weights. Nothing of it ever comes from a message.

use std::ops::Range;

use crate::ids::Root;

/// A tensor that an element is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// An earlier step of the disputed row.
    Step(u16),
    /// The output of the layer below, rows up to the disputed point.
    Input,
    /// The token ids of the job, each as `u32`.
    Tokens,
    /// The words that were generated before the disputed point, each as `u32`.
    Words,
    /// A parameter of the model, by its index in the manifest.
    Param(u16),
}

/// Bytes of a tensor that an element is computed from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Of which tensor.
    pub source: Source,
    /// Which bytes of it: exactly, not rounded to chunks, and at least one.
    pub bytes: Range<u64>,
}

/// The layout of a tensor as it is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its bytes with all padding: a multiple of 1,024, at least 1,024.
    pub bytes: u64,
    /// Bytes of one element: 2, 4 or 8.
    pub width: u8,
}

impl Shape {
    /// Its chunks.
    pub const fn chunks(&self) -> u64 {
        self.bytes / crate::limits::CHUNK_BYTES as u64
    }
}

/// The dispute view of one layer of one job (SPEC.md 24). It is trusted: whoever makes one has checked the manifest
/// against the job's model, and the program as SPEC.md 24.6 says.
///
/// `chunk` is the disputed chunk of the layer's output. It fixes the row, and so the steps.
pub trait Lowering: Send + Sync {
    /// The layer's output `R_l[0..=t]`, rows up to the disputed point.
    fn output(&self) -> Shape;
    /// Chunks of one row of the layer's output, at least 1.
    fn row_chunks(&self) -> u64;
    /// Bytes of the output of the layer below, `R_{l-1}[0..=t]`; 0 for layer 1, whose input are the tokens.
    fn input_bytes(&self) -> u64;
    /// The steps of the row that the chunk lies in, at most [`MAX_STEPS`](crate::limits::MAX_STEPS). The last one is that row.
    fn steps(&self, chunk: u64) -> Vec<Shape>;
    /// What an element reads, in order; nothing where it is padding. `element` is its index in the padded tensor.
    fn reads(&self, chunk: u64, step: u16, element: u64) -> Vec<Read>;
    /// What it reads further, where that depends on the bytes of [`Lowering::reads`]; `data` has them, in order. Nothing
    /// for nearly all elements, and where there are no reads.
    fn follow(&self, chunk: u64, step: u16, element: u64, data: &[Vec<u8>]) -> Vec<Read>;
    /// Root and length of the tokens or of a parameter; `None` where there is none.
    fn blob(&self, source: Source) -> Option<(Root, u64)>;
}
