//! Sequences of many blocks: what a kernel that counts blocks or rows in too few bits gets wrong.

use std::sync::Arc;

use super::case::{Case, OwnedParams};
use super::data::Pattern;
use super::{Difference, Divergence, ops};
use crate::backend::{Backend, BackendError, Executor};
use crate::host::{AttentionArgs, AttentionRows};
use crate::program::{Op, Program, TensorId};
use crate::reference::{Reference, attention};
use crate::value::{Params, Value};

/// Positions of the longest attention, no multiple of a block.
const POSITIONS: usize = 20_483;

/// Query rows of it that the oracle computes: each sees another number of blocks, and all of them would take minutes.
fn rows() -> Vec<usize> {
    let first = [0, 255, 256, 2_047, 2_048, 2_304, 4_096, 8_191, 16_384];
    first.into_iter().chain(POSITIONS - 5..POSITIONS).collect()
}

/// Attention over very many positions, compared at some rows. Returns the number of elements compared.
pub(super) fn attention(backend: &dyn Backend) -> Result<u64, Divergence> {
    let case = ops::heads((2, 1, 2, &[POSITIONS]), Pattern::Mixed, true);
    let fail =
        |difference| Divergence { backend: backend.name(), op: "attention", case: case.name.clone(), difference };
    let failed = |e: BackendError| fail(Difference::Failed { error: e.to_string() });
    let Some(Op::Attention { q, k, v, heads, out }) = case.program.layers[1].ops.last() else {
        unreachable!("the case ends with attention")
    };
    let mut executor = begin(&case, &case.program, backend).map_err(failed)?;
    executor.run_layer(1).map_err(failed)?;
    let Value::I32(got) = executor.read(*out).map_err(failed)? else {
        return Err(fail(Difference::Shape { tensor: "mixed".into() }));
    };
    let [q, k, v] = operands(&case, [*q, *k, *v]).map_err(failed)?;
    let width = usize::from(heads.heads) * usize::from(heads.head_dim);
    if got.len() != POSITIONS * width {
        return Err(fail(Difference::Shape { tensor: "mixed".into() }));
    }
    let sequences = [AttentionRows::whole(0..POSITIONS, &k, &v, heads)];
    let args = AttentionArgs { q: &q, heads, sequences: &sequences };
    let mut expected = vec![0; width];
    for row in rows() {
        attention::position(&args, &sequences[0], row, &mut expected);
        let got = &got[row * width..(row + 1) * width];
        if let Some(col) = (0..width).find(|c| expected[*c] != got[*c]) {
            let (expected, got) = (expected[col].into(), got[col].into());
            return Err(fail(Difference::Element { tensor: "mixed".into(), row, col, expected, got }));
        }
    }
    Ok((rows().len() * width) as u64)
}

/// An executor that is about to run layer 1.
fn begin(case: &Case, program: &Arc<Program>, on: &dyn Backend) -> Result<Box<dyn Executor>, BackendError> {
    let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
    let mut executor = on.load(Arc::clone(program), params)?;
    executor.begin(&case.batch)?;
    executor.run_layer(0)?;
    if let Some(input) = &case.input {
        executor.write(case.program.layers[0].output, input.clone())?;
    }
    Ok(executor)
}

/// Queries, keys and values by the oracle: layer 1 without its attention.
fn operands(case: &Case, ids: [TensorId; 3]) -> Result<[Vec<i16>; 3], BackendError> {
    let mut program = Program::clone(&case.program);
    let (input, layer) = (program.layers[0].output, &mut program.layers[1]);
    layer.ops.pop();
    // A layer has an i32 output; nobody reads this one.
    let sum = TensorId(program.tensors.len() as u16);
    program.tensors.push(program.tensors[usize::from(input.0)].clone());
    layer.ops.push(Op::Add { a: input, b: input, out: sum });
    layer.output = sum;
    let mut executor = begin(case, &Arc::new(program), &Reference)?;
    executor.run_layer(1)?;
    let mut read = |id| match executor.read(id)? {
        Value::I16(v) => Ok(v),
        _ => Err(BackendError::Value { tensor: id, reason: "operands of attention are i16".into() }),
    };
    Ok([read(ids[0])?, read(ids[1])?, read(ids[2])?])
}
