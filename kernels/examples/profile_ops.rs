//! Where the time of a model goes: processor time and share of each op, on every path of this machine, with made-up
//! weights at the shapes of all-MiniLM-L6-v2 (`encoder`) or of a language model of 135 million parameters (`decoder`; a
//! prompt from nothing, or one more token after so many where the batch is given as `next`).
//!
//! Times are those of all threads together, as the kernel counts them: other load on the machine does them little harm.
//!
//! `cargo run --release -p lockstep-kernels --example profile_ops -- [encoder|decoder] [tokens] [batch|next] [threads]
//! [w8|w16] [path]`
#![allow(clippy::float_arithmetic, clippy::disallowed_types, reason = "time is measured here, nothing is computed")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_kernels::backend::{Backend, BackendError, Executor};
use lockstep_kernels::conformance::{self, Case, DecoderShape};
use lockstep_kernels::cpu::{Cpu, CpuKernels, PackedMatrix, Path};
use lockstep_kernels::host::{
    AttentionArgs, BfpRows, HostExecutor, HostOps, MatMulOut, NormArgs, RopeArgs, SampleArgs, Scaled,
};
use lockstep_kernels::value::{Batch, CacheId, ParamData, Params, Sequence};
use rustix::time::{ClockId, clock_gettime};

/// Runs are repeated until they have taken about this long.
const TIME: Duration = Duration::from_millis(1_500);

/// As of a model of 135 million parameters.
const LANGUAGE_MODEL: DecoderShape = DecoderShape {
    vocab: 49_152,
    max_positions: 2_048,
    width: 576,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    rotary_dim: 64,
    inner: 1_536,
    layers: 30,
    head_norms: false,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default| args.get(i).map_or(Ok(default), |a| a.parse::<usize>());
    let (tokens, threads) = (number(1, 128)?, number(3, 2)?);
    let paths = match args.get(5) {
        Some(name) => vec![Path::from_name(name).ok_or("no such path")?],
        None => Path::available(),
    };
    let is_decoder = args.first().is_some_and(|a| a == "decoder");
    let is_next = args.get(2).is_some_and(|a| a == "next");
    let batch = if is_next { 1 } else { number(2, 1)? };
    let wide = args.get(4).is_some_and(|w| w == "w16");
    let case = match is_decoder {
        true => conformance::decoder(LANGUAGE_MODEL, &vec![tokens; batch]),
        false => conformance::encoder(384, 12, 1_536, 6, wide, &vec![tokens; batch]),
    };
    println!("{}", case.name);
    for path in paths {
        report(&Cpu::new(Some(path), threads)?, &case, is_decoder, if is_next { tokens } else { 0 })?;
    }
    Ok(())
}

/// Processor time of all threads so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Times a pass; of decoders one that starts at `start`, with everything before in caches.
fn report(cpu: &Cpu, case: &Case, is_decoder: bool, start: usize) -> Result<(), BackendError> {
    let sequence = |(i, s): (usize, &Sequence), end: usize, start| {
        let tokens = s.tokens.iter().cycle().take(end).copied().collect();
        Sequence { tokens, start, cache: is_decoder.then_some(CacheId(i as u64)), sampler: None }
    };
    let batch = |end: usize, start| Batch {
        sequences: case.batch.sequences.iter().enumerate().map(|s| sequence(s, end, start)).collect(),
    };
    let tokens = case.batch.sequences[0].tokens.len();
    let (before, timed) = match start {
        0 => (None, batch(tokens, 0)),
        start => (Some(batch(start, 0)), batch(start + 1, start)),
    };
    let params: Arc<dyn Params> = case.params.clone();
    let mut whole = cpu.load(Arc::clone(&case.program), Arc::clone(&params))?;
    let layers = case.program.layers.len();
    if let Some(before) = &before {
        run(whole.as_mut(), before, layers)?;
    }
    let (median, _) = repeat(whole.as_mut(), &timed, layers)?;
    let rate = timed.rows() as f64 / median.as_secs_f64();
    println!("\n{} on {} threads: {median:.2?} a pass, {rate:.1} rows/s of processor time", cpu.name(), cpu.threads());

    // Op by op, each handed to the threads anew: a little slower than the layers that were timed above.
    let times = Arc::new(Mutex::new(BTreeMap::new()));
    let ops = Timed { kernels: cpu.kernels().clone(), times: Arc::clone(&times) };
    let mut ops = HostExecutor::new(ops, Arc::clone(&case.program), params)?;
    if let Some(before) = &before {
        run(&mut ops, before, layers)?;
        times.lock().expect("no op panics").clear();
    }
    let (median, runs) = repeat(&mut ops, &timed, layers)?;
    let times = times.lock().expect("no op panics");
    let total: Duration = times.values().map(|(time, _)| time).sum();
    for (op, (time, operations)) in times.iter() {
        let share = 100.0 * time.as_secs_f64() / total.as_secs_f64();
        let rate = match operations {
            0 => String::new(),
            n => format!("{:>7.3} TOP/s", *n as f64 / time.as_secs_f64() / 1e12),
        };
        println!("  {op:<24} {:>9.3} ms {share:>5.1}% {rate}", time.as_secs_f64() * 1e3 / f64::from(runs));
    }
    println!("  between ops: {:.2?} of {median:.2?}", median.saturating_sub(total / runs));
    Ok(())
}

fn run(executor: &mut dyn Executor, batch: &Batch, layers: usize) -> Result<(), BackendError> {
    executor.begin(batch)?;
    (0..layers).try_for_each(|layer| executor.run_layer(layer).map(|_| ()))
}

/// Median processor time of a pass, and the number of passes.
fn repeat(executor: &mut dyn Executor, batch: &Batch, layers: usize) -> Result<(Duration, u32), BackendError> {
    let mut samples = Vec::new();
    let start = processor_time();
    while processor_time() - start < TIME || samples.len() < 3 {
        let start = processor_time();
        run(executor, batch, layers)?;
        samples.push(processor_time() - start);
    }
    samples.sort();
    Ok((samples[samples.len() / 2], samples.len() as u32))
}

/// Time of each op, with the byte operations that its limb products are worth.
type Times = BTreeMap<String, (Duration, u64)>;

/// The CPU's ops, each with its time added up.
struct Timed {
    kernels: CpuKernels,
    times: Arc<Mutex<Times>>,
}

impl Timed {
    fn time<R>(&self, op: &str, run: impl FnOnce(&CpuKernels) -> R) -> R {
        self.time_product(op, 0, run)
    }

    fn time_product<R>(&self, op: &str, operations: u64, run: impl FnOnce(&CpuKernels) -> R) -> R {
        let start = processor_time();
        let result = run(&self.kernels);
        let time = processor_time() - start;
        let mut times = self.times.lock().expect("no op panics");
        let sum = times.entry(op.into()).or_default();
        *sum = (sum.0 + time, sum.1 + operations);
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
        let (op, limbs) =
            (format!("matmul {}x{}", w.mantissa.len(), w.cols), if w.codes.as_i8().is_some() { 2 } else { 4 });
        let operations = 2 * limbs * (w.mantissa.len() * x.codes.len()) as u64;
        self.time_product(&op, operations, |k| k.matmul(x, w, prepared, bias, out))
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
