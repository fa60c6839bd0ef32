//! Scaled dot-product attention with block-wise exact softmax (SPEC 5.7).

use std::ops::Range;

use super::isa::{Block, MAX_ROWS, MAX_TILES, Sums, block_shape, product};
use super::packed::{PackedMatrix, PackedRows, TILE};
use super::path::for_each_path;
use super::softmax::{Combined, Reference, weigh};
use super::{CpuKernels, Isa};
use crate::host::AttentionArgs;
use crate::reference::attention::BLOCK;

/// Query rows in one piece of work: a multiple of every block's rows.
const PIECE: usize = 16;

/// Twin of [`crate::reference::attention::attention`].
pub(super) fn attention(cpu: &CpuKernels, args: AttentionArgs<'_>, out: &mut [i32]) -> u64 {
    let kv_heads = usize::from(args.heads.kv_heads);
    let keys = cpu
        .threads
        .map(args.spans.len() * kv_heads, |i| KeyValues::pack(&args, &args.spans[i / kv_heads], i % kv_heads));
    let width = usize::from(args.heads.heads) * usize::from(args.heads.head_dim);
    let mut pieces = Vec::new();
    let mut rest = out;
    for (s, span) in args.spans.iter().enumerate() {
        for start in span.clone().step_by(PIECE) {
            let rows = start..span.end.min(start + PIECE);
            let (piece, tail) = rest.split_at_mut(rows.len() * width);
            rest = tail;
            pieces.push((s, rows, piece));
        }
    }
    cpu.threads.each(pieces, |(s, rows, out)| {
        let mut saturations = 0;
        for h in 0..usize::from(args.heads.heads) {
            let kv = &keys[s * kv_heads + h / usize::from(args.heads.heads / args.heads.kv_heads)];
            saturations += Piece::new(cpu.isa, &args, &args.spans[s], rows.clone(), h).run(kv, out);
        }
        saturations
    })
}

/// Keys and values of one head in one sequence.
struct KeyValues {
    /// Columns are positions.
    keys: PackedMatrix,
    /// One matrix for each softmax block: columns are channels, the reduction runs over the block's positions.
    values: Vec<PackedMatrix>,
}

impl KeyValues {
    fn pack(args: &AttentionArgs<'_>, span: &Range<usize>, head: usize) -> Self {
        let dim = usize::from(args.heads.head_dim);
        let at = |position: usize| (position * usize::from(args.heads.kv_heads) + head) * dim;
        let keys = PackedMatrix::wide(span.len(), dim, |j, c| args.k[at(span.start + j) + c]);
        let blocks = span.clone().step_by(BLOCK);
        let values = blocks.map(|start| {
            let len = BLOCK.min(span.end - start);
            PackedMatrix::wide(dim, len, |c, j| args.v[at(start + j) + c])
        });
        Self { keys, values: values.collect() }
    }
}

/// Some rows of one query head, with the scratch that they need.
struct Piece<'a> {
    isa: Isa,
    args: &'a AttentionArgs<'a>,
    span: &'a Range<usize>,
    rows: Range<usize>,
    head: usize,
    /// Scores of one block, `[rows][BLOCK]`.
    scores: Vec<i32>,
}

impl<'a> Piece<'a> {
    fn new(isa: Isa, args: &'a AttentionArgs<'a>, span: &'a Range<usize>, rows: Range<usize>, head: usize) -> Self {
        let scores = vec![0; rows.len() * BLOCK];
        Self { isa, args, span, rows, head, scores }
    }

    fn dim(&self) -> usize {
        usize::from(self.args.heads.head_dim)
    }

    /// Keys of block `b` that a row sees.
    fn visible(&self, row: usize, b: usize) -> usize {
        let end = if self.args.heads.causal { row + 1 } else { self.span.end };
        end.saturating_sub(self.span.start + b * BLOCK).min(BLOCK)
    }

    /// `out` is `[rows][heads * dim]`.
    fn run(&mut self, kv: &KeyValues, out: &mut [i32]) -> u64 {
        let (dim, count) = (self.dim(), self.rows.len());
        let width = usize::from(self.args.heads.heads) * dim;
        let mut queries = PackedRows::new(self.isa, count, dim);
        queries.fill(self.isa, |r| {
            let at = (self.rows.start + r) * width + self.head * dim;
            &self.args.q[at..at + dim]
        });
        let blocks = self.visible_blocks();
        let mut combined: Vec<_> = (0..count).map(|_| Combined::new(dim)).collect();
        let mut saturations = 0;
        for (b, values) in kv.values[..blocks].iter().enumerate() {
            saturations += self.score_block(&queries, &kv.keys, b);
            self.weigh_block(values, b, &mut combined);
        }
        let value_shift = u32::from(self.args.heads.value_shift[self.head]);
        for (combined, out) in combined.iter().zip(out.chunks_exact_mut(width)) {
            combined.finish(self.isa, value_shift, &mut out[self.head * dim..(self.head + 1) * dim]);
        }
        saturations
    }

    /// Softmax blocks that the last row sees.
    fn visible_blocks(&self) -> usize {
        let end = if self.args.heads.causal { self.rows.end } else { self.span.end };
        (end - self.span.start).div_ceil(BLOCK)
    }

    /// Scores of one block for every row; returns how many visible ones were clamped.
    fn score_block(&mut self, queries: &PackedRows, keys: &PackedMatrix, b: usize) -> u64 {
        let shift = u32::from(self.args.heads.score_shift[self.head]);
        let (step_rows, step_tiles) = block_shape(self.isa, keys.planes());
        let most = self.visible(self.rows.end - 1, b);
        let (from, to) = (b * BLOCK / TILE, (b * BLOCK + most).div_ceil(TILE));
        let mut sums: Sums = [0; MAX_ROWS * MAX_TILES * TILE];
        let mut saturations = 0;
        for tile in (from..to).step_by(step_tiles) {
            let tiles = step_tiles.min(to - tile);
            for row in (0..queries.rows()).step_by(step_rows) {
                let rows = step_rows.min(queries.rows() - row);
                product(self.isa, queries, keys, Block { row, rows, tile, tiles }, &mut sums);
                for (r, sums) in (row..row + rows).zip(sums.chunks_exact(tiles * TILE)) {
                    let first = (tile - from) * TILE;
                    let seen = self.visible(self.rows.start + r, b).saturating_sub(first).min(tiles * TILE);
                    let out = &mut self.scores[r * BLOCK + first..][..seen];
                    saturations += scores(self.isa, &sums[..seen], keys.offset() * queries.sum(r), shift, out);
                }
            }
        }
        saturations
    }

    /// Turns scores into weights, sums the weighted values, and adds the block to each row's.
    fn weigh_block(&self, values: &PackedMatrix, b: usize, combined: &mut [Combined]) {
        let count = self.rows.len();
        let mut weights = PackedRows::new(self.isa, count, values.steps() * super::packed::STEP);
        let mut references = vec![None; count];
        let mut codes = [0_i16; BLOCK];
        for (r, reference) in references.iter_mut().enumerate() {
            let seen = self.visible(self.rows.start + r, b);
            codes[seen..].fill(0);
            let scores = &self.scores[r * BLOCK..][..seen];
            *reference = (seen > 0).then(|| weigh(self.isa, scores, &mut codes[..seen]));
            weights.set(self.isa, r, &codes);
        }
        let mut totals = vec![0_i64; count * self.padded_dim()];
        self.weighted_sums(&weights, values, &mut totals);
        for (r, sums) in totals.chunks_exact(self.padded_dim()).enumerate() {
            let Some(reference) = references[r] else { continue };
            combined[r].add(Reference(reference), weights.sum(r), &sums[..self.dim()]);
        }
    }

    fn padded_dim(&self) -> usize {
        self.dim().next_multiple_of(TILE)
    }

    /// Exact sums of weight times value, `[rows][padded dim]`.
    fn weighted_sums(&self, weights: &PackedRows, values: &PackedMatrix, totals: &mut [i64]) {
        let (step_rows, step_tiles) = block_shape(self.isa, values.planes());
        let mut sums: Sums = [0; MAX_ROWS * MAX_TILES * TILE];
        for tile in (0..values.tiles()).step_by(step_tiles) {
            let tiles = step_tiles.min(values.tiles() - tile);
            for row in (0..weights.rows()).step_by(step_rows) {
                let rows = step_rows.min(weights.rows() - row);
                product(self.isa, weights, values, Block { row, rows, tile, tiles }, &mut sums);
                for (r, sums) in (row..row + rows).zip(sums.chunks_exact(tiles * TILE)) {
                    let add = values.offset() * weights.sum(r);
                    let out = &mut totals[r * self.padded_dim() + tile * TILE..][..tiles * TILE];
                    offset_row(self.isa, sums, add, out);
                }
            }
        }
    }
}

for_each_path! {
    /// `out[i] = sat32(round((sums[i] + add) / 2^shift))`; returns the number of clamped scores.
    fn scores(sums: &[i64], add: i64, shift: u32, out: &mut [i32]) -> u64 {
        let half = (1_i64 << shift) >> 1;
        let mut saturations = 0_u64;
        for (y, sum) in out.iter_mut().zip(sums) {
            // A dot product of at most 512 codes is below 2^40.
            let score = sum.wrapping_add(add).wrapping_add(half) >> (shift & 63);
            *y = score.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
            saturations = saturations.wrapping_add(u64::from(i64::from(*y) != score));
        }
        saturations
    }
}

for_each_path! {
    fn offset_row(sums: &[i64], add: i64, out: &mut [i64]) {
        for (y, sum) in out.iter_mut().zip(sums) {
            // Sums over a block are below 2^39.
            *y = sum.wrapping_add(add);
        }
    }
}
