//! From a run to the bytes of every step: outputs as the backend wrote them, the parts between them recomputed from
//! earlier steps. So a run with one altered element is followed faithfully: its owner contradicts itself nowhere else.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use lockstep_kernels::sampling::split_word;
use lockstep_kernels::steps::{Part, Plan, Read, Source, Step, Width};
use lockstep_kernels::value::{ParamData, Params};

use super::kept::Kept;
use crate::lower::param_bytes;

/// Key positions in one row of a channel of the values.
const BLOCK_KEYS: usize = 256;

/// What a sequence is made of, as the bytes that are opened.
#[derive(Debug, Default)]
pub(super) struct Ids {
    /// The input's token ids.
    pub tokens: Vec<u8>,
    /// The words that were generated before the point.
    pub words: Vec<u8>,
}

/// Bytes of a parameter's elements.
fn param_range(data: ParamData<'_>, bytes: Range<usize>) -> Vec<u8> {
    let of = |size: usize| bytes.start / size..bytes.end / size;
    param_bytes(match data {
        ParamData::I8(v) => ParamData::I8(&v[bytes]),
        ParamData::I16(v) => ParamData::I16(&v[of(2)]),
        ParamData::U16(v) => ParamData::U16(&v[of(2)]),
        ParamData::I32(v) => ParamData::I32(&v[of(4)]),
    })
}

/// Where elements of steps are read from.
struct Sources<'a> {
    steps: Vec<Vec<u8>>,
    kept: &'a Kept,
    ids: &'a Ids,
    params: &'a dyn Params,
}

impl Sources<'_> {
    fn read(&self, read: &Read) -> Cow<'_, [u8]> {
        let bytes = read.bytes.start as usize..read.bytes.end as usize;
        match read.source {
            Source::Step(step) => self.steps[usize::from(step)][bytes].into(),
            Source::Input => self.kept.input[bytes].into(),
            Source::Tokens => self.ids.tokens[bytes].into(),
            Source::Words => self.ids.words[bytes].into(),
            Source::Param(id) => param_range(self.params.param(id), bytes).into(),
        }
    }
}

/// The bytes of each step of the plan for `row`, the last step included.
pub(super) fn fill(plan: &Plan, kept: &Kept, ids: &Ids, params: &dyn Params, row: usize) -> Vec<Vec<u8>> {
    let mut sources = Sources { steps: Vec::with_capacity(plan.steps().len()), kept, ids, params };
    for (index, step) in plan.steps().iter().enumerate() {
        let bytes = match step.part {
            Part::Out if step.of_logprobs => kept.output.clone(),
            Part::Out | Part::Codes | Part::Exponent => kept.output_of(step, row),
            Part::Values => values(plan, index, step, &sources.steps),
            Part::Counts => counts(plan, index, step, &sources),
            _ => recomputed(plan, index, step, &sources),
        };
        debug_assert_eq!(bytes.len() as u64, step.bytes());
        sources.steps.push(bytes);
    }
    sources.steps
}

/// Every element, as a referee computes it.
fn recomputed(plan: &Plan, index: usize, step: &Step, sources: &Sources<'_>) -> Vec<u8> {
    let mut bytes = vec![0; step.bytes() as usize];
    let width = step.width.bytes() as usize;
    let stride = step.row_bytes() / step.width.bytes();
    for row in 0..step.rows {
        let cols = (row * step.row_bytes()) as usize..;
        let to = bytes[cols].chunks_exact_mut(width).take(step.cols as usize);
        for (to, element) in to.zip(row * stride..) {
            to.copy_from_slice(&element_of(plan, index, element, sources).to_le_bytes()[..width]);
        }
    }
    bytes
}

/// One element, as a referee computes it.
fn element_of(plan: &Plan, index: usize, element: u64, sources: &Sources<'_>) -> i64 {
    let reads = plan.reads(index, element);
    let mut opened: Vec<Cow<'_, [u8]>> = reads.iter().map(|read| sources.read(read)).collect();
    let data: Vec<&[u8]> = opened.iter().map(|bytes| &**bytes).collect();
    let more = plan.follow(index, element, &data);
    opened.extend(more.iter().map(|read| sources.read(read)));
    let data: Vec<&[u8]> = opened.iter().map(|bytes| &**bytes).collect();
    plan.evaluate(index, element, &data)
}

/// How often blocks of the sequence have each token. Nearly all have none, and only those that are there are counted.
fn counts(plan: &Plan, index: usize, step: &Step, sources: &Sources<'_>) -> Vec<u8> {
    let mut bytes = vec![0; step.bytes() as usize];
    let (width, stride) = (step.width.bytes() as usize, step.row_bytes() / step.width.bytes());
    for first in (0..step.rows).map(|row| row * stride) {
        let reads: Vec<_> = plan.reads(index, first).iter().map(|read| sources.read(read)).collect();
        let ids = reads.iter().flat_map(|bytes| bytes.as_chunks().0).map(|id| split_word(u32::from_le_bytes(*id)).0);
        let seen: BTreeSet<u64> = ids.map(u64::from).filter(|id| *id < step.cols).collect();
        for element in seen.into_iter().map(|token| first + token) {
            let count = element_of(plan, index, element, sources);
            let at = element as usize * width;
            bytes[at..at + width].copy_from_slice(&count.to_le_bytes()[..width]);
        }
    }
    bytes
}

/// The values of attention by block, head and channel: a transposed copy. The plan is asked for one element of each
/// channel only, since this is the one part with as many elements as the sequence has values.
fn values(plan: &Plan, index: usize, step: &Step, steps: &[Vec<u8>]) -> Vec<u8> {
    let size = Width::I16.bytes() as usize;
    let mut bytes = vec![0; step.bytes() as usize];
    let stride = step.row_bytes() / step.width.bytes();
    for row in 0..step.rows {
        let first = row * stride;
        let channels = bytes[(row * step.row_bytes()) as usize..].chunks_exact_mut(BLOCK_KEYS * size);
        // Of the last block the keys that exist come first, the same number in each channel.
        let (mut low, mut keys) = (0, BLOCK_KEYS);
        while low < keys {
            let middle = usize::midpoint(low, keys);
            if plan.reads(index, first + middle as u64).is_empty() { keys = middle } else { low = middle + 1 }
        }
        for (channel, to) in channels.take(step.cols as usize / BLOCK_KEYS).enumerate() {
            let reads = plan.reads(index, first + (channel * BLOCK_KEYS) as u64);
            let Some(read) = reads.first() else { continue };
            let Source::Step(source) = read.source else { unreachable!("values are what an op of the layer wrote") };
            let row_bytes = plan.steps()[usize::from(source)].row_bytes() as usize;
            let from = steps[usize::from(source)][read.bytes.start as usize..].chunks(row_bytes);
            for (to, from) in to.chunks_exact_mut(size).zip(from).take(keys) {
                to.copy_from_slice(&from[..size]);
            }
        }
    }
    bytes
}
