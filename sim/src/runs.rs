//! What a party computed: an honest run, or what a cheat calls one.

use std::sync::{Arc, OnceLock};

use lockstep_kernels::backend::Backend;
use lockstep_kernels::program::{Rows, TensorKind};
use lockstep_kernels::reference::Reference;
use lockstep_kernels::value::{Batch, Value};
use lockstep_model::dispute::Trace;
use lockstep_model::package::Package;
use lockstep_model::rerun::{Rerun, rerun};
use lockstep_protocol::dispute::Tensor;
use lockstep_protocol::ids::{Place, Root};
use lockstep_protocol::limits::CHUNK_BYTES;
use lockstep_protocol::trace::{padded_row_bytes, push_padded_row};

use crate::adversary::{Change, Lie, LyingBackend, Target};
use crate::models;
use crate::random::Random;

/// A model with a text for it: what the jobs of all worlds are made of, so that its honest run is made once.
pub struct Case {
    /// Index into [`models::all`].
    pub model: usize,
    /// Token ids.
    pub tokens: Vec<u32>,
    honest: OnceLock<Arc<Rerun>>,
}

/// Model and length of each case. One position; lengths around the edges of pooling blocks (56), of attention blocks (256)
/// and of one round of a descent (256 chunks).
const CASES: [(usize, usize); 15] = [
    (0, 1),
    (0, 3),
    (0, 20),
    (0, 57),
    (1, 2),
    (1, 9),
    (1, 30),
    (2, 1),
    (2, 4),
    (2, models::WIDE_POSITIONS),
    (3, 1),
    (3, 7),
    (3, 64),
    (0, 258),
    (3, models::MAX_POSITIONS),
];
/// Cases at the end of the list that take long, and how many worlds in a thousand have one of them.
const LONG_CASES: usize = 2;
const LONG_PER_MILLE: u64 = 60;

/// All cases.
pub fn cases() -> &'static [Case] {
    static ALL: OnceLock<Vec<Case>> = OnceLock::new();
    ALL.get_or_init(|| {
        let case = |(index, (model, length)): (usize, &(usize, usize))| {
            let mut random = Random::new("tokens", index as u64);
            let vocabulary = u64::from(models::all()[*model].program().vocab_size);
            let tokens = (0..*length).map(|_| random.within(0..=vocabulary - 1) as u32).collect();
            Case { model: *model, tokens, honest: OnceLock::new() }
        };
        CASES.iter().enumerate().map(case).collect()
    })
}

/// A case for a job.
pub fn draw(random: &mut Random) -> &'static Case {
    let (short, long) = cases().split_at(CASES.len() - LONG_CASES);
    if random.per_mille(LONG_PER_MILLE) { random.pick(long) } else { random.pick(short) }
}

impl Case {
    /// The model.
    pub fn package(&self) -> &'static Package {
        &models::all()[self.model]
    }

    /// Transformer layers of the model.
    pub fn layers(&self) -> u16 {
        (self.package().program().layers.len() - 2) as u16
    }

    /// What the job gives.
    pub fn honest(&self) -> &Arc<Rerun> {
        self.honest.get_or_init(|| Arc::new(run(self.package(), &Reference, &self.tokens)))
    }

    /// What the backend gives.
    pub fn lied(&self, lies: &[Lie]) -> Rerun {
        run(self.package(), &lying(lies), &self.tokens)
    }

    /// What other tokens of the same number give.
    pub fn of_tokens(&self, tokens: &[u32]) -> Rerun {
        run(self.package(), &Reference, tokens)
    }

    /// What another model gives.
    pub fn of_other_model(&self) -> Rerun {
        run(&models::impostors()[self.model], &Reference, &self.tokens)
    }

    /// The honest run with a byte of the padding of layer `layer` changed: only that layer's root differs, since
    /// nothing reads padding. None where the rows have no padding.
    pub fn padded(&self, layer: u16, row: usize, byte: u8) -> Option<Rerun> {
        let program = self.package().program();
        let index = usize::from(layer);
        let columns = program.tensor(program.layers[index].output).cols as usize;
        let row_bytes = padded_row_bytes(columns);
        if row_bytes == 4 * columns {
            return None;
        }
        let mut rows = self.rows(index, columns);
        rows[row * row_bytes + 4 * columns] ^= byte;
        let mut lied = Rerun::clone(self.honest());
        lied.roots[index - 1] = Root::from(blake3::hash(&rows));
        Some(lied)
    }

    /// The committed bytes of a layer, honestly.
    fn rows(&self, layer: usize, columns: usize) -> Vec<u8> {
        let program = self.package().program();
        let honest = "an honest run of a job of this simulation succeeds";
        let mut executor = Reference.load(Arc::clone(program), self.package().params()).expect(honest);
        executor.begin(&Batch::single(self.tokens.clone())).expect(honest);
        for layer in 0..=layer {
            executor.run_layer(layer).expect(honest);
        }
        let value = executor.read(program.layers[layer].output).expect(honest);
        let Value::I32(values) = value else {
            unreachable!("the output of a layer is i32");
        };
        let mut bytes = Vec::new();
        values.chunks_exact(columns).for_each(|row| push_padded_row(row, &mut bytes));
        bytes
    }
}

/// From what a party can answer in a dispute.
#[derive(Clone, Debug)]
pub enum Basis {
    /// The job, run honestly.
    Honest,
    /// The job, run with lies.
    Lies(Vec<Lie>),
    /// The job, run honestly, with padding of a layer's row changed.
    Padding {
        /// The layer.
        layer: u16,
        /// The row.
        row: usize,
        /// What its first byte of padding is.
        byte: u8,
    },
    /// Another model.
    OtherModel,
    /// Other tokens.
    OtherTokens(Vec<u32>),
    /// Nothing was run.
    Nothing,
}

impl Case {
    /// What somebody can say in a dispute about a place of this case.
    pub fn trace(&self, basis: &Basis, place: Place) -> Trace {
        let models = match basis {
            Basis::OtherModel => models::impostors(),
            _ => models::all(),
        };
        let package = &models[self.model];
        let tokens = match basis {
            Basis::OtherTokens(tokens) => tokens,
            _ => &self.tokens,
        };
        let backend: Box<dyn Backend> = match basis {
            Basis::Lies(lies) => Box::new(lying(lies)),
            _ => Box::new(Reference),
        };
        let made = "the models of the simulation run whatever fits them";
        let mut executor = backend.load(Arc::clone(package.program()), package.params()).expect(made);
        let mut trace = Trace::run(&mut *executor, package.program(), package.params(), tokens, place).expect(made);
        if let Basis::Padding { layer, row, byte } = basis
            && *layer == place.layer
        {
            let program = package.program();
            let columns = program.tensor(program.layers[usize::from(*layer)].output).cols as usize;
            let chunk = row * padded_row_bytes(columns) / CHUNK_BYTES;
            let element = row * padded_row_bytes(columns) / 4 + columns;
            let altered = trace.alter(chunk as u64, Tensor::Output, element as u64, i64::from(*byte));
            assert!(altered, "there is padding, or the run would not be this one");
        }
        trace
    }
}

/// The reference backend, with lies.
pub fn lying(lies: &[Lie]) -> LyingBackend<Reference> {
    LyingBackend::new("reference".into(), Reference, lies)
}

/// A run of a package.
pub fn run(package: &Package, backend: &dyn Backend, tokens: &[u32]) -> Rerun {
    rerun(package, backend, tokens).expect("the models of the simulation run whatever fits them")
}

impl Case {
    /// A lie about any element of any op, drawn from the whole program.
    pub fn draw_lie(&self, random: &mut Random) -> Lie {
        let program = self.package().program();
        let layer = random.index(program.layers.len());
        let op = random.index(program.layers[layer].ops.len());
        self.lie_about(layer, op, random)
    }

    /// A lie about any element of one op.
    pub fn lie_about(&self, layer: usize, op: usize, random: &mut Random) -> Lie {
        let program = self.package().program();
        let tensor = program.tensor(program.layers[layer].ops[op].out());
        let rows = if tensor.rows == Rows::Position { self.tokens.len() } else { 1 };
        let (row, col) = (random.index(rows), random.index(tensor.cols as usize));
        let target = if tensor.kind == TensorKind::Bfp && random.per_mille(300) {
            Target::Exponent { row }
        } else {
            Target::Element { row, col }
        };
        let change = match (target, random.index(3)) {
            // An exponent of any value is defined, but most swallow the row: a small step says more.
            (Target::Exponent { .. }, _) => Change::Xor(1 << random.index(3)),
            (_, 0) => Change::Set(random.next_u64() as i32),
            (_, _) if tensor.kind == TensorKind::I32 => Change::Xor(1 << random.index(32)),
            (_, _) => Change::Xor(1 << random.index(16)),
        };
        Lie { layer, op, target, change }
    }

    /// A run with a lie from `draw` that shows in the committed roots.
    pub fn lied_visibly(&self, random: &mut Random, mut draw: impl FnMut(&mut Random) -> Lie) -> (Lie, Rerun) {
        for _ in 0..MOST_TRIES {
            let lie = draw(random);
            let lied = self.lied(&[lie]);
            if lied.roots != self.honest().roots {
                return (lie, lied);
            }
        }
        // Rounding swallows small lies; one about what is committed never hides.
        let layer = self.package().program().layers.len() - 1;
        let op = self.package().program().layers[layer].ops.len() - 1;
        let target = Target::Element { row: 0, col: 0 };
        let lie = Lie { layer, op, target, change: Change::Xor(1) };
        (lie, self.lied(&[lie]))
    }
}

/// So many lies are tried until one shows.
const MOST_TRIES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_lies_show_and_padding_changes_one_root_only() {
        let mut random = Random::new("lies", 1);
        for case in &cases()[..9] {
            let (_, lied) = case.lied_visibly(&mut random, |random| case.draw_lie(random));
            assert_ne!(lied.roots, case.honest().roots);
            let padded = case.padded(1, case.tokens.len() - 1, 1).unwrap();
            assert_ne!(padded.roots[0], case.honest().roots[0]);
            assert_eq!(padded.roots[1..], case.honest().roots[1..]);
            assert_eq!(padded.output, case.honest().output);
            let place = Place { point: case.tokens.len() as u32 - 1, layer: 1 };
            let basis = Basis::Padding { layer: 1, row: case.tokens.len() - 1, byte: 1 };
            assert_eq!(case.trace(&basis, place).roots(), &padded.roots[..1]);
            assert_ne!(case.of_other_model().roots, case.honest().roots);
        }
    }
}
