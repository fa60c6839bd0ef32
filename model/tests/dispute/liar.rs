//! A backend that alters one element of one op's output and computes on from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockstep_kernels::backend::{Backend, BackendError, Executor, LayerReport, Wrapper};
use lockstep_kernels::host::{
    AttentionArgs, BfpRows, HostExecutor, HostOps, MatMulOut, NormArgs, RopeArgs, SampleArgs, Scaled,
};
use lockstep_kernels::program::{Program, Rows};
use lockstep_kernels::reference::Reference;
use lockstep_kernels::value::{Batch, ParamData, Params};

/// Which element: of the codes or values, or of the exponents of block floating point rows.
#[derive(Clone, Copy, Debug)]
pub struct Lie {
    pub layer: usize,
    pub op: usize,
    pub exponent: bool,
    /// Flat index in the tensor; wraps at its end. Of a decoder, in the tensor of all positions, of which a pass may have
    /// some; rows that belong to points count as those of their positions.
    pub element: usize,
}

pub struct Liar(pub Lie);

impl Backend for Liar {
    fn name(&self) -> String {
        "liar".into()
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        let at = Arc::new([const { AtomicUsize::new(0) }; 4]);
        let ops = Ops { lie: self.0, program: Arc::clone(&program), at: Arc::clone(&at) };
        Ok(Box::new(Lying { host: HostExecutor::new(ops, program, params)?, at }))
    }
}

struct Lying {
    host: HostExecutor<Ops>,
    /// Layer, op, first position and first point of the pass.
    at: Arc<[AtomicUsize; 4]>,
}

impl Wrapper for Lying {
    fn inner(&self) -> &dyn Executor {
        &self.host
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        &mut self.host
    }

    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        if let [sequence] = &batch.sequences[..] {
            self.at[2].store(sequence.start, Ordering::Relaxed);
            self.at[3].store(sequence.points().start, Ordering::Relaxed);
        }
        self.host.begin(batch)
    }

    fn run_layer(&mut self, layer: usize) -> Result<LayerReport, BackendError> {
        self.at[0].store(layer, Ordering::Relaxed);
        self.at[1].store(0, Ordering::Relaxed);
        self.host.run_layer(layer)
    }
}

/// Honest ops, told apart by the order in which they are called.
struct Ops {
    lie: Lie,
    program: Arc<Program>,
    at: Arc<[AtomicUsize; 4]>,
}

impl Ops {
    /// Whether the op that just ran is the one to lie about.
    fn now(&self) -> bool {
        let op = self.at[1].fetch_add(1, Ordering::Relaxed);
        (self.at[0].load(Ordering::Relaxed), op) == (self.lie.layer, self.lie.op)
    }
    /// Where the element lies in what a pass computes, if it does.
    fn place(&self, len: usize) -> Option<usize> {
        let element = self.lie.element;
        if !self.program.is_decoder() {
            return Some(element % len);
        }
        let tensor = self.program.tensor(self.program.layers[self.lie.layer].ops[self.lie.op].out());
        let first = self.at[if tensor.rows == Rows::Point { 3 } else { 2 }].load(Ordering::Relaxed);
        let cols = if self.lie.exponent { 1 } else { tensor.cols as usize };
        element.checked_sub(first * cols).filter(|at| *at < len)
    }
    fn wide(&self, out: &mut [i32]) {
        if self.now()
            && let Some(at) = self.place(out.len())
        {
            // An exponent that is one off is enough; small changes of other elements may be rounded away.
            out[at] ^= if self.lie.exponent { 1 } else { 1 << 16 };
        }
    }
    fn narrow(&self, out: &mut [i16]) {
        if self.now()
            && let Some(at) = self.place(out.len())
        {
            out[at] ^= 1 << 11;
        }
    }
}

impl HostOps for Ops {
    type Matrix = ();

    fn prepare(&self, _: ParamData<'_>, _: usize) {}

    fn embed(&self, tables: &[Scaled<'_>], index: &[Vec<u32>], out: &mut [i32]) -> u64 {
        let clamped = Reference.embed(tables, index, out);
        self.wide(out);
        clamped
    }
    fn quantize(&self, input: &[i32], cols: usize, codes: &mut [i16], exponents: &mut [i32]) {
        Reference.quantize(input, cols, codes, exponents);
        if self.lie.exponent { self.wide(exponents) } else { self.narrow(codes) }
    }
    fn matmul(&self, x: BfpRows<'_>, w: Scaled<'_>, (): &(), bias: Option<&[i32]>, out: MatMulOut<'_>) -> u64 {
        match out {
            MatMulOut::I32(out) => {
                let clamped = Reference.matmul(x, w, &(), bias, MatMulOut::I32(out));
                self.wide(out);
                clamped
            }
            MatMulOut::I16(out) => {
                let clamped = Reference.matmul(x, w, &(), bias, MatMulOut::I16(out));
                self.narrow(out);
                clamped
            }
        }
    }
    fn add(&self, a: &[i32], b: &[i32], out: &mut [i32]) -> u64 {
        let clamped = Reference.add(a, b, out);
        self.wide(out);
        clamped
    }
    fn layer_norm(&self, input: &[i32], args: NormArgs<'_>, bias: &[i32], out: &mut [i32]) -> u64 {
        let clamped = Reference.layer_norm(input, args, bias, out);
        self.wide(out);
        clamped
    }
    fn rms_norm(&self, input: &[i32], args: NormArgs<'_>, out: &mut [i32]) -> u64 {
        let clamped = Reference.rms_norm(input, args, out);
        self.wide(out);
        clamped
    }
    fn attention(&self, args: AttentionArgs<'_>, out: &mut [i32]) -> u64 {
        let clamped = Reference.attention(args, out);
        self.wide(out);
        clamped
    }
    fn gelu(&self, input: &[i32], frac: u32, out: &mut [i32]) {
        Reference.gelu(input, frac, out);
        self.wide(out);
    }
    fn silu(&self, input: &[i32], frac: u32, out: &mut [i32]) {
        Reference.silu(input, frac, out);
        self.wide(out);
    }
    fn mean_pool(&self, input: &[i32], cols: usize, spans: &[std::ops::Range<usize>], out: &mut [i32]) {
        Reference.mean_pool(input, cols, spans, out);
        self.wide(out);
    }
    fn first_pool(&self, input: &[i32], cols: usize, spans: &[std::ops::Range<usize>], out: &mut [i32]) {
        Reference.first_pool(input, cols, spans, out);
        self.wide(out);
    }
    fn l2_normalize(&self, input: &[i32], cols: usize, out: &mut [i32]) {
        Reference.l2_normalize(input, cols, out);
        self.wide(out);
    }
    fn rope(&self, input: &[i32], args: RopeArgs<'_>, positions: &[u32], out: &mut [i16]) -> u64 {
        let clamped = Reference.rope(input, args, positions, out);
        self.narrow(out);
        clamped
    }
    fn multiply(&self, a: &[i32], b: &[i32], shift: u32, out: &mut [i32]) -> u64 {
        let clamped = Reference.multiply(a, b, shift, out);
        self.wide(out);
        clamped
    }
    fn shift(&self, input: &[i32], shift: u32, out: &mut [i32]) {
        Reference.shift(input, shift, out);
        self.wide(out);
    }
    fn gather(&self, input: &[i32], cols: usize, rows: &[usize], out: &mut [i32]) {
        Reference.gather(input, cols, rows, out);
        self.wide(out);
    }
    fn sample(&self, points: &[SampleArgs<'_>], out: &mut [i32]) {
        Reference.sample(points, out);
        if self.now()
            && let Some(at) = self.place(out.len())
        {
            // Another finish code.
            out[at] ^= 1 << 24;
        }
    }
}
