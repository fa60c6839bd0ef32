//! The consistent liar: a backend that alters elements of what ops put out, and computes on from the altered values.
//!
//! It decorates the ops of an honest backend, here and nowhere else: a worker has no option to cheat. Whatever is asked
//! of the liar later follows from its lie, so that the lie itself is all that can be found.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockstep_kernels::backend::{Backend, BackendError, Executor, LayerReport, Wrapper};
use lockstep_kernels::host::{
    AttentionArgs, BfpRows, HostExecutor, HostOps, MatMulOut, NormArgs, RopeArgs, SampleArgs, Scaled,
};
use lockstep_kernels::program::{Program, Rows};
use lockstep_kernels::value::{Batch, ParamData, Params};

/// What becomes of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// These bits of it are flipped; those beyond its width are left out.
    Xor(u32),
    /// It becomes this value, cut to its width.
    Set(i32),
}

/// Which of an op's results is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The element at row and column; of block floating point rows, its code.
    Element {
        /// Over all rows of the batch; where one sequence is alone, the position or point, whatever passes it is cut into.
        row: usize,
        /// Below the tensor's width.
        col: usize,
    },
    /// The exponent of a row, where the op puts out block floating point rows.
    Exponent {
        /// As of an element.
        row: usize,
    },
}

/// One altered element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lie {
    /// Layer of the program.
    pub layer: usize,
    /// Op of the layer.
    pub op: usize,
    /// Which element. One that the tensor does not have is left alone.
    pub target: Target,
    /// What becomes of it.
    pub change: Change,
}

/// An honest backend's ops, with lies.
pub struct LyingBackend<K> {
    name: String,
    kernels: K,
    lies: Arc<[Lie]>,
}

impl<K: HostOps + Clone + 'static> LyingBackend<K> {
    /// Runs everything with `kernels`, the ops of the backend called `name`, and alters what `lies` say.
    pub fn new(name: String, kernels: K, lies: &[Lie]) -> Self {
        Self { name, kernels, lies: lies.into() }
    }
}

impl<K: HostOps + Clone + 'static> Backend for LyingBackend<K> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        let at = Arc::new(Cursor::default());
        let ops = LyingOps {
            honest: self.kernels.clone(),
            lies: Arc::clone(&self.lies),
            program: Arc::clone(&program),
            at: Arc::clone(&at),
        };
        Ok(Box::new(LyingExecutor { host: HostExecutor::new(ops, program, params)?, at }))
    }
}

/// Which op runs: ops are called in the program's order, one call each, and are not told which one they are.
#[derive(Default)]
struct Cursor {
    layer: AtomicUsize,
    op: AtomicUsize,
    /// First position and first point of a pass of one sequence.
    position: AtomicUsize,
    point: AtomicUsize,
}

struct LyingExecutor<K: HostOps> {
    host: HostExecutor<LyingOps<K>>,
    at: Arc<Cursor>,
}

impl<K: HostOps> Wrapper for LyingExecutor<K> {
    fn inner(&self) -> &dyn Executor {
        &self.host
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut self.host
    }

    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        let (position, point) = match &batch.sequences[..] {
            [sequence] => (sequence.start, sequence.points().start),
            _ => (0, 0),
        };
        self.at.position.store(position, Ordering::Relaxed);
        self.at.point.store(point, Ordering::Relaxed);
        self.host.begin(batch)
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        self.at.layer.store(layer, Ordering::Relaxed);
        self.at.op.store(0, Ordering::Relaxed);
        self.host.run_layer(layer)
    }
}

struct LyingOps<K> {
    honest: K,
    lies: Arc<[Lie]>,
    program: Arc<Program>,
    at: Arc<Cursor>,
}

/// An op's results, to be altered.
enum Results<'a> {
    I32(&'a mut [i32]),
    I16(&'a mut [i16]),
    Bfp { codes: &'a mut [i16], exponents: &'a mut [i32] },
}

impl<K: HostOps> LyingOps<K> {
    /// Alters what the op that just ran put out, and goes on to the next.
    fn lie(&self, mut results: Results<'_>) {
        let layer = self.at.layer.load(Ordering::Relaxed);
        let op = self.at.op.fetch_add(1, Ordering::Relaxed);
        let tensor = self.program.tensor(self.program.layers[layer].ops[op].out());
        let first = match tensor.rows {
            Rows::Position => self.at.position.load(Ordering::Relaxed),
            Rows::Point => self.at.point.load(Ordering::Relaxed),
            Rows::Sequence => 0,
        };
        for lie in self.lies.iter().filter(|lie| (lie.layer, lie.op) == (layer, op)) {
            alter(&mut results, [first, tensor.cols as usize], lie);
        }
    }
}

/// `first` is the number of the first row among the results.
fn alter(results: &mut Results<'_>, [first, cols]: [usize; 2], lie: &Lie) {
    let narrow = |element: Option<&mut i16>| {
        if let Some(element) = element {
            *element = changed(i32::from(*element), lie.change) as i16;
        }
    };
    let wide = |element: Option<&mut i32>| {
        if let Some(element) = element {
            *element = changed(*element, lie.change);
        }
    };
    let flat = |row: usize, col: usize| match row.checked_sub(first) {
        Some(row) if col < cols => row.saturating_mul(cols).saturating_add(col),
        _ => usize::MAX,
    };
    match (results, lie.target) {
        (Results::I32(values), Target::Element { row, col }) => wide(values.get_mut(flat(row, col))),
        (Results::I16(values) | Results::Bfp { codes: values, .. }, Target::Element { row, col }) => {
            narrow(values.get_mut(flat(row, col)));
        }
        (Results::Bfp { exponents, .. }, Target::Exponent { row }) => wide(exponents.get_mut(row.wrapping_sub(first))),
        (Results::I32(_) | Results::I16(_), Target::Exponent { .. }) => {}
    }
}

const fn changed(value: i32, change: Change) -> i32 {
    match change {
        Change::Xor(bits) => value ^ bits as i32,
        Change::Set(value) => value,
    }
}

impl<K: HostOps> HostOps for LyingOps<K> {
    type Matrix = K::Matrix;

    fn prepare(&self, codes: ParamData<'_>, cols: usize) -> Self::Matrix {
        self.honest.prepare(codes, cols)
    }

    fn embed(&self, tables: &[Scaled<'_>], index: &[Vec<u32>], out: &mut [i32]) -> u64 {
        let clamped = self.honest.embed(tables, index, out);
        self.lie(Results::I32(out));
        clamped
    }

    fn quantize(&self, input: &[i32], cols: usize, codes: &mut [i16], exponents: &mut [i32]) {
        self.honest.quantize(input, cols, codes, exponents);
        self.lie(Results::Bfp { codes, exponents });
    }

    fn matmul(
        &self,
        x: BfpRows<'_>,
        w: Scaled<'_>,
        prepared: &Self::Matrix,
        bias: Option<&[i32]>,
        out: MatMulOut<'_>,
    ) -> u64 {
        match out {
            MatMulOut::I32(out) => {
                let clamped = self.honest.matmul(x, w, prepared, bias, MatMulOut::I32(out));
                self.lie(Results::I32(out));
                clamped
            }
            MatMulOut::I16(out) => {
                let clamped = self.honest.matmul(x, w, prepared, bias, MatMulOut::I16(out));
                self.lie(Results::I16(out));
                clamped
            }
        }
    }

    fn add(&self, a: &[i32], b: &[i32], out: &mut [i32]) -> u64 {
        let clamped = self.honest.add(a, b, out);
        self.lie(Results::I32(out));
        clamped
    }

    fn layer_norm(&self, input: &[i32], args: NormArgs<'_>, bias: &[i32], out: &mut [i32]) -> u64 {
        let clamped = self.honest.layer_norm(input, args, bias, out);
        self.lie(Results::I32(out));
        clamped
    }

    fn rms_norm(&self, input: &[i32], args: NormArgs<'_>, out: &mut [i32]) -> u64 {
        let clamped = self.honest.rms_norm(input, args, out);
        self.lie(Results::I32(out));
        clamped
    }

    fn attention(&self, args: AttentionArgs<'_>, out: &mut [i32]) -> u64 {
        let clamped = self.honest.attention(args, out);
        self.lie(Results::I32(out));
        clamped
    }

    fn gelu(&self, input: &[i32], frac: u32, out: &mut [i32]) {
        self.honest.gelu(input, frac, out);
        self.lie(Results::I32(out));
    }

    fn silu(&self, input: &[i32], frac: u32, out: &mut [i32]) {
        self.honest.silu(input, frac, out);
        self.lie(Results::I32(out));
    }

    fn mean_pool(&self, input: &[i32], cols: usize, spans: &[std::ops::Range<usize>], out: &mut [i32]) {
        self.honest.mean_pool(input, cols, spans, out);
        self.lie(Results::I32(out));
    }

    fn first_pool(&self, input: &[i32], cols: usize, spans: &[std::ops::Range<usize>], out: &mut [i32]) {
        self.honest.first_pool(input, cols, spans, out);
        self.lie(Results::I32(out));
    }

    fn l2_normalize(&self, input: &[i32], cols: usize, out: &mut [i32]) {
        self.honest.l2_normalize(input, cols, out);
        self.lie(Results::I32(out));
    }

    fn rope(&self, input: &[i32], args: RopeArgs<'_>, positions: &[u32], out: &mut [i16]) -> u64 {
        let clamped = self.honest.rope(input, args, positions, out);
        self.lie(Results::I16(out));
        clamped
    }

    fn multiply(&self, a: &[i32], b: &[i32], shift: u32, out: &mut [i32]) -> u64 {
        let clamped = self.honest.multiply(a, b, shift, out);
        self.lie(Results::I32(out));
        clamped
    }

    fn shift(&self, input: &[i32], shift: u32, out: &mut [i32]) {
        self.honest.shift(input, shift, out);
        self.lie(Results::I32(out));
    }

    fn gather(&self, input: &[i32], cols: usize, rows: &[usize], out: &mut [i32]) {
        self.honest.gather(input, cols, rows, out);
        self.lie(Results::I32(out));
    }

    fn sample(&self, points: &[SampleArgs<'_>], out: &mut [i32]) {
        self.honest.sample(points, out);
        self.lie(Results::I32(out));
    }
}

#[cfg(test)]
mod tests {
    use lockstep_kernels::conformance::encoder;
    use lockstep_kernels::program::TensorKind;
    use lockstep_kernels::reference::Reference;

    use super::*;

    fn lying(lie: Lie) -> LyingBackend<Reference> {
        LyingBackend::new("liar".into(), Reference, &[lie])
    }

    /// Up to the altered op nothing differs, there exactly one element does, and what follows is computed from it.
    #[test]
    fn any_op_of_any_layer_can_be_lied_about_and_nothing_before_it_moves() {
        let case = encoder(32, 2, 48, 2, false, &[5]);
        let honest = case.run(&Reference).unwrap();
        let mut place = 0;
        for (l, layer) in case.program.layers.iter().enumerate() {
            for (i, op) in layer.ops.iter().enumerate() {
                let bfp = case.program.tensor(op.out()).kind == TensorKind::Bfp;
                let target = if bfp { Target::Exponent { row: 0 } } else { Target::Element { row: 0, col: 3 } };
                let lie = Lie { layer: l, op: i, target, change: Change::Xor(1) };
                let lied = case.run(&lying(lie)).unwrap();
                assert_eq!(lied.tensors[..place], honest.tensors[..place], "layer {l} op {i}");
                assert_ne!(lied.tensors[place], honest.tensors[place], "layer {l} op {i}");
                place += 1;
            }
        }
        assert_eq!(place, honest.tensors.len());
    }

    #[test]
    fn a_lie_about_an_element_that_is_not_there_changes_nothing() {
        let case = encoder(32, 2, 48, 1, false, &[5]);
        let honest = case.run(&Reference).unwrap();
        for target in
            [Target::Element { row: 5, col: 0 }, Target::Element { row: 0, col: 32 }, Target::Exponent { row: 0 }]
        {
            let lie = Lie { layer: 0, op: 0, target, change: Change::Set(7) };
            assert_eq!(case.run(&lying(lie)).unwrap(), honest);
        }
    }
}
