//! Which numbers are lied about: one of each kind of op, where the program has it.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use lockstep_kernels::backend::Backend;
use lockstep_kernels::program::{Program, Rows, TensorKind};
use lockstep_model::package::Package;
use lockstep_model::rerun::{Rerun, rerun_job};
use lockstep_protocol::job::Job;
use lockstep_sim::adversary::{Change, Lie, Target};

/// An op to lie about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Layer of the program.
    pub layer: usize,
    /// Op of the layer.
    pub op: usize,
}

/// The first op of each kind of the embedding, of the middle layer, and of the output layer.
pub(super) fn places(program: &Program) -> Vec<Place> {
    let last = program.layers.len() - 1;
    // A set: a short program may have fewer than three.
    let layers: BTreeSet<usize> = [0, last.div_ceil(2), last].into();
    let mut places = Vec::new();
    for layer in layers {
        let mut kinds = BTreeSet::new();
        let ops = program.layers[layer].ops.iter().enumerate();
        places.extend(ops.filter(|(_, op)| kinds.insert(op.name())).map(|(op, _)| Place { layer, op }));
    }
    places
}

/// Bits to flip, one after the other until the difference shows: rounding may swallow a low one, and high ones lie
/// beyond 16-bit elements.
const BITS: [u32; 9] = [14, 20, 26, 30, 31, 12, 8, 4, 1];

/// A lie about the middle element of what an op puts out, and the run of a worker that tells it.
pub(super) fn tell(
    package: &Package,
    job: &Job,
    place: Place,
    honest: &Rerun,
    liar: &dyn Fn(Lie) -> std::sync::Arc<dyn Backend>,
) -> Result<(Lie, Rerun)> {
    let program = package.program();
    let op = &program.layers[place.layer].ops[place.op];
    let tensor = program.tensor(op.out());
    let row = match tensor.rows {
        Rows::Position if !program.is_decoder() => job.tokens.len() / 2,
        Rows::Sequence => 0,
        // The position of the first token that was generated, which is the last point.
        Rows::Position | Rows::Point => job.tokens.len(),
    };
    let target = Target::Element { row, col: tensor.cols as usize / 2 };
    let widths = |bit: &&u32| tensor.kind == TensorKind::I32 || **bit < 15;
    for bit in BITS.iter().filter(widths) {
        let lie = Lie { layer: place.layer, op: place.op, target, change: Change::Xor(1 << bit) };
        let lied = rerun_job(package, &*liar(lie), job, &[])?;
        if lied.roots != honest.roots {
            return Ok((lie, lied));
        }
    }
    None.with_context(|| {
        format!("no lie about op {} ({}) of layer {} shows in a root", place.op, op.name(), place.layer)
    })
}
