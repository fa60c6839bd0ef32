//! Rotary position embedding (SPEC 24.16).

use std::sync::Arc;

use super::lower::Lowering;
use super::view::{Activation, Data, View};
use super::{At, Lowered, Part, PlanError, Read, Width};
use crate::fixed::{round_shift, sat_code};
use crate::program::ParamId;
use crate::reference::rope::{first, second};

#[derive(Debug)]
struct Rope {
    input: View,
    table: View,
    /// Elements of a head, and half of those that are rotated.
    head_dim: u64,
    half: u64,
    /// One for each head.
    shift: Vec<u8>,
}

pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    input: View,
    table: ParamId,
    head_dim: u16,
    shift: &[u8],
) -> Result<(Activation, Arc<dyn Lowered>), PlanError> {
    let head_dim = u64::from(head_dim);
    let out = lowering.rows(Part::Out, head_dim * shift.len() as u64, Width::I16)?;
    let half = lowering.param_cols(table) / 2;
    let op = Rope { input, table: lowering.param(table), head_dim, half, shift: shift.to_vec() };
    Ok((Activation::Plain(out), Arc::new(op)))
}

impl Lowered for Rope {
    fn reads(&self, _: Part, at: At) -> Vec<Read> {
        let element = at.col % self.head_dim;
        if element >= 2 * self.half {
            return vec![self.input.one(at.row, at.col)];
        }
        let (pair, head) = (element % self.half, at.col - element);
        vec![
            self.input.one(at.row, head + pair),
            self.input.one(at.row, head + pair + self.half),
            self.table.read(at.row, 2 * pair..2 * pair + 2),
        ]
    }

    fn evaluate(&self, _: Part, at: At, data: Data<'_>) -> i64 {
        let (element, shift) = (at.col % self.head_dim, self.shift[(at.col / self.head_dim) as usize]);
        if element >= 2 * self.half {
            return sat_code(round_shift(data.i32(0).into(), shift.into())).0.into();
        }
        let mut angles = data.i32s(2);
        let [cos, sin] = [angles.next(), angles.next()].map(Option::unwrap_or_default);
        let rotated = if element < self.half { first } else { second };
        sat_code(rotated(data.i32(0), data.i32(1), cos, sin, shift)).0.into()
    }

    fn chunks(&self, _: Part) -> u64 {
        2 * self.input.chunks(1) + self.table.chunks(2)
    }
}
