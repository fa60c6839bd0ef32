//! How attention is cut into launches.

use std::ops::Range;

use lockstep_kernels::program::Heads;

use super::{BLOCK_THREADS, Launch};
use crate::backend::Products;
use crate::params::{AttentionParams, AttentionTile, CombineParams, RowPartials};

/// Positions of one softmax block.
pub(super) const BLOCK: u32 = 256;
/// Rows of one tile, on integer units and on tensor cores.
const TILE_ROWS: u32 = 8;
const TENSOR_TILE_ROWS: u32 = 16;

/// What decides how an attention is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Whether a position sees only those up to itself.
    pub causal: bool,
}

/// What computes the partials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionUnits {
    /// Integer units.
    Dp4a,
    /// Tensor cores.
    Mma,
}

impl AttentionUnits {
    /// Tensor cores where the device has them and a sequence has more rows than a tile of integer units.
    pub fn choose(products: Products, sequences: &[SequenceRows]) -> Self {
        let is_long = sequences.iter().any(|s| s.rows.len() as u32 > TILE_ROWS);
        if is_long && products != Products::Dp4a { Self::Mma } else { Self::Dp4a }
    }

    const fn tile_rows(self) -> u32 {
        match self {
            Self::Dp4a => TILE_ROWS,
            Self::Mma => TENSOR_TILE_ROWS,
        }
    }
}

impl AttentionShape {
    /// Of an attention.
    pub fn of(heads: &Heads) -> Self {
        Self { heads: heads.heads.into(), head_dim: heads.head_dim.into(), causal: heads.causal }
    }

    /// Bytes of one partial: the sums of a head, its reference and its sum of weights.
    pub const fn slot_bytes(&self) -> u64 {
        8 * self.head_dim as u64 + 8
    }
}

/// The rows of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceRows {
    /// Among all rows of the pass.
    pub rows: Range<u32>,
    /// Position of the first.
    pub start: u32,
    /// Entry of the sequence's first softmax block among all key blocks.
    pub table: u32,
}

impl SequenceRows {
    pub(super) const fn length(&self) -> u32 {
        self.start + (self.rows.end - self.rows.start)
    }
}

/// Rows whose partials are in memory at the same time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttentionChunk {
    /// One block of threads for each, and head.
    pub tiles: Vec<AttentionTile>,
    /// One for each row.
    pub rows: Vec<RowPartials>,
    /// Partials.
    pub slots: u32,
}

/// Cuts the rows into chunks whose partials take at most `budget` bytes, or what one tile takes.
pub fn attention_chunks(
    units: AttentionUnits,
    shape: AttentionShape,
    sequences: &[SequenceRows],
    budget: u64,
) -> Vec<AttentionChunk> {
    let tile_rows = units.tile_rows();
    let most = (budget / shape.slot_bytes()).min(u64::from(u32::MAX));
    let mut chunks: Vec<AttentionChunk> = Vec::new();
    for sequence in sequences {
        for first in sequence.rows.clone().step_by(tile_rows as usize) {
            let rows = tile_rows.min(sequence.rows.end - first);
            let position = sequence.start + first - sequence.rows.start;
            let visible = if shape.causal { position + rows } else { sequence.length() };
            let row_slots = visible.div_ceil(BLOCK) * shape.heads;
            let needed = u64::from(row_slots) * u64::from(rows);
            if chunks.last().is_none_or(|chunk| u64::from(chunk.slots) + needed > most) {
                chunks.push(AttentionChunk::default());
            }
            let chunk = chunks.last_mut().expect("just made if there was none");
            for block in 0..visible.div_ceil(BLOCK) {
                let (length, table, slot) = (sequence.length(), sequence.table + block, chunk.slots);
                chunk.tiles.push(AttentionTile { row: first, rows, position, length, block, table, slot, row_slots });
            }
            for r in 0..rows {
                let seen = if shape.causal { position + r + 1 } else { visible };
                let slot = chunk.slots + r * row_slots;
                chunk.rows.push(RowPartials { row: first + r, slot, blocks: seen.div_ceil(BLOCK), unused: 0 });
            }
            chunk.slots += needed as u32;
        }
    }
    chunks
}

/// Partials of the tiles of a chunk.
pub fn block(units: AttentionUnits, tiles: u32, params: AttentionParams) -> Launch {
    let kernel = match units {
        AttentionUnits::Dp4a => "attention_block",
        AttentionUnits::Mma => "attention_block_mma",
    };
    Launch::new(kernel, BLOCK_THREADS, [tiles, params.heads], params)
}

/// The rows of a chunk, from their partials.
pub fn combine(rows: u32, params: CombineParams) -> Launch {
    Launch::new("attention_combine", BLOCK_THREADS, [rows, params.heads], params)
}
