//! Attention of few rows, as in decoding: keys and values are read where they lie, once for all query heads that share them,
//! rather than packed for many rows (SPEC 5.7). The softmax blocks of a row are pieces of work of their own.

use super::attention::clamped_scores;
use super::isa::words::{Lines, dots, weighted};
use super::softmax::{BlockSums, Combined, weigh};
use super::{CpuKernels, Isa};
use crate::host::{AttentionArgs, HeadBlock};
use crate::program::Heads;
use crate::reference::attention::BLOCK;

/// Most rows of a sequence in one pass for which packing its keys and values does not pay.
pub(super) const FEW: usize = 4;

/// Values that are asked for while weights are made of scores.
const SOON: usize = 64;

/// The query heads of one row that share a head of keys and values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    sequence: usize,
    row: usize,
    kv: usize,
}

impl Place {
    /// Where its queries and its results start, which lie alike.
    fn start(self, heads: &Heads) -> usize {
        (self.row * usize::from(heads.kv_heads) + self.kv) * width(heads)
    }
}

/// Elements of the query heads that share keys and values, in one row.
fn width(heads: &Heads) -> usize {
    usize::from(heads.heads / heads.kv_heads) * usize::from(heads.head_dim)
}

/// A place with the sums of its softmax blocks.
pub(super) struct Group {
    pub(super) at: Place,
    pub(super) combined: Combined,
}

/// All groups of sequences that have few rows, in order of their results.
pub(super) fn groups(args: &AttentionArgs<'_>) -> Vec<Group> {
    let (kv_heads, dim) = (usize::from(args.heads.kv_heads), usize::from(args.heads.head_dim));
    let mut groups = Vec::new();
    for (i, sequence) in args.sequences.iter().enumerate().filter(|(_, sequence)| sequence.rows.len() <= FEW) {
        for row in sequence.rows.clone() {
            let blocks = sequence.visible(row, args.heads).div_ceil(BLOCK);
            let group = |kv| Group {
                at: Place { sequence: i, row, kv },
                combined: Combined::of_blocks(width(args.heads) / dim, dim, blocks),
            };
            groups.extend((0..kv_heads).map(group));
        }
    }
    groups
}

/// One softmax block of a group. Returns the number of clamped scores.
pub(super) fn block(isa: Isa, args: &AttentionArgs<'_>, at: Place, block: usize, sums: BlockSums<'_>) -> u64 {
    let (heads, sequence) = (args.heads, &args.sequences[at.sequence]);
    let dim = usize::from(heads.head_dim);
    let count = (sequence.visible(at.row, heads) - block * BLOCK).min(BLOCK);
    let HeadBlock { keys, values, start, stride } = sequence.keys.block(block, at.kv, heads);
    let [keys, values] = [keys, values].map(|codes| Lines::new(&codes[start..], stride, dim, count));
    let queries = &args.q[at.start(heads)..][..width(heads)];
    let group = queries.len() / dim;
    let mut products = vec![[0; BLOCK]; group];
    dots(isa, queries, keys, &mut products);
    values.prefetch(0..SOON);
    let (mut scores, mut weights) = ([0; BLOCK], vec![[0; BLOCK]; group]);
    let mut clamped = 0;
    for (g, (products, weights)) in products.iter().zip(&mut weights).enumerate() {
        let shift = heads.score_shift[at.kv * group + g];
        let (scores, seen) = (&mut scores[..count], &mut weights[..count]);
        clamped += clamped_scores(isa, &products[..count], shift.into(), scores);
        sums.references[g] = Some(weigh(isa, scores, seen));
        sums.weights[g] = seen.iter().map(|w| i64::from(*w)).sum();
    }
    weighted(isa, &weights, values, sums.values);
    clamped
}

/// Brings the blocks of all groups together.
pub(super) fn finish(cpu: &CpuKernels, args: &AttentionArgs<'_>, mut groups: Vec<Group>, out: &mut [i32]) {
    let (width, dim) = (width(args.heads), usize::from(args.heads.head_dim));
    let (mut rest, mut done) = (out, 0);
    let mut with_results = Vec::new();
    for group in &mut groups {
        let start = group.at.start(args.heads);
        let (own, tail) = rest.split_at_mut(start - done).1.split_at_mut(width);
        (rest, done) = (tail, start + width);
        with_results.push((group, own));
    }
    let piece = cpu.threads.piece(with_results.len(), width);
    cpu.threads.each(with_results.chunks_mut(piece).collect(), |groups| {
        for (group, out) in groups {
            for (g, out) in out.chunks_exact_mut(dim).enumerate() {
                let shift = args.heads.value_shift[group.at.kv * (width / dim) + g];
                group.combined.finish(cpu.isa, g, shift.into(), out);
            }
        }
        0
    });
}
