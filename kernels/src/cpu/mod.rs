//! The fast host backend: threads, and hot loops compiled for several instruction sets, chosen at run time.
//!
//! Each op is the twin of the file of the same name in [`crate::reference`] and gives the same bytes on every path
//! and with every number of threads.

use std::ops::Range;
use std::sync::Arc;

use crate::backend::{Backend, BackendError, Executor};
use crate::host::{
    AttentionArgs, BfpRows, HostExecutor, HostOps, MatMul, MatMulOut, NormArgs, RopeArgs, SampleArgs, Scaled,
};
use crate::program::Program;
use crate::value::{ParamData, Params};

mod add;
mod attention;
mod decode;
mod embed;
mod first_pool;
mod gather;
mod gelu;
mod isa;
mod l2_normalize;
mod layer_norm;
mod matmul;
mod mean_pool;
mod multiply;
mod normalize;
mod packed;
mod path;
mod pool;
mod quantize;
mod rms_norm;
mod rope;
mod sample;
mod shift;
mod silu;
mod softmax;
mod table;
mod threads;

pub use packed::PackedMatrix;
pub use path::Path;

use path::Isa;
use threads::Threads;

/// The CPU backend.
#[derive(Clone, Debug)]
pub struct Cpu {
    kernels: CpuKernels,
}

/// One function per op; what [`Cpu`] runs programs with.
#[derive(Clone, Debug)]
pub struct CpuKernels {
    isa: Isa,
    threads: Arc<Threads>,
}

impl Cpu {
    /// A backend on exactly `threads` threads (0 counts as 1), on the path asked for or else on the fastest.
    ///
    /// # Errors
    /// The machine lacks the path, with what it lacks; or the threads could not be started.
    pub fn new(path: Option<Path>, threads: usize) -> Result<Self, BackendError> {
        let isa = Isa::new(path.unwrap_or_else(Path::detect))?;
        Ok(Self { kernels: CpuKernels { isa, threads: Arc::new(Threads::new(threads)?) } })
    }

    /// The path in use.
    pub fn path(&self) -> Path {
        self.kernels.isa.path()
    }

    /// The number of threads in use.
    pub fn threads(&self) -> usize {
        self.kernels.threads.count()
    }

    /// The ops themselves, for who holds slices and no program.
    pub fn kernels(&self) -> &CpuKernels {
        &self.kernels
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        format!("cpu/{}", self.path().name())
    }

    fn load(&self, program: Arc<Program>, params: Arc<dyn Params>) -> Result<Box<dyn Executor>, BackendError> {
        Ok(Box::new(HostExecutor::new(self.kernels.clone(), program, params)?))
    }
}

impl HostOps for CpuKernels {
    type Matrix = PackedMatrix;

    fn prepare(&self, codes: ParamData<'_>, cols: usize) -> Self::Matrix {
        PackedMatrix::from_codes(self.isa, codes, cols)
    }

    fn embed(&self, tables: &[Scaled<'_>], index: &[Vec<u32>], out: &mut [i32]) -> u64 {
        embed::embed(self, tables, index, out)
    }

    fn quantize(&self, input: &[i32], cols: usize, codes: &mut [i16], exponents: &mut [i32]) {
        quantize::quantize(self, input, cols, codes, exponents);
    }

    fn matmul(
        &self,
        x: BfpRows<'_>,
        w: Scaled<'_>,
        prepared: &PackedMatrix,
        bias: Option<&[i32]>,
        out: MatMulOut<'_>,
    ) -> u64 {
        matmul::products(self, x, vec![MatMul { weight: w, prepared, bias, out }])
    }

    fn joins_products(&self) -> bool {
        true
    }

    fn products(&self, x: BfpRows<'_>, parts: Vec<MatMul<'_, PackedMatrix>>) -> u64 {
        matmul::products(self, x, parts)
    }

    fn add(&self, a: &[i32], b: &[i32], out: &mut [i32]) -> u64 {
        add::add(self, a, b, out)
    }

    fn layer_norm(&self, input: &[i32], args: NormArgs<'_>, bias: &[i32], out: &mut [i32]) -> u64 {
        layer_norm::layer_norm(self, input, args, bias, out)
    }

    fn rms_norm(&self, input: &[i32], args: NormArgs<'_>, out: &mut [i32]) -> u64 {
        rms_norm::rms_norm(self, input, args, out)
    }

    fn attention(&self, args: AttentionArgs<'_>, out: &mut [i32]) -> u64 {
        attention::attention(self, args, out)
    }

    fn gelu(&self, input: &[i32], frac: u32, out: &mut [i32]) {
        gelu::gelu(self, input, frac, out);
    }

    fn silu(&self, input: &[i32], frac: u32, out: &mut [i32]) {
        silu::silu(self, input, frac, out);
    }

    fn mean_pool(&self, input: &[i32], cols: usize, spans: &[Range<usize>], out: &mut [i32]) {
        mean_pool::mean_pool(self, input, cols, spans, out);
    }

    fn first_pool(&self, input: &[i32], cols: usize, spans: &[Range<usize>], out: &mut [i32]) {
        first_pool::first_pool(input, cols, spans, out);
    }

    fn l2_normalize(&self, input: &[i32], cols: usize, out: &mut [i32]) {
        l2_normalize::l2_normalize(self, input, cols, out);
    }

    fn rope(&self, input: &[i32], args: RopeArgs<'_>, positions: &[u32], out: &mut [i16]) -> u64 {
        rope::rope(self, input, args, positions, out)
    }

    fn multiply(&self, a: &[i32], b: &[i32], shift: u32, out: &mut [i32]) -> u64 {
        multiply::multiply(self, a, b, shift, out)
    }

    fn shift(&self, input: &[i32], shift: u32, out: &mut [i32]) {
        shift::shift(self, input, shift, out);
    }

    fn gather(&self, input: &[i32], cols: usize, rows: &[usize], out: &mut [i32]) {
        gather::gather(input, cols, rows, out);
    }

    fn sample(&self, points: &[SampleArgs<'_>], out: &mut [i32]) {
        sample::sample(self, points, out);
    }
}
