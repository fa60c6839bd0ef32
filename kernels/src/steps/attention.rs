//! Attention: values by block, scores, references, weights and weighted sums of key blocks, the mean (SPEC 24.12).

use std::ops::Range;
use std::sync::Arc;

use super::lower::Lowering;
use super::view::{Activation, Data, View};
use super::{At, Lowered, Part, PlanError, Read, Width};
use crate::program::Heads;
use crate::reference::attention::{BLOCK, aligned, block_reference, mean, score, weight};

const BLOCK_KEYS: u64 = BLOCK as u64;

#[derive(Debug)]
struct Attention {
    q: View,
    k: View,
    v: View,
    heads: Heads,
    /// The disputed row.
    row: u64,
    /// Keys that it sees.
    keys: u64,
    values: View,
    scores: View,
    maxima: View,
    weights: View,
    partials: View,
}

pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    [q, k, v]: [View; 3],
    heads: &Heads,
) -> Result<(Activation, Arc<dyn Lowered>), PlanError> {
    let row = lowering.place.row;
    let keys = if heads.causal { row + 1 } else { lowering.place.positions };
    let blocks = keys.div_ceil(BLOCK_KEYS);
    let [h, kv, dim] = [heads.heads, heads.kv_heads, heads.head_dim].map(u64::from);
    let values = lowering.block(Part::Values, [blocks * kv, dim * BLOCK_KEYS], Width::I16)?;
    let scores = lowering.block(Part::Scores, [h, keys], Width::I32)?;
    let maxima = lowering.block(Part::Maxima, [h, blocks], Width::I32)?;
    let weights = lowering.block(Part::Weights, [h, blocks], Width::I64)?;
    let partials = lowering.block(Part::Partials, [h * dim, blocks], Width::I64)?;
    let out = lowering.rows(Part::Out, h * dim, Width::I32)?;
    let heads = heads.clone();
    let op = Attention { q, k, v, heads, row, keys, values, scores, maxima, weights, partials };
    Ok((Activation::Plain(out), Arc::new(op)))
}

impl Attention {
    fn dim(&self) -> u64 {
        self.heads.head_dim.into()
    }

    fn blocks(&self) -> u64 {
        self.keys.div_ceil(BLOCK_KEYS)
    }

    /// The key and value head that a query head reads.
    fn kv(&self, head: u64) -> u64 {
        head / u64::from(self.heads.heads / self.heads.kv_heads)
    }

    /// Keys of a block that the row sees.
    fn block(&self, block: u64) -> Range<u64> {
        block * BLOCK_KEYS..self.keys.min((block + 1) * BLOCK_KEYS)
    }

    /// Columns of a head in queries, keys and values.
    fn columns(&self, head: u64) -> Range<u64> {
        head * self.dim()..(head + 1) * self.dim()
    }

    fn value(&self, at: At) -> Vec<Read> {
        let kv_heads = u64::from(self.heads.kv_heads);
        let (block, head) = (at.row / kv_heads, at.row % kv_heads);
        let (channel, key) = (at.col / BLOCK_KEYS, block * BLOCK_KEYS + at.col % BLOCK_KEYS);
        if key < self.keys { vec![self.v.one(key, head * self.dim() + channel)] } else { Vec::new() }
    }

    /// Scores, reference and values of a block, from which its weighted sum for a channel follows.
    fn partial(&self, at: At) -> Vec<Read> {
        let (head, channel, block) = (at.row / self.dim(), at.row % self.dim(), at.col);
        let keys = self.block(block);
        let first = channel * BLOCK_KEYS;
        let row = block * u64::from(self.heads.kv_heads) + self.kv(head);
        vec![
            self.values.read(row, first..first + keys.end - keys.start),
            self.scores.read(head, keys),
            self.maxima.one(head, block),
        ]
    }
}

/// Softmax weights of a block, from reads of its scores and its reference.
fn block_weights(data: Data<'_>, scores: usize) -> impl Iterator<Item = i64> {
    let reference = i64::from(data.i32(scores + 1));
    data.i32s(scores).map(move |score| weight(reference, score).into())
}

impl Lowered for Attention {
    fn reads(&self, part: Part, at: At) -> Vec<Read> {
        match part {
            Part::Values => self.value(at),
            Part::Scores => {
                vec![self.q.read(self.row, self.columns(at.row)), self.k.read(at.col, self.columns(self.kv(at.row)))]
            }
            Part::Maxima => vec![self.scores.read(at.row, self.block(at.col))],
            Part::Weights => vec![self.scores.read(at.row, self.block(at.col)), self.maxima.one(at.row, at.col)],
            Part::Partials => self.partial(at),
            _ => {
                let (head, blocks) = (at.col / self.dim(), 0..self.blocks());
                vec![
                    self.partials.read(at.col, blocks.clone()),
                    self.weights.read(head, blocks.clone()),
                    self.maxima.read(head, blocks),
                ]
            }
        }
    }

    fn evaluate(&self, part: Part, at: At, data: Data<'_>) -> i64 {
        match part {
            Part::Values => data.i16(0).into(),
            Part::Scores => {
                let shift = self.heads.score_shift[at.row as usize];
                score(data.i16s(0), data.i16s(1), shift).0.into()
            }
            Part::Maxima => block_reference(data.i32s(0)),
            Part::Weights => block_weights(data, 0).sum(),
            Part::Partials => block_weights(data, 1).zip(data.i16s(0)).map(|(w, v)| w * i64::from(v)).sum(),
            _ => {
                let row = data.i32s(2).map(i64::from).max().unwrap_or(0);
                let total = |read| {
                    let blocks = data.i64s(read).zip(data.i32s(2));
                    blocks.fold(0_i64, |sum, (v, own)| sum.wrapping_add(aligned(v, row - i64::from(own))))
                };
                let shift = self.heads.value_shift[(at.col / self.dim()) as usize];
                mean(total(0), total(1), shift).into()
            }
        }
    }

    fn chunks(&self, part: Part) -> u64 {
        let block = self.keys.min(BLOCK_KEYS);
        let blocks = self.blocks();
        match part {
            Part::Values => self.v.chunks(1),
            Part::Scores => self.q.chunks(self.dim()) + self.k.chunks(self.dim()),
            Part::Maxima => self.scores.chunks(block),
            Part::Weights => self.scores.chunks(block) + self.maxima.chunks(1),
            Part::Partials => self.values.chunks(block) + self.scores.chunks(block) + self.maxima.chunks(1),
            _ => self.partials.chunks(blocks) + self.weights.chunks(blocks) + self.maxima.chunks(blocks),
        }
    }
}
