//! Lies about elements of ops, and what is computed from them.

use lockstep_kernels::backend::Backend;
use lockstep_kernels::program::{Op, Rows, TensorKind};
use lockstep_kernels::reference::Reference;
use lockstep_model::package::Package;
use lockstep_model::rerun::{Rerun, rerun_job};
use lockstep_protocol::job::Job;

use super::cases::Case;
use crate::adversary::{Change, Lie, LyingBackend, Target};
use crate::models;
use crate::random::Random;

/// So many lies are tried until one shows.
const MOST_TRIES: usize = 8;

/// The reference backend, with lies.
pub fn lying(lies: &[Lie]) -> LyingBackend<Reference> {
    LyingBackend::new("reference".into(), Reference, lies)
}

/// A run; none where it comes to a token that the model does not have, from which nobody can go on.
fn run(package: &Package, backend: &dyn Backend, job: &Job) -> Option<Rerun> {
    rerun_job(package, backend, job, &[]).ok()
}

impl Case {
    /// What a backend with lies gives, if it gets to an end.
    pub fn lied(&self, lies: &[Lie]) -> Option<Rerun> {
        run(self.package(), &lying(lies), &self.job)
    }

    /// What another job on the same model gives.
    pub fn of_other_job(&self, job: &Job) -> Rerun {
        run(self.package(), &Reference, job).expect("the models of the simulation run what fits them")
    }

    /// What another model gives.
    pub fn of_other_model(&self) -> Rerun {
        let model = &models::impostors()[self.model];
        run(model, &Reference, &self.job).expect("the impostors run what fits the models")
    }

    /// A lie about any element of any op, drawn from the whole program.
    pub fn draw_lie(&self, random: &mut Random) -> Lie {
        let program = self.package().program();
        let layer = random.index(program.layers.len());
        let op = random.index(program.layers[layer].ops.len());
        self.lie_about(layer, op, random)
    }

    /// A lie about any element of one op, at any position or point of the honest run.
    pub fn lie_about(&self, layer: usize, op: usize, random: &mut Random) -> Lie {
        let program = self.package().program();
        let tensor = program.tensor(program.layers[layer].ops[op].out());
        let positions = self.read_tokens().len();
        let row = match tensor.rows {
            Rows::Position => random.index(positions),
            Rows::Point => random.within(self.tokens().len() as u64 - 1..=positions as u64 - 1) as usize,
            Rows::Sequence => 0,
        };
        let col = random.index(tensor.cols as usize);
        let target = if tensor.kind == TensorKind::Bfp && random.per_mille(300) {
            Target::Exponent { row }
        } else {
            Target::Element { row, col }
        };
        let is_word = matches!(program.layers[layer].ops[op], Op::Sample { .. });
        let change = match (target, random.index(3)) {
            // An exponent of any value is defined, but most swallow the row: a small step says more.
            (Target::Exponent { .. }, _) => Change::Xor(1 << random.index(3)),
            (_, 0..=1) if is_word => Change::Set(self.other_word(row, random)),
            (_, 0) => Change::Set(random.next_u64() as i32),
            (_, _) if tensor.kind == TensorKind::I32 => Change::Xor(1 << random.index(32)),
            (_, _) => Change::Xor(1 << random.index(16)),
        };
        Lie { layer, op, target, change }
    }

    /// Another word than the honest one at a point: another token, an end that is none, or no end where there is one.
    fn other_word(&self, point: usize, random: &mut Random) -> i32 {
        let words = self.words();
        let word = words.get(point + 1 - self.tokens().len()).copied().unwrap_or_default();
        let vocabulary = u64::from(self.package().program().vocab_size);
        match random.index(3) {
            0 => (word ^ 1 << 24).cast_signed(),
            1 => (word & 0xff_ffff).cast_signed(),
            _ => (word & 0xff00_0000 | random.within(0..=vocabulary - 1) as u32).cast_signed(),
        }
    }

    /// A run with a lie from `draw` that shows in the committed roots.
    pub fn lied_visibly(&self, random: &mut Random, mut draw: impl FnMut(&mut Random) -> Lie) -> (Lie, Rerun) {
        for _ in 0..MOST_TRIES {
            let lie = draw(random);
            if let Some(lied) = self.lied(&[lie]).filter(|lied| lied.roots != self.honest().roots) {
                return (lie, lied);
            }
        }
        // Rounding swallows small lies; one about what is committed never hides.
        let layer = usize::from(self.layers());
        let op = self.package().program().layers[layer].ops.len() - 1;
        let target = Target::Element { row: 0, col: 0 };
        let lie = Lie { layer, op, target, change: Change::Xor(1) };
        (lie, self.lied(&[lie]).expect("an honest sampler draws tokens that the model has"))
    }
}
