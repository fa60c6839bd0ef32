//! Cases for the ops that only decoders have: products of two tensors, rotations by position, rows at points.

use std::sync::Arc;

use super::Divergence;
use super::case::{Builder, Case, ParamValue};
use super::data::{Pattern, SplitMix};
use super::ops::norm;
use crate::program::{Op, Rows, TensorKind};
use crate::sampling::Sampling;
use crate::value::Sampler;

type Visit<'a> = &'a mut dyn FnMut(Case) -> Result<(), Divergence>;

/// Products of a tensor with its own norm, whose signs are others.
pub(super) fn multiply(shapes: &[(usize, usize)], patterns: &[Pattern], visit: Visit<'_>) -> Result<(), Divergence> {
    for &(rows, cols) in shapes {
        for &pattern in patterns {
            for shift in [0, 1, 30, 31, 61, 62] {
                let name = format!("{rows}x{cols} {} shift {shift}", pattern.name());
                let mut rng = SplitMix::named(&format!("multiply {name}"));
                let (mut b, a) = Builder::with_input(rows, cols);
                let (other, y) = (b.rows("other", cols, TensorKind::I32), b.rows("y", cols, TensorKind::I32));
                let norm = norm(&mut b, &mut rng, 29, cols);
                let bias = Pattern::Mixed.i32s(&mut rng, 1, cols);
                let bias = b.vector("bias", bias);
                let ops = vec![
                    Op::LayerNorm { input: a, norm, bias, out: other },
                    Op::Multiply { a, b: other, shift, out: y },
                ];
                b.layer(ops, y);
                let input = pattern.i32s(&mut rng, rows, cols);
                visit(b.case("multiply", name, &[rows], Some(input)))?;
            }
        }
    }
    Ok(())
}

/// Rotations of whole heads, of a part of them and of nothing, by angles and by whatever else a table may hold.
pub(super) fn rope(patterns: &[Pattern], visit: Visit<'_>) -> Result<(), Divergence> {
    for (heads, dim, rotary) in
        [(1, 2, 2), (2, 17, 16), (3, 64, 64), (1, 33, 2), (2, 8, 4), (1, 128, 128), (1, 512, 512)]
    {
        for &pattern in patterns {
            for of_table in [Pattern::Small, Pattern::Full, pattern] {
                visit(rotation([heads, dim, rotary], pattern, of_table))?;
            }
        }
    }
    Ok(())
}

fn rotation([heads, dim, rotary]: [usize; 3], pattern: Pattern, of_table: Pattern) -> Case {
    const LENGTHS: [usize; 3] = [9, 1, 4];
    let name = format!("{rotary} of {heads} heads of {dim}, {} by {}", pattern.name(), of_table.name());
    let mut rng = SplitMix::named(&format!("rope {name}"));
    let cols = heads * dim;
    let (mut b, x) = Builder::with_input(9, cols);
    let table = if of_table == Pattern::Small {
        // Angles, as real tables have them: cosines and sines within one.
        Pattern::Mixed.fill(&mut rng, 9, rotary, -1 << 30, 1 << 30).into_iter().map(|v| v as i32).collect()
    } else {
        of_table.i32s(&mut rng, 9, rotary)
    };
    let table = b.param("table", ParamValue::I32(table), 9, rotary);
    let (out, sum) = (b.rows("rotated", cols, TensorKind::I16), b.rows("sum", cols, TensorKind::I32));
    let shift = (0..heads).map(|h| [16, 0, 32, 5][(h + dim) % 4]).collect();
    let rope = Op::Rope { input: x, table, heads: heads as u16, head_dim: dim as u16, shift, out };
    b.layer(vec![rope, Op::Add { a: x, b: x, out: sum }], sum);
    let input = pattern.i32s(&mut rng, LENGTHS.iter().sum(), cols);
    b.case("rope", name, &LENGTHS, Some(input))
}

/// Rows at the points of some sequences, beside sequences that have none.
pub(super) fn gather(shapes: &[(usize, usize)], patterns: &[Pattern], visit: Visit<'_>) -> Result<(), Divergence> {
    for &(rows, cols) in shapes {
        for &pattern in patterns {
            let name = format!("{rows}x{cols} {}", pattern.name());
            let mut rng = SplitMix::named(&format!("gather {name}"));
            let rows = rows + 2;
            let (mut b, input) = Builder::with_input(rows, cols);
            let out = b.tensor("gathered", Rows::Point, cols, TensorKind::I32);
            b.layer(vec![Op::Gather { input, out }], out);
            let lengths = [rows, 1, rows - 1, rows.div_ceil(2)];
            let input = pattern.i32s(&mut rng, lengths.iter().sum(), cols);
            let mut case = b.case("gather", name, &lengths, Some(input));
            // From all rows of the first to the last of the last; the second has no points.
            for (s, prompt) in [(0, 1), (2, rows as u32 - 1), (3, 2)] {
                sample_from(&mut case, s, prompt);
            }
            visit(case)?;
        }
    }
    Ok(())
}

/// Gives a sequence of a case the points from the last of `prompt` tokens on.
pub(super) fn sample_from(case: &mut Case, sequence: usize, prompt: u32) {
    let sequence = &mut case.batch.sequences[sequence];
    let sampling = Sampling { prompt_tokens: prompt, max_tokens: u32::MAX, ..Sampling::default() };
    let mut sampler = Sampler { sampling: Arc::new(sampling), draws: Vec::new() };
    sequence.sampler = Some(sampler.clone());
    let mut rng = SplitMix::named("draws");
    sampler.draws = sequence.points().map(|_| rng.next_u64()).collect();
    sequence.sampler = Some(sampler);
}
