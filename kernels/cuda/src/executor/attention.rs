//! Attention over the keys and values of a pass, and those of earlier ones where there are caches.

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::program::{Heads, Op};

use super::DeviceExecutor;
use super::pages::BLOCK;
use crate::device::Buffer;
use crate::params::{AttentionParams, CombineParams, KeyBlock};
use crate::plan::{self, AttentionChunk, AttentionShape, SequenceRows};

/// Memory for the partials of the rows that are computed together.
const PARTIAL_BYTES: u64 = 256 << 20;

/// Memory for the partials of a chunk.
struct Partials {
    sums: Buffer,
    reference: Buffer,
    weight: Buffer,
}

impl DeviceExecutor {
    pub(super) fn attention(&self, op: &Op, line: usize) -> Result<(), BackendError> {
        let Op::Attention { heads, .. } = op else { unreachable!("only called for attention") };
        let (sequences, blocks) = self.key_blocks(op, line);
        let shape = AttentionShape { heads: heads.heads.into(), head_dim: heads.head_dim.into(), causal: heads.causal };
        let blocks = Buffer::of(&self.device, &blocks)?;
        let score_shift = Buffer::of(&self.device, &heads.score_shift)?;
        let value_shift = Buffer::of(&self.device, &heads.value_shift)?;
        let chunks = plan::attention_chunks(shape, &sequences, PARTIAL_BYTES);
        let most = chunks.iter().map(|c| c.slots as usize).max().unwrap_or(0);
        let partials = Partials {
            sums: Buffer::new(&self.device, most * 8 * usize::from(heads.head_dim))?,
            reference: Buffer::new(&self.device, most * 4)?,
            weight: Buffer::new(&self.device, most * 4)?,
        };
        for chunk in &chunks {
            self.attend(op, chunk, &partials, [&blocks, &score_shift, &value_shift])?;
        }
        Ok(())
    }

    /// The rows of one chunk.
    fn attend(
        &self,
        op: &Op,
        chunk: &AttentionChunk,
        partials: &Partials,
        [blocks, score_shift, value_shift]: [&Buffer; 3],
    ) -> Result<(), BackendError> {
        let Op::Attention { q, heads, out, .. } = op else { unreachable!("only called for attention") };
        let tiles = Buffer::of(&self.device, &chunk.tiles)?;
        let rows = Buffer::of(&self.device, &chunk.rows)?;
        let (sums, reference, weight) =
            (partials.sums.address(), partials.reference.address(), partials.weight.address());
        let (of_heads, head_dim) = (u32::from(heads.heads), u32::from(heads.head_dim));
        let params = AttentionParams {
            q: self.values.at(*q),
            blocks: blocks.address(),
            tiles: tiles.address(),
            score_shift: score_shift.address(),
            sums,
            reference,
            weight,
            saturations: self.saturations.address(),
            heads: of_heads,
            kv_heads: heads.kv_heads.into(),
            head_dim,
            causal: heads.causal.into(),
        };
        self.device.launch(&plan::block(chunk.tiles.len() as u32, params))?;
        let params = CombineParams {
            rows: rows.address(),
            sums,
            reference,
            weight,
            value_shift: value_shift.address(),
            out: self.values.at(*out),
            heads: of_heads,
            head_dim,
        };
        Ok(self.device.launch(&plan::combine(chunk.rows.len() as u32, params))?)
    }

    /// The rows of each sequence, and where the softmax blocks of their keys and values are.
    fn key_blocks(&self, op: &Op, line: usize) -> (Vec<SequenceRows>, Vec<KeyBlock>) {
        let Op::Attention { k, v, heads, .. } = op else { unreachable!("only called for attention") };
        let (mut sequences, mut blocks) = (Vec::new(), Vec::new());
        for (sequence, span) in self.pass.batch.sequences.iter().zip(&self.pass.spans) {
            let rows = span.start as u32..span.end as u32;
            sequences.push(SequenceRows { rows, start: sequence.start as u32, table: blocks.len() as u32 });
            match sequence.cache {
                None => blocks.extend(blocks_of_rows(heads, [self.values.at(*k), self.values.at(*v)], span)),
                Some(id) => {
                    let dim = u32::from(heads.head_dim);
                    blocks.extend(self.caches.pages(id, line).iter().map(|page| {
                        let (keys, values) = page.data().at();
                        KeyBlock { keys, values, position_stride: dim, head_stride: BLOCK as u32 * dim }
                    }));
                }
            }
        }
        (sequences, blocks)
    }
}

/// Softmax blocks of a whole sequence whose keys and values are the rows `span` of these tensors.
fn blocks_of_rows(heads: &Heads, [k, v]: [u64; 2], span: &std::ops::Range<usize>) -> Vec<KeyBlock> {
    let width = usize::from(heads.kv_heads) * usize::from(heads.head_dim);
    let block = |b: usize| {
        let offset = ((span.start + b * BLOCK) * width * size_of::<i16>()) as u64;
        let (position_stride, head_stride) = (width as u32, heads.head_dim.into());
        KeyBlock { keys: k + offset, values: v + offset, position_stride, head_stride }
    };
    (0..span.len().div_ceil(BLOCK)).map(block).collect()
}
