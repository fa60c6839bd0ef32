//! Evidence of somebody who contradicts himself.

use std::ops::Range;

use lockstep_model::dispute::Trace;
use lockstep_protocol::dispute::{Evidence, EvidenceError, Source, Tensor};
use lockstep_protocol::openings::ChunkRange;

use crate::random::Random;

/// Above this no step is tried; layers of real programs have fewer.
const MOST_STEPS: usize = 64;
/// Elements below this are there in every step that has so many, and most have.
const MOST_ELEMENTS: usize = 256;

/// A trace of which one element of one step is altered as soon as the row is known, and nothing after it: the steps do
/// not follow from each other.
pub struct Inconsistent {
    trace: Trace,
    random: Random,
    /// The chunk for which the element was altered.
    altered: Option<u64>,
}

impl Inconsistent {
    /// Will alter an element that the seed decides.
    pub fn new(trace: Trace, seed: u64) -> Self {
        Self { trace, random: Random::new("inconsistent", seed), altered: None }
    }

    fn alter(&mut self, chunk: Option<u64>) {
        let Some(chunk) = chunk.filter(|chunk| self.altered != Some(*chunk)) else {
            return;
        };
        self.altered = Some(chunk);
        for _ in 0..MOST_STEPS {
            let step = self.random.index(MOST_STEPS) as u16;
            let (element, value) = (self.random.index(MOST_ELEMENTS) as u64, self.random.next_u64() as i64);
            if self.trace.alter(chunk, Tensor::Step(step), element, value) {
                return;
            }
        }
    }
}

impl Evidence for Inconsistent {
    fn frontier(
        &mut self,
        chunk: Option<u64>,
        tensor: Tensor,
        log: u8,
        blocks: Range<u64>,
    ) -> Result<Vec<[u8; 32]>, EvidenceError> {
        if matches!(tensor, Tensor::Step(_)) {
            self.alter(chunk);
        }
        self.trace.frontier(chunk, tensor, log, blocks)
    }

    fn chunk(&mut self, chunk: u64, tensor: Tensor, index: u64) -> Result<Vec<u8>, EvidenceError> {
        if matches!(tensor, Tensor::Step(_)) {
            self.alter(Some(chunk));
        }
        self.trace.chunk(chunk, tensor, index)
    }

    fn open(&mut self, chunk: u64, source: Source, range: ChunkRange) -> Result<Vec<u8>, EvidenceError> {
        self.alter(Some(chunk));
        self.trace.open(chunk, source, range)
    }

    fn open_prefix(&mut self, rows: u32, range: ChunkRange) -> Result<Vec<u8>, EvidenceError> {
        self.trace.open_prefix(rows, range)
    }
}
