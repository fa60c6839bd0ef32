//! Matrix product (SPEC 24.9).

use std::sync::Arc;

use super::lower::Lowering;
use super::view::{Activation, Data, View};
use super::{At, Lowered, Part, PlanError, Read, Width};
use crate::fixed::{sat_code, sat32};
use crate::program::{ParamId, ScaledRows, TensorKind};
use crate::reference::matmul::{dot, scaled};

#[derive(Debug)]
struct MatMul {
    codes: View,
    exponents: View,
    /// Length of the reduction.
    k: u64,
    weight: View,
    mantissa: View,
    shift: View,
    bias: Option<View>,
    kind: TensorKind,
}

pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    input: Activation,
    weight: &ScaledRows,
    bias: Option<ParamId>,
    [cols, k]: [u64; 2],
    kind: TensorKind,
) -> Result<(Activation, Arc<dyn Lowered>), PlanError> {
    let Activation::Bfp { codes, exponents } = input else { unreachable!("validation fixed the kind of every tensor") };
    let width = if kind == TensorKind::I16 { Width::I16 } else { Width::I32 };
    let out = lowering.rows(Part::Out, cols, width)?;
    let op = MatMul {
        codes,
        exponents,
        k,
        weight: lowering.param(weight.codes),
        mantissa: lowering.param(weight.mantissa),
        shift: lowering.param(weight.shift),
        bias: bias.map(|bias| lowering.param(bias)),
        kind,
    };
    Ok((Activation::Plain(out), Arc::new(op)))
}

impl Lowered for MatMul {
    fn reads(&self, _: Part, at: At) -> Vec<Read> {
        let mut reads = vec![
            self.codes.read(at.row, 0..self.k),
            self.exponents.one(at.row, 0),
            self.weight.read(at.col, 0..self.k),
            self.mantissa.one(0, at.col),
            self.shift.one(0, at.col),
        ];
        reads.extend(self.bias.map(|bias| bias.one(0, at.col)));
        reads
    }

    fn evaluate(&self, _: Part, _: At, data: Data<'_>) -> i64 {
        let codes = data.i16s(0).map(i64::from);
        let a = match self.weight.size {
            1 => dot(codes, data.i8s(2).map(i64::from)),
            _ => dot(codes, data.i16s(2).map(i64::from)),
        };
        let y = scaled(a, data.u16(3), data.i16(4), data.i32(1), data.i32(5));
        if self.kind == TensorKind::I16 { sat_code(y).0.into() } else { sat32(y).0.into() }
    }

    fn chunks(&self, _: Part) -> u64 {
        let scales = self.mantissa.chunks(1) + self.shift.chunks(1) + self.bias.map_or(0, |bias| bias.chunks(1));
        self.codes.chunks(self.k) + self.exponents.chunks(1) + self.weight.chunks(self.k) + scales
    }
}
