//! Passes that make one word for each of a few sequences: all their layers are launched at once, with what the host tells them
//! and what they tell the host in one buffer, so that a word takes one upload, one start and one wait.
//!
//! Whatever changes from word to word is in that buffer, and none of it in the launches: they are the same for all passes of one
//! [`DecodeShape`], and may be recorded once and started again.

use std::collections::BTreeSet;

use bytemuck::Pod;
use lockstep_kernels::pass::Pass;
use lockstep_kernels::program::{EmbedIndex, Op, Program, Rows, TensorKind};
use lockstep_kernels::value::Batch;

use super::attention::{AttentionShape, AttentionUnits, BLOCK, SequenceRows, attention_chunks};
use super::sample::{MOST_POINTS, SamplePoints};
use super::{Launch, Node};
use crate::params::{AppendRow, AttentionTile, KeyBlock, RowPartials, SamplePoint};

/// Most bytes that the partials of an attention take.
const MOST_PARTIAL_BYTES: u64 = 256 << 20;
/// Fewest softmax blocks, and words of histories, that a shape has room for. Beyond, room doubles.
const LEAST_BLOCKS: usize = 8;
const LEAST_WORDS: usize = 256;
/// Elements of a chunk that is hashed.
const CHUNK: u32 = 256;
/// What every place in the buffer is aligned to.
const ALIGNMENT: usize = 16;

/// What such a pass needs to know of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeProgram {
    /// Number of layers.
    pub layers: usize,
    /// Layers whose outputs are kept apart from each other and hashed: those with a row of `i32` for each position, as wide as
    /// the first of them.
    pub kept: Vec<usize>,
    /// Elements of their rows.
    pub cols: u32,
    /// Each shape of attention once.
    pub shapes: Vec<AttentionShape>,
    /// The shape of each attention, in the order of the program.
    pub lines: Vec<usize>,
    /// Fractional bits of the logits that words are sampled from.
    pub frac: u8,
}

impl DecodeProgram {
    /// None of a program whose last layer does not end with its only sampling, or that reads what it has not written.
    pub fn of(program: &Program) -> Option<Self> {
        let ops = || program.layers.iter().flat_map(|layer| &layer.ops);
        let mut samples =
            ops().filter_map(|op| if let Op::Sample { frac, out, .. } = op { Some((frac, out)) } else { None });
        let ((frac, word), output) = (samples.next()?, program.layers.last()?.output);
        if samples.next().is_some() || *word != output {
            return None;
        }
        let mut written = BTreeSet::new();
        for op in ops() {
            if !op.inputs().iter().all(|input| written.contains(input)) {
                return None;
            }
            written.insert(op.out());
        }
        let of = |layer: usize| program.tensor(program.layers[layer].output);
        let has_rows = |layer: &usize| of(*layer).kind == TensorKind::I32 && of(*layer).rows == Rows::Position;
        let mut kept: Vec<usize> = (0..program.layers.len()).filter(has_rows).collect();
        let cols = kept.first().map_or(0, |layer| of(*layer).cols);
        kept.retain(|layer| of(*layer).cols == cols);
        let mut found = Self { layers: program.layers.len(), kept, cols, shapes: vec![], lines: vec![], frac: *frac };
        for heads in ops().filter_map(|op| if let Op::Attention { heads, .. } = op { Some(heads) } else { None }) {
            found.add_line(AttentionShape::of(heads));
        }
        Some(found)
    }

    fn add_line(&mut self, shape: AttentionShape) {
        let known = self.shapes.iter().position(|known| *known == shape);
        if known.is_none() {
            self.shapes.push(shape);
        }
        self.lines.push(known.unwrap_or(self.shapes.len() - 1));
    }

    /// Whether a batch makes one word for each of a few sequences: each has a cache, one position and one point, and one launch
    /// samples them all.
    pub fn takes(&self, batch: &Batch) -> bool {
        (1..=MOST_POINTS).contains(&batch.sequences.len())
            && batch.sequences.iter().all(|s| s.cache.is_some() && s.rows() == 1 && s.points().len() == 1)
    }

    /// The shape of a pass over a batch that it [takes](Self::takes), whose histories and settings have as many words; none where
    /// the partials of attention would take too much memory at once.
    pub fn shape(&self, batch: &Batch, words: usize) -> Option<DecodeShape> {
        let sequences = &batch.sequences;
        let blocks: usize = sequences.iter().map(|s| s.tokens.len().div_ceil(BLOCK as usize)).sum();
        let shape = DecodeShape {
            sequences: sequences.len() as u32,
            blocks: room(blocks, LEAST_BLOCKS)?,
            words: room(words, LEAST_WORDS)?,
        };
        let partials = |of: &AttentionShape| u64::from(shape.slots(of)) * of.slot_bytes();
        self.shapes.iter().all(|of| partials(of) <= MOST_PARTIAL_BYTES).then_some(shape)
    }

    /// Chunks of a row that is hashed.
    pub const fn row_chunks(&self) -> u32 {
        self.cols.div_ceil(CHUNK)
    }
}

/// Room for `needed`: the next power of two, so that it changes seldom while sequences grow.
fn room(needed: usize, least: usize) -> Option<u32> {
    u32::try_from(needed.max(least).next_power_of_two()).ok()
}

/// All that the launches of such a pass depend on besides the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeShape {
    /// Sequences, and with them rows and points.
    pub sequences: u32,
    /// Room for softmax blocks of all sequences together. What is not needed are tiles without rows, which do nothing.
    pub blocks: u32,
    /// Room for words of histories and settings.
    pub words: u32,
}

impl DecodeShape {
    /// Partials of an attention.
    pub const fn slots(&self, of: &AttentionShape) -> u32 {
        self.blocks.saturating_mul(of.heads)
    }
}

/// Where an attention has its keys and values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecodeLine {
    /// Softmax blocks of all sequences, those of this pass included.
    pub blocks: Vec<KeyBlock>,
    /// Where those of this pass are put.
    pub appended: Vec<AppendRow>,
}

/// What a pass is told besides its launches.
pub struct DecodeInputs<'a> {
    /// Tokens and positions.
    pub pass: &'a Pass,
    /// Of each attention.
    pub lines: Vec<DecodeLine>,
    /// What is sampled from.
    pub points: &'a SamplePoints,
}

/// How one buffer holds all that a pass is told and all that it tells. Numbers are bytes from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecodeLayout {
    /// Token of each row.
    pub tokens: usize,
    /// Position of each row.
    pub positions: usize,
    /// First row of each sequence.
    pub first: usize,
    /// Rows of each sequence.
    pub count: usize,
    /// Row of each point.
    pub points: usize,
    /// The number of the first chunk of each row that is hashed.
    pub counters: usize,
    /// Of each shape of attention: tiles and rows.
    pub cuts: Vec<(usize, usize)>,
    /// Of each attention: key blocks, and rows that are appended.
    pub lines: Vec<(usize, usize)>,
    /// Settings of each point.
    pub sample_points: usize,
    /// The lists that they point into.
    pub sample_words: usize,
    /// Clamped elements of each layer, which the pass adds to: told as zeros.
    pub saturations: usize,
    /// Where that which is told ends: chaining values of the outputs that are kept, layer by layer.
    pub hashes: usize,
    /// Word of each point.
    pub drawn: usize,
    /// All of it.
    pub end: usize,
}

impl DecodeLayout {
    /// For passes of a shape.
    pub fn new(program: &DecodeProgram, shape: DecodeShape) -> Self {
        let (rows, blocks, words) = (shape.sequences as usize, shape.blocks as usize, shape.words as usize);
        let hashed = rows * program.kept.len();
        let mut end = 0;
        let mut take = |bytes: usize| {
            let at = end;
            end += bytes.next_multiple_of(ALIGNMENT);
            at
        };
        let [tokens, positions, first, count, points] = [(); 5].map(|()| take(4 * rows));
        let counters = take(8 * hashed);
        let mut pairs =
            |pairs: usize, [a, b]: [usize; 2]| -> Vec<_> { (0..pairs).map(|_| (take(a), take(b))).collect() };
        let cut = [blocks * size_of::<AttentionTile>(), rows * size_of::<RowPartials>()];
        let cuts = pairs(program.shapes.len(), cut);
        let line = [blocks * size_of::<KeyBlock>(), rows * size_of::<AppendRow>()];
        let lines = pairs(program.lines.len(), line);
        let (sample_points, sample_words) = (take(rows * size_of::<SamplePoint>()), take(4 * words));
        let saturations = take(8 * program.layers);
        let hashes = take(32 * hashed * program.row_chunks() as usize);
        let drawn = take(4 * rows);
        Self {
            tokens,
            positions,
            first,
            count,
            points,
            counters,
            cuts,
            lines,
            sample_points,
            sample_words,
            saturations,
            hashes,
            drawn,
            end,
        }
    }

    /// What a pass is told: the bytes up to [`hashes`](Self::hashes), in words of 64 bits. Room that is not needed is zeros.
    pub fn tell(&self, program: &DecodeProgram, inputs: &DecodeInputs<'_>) -> Vec<u64> {
        let mut told = vec![0; self.hashes / 8];
        let pass = inputs.pass;
        let rows = pass.positions.len() as u32;
        put(&mut told, self.tokens, &pass.embed_index(EmbedIndex::Token));
        put(&mut told, self.positions, &pass.positions);
        put(&mut told, self.first, &(0..rows).collect::<Vec<_>>());
        put(&mut told, self.count, &vec![1; rows as usize]);
        put(&mut told, self.points, &(0..rows).collect::<Vec<_>>());
        put(&mut told, self.counters, &program.kept.iter().flat_map(|_| program.counters(pass)).collect::<Vec<_>>());
        let sequences = sequences(pass);
        for (shape, (tiles, rows)) in program.shapes.iter().zip(&self.cuts) {
            for cut in attention_chunks(AttentionUnits::Dp4a, *shape, &sequences, u64::MAX) {
                put(&mut told, *tiles, &cut.tiles);
                put(&mut told, *rows, &cut.rows);
            }
        }
        for (line, (blocks, appended)) in inputs.lines.iter().zip(&self.lines) {
            put(&mut told, *blocks, &line.blocks);
            put(&mut told, *appended, &line.appended);
        }
        put(&mut told, self.sample_points, &inputs.points.points);
        put(&mut told, self.sample_words, &inputs.points.words);
        told
    }

    /// Bytes of what a pass tells.
    pub const fn heard_bytes(&self) -> usize {
        self.end - self.saturations
    }

    /// What a pass of that shape told: the bytes from [`saturations`](Self::saturations) on, in words of 64 bits.
    pub fn hear(&self, program: &DecodeProgram, shape: DecodeShape, told: &[u64]) -> DecodeAnswers {
        let part = |from: usize, to: usize| &told[(from - self.saturations) / 8..(to - self.saturations) / 8];
        DecodeAnswers {
            saturations: part(self.saturations, self.hashes)[..program.layers].to_vec(),
            hashes: bytemuck::cast_slice(part(self.hashes, self.drawn)).to_vec(),
            words: bytemuck::cast_slice(part(self.drawn, self.end))[..shape.sequences as usize].to_vec(),
        }
    }
}

impl DecodeProgram {
    /// The number of the first chunk of each row of a pass, in the tensor that it is committed in.
    pub fn counters(&self, pass: &Pass) -> Vec<u64> {
        pass.positions.iter().map(|position| u64::from(*position) * u64::from(self.row_chunks())).collect()
    }
}

/// The launches of a pass, each of which waits for the one before but for those beside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    nodes: Vec<Node>,
    last: Option<usize>,
}

impl Chain {
    /// The next ones.
    pub fn extend(&mut self, launches: impl IntoIterator<Item = Launch>) {
        for launch in launches {
            self.nodes.push(Node { launch, after: self.last });
            self.last = Some(self.nodes.len() - 1);
        }
    }

    /// One that waits for the last one and that none of the next ones waits for: it writes nothing that they read, and they
    /// write nothing that it reads.
    pub fn beside(&mut self, launch: Launch) {
        self.nodes.push(Node { launch, after: self.last });
    }

    /// All of them, in an order in which they may be launched one by one.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }
}

/// What a pass told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeAnswers {
    /// Of each layer.
    pub saturations: Vec<u64>,
    /// Chaining values of the outputs that are kept, layer by layer.
    pub hashes: Vec<[u8; 32]>,
    /// Of each point.
    pub words: Vec<i32>,
}

/// Rows of sequences that have one each.
fn sequences(pass: &Pass) -> Vec<SequenceRows> {
    let mut table = 0;
    let of = |(row, position): (u32, &u32)| {
        let rows = SequenceRows { rows: row..row + 1, start: *position, table };
        table += (position + 1).div_ceil(BLOCK);
        rows
    };
    (0..).zip(&pass.positions).map(of).collect()
}

fn put<T: Pod>(words: &mut [u64], at: usize, items: &[T]) {
    let bytes: &[u8] = bytemuck::cast_slice(items);
    bytemuck::cast_slice_mut(words)[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests;
