//! A small decoder with made-up weights, and what it says by the plainest means.

use std::sync::Arc;

use lockstep_kernels::backend::{Backend, Executor};
use lockstep_kernels::conformance::{DecoderShape, decoder as small};
use lockstep_kernels::program::{Op, Program};
use lockstep_kernels::sampling::{logprobs, split_word};
use lockstep_kernels::value::{Batch, Params, Sampler, Sequence};
use lockstep_protocol::ids::Root;
use lockstep_protocol::trace::root_of_rows;

use super::super::{Request, draw};
use crate::embed::read_i32;

pub const VOCAB: usize = DecoderShape::SMALL.vocab;

/// A program with its parameters.
#[derive(Clone)]
pub struct Model {
    pub program: Arc<Program>,
    pub params: Arc<dyn Params>,
}

/// A decoder. A loud one shifts rotated queries and keys too little into their 16 bits, so that some clamp.
pub fn decoder(is_loud: bool) -> Model {
    let mut case = small(DecoderShape::SMALL, &[1]);
    for op in Arc::make_mut(&mut case.program).layers.iter_mut().flat_map(|layer| &mut layer.ops) {
        if let (Op::Rope { shift, .. }, true) = (op, is_loud) {
            shift.iter_mut().for_each(|shift| *shift -= 2);
        }
    }
    Model { program: case.program, params: case.params }
}

/// What a generation comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    pub words: Vec<u32>,
    pub logprobs: Vec<i32>,
    pub roots: Vec<Root>,
    pub saturations: u64,
}

/// The log-probabilities of the last point of a pass.
fn row_of(program: &Program, executor: &mut dyn Executor, word: u32, wanted: u8) -> Vec<i32> {
    let Some(Op::Sample { logits, frac, .. }) = program.layers.last().unwrap().ops.last() else { panic!("no sampler") };
    let logits = read_i32(executor, *logits).unwrap();
    let k = usize::from(wanted.saturating_sub(1));
    let of = logprobs(&logits[logits.len() - VOCAB..], (*frac).into(), split_word(word).0, k);
    let top = of.top.into_iter().flat_map(|(token, value)| [token.cast_signed(), value]);
    of.token.into_iter().chain(top).take(if wanted > 0 { 1 + 2 * k } else { 0 }).collect()
}

/// Computes every point from the first token on, in a pass of its own, without caches and without hashing in steps.
pub fn expected(model: &Model, backend: &dyn Backend, request: &Request) -> Expected {
    let program = &model.program;
    let mut executor = backend.load(Arc::clone(program), Arc::clone(&model.params)).unwrap();
    let mut tokens = request.prompt.clone();
    let mut out = Expected { words: Vec::new(), logprobs: Vec::new(), roots: Vec::new(), saturations: 0 };
    loop {
        let points = request.prompt.len() - 1..tokens.len();
        let draws = points.map(|point| draw(&request.seed, point as u32)).collect();
        let sampler = Some(Sampler { sampling: Arc::new(request.sampling.clone()), draws });
        let sequence = Sequence { tokens: tokens.clone(), start: 0, cache: None, sampler };
        executor.begin(&Batch { sequences: vec![sequence] }).unwrap();
        // Those of the longest pass are those of the run.
        out.saturations = 0;
        for (index, layer) in program.layers.iter().enumerate() {
            out.saturations += executor.run_layer(index).unwrap().saturations;
            let rows = read_i32(&mut *executor, layer.output).unwrap();
            if index + 1 == program.layers.len() {
                let word = rows.last().unwrap().cast_unsigned();
                out.words.push(word);
                out.logprobs.extend(row_of(program, &mut *executor, word, request.logprobs));
                out.roots.push(root_of_rows(&rows[rows.len() - 1..], 1));
            } else if index > 0 {
                out.roots.push(root_of_rows(&rows, program.tensor(layer.output).cols as usize));
            }
        }
        let (token, finish) = split_word(*out.words.last().unwrap());
        if finish != 0 {
            return out;
        }
        tokens.push(token);
    }
}
