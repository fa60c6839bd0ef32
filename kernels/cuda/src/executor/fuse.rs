//! Which ops of a layer are launched together. Nothing of it shows in a result: every op's output is written.

use lockstep_kernels::program::{DType, Op, Program};

use crate::params::{
    MAX_PARTS, STEP_ADD, STEP_GELU, STEP_LAYER_NORM, STEP_MULTIPLY, STEP_QUANTIZE, STEP_RMS_NORM, STEP_SILU,
};

/// Ops that are launched together.
#[derive(Debug)]
pub(super) enum Group<'a> {
    /// Alone.
    One(&'a Op),
    /// The same rows by several matrices, of weights of one width.
    Products(Vec<&'a Op>),
    /// Steps of a row, each of which reads what the one before wrote.
    Rows(Vec<&'a Op>),
}

impl<'a> Group<'a> {
    /// Its ops, in the order in which they run.
    pub(super) fn ops(&self) -> &[&'a Op] {
        match self {
            Self::One(op) => std::slice::from_ref(op),
            Self::Products(ops) | Self::Rows(ops) => ops,
        }
    }
}

/// The ops of a layer in groups. Products come as early as one of the same rows: no op before them reads or writes what they
/// write, for each op of a layer writes a tensor that no earlier one wrote or read.
pub(super) fn groups<'a>(program: &Program, ops: &'a [Op]) -> Vec<Group<'a>> {
    let mut left: Vec<&Op> = ops.iter().collect();
    let mut groups = Vec::new();
    while let Some(first) = left.first() {
        let group = if matches!(first, Op::MatMul { .. }) { products(program, &left) } else { steps(program, &left) };
        left.retain(|op| !group.iter().any(|of_group| std::ptr::eq(*op, *of_group)));
        groups.push(match (group.len(), group[0]) {
            (1, op) => Group::One(op),
            (_, Op::MatMul { .. }) => Group::Products(group),
            _ => Group::Rows(group),
        });
    }
    groups
}

/// The first op, a product, and all later ones that share its rows and the width of its weights.
fn products<'a>(program: &Program, ops: &[&'a Op]) -> Vec<&'a Op> {
    let of = |op: &Op| match op {
        Op::MatMul { input, weight, .. } => Some((*input, program.param(weight.codes).dtype == DType::I16)),
        _ => None,
    };
    ops.iter().filter(|op| of(op) == of(ops[0])).take(MAX_PARTS).copied().collect()
}

/// The step of a row that an op is.
pub(super) const fn step(op: &Op) -> Option<u32> {
    match op {
        Op::Add { .. } => Some(STEP_ADD),
        Op::Silu { .. } => Some(STEP_SILU),
        Op::Gelu { .. } => Some(STEP_GELU),
        Op::Multiply { .. } => Some(STEP_MULTIPLY),
        Op::RmsNorm { groups: 1, .. } => Some(STEP_RMS_NORM),
        Op::LayerNorm { .. } => Some(STEP_LAYER_NORM),
        Op::Quantize { .. } => Some(STEP_QUANTIZE),
        _ => None,
    }
}

/// The first op, and those right after it that go on with its rows, in the order of steps.
fn steps<'a>(program: &Program, ops: &[&'a Op]) -> Vec<&'a Op> {
    let mut group = vec![ops[0]];
    for next in &ops[1..] {
        let last = group[group.len() - 1];
        let follows = matches!((step(last), step(next)), (Some(a), Some(b)) if a < b && !is_same_kind(a, b));
        let (of_last, of_next) = (program.tensor(last.out()), program.tensor(next.out()));
        let same_rows = (of_last.rows, of_last.cols) == (of_next.rows, of_next.cols);
        if !(follows && same_rows && next.inputs().contains(&last.out())) {
            break;
        }
        group.push(next);
    }
    group
}

/// SiLU and GELU share their parameters, and so do both norms.
const fn is_same_kind(a: u32, b: u32) -> bool {
    matches!((a, b), (STEP_SILU, STEP_GELU) | (STEP_RMS_NORM, STEP_LAYER_NORM))
}

#[cfg(test)]
mod tests {
    use lockstep_kernels::conformance::{DecoderShape, decoder, encoder};

    use super::*;

    fn names(program: &Program, layer: usize) -> Vec<String> {
        let groups = groups(program, &program.layers[layer].ops);
        let name = |group: &Group<'_>| group.ops().iter().map(|op| op.name()).collect::<Vec<_>>().join("+");
        groups.iter().map(name).collect()
    }

    /// Launches of a layer: attention takes two, and one more where it appends to caches.
    fn launches(groups: &[String], caches: bool) -> usize {
        let attentions = groups.iter().filter(|group| *group == "attention").count();
        groups.len() + attentions * (1 + usize::from(caches))
    }

    #[test]
    fn a_layer_takes_few_launches() {
        let case = decoder(DecoderShape::SMALL, &[1]);
        let decoder = names(&case.program, 1);
        assert_eq!(
            decoder,
            [
                "rms_norm+quantize",
                "matmul+matmul+matmul",
                "rope",
                "rope",
                "attention",
                "quantize",
                "matmul",
                "add+rms_norm+quantize",
                "matmul+matmul",
                "silu+multiply+quantize",
                "matmul",
                "add",
                "shift",
            ]
        );
        let apart = |ops: &[Op]| -> Vec<String> { ops.iter().map(|op| op.name().to_owned()).collect() };
        assert_eq!((launches(&apart(&case.program.layers[1].ops), true), launches(&decoder, true)), (23, 15));
        let case = encoder(16, 2, 16, 2, false, &[4]);
        let encoder = names(&case.program, 1);
        assert_eq!(
            encoder,
            [
                "quantize",
                "matmul+matmul+matmul",
                "attention",
                "quantize",
                "matmul",
                "add+layer_norm+quantize",
                "matmul",
                "gelu+quantize",
                "matmul",
                "add+layer_norm",
            ]
        );
        assert_eq!((launches(&apart(&case.program.layers[1].ops), false), launches(&encoder, false)), (17, 11));
    }

    /// Every op is in one group, and no op comes before what it reads.
    #[test]
    fn groups_keep_what_ops_depend_on() {
        for case in [decoder(DecoderShape::SMALL, &[1]), encoder(16, 2, 16, 2, false, &[4])] {
            for layer in &case.program.layers {
                let groups = groups(&case.program, &layer.ops);
                let order: Vec<&Op> = groups.iter().flat_map(|group| group.ops()).copied().collect();
                assert_eq!(order.len(), layer.ops.len());
                for op in &layer.ops {
                    let at = |wanted: &Op| order.iter().position(|op| std::ptr::eq(*op, wanted)).expect("in a group");
                    let writers = layer.ops.iter().filter(|other| op.inputs().contains(&other.out()));
                    assert!(writers.into_iter().all(|writer| at(writer) < at(op)), "{op:?}");
                }
            }
        }
    }
}
