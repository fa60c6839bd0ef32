//! Where the time of an encoder goes: time and share of each op, on every path of this machine, at the shapes of
//! all-MiniLM-L6-v2 with made-up weights.
//!
//! `cargo run --release -p lockstep-kernels --example profile_ops -- [tokens] [batch] [threads] [w8|w16] [path]`
#![allow(clippy::float_arithmetic, clippy::disallowed_types, reason = "time is measured here, nothing is computed")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lockstep_kernels::backend::{Backend, BackendError, Executor};
use lockstep_kernels::conformance::{self, Case};
use lockstep_kernels::cpu::{Cpu, CpuKernels, PackedMatrix, Path};
use lockstep_kernels::host::{
    AttentionArgs, BfpRows, HostExecutor, HostOps, MatMulOut, NormArgs, RopeArgs, SampleArgs, Scaled,
};
use lockstep_kernels::value::{ParamData, Params};

/// Runs are repeated for about this long.
const TIME: Duration = Duration::from_millis(1_500);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default| args.get(i).map_or(Ok(default), |a| a.parse::<usize>());
    let (tokens, batch, threads) = (number(0, 128)?, number(1, 1)?, number(2, 2)?);
    let wide = args.get(3).is_some_and(|w| w == "w16");
    let paths = match args.get(4) {
        Some(name) => vec![Path::from_name(name).ok_or("no such path")?],
        None => Path::available(),
    };
    let case = conformance::encoder(384, 12, 1_536, 6, wide, &vec![tokens; batch]);
    println!("{}", case.name);
    for path in paths {
        report(&Cpu::new(Some(path), threads)?, &case, batch)?;
    }
    Ok(())
}

fn report(cpu: &Cpu, case: &Case, batch: usize) -> Result<(), BackendError> {
    let params: Arc<dyn Params> = case.params.clone();
    let mut whole = cpu.load(Arc::clone(&case.program), Arc::clone(&params))?;
    let (median, _) = repeat(whole.as_mut(), case)?;
    let rate = batch as f64 / median.as_secs_f64();
    println!("\n{} on {} threads: {median:.2?} a batch, {rate:.1} sequences/s", cpu.name(), cpu.threads());

    // Op by op, each handed to the threads anew: a little slower than the layers that were timed above.
    let times = Arc::new(Mutex::new(BTreeMap::new()));
    let timed = Timed { kernels: cpu.kernels().clone(), times: Arc::clone(&times) };
    let mut timed = HostExecutor::new(timed, Arc::clone(&case.program), params)?;
    let (_, runs) = repeat(&mut timed, case)?;
    let times = times.lock().expect("no op panics");
    let total: Duration = times.values().sum();
    for (op, time) in times.iter() {
        let share = 100.0 * time.as_secs_f64() / total.as_secs_f64();
        println!("  {op:<24} {:>9.3} ms {share:>5.1}%", time.as_secs_f64() * 1e3 / f64::from(runs));
    }
    Ok(())
}

/// Median time of the whole program, and the number of runs.
fn repeat(executor: &mut dyn Executor, case: &Case) -> Result<(Duration, u32), BackendError> {
    executor.begin(&case.batch)?;
    let mut samples = Vec::new();
    let start = Instant::now();
    while start.elapsed() < TIME || samples.len() < 3 {
        let start = Instant::now();
        for layer in 0..case.program.layers.len() {
            executor.run_layer(layer)?;
        }
        samples.push(start.elapsed());
    }
    samples.sort();
    Ok((samples[samples.len() / 2], samples.len() as u32))
}

/// The CPU's ops, each with its time added up.
struct Timed {
    kernels: CpuKernels,
    times: Arc<Mutex<BTreeMap<String, Duration>>>,
}

impl Timed {
    fn time<R>(&self, op: impl Into<String>, run: impl FnOnce(&CpuKernels) -> R) -> R {
        let start = Instant::now();
        let result = run(&self.kernels);
        *self.times.lock().expect("no op panics").entry(op.into()).or_default() += start.elapsed();
        result
    }
}

impl HostOps for Timed {
    type Matrix = PackedMatrix;

    fn prepare(&self, codes: ParamData<'_>, cols: usize) -> PackedMatrix {
        self.kernels.prepare(codes, cols)
    }

    fn embed(&self, tables: &[Scaled<'_>], index: &[Vec<u32>], out: &mut [i32]) -> u64 {
        self.time("embed", |k| k.embed(tables, index, out))
    }

    fn quantize(&self, input: &[i32], cols: usize, codes: &mut [i16], exponents: &mut [i32]) {
        self.time("quantize", |k| k.quantize(input, cols, codes, exponents));
    }

    fn matmul(
        &self,
        x: BfpRows<'_>,
        w: Scaled<'_>,
        prepared: &PackedMatrix,
        bias: Option<&[i32]>,
        out: MatMulOut<'_>,
    ) -> u64 {
        let op = format!("matmul {}x{}", w.mantissa.len(), w.cols);
        self.time(op, |k| k.matmul(x, w, prepared, bias, out))
    }

    fn add(&self, a: &[i32], b: &[i32], out: &mut [i32]) -> u64 {
        self.time("add", |k| k.add(a, b, out))
    }

    fn layer_norm(&self, input: &[i32], args: NormArgs<'_>, bias: &[i32], out: &mut [i32]) -> u64 {
        self.time("layer_norm", |k| k.layer_norm(input, args, bias, out))
    }

    fn rms_norm(&self, input: &[i32], args: NormArgs<'_>, out: &mut [i32]) -> u64 {
        self.time("rms_norm", |k| k.rms_norm(input, args, out))
    }

    fn attention(&self, args: AttentionArgs<'_>, out: &mut [i32]) -> u64 {
        self.time("attention", |k| k.attention(args, out))
    }

    fn gelu(&self, input: &[i32], frac: u32, out: &mut [i32]) {
        self.time("gelu", |k| k.gelu(input, frac, out));
    }

    fn silu(&self, input: &[i32], frac: u32, out: &mut [i32]) {
        self.time("silu", |k| k.silu(input, frac, out));
    }

    fn mean_pool(&self, input: &[i32], cols: usize, spans: &[Range<usize>], out: &mut [i32]) {
        self.time("mean_pool", |k| k.mean_pool(input, cols, spans, out));
    }

    fn first_pool(&self, input: &[i32], cols: usize, spans: &[Range<usize>], out: &mut [i32]) {
        self.time("first_pool", |k| k.first_pool(input, cols, spans, out));
    }

    fn l2_normalize(&self, input: &[i32], cols: usize, out: &mut [i32]) {
        self.time("l2_normalize", |k| k.l2_normalize(input, cols, out));
    }

    fn rope(&self, input: &[i32], args: RopeArgs<'_>, positions: &[u32], out: &mut [i16]) -> u64 {
        self.time("rope", |k| k.rope(input, args, positions, out))
    }

    fn multiply(&self, a: &[i32], b: &[i32], shift: u32, out: &mut [i32]) -> u64 {
        self.time("multiply", |k| k.multiply(a, b, shift, out))
    }

    fn shift(&self, input: &[i32], shift: u32, out: &mut [i32]) {
        self.time("shift", |k| k.shift(input, shift, out));
    }

    fn gather(&self, input: &[i32], cols: usize, rows: &[usize], out: &mut [i32]) {
        self.time("gather", |k| k.gather(input, cols, rows, out));
    }

    fn sample(&self, points: &[SampleArgs<'_>], out: &mut [i32]) {
        self.time("sample", |k| k.sample(points, out));
    }
}
