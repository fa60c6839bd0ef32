//! Log-probabilities of words, for requests that want them.

use lockstep_kernels::backend::{BackendError, Executor};
use lockstep_kernels::program::{Op, Program, TensorId};
use lockstep_kernels::sampling::{MAX_LIKELIEST, logprobs, split_word};
use lockstep_protocol::generation::Generation;
use lockstep_protocol::limits::MAX_LOGPROBS;
use lockstep_protocol::logprobs::{LEAST, row};

use crate::embed::read_i32;

// What may be asked for can be disputed.
const _: () = assert!(MAX_LOGPROBS <= MAX_LIKELIEST);

/// The logits of all points of a pass.
pub(crate) struct Logits {
    rows: Vec<i32>,
    cols: usize,
    frac: u8,
}

impl Logits {
    /// Of the pass that has just run; `None` where the program samples nothing.
    pub fn read(executor: &mut dyn Executor, program: &Program) -> Result<Option<Self>, BackendError> {
        Self::of(program, |tensor| read_i32(executor, tensor))
    }

    /// The same, by whoever reads tensors.
    pub fn of<E>(program: &Program, read: impl FnOnce(TensorId) -> Result<Vec<i32>, E>) -> Result<Option<Self>, E> {
        let Some((tensor, frac)) = tensor(program) else { return Ok(None) };
        let cols = program.tensor(tensor).cols as usize;
        Ok(Some(Self { rows: read(tensor)?, cols, frac }))
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
