//! Ops that work row by row, one on what the other wrote.

use std::sync::Arc;

use super::CpuKernels;
use super::threads::Threads;
use crate::host::{RowStep, blocks_of_rows, run_row_steps};

/// Elements of the widest row in one block, at the most: what four steps read and write of them fits the near caches.
const BLOCK: usize = 8_192;

/// Runs all steps over a block of rows before the next one.
pub(super) fn row_steps(cpu: &CpuKernels, steps: Vec<RowStep<'_>>) -> u64 {
    let widest = steps.iter().map(|step| step.cols).max().unwrap_or(1);
    let alone = CpuKernels { isa: cpu.isa, threads: Arc::new(Threads::alone()) };
    let blocks = blocks_of_rows(steps, (BLOCK / widest.max(1)).max(1));
    cpu.threads.each(blocks, |steps| run_row_steps(&alone, steps))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::host::{HostOps, NormArgs, RowInput, RowOp, RowOut};
    use crate::program::{Norm, ParamId};
    use crate::reference::Reference;

    /// A sum, a norm of it, and its codes.
    fn of(
        kernels: &impl HostOps,
        cols: usize,
        a: &[i32],
        b: &[i32],
        scale: &[i32],
    ) -> (Vec<i32>, Vec<i16>, Vec<i32>, u64) {
        let (mut sum, mut normed) = (vec![0; a.len()], vec![0; a.len()]);
        let (mut codes, mut exponents) = (vec![0; a.len()], vec![0; a.len() / cols]);
        let norm = Norm { scale: ParamId(0), epsilon_mantissa: 1 << 31, epsilon_shift: 40, shift: 30 };
        let step = |op, inputs, out| RowStep { op, inputs, out, cols };
        let clamped = kernels.row_steps(vec![
            step(RowOp::Add, [RowInput::Rows(a), RowInput::Rows(b)], RowOut::I32(&mut sum)),
            step(RowOp::RmsNorm(NormArgs { scale, norm }), [RowInput::Step(0); 2], RowOut::I32(&mut normed)),
            step(RowOp::Quantize, [RowInput::Step(1); 2], RowOut::Bfp { codes: &mut codes, exponents: &mut exponents }),
        ]);
        sum.extend(normed);
        (sum, codes, exponents, clamped)
    }

    #[test]
    fn blocks_of_rows_give_what_all_rows_at_once_give() {
        // One row, a last block that is not full, one row to a block, and a row that is longer than a block.
        for (rows, cols) in [(1, 576), (300, 64), (7, 5_000), (3, 10_000)] {
            let value = |i: usize| ((i as i32).wrapping_mul(-1_640_531_535)) >> (i % 9);
            let [a, b] = [1, 77_777].map(|from| (0..rows * cols).map(|i| value(i + from)).collect::<Vec<_>>());
            let scale: Vec<i32> = (0..cols).map(|i| value(i) >> 3).collect();
            let expected = of(&Reference, cols, &a, &b, &scale);
            assert!(expected.3 > 0, "some sums clamp");
            for threads in 1..=3 {
                let cpu = Cpu::new(None, threads).unwrap();
                assert_eq!(of(cpu.kernels(), cols, &a, &b, &scale), expected, "{rows} x {cols}, {threads} threads");
            }
        }
    }
}
