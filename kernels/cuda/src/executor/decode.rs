//! Passes that make one word for each of a few sequences, with all layers launched at once: at the second pass of a shape as a
//! graph. Whoever asks layer by layer is answered from what such a pass told.

use std::sync::Arc;

use lockstep_kernels::backend::{BackendError, LayerReport};
use lockstep_kernels::program::{Op, TensorId};
use lockstep_kernels::value::Value;

use super::DeviceExecutor;
use super::attention::{AttentionPlaces, Partials};
use super::fuse::{self, Group};
use super::planner::RowLists;
use super::sample::SamplePlaces;
use super::tensors::Tensors;
use crate::device::{Buffer, Device, DeviceError, Graph};
use crate::params::ChunksParams;
use crate::plan::{
    self, AttentionUnits, Chain, DecodeAnswers, DecodeInputs, DecodeLayout, DecodeLine, DecodeProgram, DecodeShape,
    Launch,
};

/// The launches of passes of one shape, and all memory that they name but weights.
pub(super) struct Decode {
    /// The launches once more, recorded. The first field, so that it goes before the memory.
    graph: Option<Graph>,
    launches: Chain,
    shape: DecodeShape,
    layout: DecodeLayout,
    /// What a pass is told and what it tells, as laid out.
    board: Buffer,
    values: Tensors,
    /// Outputs that are kept, `[layers that keep][rows][cols]`.
    outputs: Buffer,
    /// Of each shape of attention.
    partials: Vec<Partials<Buffer>>,
    /// Of sampling.
    scratch: [Buffer; 2],
    /// The pass that runs, where it has been launched whole.
    ahead: Option<Ahead>,
}

/// A pass whose layers have all run, though nobody has been told of those from `next` on.
struct Ahead {
    next: usize,
    answers: DecodeAnswers,
}

impl Decode {
    /// Where the output of a layer is kept.
    fn kept(&self, program: &DecodeProgram, layer: usize) -> Option<u64> {
        let rows = u64::from(self.shape.sequences);
        let bytes = 4 * rows * u64::from(program.cols);
        let place = program.kept.iter().position(|kept| *kept == layer);
        let drawn = (layer + 1 == program.layers).then(|| self.at(self.layout.drawn));
        drawn.or(place.map(|place| self.outputs.address() + place as u64 * bytes))
    }

    fn at(&self, offset: usize) -> u64 {
        self.board.address() + offset as u64
    }

    fn lists(&self) -> RowLists {
        let DecodeLayout { tokens, positions, first, count, points, .. } = self.layout;
        let [tokens, positions, first, count, points] =
            [tokens, positions, first, count, points].map(|offset| self.at(offset));
        RowLists { tokens, positions, first, count, points }
    }

    /// Where an attention of a shape, by number, finds the lists and partials of the attention `line`.
    fn attention(&self, shape: usize, line: usize) -> AttentionPlaces {
        let ((tiles, rows), (blocks, _)) = (self.layout.cuts[shape], self.layout.lines[line]);
        AttentionPlaces {
            blocks: self.at(blocks),
            tiles: self.at(tiles),
            tile_count: self.shape.blocks,
            rows: self.at(rows),
            row_count: self.shape.sequences,
            partials: self.partials[shape].places(),
        }
    }

    fn sampling(&self) -> SamplePlaces {
        let [points, words] = [self.layout.sample_points, self.layout.sample_words].map(|offset| self.at(offset));
        let [seen, weights] = [0, 1].map(|n: usize| self.scratch[n].address());
        SamplePlaces { points, words, seen, weights }
    }

    /// Chaining values of all outputs that are kept.
    fn hashing(&self, program: &DecodeProgram) -> Launch {
        plan::chunks(ChunksParams {
            input: self.outputs.address(),
            counters: self.at(self.layout.counters),
            values: self.at(self.layout.hashes),
            rows: program.kept.len() as u32 * self.shape.sequences,
            cols: program.cols,
            row_chunks: program.row_chunks(),
            unused: 0,
        })
    }

    /// Runs a pass, and waits for what it tells.
    fn run(&self, device: &dyn Device, program: &DecodeProgram, told: &[u64]) -> Result<DecodeAnswers, DeviceError> {
        self.board.write(told)?;
        match &self.graph {
            Some(graph) => graph.replay()?,
            None => self.launches.nodes().iter().try_for_each(|node| device.launch(&node.launch))?,
        }
        let mut heard = vec![0_u64; self.layout.heard_bytes() / 8];
        device.download(self.at(self.layout.saturations), bytemuck::cast_slice_mut(&mut heard))?;
        Ok(self.layout.hear(program, self.shape, &heard))
    }
}

impl DeviceExecutor {
    /// Runs all layers of the pass at once, where it makes one word for each of a few sequences.
    pub(super) fn look_ahead(&mut self) -> Result<(), BackendError> {
        let Some(program) = self.decode_program.clone().filter(|program| program.takes(&self.pass.batch)) else {
            return Ok(());
        };
        let points = self.points(program.frac);
        let Some(shape) = program.shape(&self.pass.batch, points.words.len()) else { return Ok(()) };
        self.make_ready(&program, shape)?;
        let lines = self.lines()?;
        let Some(decode) = &mut self.decode else { return Ok(()) };
        let told = decode.layout.tell(&program, &DecodeInputs { pass: &self.pass, lines, points: &points });
        decode.values.forget();
        let answers = decode.run(&*self.device, &program, &told)?;
        decode.ahead = Some(Ahead { next: 0, answers });
        Ok(())
    }

    /// Has the launches of a shape: planned at its first pass, recorded at the next one.
    fn make_ready(&mut self, program: &DecodeProgram, shape: DecodeShape) -> Result<(), DeviceError> {
        match &mut self.decode {
            Some(decode) if decode.shape == shape => {
                if self.records && decode.graph.is_none() {
                    decode.graph = Graph::of(&self.device, decode.launches.nodes())
                        .inspect_err(|why| tracing::warn!(%why, "no CUDA graphs: kernels are launched one by one"))
                        .ok();
                    self.records = decode.graph.is_some();
                }
            }
            _ => {
                // The memory of the old one goes first: both together may not fit.
                self.decode = None;
                self.decode = Some(self.plan_decode(program, shape)?);
            }
        }
        Ok(())
    }

    fn plan_decode(&self, program: &DecodeProgram, shape: DecodeShape) -> Result<Decode, DeviceError> {
        let new = |bytes: usize| Buffer::new(&self.device, bytes);
        let (layout, rows) = (DecodeLayout::new(program, shape), shape.sequences as usize);
        let mut values = Tensors::new(&self.device, &self.program);
        for op in self.program.layers.iter().flat_map(|layer| &layer.ops) {
            values.prepare(op.out(), &self.pass)?;
        }
        let vocabulary = self.program.layers.iter().flat_map(|layer| &layer.ops).find_map(|op| match op {
            Op::Sample { logits, .. } => Some(self.program.tensor(*logits).cols as usize),
            _ => None,
        });
        let scratch = || new(4 * rows * vocabulary.unwrap_or_default());
        let partials = |of| Partials::new(&self.device, of, shape.slots(of) as usize);
        let mut decode = Decode {
            graph: None,
            launches: Chain::default(),
            shape,
            board: new(layout.end)?,
            layout,
            values,
            outputs: new(4 * program.kept.len() * rows * program.cols as usize)?,
            partials: program.shapes.iter().map(partials).collect::<Result<_, _>>()?,
            scratch: [scratch()?, scratch()?],
            ahead: None,
        };
        decode.launches = self.launches(program, &mut decode);
        Ok(decode)
    }

    /// The launches of all layers.
    fn launches(&self, program: &DecodeProgram, decode: &mut Decode) -> Chain {
        let (mut launches, mut line) = (Chain::default(), 0);
        for (index, layer) in self.program.layers.iter().enumerate() {
            let kept = decode.kept(program, index);
            decode.values.enter(layer, kept);
            let saturations = decode.at(decode.layout.saturations + 8 * index);
            let planner = self.planner_over(&decode.values, decode.lists(), saturations);
            for group in fuse::groups(&self.program, &layer.ops) {
                match group {
                    Group::One(op @ Op::Attention { .. }) => {
                        let appended = decode.at(decode.layout.lines[line].1);
                        launches.extend([planner.append(op, appended, decode.shape.sequences)]);
                        let places = decode.attention(program.lines[line], line);
                        launches.extend(planner.attention(op, AttentionUnits::Dp4a, &places));
                        line += 1;
                    }
                    Group::One(op @ Op::Sample { .. }) => {
                        launches.extend([planner.sample(op, &decode.sampling(), decode.shape.sequences)]);
                    }
                    group => launches.extend(planner.group(&group)),
                }
            }
            // Beside what makes words of the last rows.
            if program.kept.last() == Some(&index) {
                launches.beside(decode.hashing(program));
            }
        }
        launches
    }

    /// Of each attention: makes room for its keys and values, and tells where all of them are.
    fn lines(&mut self) -> Result<Vec<DecodeLine>, BackendError> {
        let program = Arc::clone(&self.program);
        let mut lines = Vec::new();
        for op in program.layers.iter().flat_map(|layer| &layer.ops) {
            if let Op::Attention { heads, .. } = op {
                let appended = self.reserve(lines.len(), heads)?;
                lines.push(DecodeLine { blocks: self.key_blocks(op, lines.len()), appended });
            }
        }
        Ok(lines)
    }

    /// The first layer that nobody has asked for yet, where the pass was launched whole.
    pub(super) fn next_ahead(&self) -> Option<usize> {
        self.decode.as_ref()?.ahead.as_ref().map(|ahead| ahead.next)
    }

    /// As if the next layer of a pass that was launched whole ran now.
    pub(super) fn reveal(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        let attentions = self.program.layers[layer].ops.iter().filter(|op| matches!(op, Op::Attention { .. })).count();
        let line = self.caches.line(layer);
        (line..line + attentions).try_for_each(|line| self.commit(line))?;
        let (Some(decode), Some(program)) = (&mut self.decode, &self.decode_program) else {
            unreachable!("it is ahead")
        };
        let (kept, of) = (decode.kept(program, layer), &self.program.layers[layer]);
        decode.values.enter(of, kept);
        of.ops.iter().for_each(|op| decode.values.set_written(op.out()));
        let ahead = decode.ahead.as_mut().expect("it is ahead");
        ahead.next += 1;
        Ok(LayerReport { saturations: ahead.answers.saturations[layer] })
    }

    /// Has the layers that were asked for run one by one after all, and forgets those that ran ahead: what a caller does next
    /// needs tensors that later layers have written to.
    pub(super) fn depart(&mut self) -> Result<(), BackendError> {
        let asked = self.decode.as_mut().and_then(|decode| decode.ahead.take()).map_or(0, |ahead| ahead.next);
        (0..asked).try_for_each(|layer| self.run_alone(layer).map(drop))
    }

    /// Before caches change: in the middle of a pass its layers run one by one.
    pub(super) fn settle(&mut self) -> Result<(), BackendError> {
        if self.next_ahead().is_some_and(|next| next < self.program.layers.len()) { self.depart() } else { Ok(()) }
    }

    /// Forgets what the last pass told.
    pub(super) fn forget_ahead(&mut self) {
        self.decode.iter_mut().for_each(|decode| decode.ahead = None);
    }

    /// A tensor of a pass that was launched whole; none where it is to be had only layer by layer.
    pub(super) fn read_ahead(&self, tensor: TensorId) -> Result<Option<Value>, BackendError> {
        let Some((decode, ahead)) = self.decode.as_ref().and_then(|d| Some((d, d.ahead.as_ref()?))) else {
            return Ok(None);
        };
        decode.values.check_written(tensor)?;
        let is_over = ahead.next == self.program.layers.len();
        if is_over && self.program.layers.last().is_some_and(|last| last.output == tensor) {
            return Ok(Some(Value::I32(ahead.answers.words.clone())));
        }
        let is_there = is_over || decode.values.is_apart(tensor);
        is_there.then(|| decode.values.read(tensor, &self.pass)).transpose()
    }

    /// Chaining values of the output of the layer that was asked for last, where a pass that was launched whole has made them.
    pub(super) fn hashed_ahead(&self, tensor: TensorId, counters: &[u64]) -> Option<Vec<[u8; 32]>> {
        let (decode, program) = (self.decode.as_ref()?, self.decode_program.as_ref()?);
        let ahead = decode.ahead.as_ref()?;
        let layer = ahead.next.checked_sub(1)?;
        let place = program.kept.iter().position(|kept| *kept == layer)?;
        let is_that = self.program.layers[layer].output == tensor && counters == program.counters(&self.pass);
        let len = counters.len() * program.row_chunks() as usize;
        is_that.then(|| ahead.answers.hashes[place * len..][..len].to_vec())
    }
}
