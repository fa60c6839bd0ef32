//! Every op by itself, at shapes of real models: how long it takes, and what share of the machine it uses.
//!
//! An op runs as part of a program on any backend, several copies in one layer, each with parameters of its own, so that
//! weights come from memory where a model's would. What feeds the copies (quantising before a product, narrow products
//! before attention) is in the time, and small beside them.
//!
//! - [`counts`]: operations and bytes by an op's definition. [`cases`]: programs. [`shapes`]: where none is asked for.

pub mod cases;
pub mod counts;
pub mod shapes;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lockstep_kernels::backend::{Backend, Executor};
use lockstep_kernels::conformance::OwnedParams;
use lockstep_kernels::value::{Batch, Params, Value};
use serde_json::json;

use self::cases::{OpCase, Spec, Variant, build};
use self::counts::{Counts, counts};
use crate::ceilings::Roof;
use crate::report::{Figure, MOST_SPREAD, Row};
use crate::samples::{Effort, Samples};
use crate::watch::{Seen, Watch};

/// Bytes of parameters that all copies together have where few rows share them: more than caches hold.
const COLD_BYTES: u64 = 128 << 20;
/// Rows up to which a product reads its weights faster than it multiplies.
const FEW_ROWS: usize = 8;
/// Time that all copies together should take, so that a clock is exact enough.
const LAYER_SECONDS: f64 = 2e-3;
/// Copies at the most.
const MAX_COPIES: u64 = 48;
/// Of what reads a cache, because filling one takes as long as a prompt.
const MAX_CACHES: u64 = 8;
/// The same of products whose weights no cache shall hold: nearly as many ops as a layer may have.
const MAX_COLD_COPIES: u64 = 240;
/// Bytes that all copies together read and write at the most, where there are more than two.
const MAX_BYTES: u64 = 1 << 30;
/// What a machine of two slow cores can do.
const SLOW: Roof = Roof { memory: 20e9, int8: Some(1e12) };

/// An op that was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What.
    pub spec: Spec,
    /// What it takes by its definition.
    pub counts: Counts,
    /// Seconds of one copy.
    pub seconds: Samples,
    /// Copies that ran in each sample.
    pub copies: usize,
    /// What was to be seen meanwhile.
    pub seen: Seen,
}

impl Measured {
    /// Bytes a second.
    pub fn bandwidth(&self) -> f64 {
        self.counts.bytes as f64 / self.seconds.median()
    }

    /// Operations a second, by definition.
    pub fn rate(&self) -> f64 {
        self.counts.operations as f64 / self.seconds.median()
    }

    /// The time that the ceilings allow at the least: to read and write its bytes, or to make its products of bytes.
    /// None where it has products and the roof no rate for them.
    pub fn least_seconds(&self, roof: &Roof) -> Option<f64> {
        let memory = self.counts.bytes as f64 / roof.memory;
        match (self.counts.byte_operations, roof.int8) {
            (0, _) => Some(memory),
            (operations, Some(rate)) => Some(memory.max(operations as f64 / rate)),
            (_, None) => None,
        }
    }

    /// Whether something else had its hand in it, or its samples are far apart.
    pub fn is_disturbed(&self) -> bool {
        !self.seen.disturbances.is_empty() || self.seconds.spread() > MOST_SPREAD
    }

    /// The row of a report, with shares of the roof where there is one.
    pub fn row(&self, roof: Option<&Roof>) -> Row {
        let Self { spec, counts, seconds, .. } = self;
        let mut row = Row::new([
            ("op", spec.op.into()),
            ("shape", spec.to_string().into()),
            ("variant", spec.variant.name().into()),
        ])
        .figure(Figure::of("median_micros", "us", &seconds.0.iter().map(|s| 1e6 * s).collect()))
        .figure(Figure::exact("samples", "samples", seconds.0.len() as f64))
        .figure(Figure::exact("gigabytes_per_second", "GB/s", self.bandwidth() / 1e9))
        .figure(Figure::exact("tera_ops_per_second", "TOP/s", self.rate() / 1e12))
        .figure(Figure::exact("bytes_counted", "bytes", counts.bytes as f64))
        .figure(Figure::exact("operations_counted", "operations", counts.operations as f64));
        if let Some(roof) = roof {
            let byte_rate = counts.byte_operations as f64 / seconds.median();
            row = row.figure(Figure::exact("memory_share", "of memory", self.bandwidth() / roof.memory));
            if let Some(int8) = roof.int8 {
                row = row.figure(Figure::exact("int8_share", "of int8", byte_rate / int8));
            }
            if let Some(least) = self.least_seconds(roof) {
                row = row.figure(Figure::exact("roof_share", "of the roof", least / seconds.median()));
            }
        }
        row.detail("seconds", json!(seconds.0))
            .detail("copies", self.copies)
            .detail("byte_operations_counted", counts.byte_operations)
            .seen(&self.seen)
    }
}

/// Measures an op at a shape, on a device that is about as fast as the roof says where there is one.
///
/// # Errors
/// No program has that shape, or the backend fails.
pub fn measure(spec: &Spec, backend: &dyn Backend, budget: Duration, roof: Option<&Roof>) -> Result<Measured> {
    let copies = copies(spec, roof.unwrap_or(&SLOW))?;
    let case = build(spec, copies)?;
    let counts = counts(&case.program, case.op(), &case.batch);
    let params: Arc<dyn Params> = Arc::<OwnedParams>::clone(&case.params);
    let mut executor = backend.load(Arc::clone(&case.program), params)?;
    fill_caches(&case, &mut *executor)?;
    let effort = Effort { least: 5, most: 500, budget };
    let watch = Watch::start();
    let seconds = effort
        .sample(|| once(&case, &mut *executor).map(|seconds| seconds / copies as f64))
        .with_context(|| format!("{} at {spec}", spec.op))?;
    Ok(Measured { spec: spec.clone(), counts, seconds, copies, seen: watch.seen() })
}

/// As many copies as a clock and the caches ask for.
fn copies(spec: &Spec, roof: &Roof) -> Result<usize> {
    let one = build(spec, 1)?;
    let counted = counts(&one.program, one.op(), &one.batch);
    let products = roof.int8.map_or(0.0, |rate| counted.byte_operations as f64 / rate);
    let seconds = (counted.bytes as f64 / roof.memory).max(products);
    let for_clock = (LAYER_SECONDS / seconds.max(1e-9)) as u64;
    let is_cold = spec.op == "matmul" && spec.shape[0] <= FEW_ROWS;
    let for_cold = if is_cold { COLD_BYTES / counted.bytes.max(1) + 1 } else { 1 };
    let most = match spec.variant {
        Variant::Decode => MAX_CACHES,
        _ if is_cold => MAX_COLD_COPIES,
        _ => MAX_COPIES,
    };
    let most = most.min(MAX_BYTES / counted.bytes.max(1)).max(2);
    Ok(for_clock.max(for_cold).clamp(2, most) as usize)
}

/// Runs all copies of a case once, on an executor of its program whose [caches are filled](fill_caches); returns the seconds
/// that they took together.
///
/// # Errors
/// The backend fails.
pub fn once(case: &OpCase, executor: &mut dyn Executor) -> Result<f64> {
    run(case, &case.batch, case.input.as_ref(), executor)
}

/// Leaves in caches what a case reads there.
///
/// # Errors
/// The backend fails.
pub fn fill_caches(case: &OpCase, executor: &mut dyn Executor) -> Result<()> {
    let Some((batch, input)) = &case.before else { return Ok(()) };
    run(case, batch, Some(input), executor).map(|_| ())
}

fn run(case: &OpCase, batch: &Batch, input: Option<&Value>, executor: &mut dyn Executor) -> Result<f64> {
    executor.begin(batch)?;
    if let Some(input) = input {
        executor.run_layer(0)?;
        executor.write(case.program.layers[0].output, input.clone())?;
    }
    let start = Instant::now();
    executor.run_layer(case.layer)?;
    Ok(start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use lockstep_kernels::cpu::Cpu;
    use lockstep_kernels::reference::Reference;

    use super::*;

    #[test]
    fn what_is_reported_follows_from_what_was_counted_and_measured() {
        let spec = Spec::new("matmul", &[2, 64, 32], Variant::W8).expect("a shape");
        let cpu = Cpu::new(None, 1).expect("a backend");
        for backend in [&cpu as &dyn Backend, &Reference] {
            let measured = measure(&spec, backend, Duration::ZERO, None).expect("measured");
            assert!(measured.seconds.median() > 0.0 && measured.seconds.0.len() == 5);
            assert_eq!(measured.counts.operations, 2 * 2 * 64 * 32);
            let operations = measured.rate() * measured.seconds.median();
            assert!((operations / 8_192.0 - 1.0).abs() < 1e-9);
        }
    }

    /// The last of three blocks' positions on its own, after the others, is the last row of all of them.
    #[test]
    fn a_row_after_a_cache_is_that_of_the_whole() {
        let cpu = Cpu::new(None, 1).expect("a backend");
        let last_row = |variant| {
            let case = build(&Spec::new("attention", &[515, 4, 2, 8], variant).expect("a shape"), 2).expect("a case");
            let mut executor = cpu.load(Arc::clone(&case.program), case.params.clone()).expect("loaded");
            fill_caches(&case, &mut *executor).expect("filled");
            for _ in 0..2 {
                once(&case, &mut *executor).expect("run");
            }
            let Value::I32(rows) = executor.read(case.op().out()).expect("written") else { panic!("rows of i32") };
            rows[rows.len() - 32..].to_vec()
        };
        let (whole, next) = (last_row(Variant::Causal), last_row(Variant::Decode));
        assert!(whole == next && whole.iter().any(|v| *v != 0), "{whole:?} {next:?}");
    }

    #[test]
    fn a_shape_that_is_none_says_why() {
        for (op, shape, part) in [
            ("matmul", &[1, 2][..], "rowsxreductionxcolumns"),
            ("matmul", &[1, 1 << 19, 2], "524288 reduction are too many"),
            ("matmul", &[1 << 17, 1 << 17, 1 << 17], "too large"),
            ("add", &[0, 4], "rows of add are 1 or more"),
            ("nothing", &[1], "no op is called"),
        ] {
            let said = Spec::new(op, shape, Variant::W8).map_err(|error| error.to_string());
            assert!(said.as_ref().is_err_and(|said| said.contains(part)), "{said:?}");
        }
    }

    #[test]
    fn few_rows_get_as_many_weights_as_no_cache_holds() {
        let copies = |shape: &[usize]| {
            copies(&Spec::new("matmul", shape, Variant::W8).expect("a shape"), &SLOW).expect("copies")
        };
        assert!(copies(&[1, 1024, 4096]) * 1024 * 4096 >= COLD_BYTES as usize);
        assert!((100..200).contains(&copies(&[1, 576, 1536])));
        assert_eq!(copies(&[1, 576, 576]), MAX_COLD_COPIES as usize);
        assert_eq!(copies(&[512, 1024, 4096]), 2);
        // A device that is a hundred times as fast has as many more, up to the most that there may be.
        let fast = Roof { memory: 2e12, int8: None };
        let on_fast = |shape: &[usize]| {
            super::copies(&Spec::new("matmul", shape, Variant::W8).expect("a shape"), &fast).expect("copies")
        };
        assert_eq!((on_fast(&[512, 512, 512]), on_fast(&[1, 8192, 32768])), (MAX_COPIES as usize, 3));
    }
}
