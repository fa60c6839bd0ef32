//! Log-probabilities of words, for requests that want them.

use lockstep_kernels::backend::{BackendError, Executor};
use lockstep_kernels::program::{Op, Program, TensorId};
use lockstep_kernels::sampling::{logprobs, split_word};
use lockstep_protocol::generation::Generation;
use lockstep_protocol::logprobs::{LEAST, row};

use crate::embed::read_i32;

/// The logits of all points of a pass.
pub(super) struct Logits {
    rows: Vec<i32>,
    cols: usize,
    frac: u8,
}

impl Logits {
    /// Of the pass that has just run; `None` where the program samples nothing.
    pub fn read(executor: &mut dyn Executor, program: &Program) -> Result<Option<Self>, BackendError> {
        let Some((tensor, frac)) = tensor(program) else { return Ok(None) };
        let cols = program.tensor(tensor).cols as usize;
        Ok(Some(Self { rows: read_i32(executor, tensor)?, cols, frac }))
    }

    /// The row of log-probabilities of a point of the pass at which this word was drawn.
    pub fn row(&self, point: usize, word: u32, wanted: u8) -> Vec<i32> {
        let (token, _) = split_word(word);
        let asked = Generation { logprobs: wanted, ..Generation::greedy(1) };
        let logits = &self.rows[point * self.cols..][..self.cols];
        let of = logprobs(logits, self.frac.into(), token, usize::from(wanted).saturating_sub(1));
        row(&asked, of.token.unwrap_or(LEAST), of.top)
    }
}

/// The logits of a program that samples, and their fractional bits.
fn tensor(program: &Program) -> Option<(TensorId, u8)> {
    program.layers.iter().flat_map(|layer| &layer.ops).find_map(|op| match op {
        Op::Sample { logits, frac, .. } => Some((*logits, *frac)),
        _ => None,
    })
}
