//! The oracle's run of a program beside its steps, every element of which is evaluated from what it reads.

use std::sync::Arc;

use super::super::{CHUNK_BYTES, MAX_READ_BYTES, Part, Plan, Read, Source, Step, Width};
use crate::backend::{Backend, Executor};
use crate::conformance::{OwnedParams, Pattern, SplitMix, random_sampling};
use crate::program::{Op, Program, Rows, TensorId};
use crate::reference::Reference;
use crate::sampling::{Sampling, logprobs, split_word, word};
use crate::value::{Batch, ParamData, Params, Sampler, Sequence, Value};

/// A run by the oracle, as the bytes that parties commit to.
pub struct Run {
    pub program: Arc<Program>,
    tokens: Vec<u8>,
    words: Vec<u8>,
    /// Of a decoder, the settings and the draw of the last point.
    sampling: Option<(Sampling, u64)>,
    params: Vec<Vec<u8>>,
    /// For each layer the values of its ops' outputs.
    values: Vec<Vec<Value>>,
    /// For each layer what it reads of the layer before.
    inputs: Vec<Vec<u8>>,
    pub positions: u32,
}

impl Run {
    /// Runs a program. From layer 2 on, the input is at times replaced by values at the edges of their range, which no
    /// layer is likely to make.
    pub fn new(program: Program, params: Arc<OwnedParams>, positions: u32, rng: &mut SplitMix) -> Self {
        let program = Arc::new(program);
        let tokens: Vec<u32> = (0..positions).map(|_| rng.range(0, i64::from(program.vocab_size) - 1) as u32).collect();
        let mut batch = Batch::single(tokens.clone());
        let sampling = program.is_decoder().then(|| sample(&program, &mut batch.sequences[0], rng));
        let dynamic: Arc<dyn Params> = Arc::<OwnedParams>::clone(&params);
        let mut executor = Reference.load(Arc::clone(&program), dynamic).expect("a valid program");
        executor.begin(&batch).expect("a valid batch");
        let (mut values, mut inputs) = (vec![], vec![vec![]]);
        for (l, layer) in program.layers.iter().enumerate() {
            executor.run_layer(l).expect("the layer runs");
            values.push(layer.ops.iter().map(|op| executor.read(op.out()).expect("written")).collect());
            let shape = program.tensor(layer.output);
            if l > 0 && shape.rows == Rows::Position && rng.range(0, 2) == 0 {
                let pattern = Pattern::ALL[rng.range(0, 7) as usize];
                let edges = pattern.i32s(rng, positions as usize, shape.cols as usize);
                executor.write(layer.output, Value::I32(edges)).expect("of the right shape");
            }
            inputs.push(padded(executor.as_mut(), layer.output, shape.cols as usize));
        }
        let prompt = sampling.as_ref().map_or(tokens.len(), |(settings, _)| settings.prompt_tokens as usize);
        let (tokens, generated) = tokens.split_at(prompt);
        let words = generated.iter().map(|token| word(*token, rng.range(0, 3) as u8));
        let words = words.flat_map(u32::to_le_bytes).collect();
        let tokens = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        let params = (0..program.params.len()).map(|p| bytes(params.0.get(p).map(|_| params.param(id(p))))).collect();
        Self { program, tokens, words, sampling, params, values, inputs, positions }
    }

    /// The plan for a row.
    pub fn plan(&self, layer: usize, row: u32) -> Plan {
        let sampling = self.sampling.as_ref().map(|(settings, draw)| (settings, *draw));
        Plan::new(&self.program, layer, self.positions, row, sampling).expect("a dispute view")
    }

    /// Evaluates every element of every step of a plan. Panics where an element reads what is not there, or too much.
    pub fn fill(&self, layer: usize, plan: &Plan) -> Vec<Vec<u8>> {
        let mut tensors: Vec<Vec<u8>> = Vec::new();
        for (s, step) in plan.steps().iter().enumerate() {
            let mut tensor = vec![0; step.bytes() as usize];
            let (stride, width) = (step.row_bytes() / step.width.bytes(), step.width.bytes() as usize);
            for element in (0..step.rows).flat_map(|r| r * stride..r * stride + step.cols) {
                let reads = plan.reads(s, element);
                let mut data = self.open(&reads, layer, &tensors);
                let more = plan.follow(s, element, &data);
                data.extend(self.open(&more, layer, &tensors));
                let chunks: u64 = reads.iter().chain(&more).map(chunks).sum();
                assert!(chunks <= plan.ops[s].0.chunks(step.part), "{}: {reads:?}", step.name(&self.program));
                assert!(chunks * CHUNK_BYTES <= MAX_READ_BYTES, "{}: {reads:?}", step.name(&self.program));
                let value = plan.evaluate(s, element, &data);
                let at = element as usize * width;
                tensor[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
            tensors.push(tensor);
        }
        tensors
    }

    /// Fills the plan of the last point's log-probabilities, of a token with any finish and of the likeliest ones, and compares
    /// the row, and each output of an op before it, with the oracle's.
    pub fn check_logprobs(&mut self, own: u32, likeliest: u8) {
        let (settings, draw) = self.sampling.as_ref().expect("a decoder");
        let plan = Plan::logprobs(&self.program, self.positions, (settings, *draw), likeliest).expect("a dispute view");
        self.words.extend(own.to_le_bytes());
        let layer = self.program.layers.len() - 1;
        let tensors = self.fill(layer, &plan);
        let (last, before) = plan.steps().split_last().expect("a row");
        for (step, tensor) in before.iter().zip(&tensors) {
            let Some(expected) = self.expected(step, self.positions - 1) else { continue };
            assert!(*tensor == expected, "{}", step.name(&self.program));
        }
        let found = self.program.layers[layer].ops.iter().enumerate().find_map(|(op, kind)| match kind {
            Op::Sample { logits, frac, .. } => Some((op, *logits, *frac)),
            _ => None,
        });
        let (op, logits, frac) = found.expect("a decoder samples");
        let writer = self.program.layers[layer].ops.iter().position(|kind| kind.out() == logits).expect("logits");
        let Value::I32(values) = &self.values[layer][writer] else { panic!("logits are i32") };
        let values = &values[values.len() - self.program.tensor(logits).cols as usize..];
        let of = logprobs(values, frac.into(), split_word(own).0, likeliest.into());
        let mut row = vec![of.token.unwrap_or(i32::MIN)];
        row.extend(of.top.iter().flat_map(|(token, value)| [*token as i32, *value]));
        while row.len() < 1 + 2 * usize::from(likeliest) {
            row.extend([-1, i32::MIN]);
        }
        let mut expected: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
        expected.resize(CHUNK_BYTES as usize, 0);
        assert!(tensors.last() == Some(&expected), "the row of {own} and {likeliest} others");
        let shape =
            (last.layer, last.op, last.name(&self.program), last.part, last.all_rows, last.rows, last.cols as usize);
        assert_eq!(shape, (layer, op, "logprobs.out".to_owned(), Part::Out, false, 1, row.len()));
    }

    fn open<'a>(&'a self, reads: &[Read], layer: usize, steps: &'a [Vec<u8>]) -> Vec<&'a [u8]> {
        let source = |source| match source {
            Source::Step(s) => &steps[usize::from(s)],
            Source::Input if layer == 1 => panic!("layer 1 has no committed input"),
            Source::Input => &self.inputs[layer],
            Source::Tokens => &self.tokens,
            Source::Words => &self.words,
            Source::Param(p) => &self.params[usize::from(p.0)],
        };
        reads.iter().map(|r| &source(r.source)[r.bytes.start as usize..r.bytes.end as usize]).collect()
    }

    /// Fills a plan for one row and compares each output of an op with the oracle's.
    pub fn check(&self, layer: usize, row: u32) {
        let plan = self.plan(layer, row);
        let tensors = self.fill(layer, &plan);
        let of_point = self.program.tensor(self.program.layers[layer].output).rows == Rows::Point;
        let row = if of_point { self.positions - 1 } else { row };
        for (step, tensor) in plan.steps().iter().zip(&tensors) {
            let Some(expected) = self.expected(step, row) else { continue };
            assert!(*tensor == expected, "layer {layer} row {row}: {}", step.name(&self.program));
        }
        let last = plan.steps().last().expect("a layer has an output");
        let output = self.program.layers[layer].output;
        assert_eq!(self.program.layers[last.layer].ops[last.op].out(), output);
        assert_eq!((last.layer, last.part, last.all_rows, last.rows), (layer, Part::Out, false, 1));
    }

    /// The oracle's bytes of a step; none where the step is no output of an op.
    fn expected(&self, step: &Step, row: u32) -> Option<Vec<u8>> {
        let op: &Op = &self.program.layers[step.layer].ops[step.op];
        let cols = step.cols as usize;
        let row = match (self.program.tensor(op.out()).rows, &self.values[step.layer][step.op]) {
            (Rows::Sequence, _) => 0,
            (Rows::Position, _) => row as usize,
            // The last point.
            (Rows::Point, value) => rows_of(value, self.program.tensor(op.out()).cols as usize) - 1,
        };
        let rows = if step.all_rows { 0..step.rows as usize } else { row..row + 1 };
        let range = rows.start * cols..rows.end * cols;
        let (numbers, width): (Vec<i64>, _) = match (step.part, &self.values[step.layer][step.op]) {
            (Part::Out, Value::I32(v)) => (v[range].iter().map(|v| i64::from(*v)).collect(), Width::I32),
            (Part::Out, Value::I16(v)) => (v[range].iter().map(|v| i64::from(*v)).collect(), Width::I16),
            (Part::Codes, Value::Bfp { codes, .. }) => {
                (codes[range].iter().map(|v| i64::from(*v)).collect(), Width::I16)
            }
            (Part::Exponent, Value::Bfp { exponents, .. }) => {
                (exponents[range].iter().map(|v| i64::from(*v)).collect(), Width::I32)
            }
            _ => return None,
        };
        assert_eq!(step.width, width);
        let row = |row: &[i64]| {
            let mut bytes: Vec<u8> =
                row.iter().flat_map(|v| v.to_le_bytes().into_iter().take(width.bytes() as usize)).collect();
            bytes.resize(step.row_bytes() as usize, 0);
            bytes
        };
        Some(numbers.chunks_exact(cols).flat_map(row).collect())
    }
}

/// Gives a sequence any prompt and settings, and draws for all its points. Returns the settings and the last draw.
fn sample(program: &Program, sequence: &mut Sequence, rng: &mut SplitMix) -> (Sampling, u64) {
    let prompt_tokens = rng.range(1, sequence.tokens.len() as i64) as u32;
    let sampling = Sampling { prompt_tokens, ..random_sampling(rng, program.vocab_size as usize) };
    let points = sequence.tokens.len() - prompt_tokens as usize + 1;
    let draws: Vec<u64> = (0..points).map(|_| rng.next_u64()).collect();
    let last = draws[points - 1];
    sequence.sampler = Some(Sampler { sampling: Arc::new(sampling.clone()), draws });
    (sampling, last)
}

/// Chunks that a read touches.
pub fn chunks(read: &Read) -> u64 {
    assert!(read.bytes.start < read.bytes.end, "an empty read");
    (read.bytes.end - 1) / CHUNK_BYTES - read.bytes.start / CHUNK_BYTES + 1
}

fn rows_of(value: &Value, cols: usize) -> usize {
    match value {
        Value::I32(v) => v.len() / cols,
        Value::I16(v) => v.len() / cols,
        Value::Bfp { exponents, .. } => exponents.len(),
    }
}

fn id(p: usize) -> crate::program::ParamId {
    crate::program::ParamId(p as u16)
}

/// Rows of a tensor, each padded to whole chunks.
fn padded(executor: &mut dyn Executor, tensor: TensorId, cols: usize) -> Vec<u8> {
    let Value::I32(values) = executor.read(tensor).expect("written") else { panic!("outputs are i32") };
    let row = |row: &[i32]| {
        let mut bytes: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(CHUNK_BYTES as usize), 0);
        bytes
    };
    values.chunks_exact(cols).flat_map(row).collect()
}

fn bytes(param: Option<ParamData<'_>>) -> Vec<u8> {
    match param.expect("declared") {
        ParamData::I8(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ParamData::I16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ParamData::U16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ParamData::I32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}
