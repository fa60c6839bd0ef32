//! From a run to the bytes of every step: outputs as the backend wrote them, the parts between them recomputed from
//! earlier steps. So a run with one altered element is followed faithfully: its owner contradicts itself nowhere else.

use lockstep_kernels::steps::{Part, Plan, Source, Step, Width};

use super::kept::Kept;

/// Key positions in one row of a channel of the values.
const BLOCK_KEYS: usize = 256;

/// The bytes of each step of the plan for `row`, the last step included.
pub(super) fn fill(plan: &Plan, kept: &Kept, row: usize) -> Vec<Vec<u8>> {
    let mut steps: Vec<Vec<u8>> = Vec::with_capacity(plan.steps().len());
    for (index, step) in plan.steps().iter().enumerate() {
        let bytes = match step.part {
            Part::Out | Part::Codes | Part::Exponent => kept.output_of(step, row),
            Part::Values => values(plan, index, step, &steps),
            _ => recomputed(plan, index, step, &steps, &kept.input),
        };
        debug_assert_eq!(bytes.len() as u64, step.bytes());
        steps.push(bytes);
    }
    steps
}

/// Every element, as a referee computes it.
fn recomputed(plan: &Plan, index: usize, step: &Step, steps: &[Vec<u8>], input: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; step.bytes() as usize];
    let width = step.width.bytes() as usize;
    let stride = step.row_bytes() / step.width.bytes();
    let mut data: Vec<&[u8]> = Vec::new();
    for row in 0..step.rows {
        let cols = (row * step.row_bytes()) as usize..;
        let to = bytes[cols].chunks_exact_mut(width).take(step.cols as usize);
        for (to, element) in to.zip(row * stride..) {
            data.clear();
            data.extend(plan.reads(index, element).into_iter().map(|read| {
                let source = match read.source {
                    Source::Step(step) => &steps[usize::from(step)],
                    Source::Input => input,
                    Source::Tokens | Source::Words | Source::Param(_) => {
                        unreachable!("only outputs read tokens and parameters, and those are the backend's")
                    }
                };
                &source[read.bytes.start as usize..read.bytes.end as usize]
            }));
            to.copy_from_slice(&plan.evaluate(index, element, &data).to_le_bytes()[..width]);
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
