//! Scaled dot-product attention with block-wise exact softmax (SPEC 5.7).

use std::ops::Range;

use super::isa::{Block, Multiplier, Sums, block_shape};
use super::packed::{ByColumn, ByRow, PackedMatrix, PackedRows, STEP, TILE};
use super::path::for_each_path;
use super::softmax::{BlockSums, Combined, weigh};
use super::{CpuKernels, Isa, decode};
use crate::host::{AttentionArgs, AttentionRows, HeadBlock};
use crate::program::Heads;
use crate::reference::attention::BLOCK;

/// Query rows in one piece of work: a multiple of every block's rows.
const PIECE: usize = 16;

/// Twin of [`crate::reference::attention::attention`].
pub(super) fn attention(cpu: &CpuKernels, args: AttentionArgs<'_>, out: &mut [i32]) -> u64 {
    let kv_heads = usize::from(args.heads.kv_heads);
    let packed = cpu.threads.map(args.sequences.len() * kv_heads, |i| {
        let sequence = &args.sequences[i / kv_heads];
        let many = sequence.rows.len() > decode::FEW;
        many.then(|| PackedKeyValues::pack(cpu.isa, args.heads, sequence, i % kv_heads))
    });
    let mut groups = decode::groups(&args);
    let clamped = cpu.threads.each(work(&args, &mut groups, out), |work| match work {
        Work::Rows { sequence: s, rows, out } => {
            let mut piece = Piece::new(cpu.isa, &args, &args.sequences[s], rows);
            let packed = packed[s * kv_heads..(s + 1) * kv_heads].iter().flatten();
            packed.enumerate().map(|(kv, packed)| piece.run(kv, packed, out)).sum()
        }
        Work::Block { at, block, sums } => decode::block(cpu.isa, &args, at, block, sums),
    });
    decode::finish(cpu, &args, groups, out);
    clamped
}

/// A piece of work, with where it goes.
enum Work<'a> {
    /// All heads of some rows of a sequence whose keys and values are packed.
    Rows { sequence: usize, rows: Range<usize>, out: &'a mut [i32] },
    /// One softmax block of the query heads of a row that share keys and values.
    Block { at: decode::Place, block: usize, sums: BlockSums<'a> },
}

fn work<'a>(args: &AttentionArgs<'_>, groups: &'a mut [decode::Group], out: &'a mut [i32]) -> Vec<Work<'a>> {
    let width = usize::from(args.heads.heads) * usize::from(args.heads.head_dim);
    let mut work = Vec::new();
    let mut rest = out;
    for (s, sequence) in args.sequences.iter().enumerate() {
        let (own, tail) = rest.split_at_mut(sequence.rows.len() * width);
        rest = tail;
        if sequence.rows.len() > decode::FEW {
            for (start, out) in sequence.rows.clone().step_by(PIECE).zip(own.chunks_mut(PIECE * width)) {
                work.push(Work::Rows { sequence: s, rows: start..start + out.len() / width, out });
            }
        }
    }
    for group in groups {
        let blocks = group.combined.blocks().enumerate();
        work.extend(blocks.map(|(block, sums)| Work::Block { at: group.at, block, sums }));
    }
    work
}

/// Keys and values of one head in one sequence, by softmax block.
struct PackedKeyValues {
    /// Columns are positions.
    keys: Vec<PackedMatrix>,
    /// Columns are channels, the reduction runs over the block's positions.
    values: Vec<PackedMatrix>,
}

impl PackedKeyValues {
    fn pack(isa: Isa, heads: &Heads, sequence: &AttentionRows<'_>, head: usize) -> Self {
        let (dim, positions) = (usize::from(heads.head_dim), sequence.positions());
        let blocks = (0..positions).step_by(BLOCK).enumerate().map(|(b, first)| {
            let HeadBlock { keys, values, start, stride } = sequence.keys.block(b, head, heads);
            let len = BLOCK.min(positions - first);
            let keys = ByRow { codes: keys, start, stride, rows: len, cols: dim };
            let values = ByColumn { codes: values, start, stride, rows: dim, cols: len };
            (PackedMatrix::wide(isa, len, dim, &keys), PackedMatrix::wide(isa, dim, len, &values))
        });
        let (keys, values) = blocks.unzip();
        Self { keys, values }
    }
}

/// Some rows of a sequence, with the scratch that one head after the other needs.
struct Piece<'a> {
    isa: Isa,
    multiplier: Multiplier,
    args: &'a AttentionArgs<'a>,
    sequence: &'a AttentionRows<'a>,
    rows: Range<usize>,
    queries: PackedRows,
    /// Scores of one block, `[rows][BLOCK]`.
    scores: Vec<i32>,
    /// Softmax weights of one block.
    weights: PackedRows,
    combined: Combined,
}

impl<'a> Piece<'a> {
    fn new(isa: Isa, args: &'a AttentionArgs<'a>, sequence: &'a AttentionRows<'a>, rows: Range<usize>) -> Self {
        let (dim, count) = (usize::from(args.heads.head_dim), rows.len());
        Self {
            isa,
            multiplier: Multiplier::new(isa),
            args,
            sequence,
            rows,
            queries: PackedRows::new(isa, count, dim),
            scores: vec![0; count * BLOCK],
            weights: PackedRows::new(isa, count, BLOCK.min(sequence.positions())),
            combined: Combined::new(count, dim.next_multiple_of(TILE)),
        }
    }

    /// Positions of softmax block `b` that a row sees.
    fn visible(&self, row: usize, b: usize) -> usize {
        self.sequence.visible(row, self.args.heads).saturating_sub(b * BLOCK).min(BLOCK)
    }

    fn dim(&self) -> usize {
        usize::from(self.args.heads.head_dim)
    }

    /// The query heads that read key and value head `kv`; `out` is `[rows][heads * dim]`.
    fn run(&mut self, kv: usize, packed: &PackedKeyValues, out: &mut [i32]) -> u64 {
        let group = usize::from(self.args.heads.heads / self.args.heads.kv_heads);
        (kv * group..(kv + 1) * group).map(|head| self.head(head, packed, out)).sum()
    }

    /// One query head.
    fn head(&mut self, head: usize, kv: &PackedKeyValues, out: &mut [i32]) -> u64 {
        let dim = self.dim();
        let width = usize::from(self.args.heads.heads) * dim;
        let (q, first) = (self.args.q, self.rows.start);
        self.queries.fill(self.isa, |r| &q[(first + r) * width + head * dim..][..dim]);
        self.combined.clear();
        let mut saturations = 0;
        let blocks = self.sequence.visible(self.rows.end - 1, self.args.heads).div_ceil(BLOCK);
        for (b, (keys, values)) in kv.keys.iter().zip(&kv.values).take(blocks).enumerate() {
            saturations += self.score_block(keys, b, u32::from(self.args.heads.score_shift[head]));
            self.weigh_block(values, b);
        }
        let value_shift = u32::from(self.args.heads.value_shift[head]);
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            self.combined.finish(self.isa, r, value_shift, &mut out[head * dim..(head + 1) * dim]);
        }
        saturations
    }

    /// Scores of one block for every row; returns how many visible ones were clamped.
    fn score_block(&mut self, keys: &PackedMatrix, b: usize, shift: u32) -> u64 {
        let (step_rows, step_tiles) = block_shape(self.isa, keys.planes(), self.rows.len());
        let most = self.visible(self.rows.end - 1, b);
        let end = most.div_ceil(TILE);
        let mut sums = Sums::new(self.isa, keys, self.rows.len());
        let mut saturations = 0;
        for tile in (0..end).step_by(step_tiles) {
            let tiles = step_tiles.min(end - tile);
            for row in (0..self.rows.len()).step_by(step_rows) {
                let rows = step_rows.min(self.rows.len() - row);
                self.multiplier.product(&self.queries, keys, Block { row, rows, tile, tiles }, &mut sums);
                for r in row..row + rows {
                    let lack = PackedMatrix::WIDE_OFFSET * self.queries.sum(r);
                    let seen = self.visible(self.rows.start + r, b);
                    for c in tile..tile + tiles {
                        let limbs = sums.tile((r - row) * tiles + c - tile);
                        let out =
                            self.scores[r * BLOCK + c * TILE..].first_chunk_mut().expect("a block is whole tiles");
                        if !scores(self.isa, limbs, keys.correction(c), lack, shift, out) {
                            let seen = seen.saturating_sub(c * TILE).min(TILE);
                            let mut sums = [0; TILE];
                            exact(self.isa, limbs, keys.correction(c), lack, &mut sums);
                            saturations += clamped_scores(self.isa, &sums[..seen], shift, &mut out[..seen]);
                        }
                    }
                }
            }
        }
        saturations
    }

    /// Turns scores into weights, and adds the block's sums of weighted values to those of the blocks before.
    fn weigh_block(&mut self, values: &PackedMatrix, b: usize) {
        let width = values.steps() * STEP;
        self.weights.resize(self.isa, width);
        let block = self.combined.push();
        let mut codes = [0_i16; BLOCK];
        for r in 0..self.rows.len() {
            let row = self.rows.start + r;
            let seen = self.sequence.visible(row, self.args.heads).saturating_sub(b * BLOCK).min(BLOCK);
            codes[seen..].fill(0);
            let scores = &self.scores[r * BLOCK..][..seen];
            if seen > 0 {
                block.references[r] = Some(weigh(self.isa, scores, &mut codes[..seen]));
            }
            self.weights.set(self.isa, r, &codes[..width]);
            block.weights[r] = self.weights.sum(r);
        }
        let (step_rows, step_tiles) = block_shape(self.isa, values.planes(), self.rows.len());
        let mut sums = Sums::new(self.isa, values, self.rows.len());
        for tile in (0..values.tiles()).step_by(step_tiles) {
            let tiles = step_tiles.min(values.tiles() - tile);
            for row in (0..self.rows.len()).step_by(step_rows) {
                let rows = step_rows.min(self.rows.len() - row);
                self.multiplier.product(&self.weights, values, Block { row, rows, tile, tiles }, &mut sums);
                for r in row..row + rows {
                    let out = &mut block.values[r * block.cols + tile * TILE..][..tiles * TILE];
                    let lack = PackedMatrix::WIDE_OFFSET * block.weights[r];
                    for (c, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                        let sums = sums.tile((r - row) * tiles + c);
                        exact(self.isa, sums, values.correction(tile + c), lack, out);
                    }
                }
            }
        }
    }
}

for_each_path! {
    /// Scores `round(sum / 2^shift)` of one row and tile. Tells whether all of them fit; where they do not, `out` has no
    /// meaning.
    fn scores(limbs: &[[i32; TILE]; 3], correction: &[i64; TILE], lack: i64, shift: u32, out: &mut [i32; TILE]) -> bool {
        let half = (1_i64 << shift) >> 1;
        let mut outside = false;
        for (c, out) in out.iter_mut().enumerate() {
            let score = exact_sum(limbs, correction, lack, c).wrapping_add(half) >> (shift & 63);
            outside |= (score < i64::from(i32::MIN)) | (score > i64::from(i32::MAX));
            *out = score as i32;
        }
        !outside
    }
}

for_each_path! {
    /// The exact sums of one row and tile, of two-digit columns; see [`Sums`].
    fn exact(limbs: &[[i32; TILE]; 3], correction: &[i64; TILE], lack: i64, sums: &mut [i64; TILE]) {
        for (c, sum) in sums.iter_mut().enumerate() {
            *sum = exact_sum(limbs, correction, lack, c);
        }
    }
}

/// A sum over a head or a block: below 2^40.
#[inline(always)]
fn exact_sum(limbs: &[[i32; TILE]; 3], correction: &[i64; TILE], lack: i64, c: usize) -> i64 {
    let sum = limbs.iter().fold(0_i64, |sum, limb| (sum << 8).wrapping_add(i64::from(limb[c])));
    sum.wrapping_add(correction[c]).wrapping_add(lack)
}

for_each_path! {
    /// `out[i] = sat32(round(sums[i] / 2^shift))`; returns the number of clamped scores.
    pub(super) fn clamped_scores(sums: &[i64], shift: u32, out: &mut [i32]) -> u64 {
        let half = (1_i64 << shift) >> 1;
        let mut saturations = 0_u64;
        for (y, sum) in out.iter_mut().zip(sums) {
            // A dot product of at most 512 codes is below 2^40.
            let score = sum.wrapping_add(half) >> (shift & 63);
            *y = score.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
            saturations = saturations.wrapping_add(u64::from(i64::from(*y) != score));
        }
        saturations
    }
}
