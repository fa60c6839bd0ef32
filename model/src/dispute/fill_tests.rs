//! Every element of what a player says against the referee's own recomputation.

use std::sync::Arc;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::conformance::{Case, encoder};
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::program::Rows;
use lockstep_kernels::reference::Reference;
use lockstep_kernels::steps::{Plan, Source};
use lockstep_kernels::value::Params;
use lockstep_protocol::ids::Place;

use super::fill::{Ids, fill};
use super::kept::Kept;
use crate::lower::param_bytes;

fn kept(case: &Case, backend: &dyn Backend, layer: usize) -> Kept {
    let tokens = &case.batch.sequences[0].tokens;
    let mut executor = backend.load(Arc::clone(&case.program), case.params.clone()).unwrap();
    let place = Place { point: tokens.len() as u32 - 1, layer: layer as u16 };
    Kept::run(&mut *executor, &case.program, tokens, place, None).unwrap()
}

/// What a referee makes of each element, from bytes that it was shown.
fn check(case: &Case, kept: &Kept, plan: &Plan, steps: &[Vec<u8>]) {
    let tokens: Vec<u8> = case.batch.sequences[0].tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
    let params: Vec<_> = (0..case.program.params.len() as u16)
        .map(|id| param_bytes(case.params.param(lockstep_kernels::program::ParamId(id))))
        .collect();
    let bytes = |source: Source| match source {
        Source::Step(step) => &steps[usize::from(step)],
        Source::Input => &kept.input,
        Source::Tokens => &tokens,
        Source::Words => panic!("an encoder generates nothing"),
        Source::Param(id) => &params[usize::from(id.0)],
    };
    for (index, step) in plan.steps().iter().enumerate() {
        assert_eq!(steps[index].len() as u64, step.bytes());
        let width = step.width.bytes() as usize;
        for (element, held) in steps[index].chunks_exact(width).enumerate() {
            let mut data: Vec<&[u8]> = Vec::new();
            for reads in [plan.reads(index, element as u64), vec![]] {
                data.extend(reads.iter().map(|r| &bytes(r.source)[r.bytes.start as usize..r.bytes.end as usize]));
            }
            let more = plan.follow(index, element as u64, &data);
            data.extend(more.iter().map(|r| &bytes(r.source)[r.bytes.start as usize..r.bytes.end as usize]));
            let value = plan.evaluate(index, element as u64, &data).to_le_bytes();
            assert_eq!(held, &value[..width], "{} element {element}", step.name(&case.program));
        }
    }
}

#[test]
fn every_element_that_a_player_holds_is_what_a_referee_recomputes() {
    let cpu = Cpu::new(None, 1).unwrap();
    let backends: [&dyn Backend; 2] = [&Reference, &cpu];
    for (case, backend) in
        [encoder(48, 3, 80, 2, false, &[270]), encoder(264, 4, 40, 1, true, &[5])].iter().zip(backends)
    {
        for layer in 1..case.program.layers.len() {
            let kept = kept(case, backend, layer);
            let positions = case.batch.sequences[0].tokens.len();
            let output = case.program.tensor(case.program.layers[layer].output);
            let rows = if output.rows == Rows::Position { vec![0, positions / 2, positions - 1] } else { vec![0] };
            for row in rows {
                let plan = Plan::new(&case.program, layer, positions as u32, row as u32, None).unwrap();
                let steps = fill(&plan, &kept, &Ids::default(), &*case.params, row);
                check(case, &kept, &plan, &steps);
                let len = steps.last().unwrap().len();
                assert_eq!(steps.last().unwrap(), &kept.output[row * len..(row + 1) * len]);
            }
        }
    }
}
