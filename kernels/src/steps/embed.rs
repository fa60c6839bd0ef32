//! Sum of embedding rows (SPEC 24.7). Which row of a table is read may depend on a token, which is read first.

use std::sync::Arc;

use super::ids::Ids;
use super::lower::Lowering;
use super::view::{Activation, Data, View};
use super::{At, Lowered, Part, PlanError, Read, Width};
use crate::program::{EmbedIndex, ScaledRows};
use crate::reference::embed::{element, total};

#[derive(Debug)]
struct Table {
    codes: View,
    mantissa: View,
    shift: View,
    rows: u64,
    index: EmbedIndex,
}

impl Table {
    /// Code, mantissa and shift; nothing of a row beyond the table.
    fn reads(&self, row: u64, col: u64) -> impl Iterator<Item = Read> + use<> {
        let reads = || [self.codes.one(row, col), self.mantissa.one(0, row), self.shift.one(0, row)];
        (row < self.rows).then(reads).into_iter().flatten()
    }
}

#[derive(Debug)]
struct Embed {
    tables: Vec<Table>,
    ids: Option<Ids>,
}

pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    tables: &[(ScaledRows, EmbedIndex)],
    cols: u64,
) -> Result<(Activation, Arc<dyn Lowered>), PlanError> {
    let out = lowering.rows(Part::Out, cols, Width::I32)?;
    let by_token = tables.iter().any(|(_, index)| *index == EmbedIndex::Token);
    let table = |(rows, index): &(ScaledRows, EmbedIndex)| Table {
        codes: lowering.param(rows.codes),
        mantissa: lowering.param(rows.mantissa),
        shift: lowering.param(rows.shift),
        rows: lowering.param_rows(rows.codes),
        index: *index,
    };
    let op = Embed { tables: tables.iter().map(table).collect(), ids: by_token.then(|| lowering.ids()) };
    Ok((Activation::Plain(out), Arc::new(op)))
}

impl Lowered for Embed {
    fn reads(&self, _: Part, at: At) -> Vec<Read> {
        let mut reads: Vec<Read> = self.ids.iter().map(|ids| ids.one(at.row)).collect();
        for table in &self.tables {
            match table.index {
                EmbedIndex::Token => {}
                EmbedIndex::Position => reads.extend(table.reads(at.row, at.col)),
                EmbedIndex::Constant(row) => reads.extend(table.reads(row.into(), at.col)),
            }
        }
        reads
    }

    fn follow(&self, _: Part, at: At, data: Data<'_>) -> Vec<Read> {
        let token = u64::from(self.ids.map_or(0, |ids| ids.id(at.row, data.u32(0))));
        let by_token = self.tables.iter().filter(|table| table.index == EmbedIndex::Token);
        by_token.flat_map(|table| table.reads(token, at.col)).collect()
    }

    fn evaluate(&self, _: Part, _: At, data: Data<'_>) -> i64 {
        // After the token three reads for each table, in whatever order the tables came.
        let first = usize::from(self.ids.is_some());
        let rows = (first..data.len()).step_by(3);
        total(rows.map(|read| element(data.i16(read), data.u16(read + 1), data.i16(read + 2)))).0.into()
    }

    fn chunks(&self, _: Part) -> u64 {
        let of_table = |table: &Table| table.codes.chunks(1) + table.mantissa.chunks(1) + table.shift.chunks(1);
        self.ids.map_or(0, |ids| ids.chunks(1)) + self.tables.iter().map(of_table).sum::<u64>()
    }
}
