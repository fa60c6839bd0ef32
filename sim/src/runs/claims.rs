//! From what a party answers in a dispute, and what it claims where that is no plain run.

use lockstep_kernels::backend::Backend;
use lockstep_kernels::reference::Reference;
use lockstep_kernels::value::{Batch, Value};
use lockstep_model::dispute::Trace;
use lockstep_model::rerun::Rerun;
use lockstep_protocol::dispute::Tensor;
use lockstep_protocol::ids::{Place, Root};
use lockstep_protocol::job::Job;
use lockstep_protocol::limits::CHUNK_BYTES;
use lockstep_protocol::trace::{padded_row_bytes, push_padded_row};

use super::cases::Case;
use super::lies::lying;
use crate::adversary::Lie;
use crate::models;

/// An element of a layer's committed rows, padding included, that is another one in all roots from a point on. Nothing is
/// computed from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The layer, 1 to L.
    pub layer: u16,
    /// The position.
    pub row: usize,
    /// Beyond the layer's width it is padding.
    pub column: usize,
    /// The first point, counted from 0, whose root has it.
    pub from: usize,
    /// What it is.
    pub value: i32,
}

/// Log-probabilities of one point that are other ones. Nothing is computed from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The point, counted from 0.
    pub index: usize,
    /// The values of its row that are others, by their column.
    pub changes: Vec<(usize, i32)>,
}

/// From what a party can answer in a dispute.
#[derive(Clone, Debug)]
pub enum Basis {
    /// The job, run honestly.
    Honest,
    /// The job, run with lies.
    Lies(Vec<Lie>),
    /// The job, run honestly, with an element of a layer's rows changed.
    Rows(Rows),
    /// The job, run honestly, with log-probabilities of a point changed.
    Listed(Listed),
    /// Another model.
    OtherModel,
    /// Another job: of other tokens, or sampled in another way.
    OtherJob(Box<Job>),
    /// Nothing was run.
    Nothing,
}

impl Case {
    /// The honest run with an element of a layer's rows changed: `rows` with, as its value, the bits that are flipped. Only
    /// roots of that layer differ.
    pub fn with_rows(&self, rows: Rows) -> (Rows, Rerun) {
        let geometry = self.geometry();
        let index = usize::from(rows.layer);
        let row_bytes = padded_row_bytes(self.columns(index));
        let mut bytes = self.rows(index);
        let at = rows.row * row_bytes + 4 * rows.column;
        let element = bytes[at..].first_chunk_mut().expect("there is such an element");
        let value = i32::from_le_bytes(*element) ^ rows.value;
        *element = value.to_le_bytes();
        let mut run = Rerun::clone(self.honest());
        let points = run.roots.len() / usize::from(geometry.streamed_layers());
        for index in rows.from..points {
            let point = geometry.point(index).expect("the honest run is within the job");
            let at = geometry.index_of(Place { point, layer: rows.layer }).expect("the layer is one of the model");
            run.roots[at] = Root::from(blake3::hash(&bytes[..row_bytes * (point as usize + 1)]));
        }
        (Rows { value, ..rows }, run)
    }

    /// The honest run with log-probabilities of a point changed. No root differs.
    pub fn with_listed(&self, listed: &Listed) -> Rerun {
        let mut run = Rerun::clone(self.honest());
        let (words, _) = self.split_output(&run.output);
        let start = words.len() + listed.index * self.logprob_values();
        listed.changes.iter().for_each(|(column, value)| run.output[start + column] = *value);
        run
    }

    /// Columns of a layer's rows, without padding.
    pub fn columns(&self, layer: usize) -> usize {
        let program = self.package().program();
        program.tensor(program.layers[layer].output).cols as usize
    }

    /// The bytes of a layer's rows after an honest run, 1 to L.
    fn rows(&self, layer: usize) -> Vec<u8> {
        let program = self.package().program();
        let honest = "an honest run of a job of this simulation succeeds";
        let mut executor = Reference.load(program.clone(), self.package().params()).expect(honest);
        executor.begin(&Batch::single(self.read_tokens())).expect(honest);
        for layer in 0..=layer {
            executor.run_layer(layer).expect(honest);
        }
        let value = executor.read(program.layers[layer].output).expect(honest);
        let Value::I32(values) = value else {
            unreachable!("the output of a layer is i32");
        };
        let mut bytes = Vec::new();
        values.chunks_exact(self.columns(layer)).for_each(|row| push_padded_row(row, &mut bytes));
        bytes
    }

    /// What somebody whose run made these words can say in a dispute about a place of this case.
    pub fn trace(&self, basis: &Basis, words: &[u32], place: Place) -> Trace {
        let package = match basis {
            Basis::OtherModel => &models::impostors()[self.model],
            _ => self.package(),
        };
        let job = match basis {
            Basis::OtherJob(job) => job,
            _ => &self.job,
        };
        let backend: Box<dyn Backend> = match basis {
            Basis::Lies(lies) => Box::new(lying(lies)),
            _ => Box::new(Reference),
        };
        let (program, params) = (package.program(), package.params());
        let made = "the models of the simulation run whatever fits them";
        let mut executor = backend.load(program.clone(), params.clone()).expect(made);
        let mut trace = Trace::of_job(&mut *executor, program, params, job, words, place).expect(made);
        match basis {
            Basis::Rows(rows) => self.alter(&mut trace, rows, place),
            Basis::Listed(listed) => self.alter_listed(&mut trace, listed, place),
            _ => {}
        }
        trace
    }

    fn alter_listed(&self, trace: &mut Trace, listed: &Listed, place: Place) {
        let geometry = self.geometry();
        let of = Place { point: geometry.point(listed.index).unwrap_or(u32::MAX), layer: geometry.logprobs_layer() };
        for (column, value) in listed.changes.iter().filter(|_| of == place) {
            let altered = trace.alter(0, Tensor::Output, *column as u64, (*value).into());
            assert!(altered, "there is such a column, or the run would not be this one");
        }
    }

    fn alter(&self, trace: &mut Trace, rows: &Rows, place: Place) {
        let has_row = self.geometry().point(rows.from).is_some_and(|from| place.point >= from);
        if rows.layer != place.layer || !has_row {
            return;
        }
        let element = rows.row * padded_row_bytes(self.columns(rows.layer.into())) / 4 + rows.column;
        let chunk = 4 * element / CHUNK_BYTES;
        let altered = trace.alter(chunk as u64, Tensor::Output, element as u64, rows.value.into());
        assert!(altered, "there is such an element, or the run would not be this one");
    }
}
