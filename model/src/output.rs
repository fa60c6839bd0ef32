//! The output of a layer on its way into its commitment: its rows, or the hashes of their chunks, made where the rows lie.

use std::ops::Range;

use lockstep_kernels::backend::{BackendError, Executor};
use lockstep_kernels::program::Program;
use lockstep_protocol::ids::Root;
use lockstep_protocol::limits::CHUNK_BYTES;
use lockstep_protocol::trace::{ChainingValue, RowTree, padded_row_bytes, root_of_rows};

use crate::embed::read_i32;

/// What of a layer's output somebody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The rows.
    Rows,
    /// Their root. A device that hashes gives 32 bytes for each KiB of them.
    Root,
}

/// The output of a layer.
#[derive(Clone, Debug)]
pub struct Output {
    cols: usize,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    /// `[rows, cols]`.
    Rows(Vec<i32>),
    /// `[rows, chunks of a row]`.
    Hashed(Vec<ChainingValue>),
}

impl Output {
    /// Rows that are at hand, `[rows, cols]`.
    pub const fn of_rows(rows: Vec<i32>, cols: usize) -> Self {
        Self { cols, content: Content::Rows(rows) }
    }

    /// What is wanted of the output of a layer that has just run; the rows in any case where the executor does not hash.
    /// `numbers` has the number of each row in the tensor that it is committed in.
    ///
    /// # Errors
    /// Whatever the backend says.
    pub fn take(
        executor: &mut dyn Executor,
        program: &Program,
        layer: usize,
        wanted: Wanted,
        numbers: &[u64],
    ) -> Result<Self, BackendError> {
        let output = program.layers[layer].output;
        let cols = program.tensor(output).cols as usize;
        let chunks = chunks_of(cols);
        // The root of a tensor of one chunk is no chaining value, and takes the chunk itself.
        let has_values = chunks > 1 || !numbers.contains(&0);
        if wanted == Wanted::Root && has_values {
            let counters: Vec<u64> = numbers.iter().map(|number| number * chunks as u64).collect();
            if let Some(values) = executor.chunk_values(output, &counters)? {
                return Ok(Self { cols, content: Content::Hashed(values) });
            }
        }
        Ok(Self::of_rows(read_i32(executor, output)?, cols))
    }

    /// Elements in a row.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Some of the rows; none where they were hashed in their place.
    pub fn rows(&self, rows: &Range<usize>) -> Option<&[i32]> {
        match &self.content {
            Content::Rows(all) => Some(&all[rows.start * self.cols..rows.end * self.cols]),
            Content::Hashed(_) => None,
        }
    }

    /// All rows; none where they were hashed in their place.
    pub fn into_rows(self) -> Option<Vec<i32>> {
        match self.content {
            Content::Rows(rows) => Some(rows),
            Content::Hashed(_) => None,
        }
    }

    /// Appends some of the rows to the tensor of which they are the next.
    pub fn push_to(&self, tree: &mut RowTree, rows: Range<usize>) {
        match &self.content {
            Content::Rows(all) => tree.push_rows(&all[rows.start * self.cols..rows.end * self.cols]),
            Content::Hashed(values) => {
                let chunks = chunks_of(self.cols);
                let of_rows = values[rows.start * chunks..rows.end * chunks].chunks_exact(chunks);
                of_rows.for_each(|row| tree.push_row_values(row));
            }
        }
    }

    /// The root of some of the rows, which are a tensor of their own.
    pub fn root(&self, rows: &Range<usize>) -> Root {
        match self.rows(rows) {
            Some(rows) => root_of_rows(rows, self.cols),
            None => {
                let mut tree = RowTree::new(self.cols);
                self.push_to(&mut tree, rows.clone());
                tree.root()
            }
        }
    }
}

/// Chunks of a row of so many elements.
const fn chunks_of(cols: usize) -> usize {
    padded_row_bytes(cols) / CHUNK_BYTES
}
