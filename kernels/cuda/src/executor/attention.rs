//! Attention over the keys and values of a pass, and those of earlier ones where there are caches.

use std::sync::Arc;

use lockstep_kernels::backend::BackendError;
use lockstep_kernels::pass::Pass;
use lockstep_kernels::program::{Heads, Op, Program};

use super::pages::BLOCK;
use super::planner::Planner;
use super::{DeviceExecutor, Inputs};
use crate::backend::Products;
use crate::device::{Buffer, Device, DeviceError};
use crate::params::{AttentionParams, CombineParams, KeyBlock};
use crate::plan::{self, AttentionChunk, AttentionShape, AttentionUnits, Launch, SequenceRows};

/// Memory for the partials of the rows that are computed together.
const PARTIAL_BYTES: u64 = 256 << 20;

/// How the rows of a pass are cut for attentions of one shape, on the device: the same in all layers.
pub(super) struct Cut {
    shape: AttentionShape,
    units: AttentionUnits,
    chunks: Vec<Chunk>,
    partials: Partials<Buffer>,
}

/// Tiles of a chunk, and its rows.
struct Chunk {
    tiles: Buffer,
    tile_count: u32,
    rows: Buffer,
    row_count: u32,
}

impl Cut {
    /// For each shape of attention that the program has.
    pub(super) fn all(
        device: &Arc<dyn Device>,
        products: Products,
        program: &Program,
        pass: &Pass,
    ) -> Result<Vec<Self>, DeviceError> {
        let mut shapes: Vec<AttentionShape> = Vec::new();
        for op in program.layers.iter().flat_map(|layer| &layer.ops) {
            if let Op::Attention { heads, .. } = op
                && !shapes.contains(&AttentionShape::of(heads))
            {
                shapes.push(AttentionShape::of(heads));
            }
        }
        shapes.into_iter().map(|shape| Self::new(device, products, shape, pass)).collect()
    }

    fn new(
        device: &Arc<dyn Device>,
        products: Products,
        shape: AttentionShape,
        pass: &Pass,
    ) -> Result<Self, DeviceError> {
        let (mut sequences, mut table) = (Vec::new(), 0);
        for (sequence, span) in pass.batch.sequences.iter().zip(&pass.spans) {
            let (rows, start) = (span.start as u32..span.end as u32, sequence.start as u32);
            sequences.push(SequenceRows { rows, start, table });
            table += sequence.tokens.len().div_ceil(BLOCK) as u32;
        }
        let units = AttentionUnits::choose(products, &sequences);
        let chunks = plan::attention_chunks(units, shape, &sequences, PARTIAL_BYTES);
        let most = chunks.iter().map(|c| c.slots as usize).max().unwrap_or(0);
        let upload = |chunk: &AttentionChunk| {
            let (tile_count, row_count) = (chunk.tiles.len() as u32, chunk.rows.len() as u32);
            let (tiles, rows) = (Buffer::of(device, &chunk.tiles)?, Buffer::of(device, &chunk.rows)?);
            Ok(Chunk { tiles, tile_count, rows, row_count })
        };
        Ok(Self {
            shape,
            units,
            chunks: chunks.iter().map(upload).collect::<Result<_, DeviceError>>()?,
            partials: Partials::new(device, &shape, most)?,
        })
    }
}

/// Where an attention over some rows finds all but its tensors.
pub(super) struct AttentionPlaces {
    pub blocks: u64,
    pub tiles: u64,
    pub tile_count: u32,
    pub rows: u64,
    pub row_count: u32,
    pub partials: Partials<u64>,
}

/// Partials: weighted sums, references and sums of weights.
pub(super) struct Partials<T> {
    pub sums: T,
    pub reference: T,
    pub weight: T,
}

impl Partials<Buffer> {
    /// Room for as many.
    pub fn new(device: &Arc<dyn Device>, shape: &AttentionShape, slots: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            sums: Buffer::new(device, slots * 8 * shape.head_dim as usize)?,
            reference: Buffer::new(device, slots * 4)?,
            weight: Buffer::new(device, slots * 4)?,
        })
    }

    pub fn places(&self) -> Partials<u64> {
        let [sums, reference, weight] = [&self.sums, &self.reference, &self.weight].map(Buffer::address);
        Partials { sums, reference, weight }
    }
}

impl Planner<'_> {
    /// An attention over some rows of the pass: partials, and what is made of them.
    pub fn attention(&self, op: &Op, units: AttentionUnits, at: &AttentionPlaces) -> [Launch; 2] {
        let Op::Attention { q, heads, out, .. } = op else { unreachable!("only called for attention") };
        let Partials { sums, reference, weight } = at.partials;
        let AttentionShape { heads: of_heads, head_dim, .. } = AttentionShape::of(heads);
        let block = AttentionParams {
            q: self.values.at(*q),
            blocks: at.blocks,
            tiles: at.tiles,
            score_shift: self.weights.bytes_at(&heads.score_shift),
            sums,
            reference,
            weight,
            saturations: self.saturations,
            heads: of_heads,
            kv_heads: heads.kv_heads.into(),
            head_dim,
            causal: heads.causal.into(),
        };
        let combine = CombineParams {
            rows: at.rows,
            sums,
            reference,
            weight,
            value_shift: self.weights.bytes_at(&heads.value_shift),
            out: self.values.at(*out),
            heads: of_heads,
            head_dim,
        };
        [plan::block(units, at.tile_count, block), plan::combine(at.row_count, combine)]
    }
}

impl DeviceExecutor {
    /// All rows of the pass, chunk by chunk.
    pub(super) fn attention(&self, inputs: &Inputs, op: &Op, line: usize) -> Result<(), BackendError> {
        let Op::Attention { heads, .. } = op else { unreachable!("only called for attention") };
        let blocks = Buffer::of(&self.device, &self.key_blocks(op, line))?;
        let shape = AttentionShape::of(heads);
        let cut = inputs.cuts.iter().find(|cut| cut.shape == shape).expect("one for each shape of the program");
        for chunk in &cut.chunks {
            let places = AttentionPlaces {
                blocks: blocks.address(),
                tiles: chunk.tiles.address(),
                tile_count: chunk.tile_count,
                rows: chunk.rows.address(),
                row_count: chunk.row_count,
                partials: cut.partials.places(),
            };
            let launches = self.planner(inputs).attention(op, cut.units, &places);
            launches.iter().try_for_each(|launch| self.device.launch(launch))?;
        }
        Ok(())
    }

    /// Where the softmax blocks of the sequences' keys and values are.
    pub(super) fn key_blocks(&self, op: &Op, line: usize) -> Vec<KeyBlock> {
        let Op::Attention { k, v, heads, .. } = op else { unreachable!("only called for attention") };
        let mut blocks = Vec::new();
        for (sequence, span) in self.pass.batch.sequences.iter().zip(&self.pass.spans) {
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
        blocks
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
