//! `lockstep bench ops`

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use lockstep_benches::ceilings::{Ceilings, Workload};
use lockstep_benches::ops::cases::Spec;
use lockstep_benches::ops::measure;
use lockstep_benches::ops::shapes::defaults;
use lockstep_benches::report::Report;
use lockstep_benches::roofline;
use lockstep_kernels::program::OP_NAMES;

use super::gpu::{self, DeviceRoof};
use super::limits;
use super::output::{DeviceArgs, OutputArgs, on};
use crate::backend::Local;
use crate::cli::files;
use crate::exit::{Exit, Failure, OrExit, Outcome};
use crate::progress;

/// Arguments of `lockstep bench ops`.
#[derive(Args)]
#[command(
    after_help = "Without --op every op is measured at the shapes that it has in SmolLM2-135M and TinyLlama-1.1B (one row, \
which is a word, and a prompt of 512) and in all-MiniLM-L6-v2 (128 rows): about a hundred rows. --budget-ms makes that shorter or \
more exact.\n\n\
Operations and bytes are counted from an op's definition: a multiply-accumulate is two operations, and every \
operand and the result are moved once. Of the roof is the least time that the ceilings allow, over the time that it took: bytes \
from memory, or products of bytes (two for each product with 8-bit weights, four with 16-bit ones). Rows that a cache holds may \
come to more than all of memory. Ceilings are measured in the same run. Those of cuda are a copy on the device, both ways \
counted, and NVIDIA's own int8 products where cuBLASLt is installed; of wgpu there are none."
)]
pub struct OpsArgs {
    /// Only this op; without --shape at the shapes of the models below.
    #[arg(long, value_name = "NAME")]
    op: Option<String>,
    /// Its shape, as 512x2048x5632: rows, reduction and columns of a product; positions, heads, heads of keys and their size
    /// for attention; points and vocabulary for sample; rows, heads and their size for rope; else rows and columns.
    #[arg(long, requires = "op", value_name = "SHAPE")]
    shape: Option<String>,
    /// Milliseconds for each row, in which at least five samples are taken whatever they need.
    #[arg(long, value_name = "N", default_value = "300", value_parser = limits::milliseconds())]
    budget_ms: u64,
    /// MiB of memory to read for its ceiling.
    #[arg(long, value_name = "N", default_value = "1024", value_parser = limits::memory_mib())]
    memory_mib: usize,
    /// Draw a roofline with every op on it, numbered, and a table of what the numbers mean.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Measures.
pub fn run(args: &OpsArgs, output: OutputArgs) -> Outcome {
    let specs = specs(args)?;
    let local = args.device.open()?;
    let backend = local.honest();
    let threads = args.device.threads();
    let budget = Duration::from_millis(args.budget_ms);
    let is_cpu = matches!(local, Local::Cpu(_) | Local::Reference);
    if args.plot.is_some() && !is_cpu {
        return Err(anyhow!("{} has no ceilings to draw", backend.name())).or_exit(Exit::Configuration);
    }
    // Before all the work: whatever can't be written is known at once.
    let plot = args.plot.as_deref().map(files::open_to_write).transpose()?;
    let workload = Workload { threads: threads.get(), memory_bytes: args.memory_mib << 20, budget };
    let ceilings = is_cpu.then(|| Ceilings::measure(workload));
    let of_device = match &local {
        Local::Cuda(cuda) => Some(gpu::measure(cuda, budget)?),
        _ => None,
    };
    let roof = ceilings.as_ref().map(Ceilings::roof).or_else(|| of_device.as_ref().map(|device| device.roof));
    let doubts = ceilings.as_ref().map_or(&[][..], |ceilings| &ceilings.disturbed);
    let mut live = output.begin(report(&local, threads, ceilings.as_ref(), of_device.as_ref()));
    let mut all = Vec::with_capacity(specs.len());
    let bar = progress::bar(specs.len() as u64, "ops");
    for spec in &specs {
        let measured = measure(spec, &*backend, budget, of_device.as_ref().map(|device| &device.roof))
            .or_exit(Exit::Configuration)?;
        live.push(measured.row(roof.as_ref()).doubted(doubts))?;
        all.push(measured);
        bar.inc(1);
    }
    bar.finish_and_clear();
    live.end()?;
    if let (Some(mut plot), Some(ceilings)) = (plot, &ceilings) {
        let cpu = live.report.environment.as_ref().and_then(|environment| environment.cpu.as_deref());
        let on = format!("{}, {threads} threads ({})", cpu.unwrap_or("unknown CPU"), backend.name());
        let svg = roofline::svg(&all, ceilings, &on);
        plot.set_len(0).and_then(|()| plot.write_all(svg.as_bytes())).context("cannot write the plot")?;
    }
    Ok(())
}

/// A report with the ceilings of whatever computes.
fn report(local: &Local, threads: NonZeroUsize, cpu: Option<&Ceilings>, gpu: Option<&DeviceRoof>) -> Report {
    let name = local.honest().name();
    let mut report = on(Report::new("ops", format!("ops on {name}, {threads} threads")), local)
        .label("backend", name)
        .label("threads", threads.get());
    if let Some(ceilings) = cpu {
        let (memory, int8) = (ceilings.memory / 1e9, ceilings.int8 / 1e12);
        report.summary =
            Some(format!("ceilings: memory {memory:.1} GB/s, int8 {int8:.2} TOP/s on {}", ceilings.unit.name()));
        report = report.detail("ceiling_gigabytes_per_second", memory).detail("ceiling_tera_ops_per_second", int8);
    }
    if let Some(device) = gpu {
        report.summary = Some(device.summary.clone());
        report.details.extend(device.details.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    }
    report
}

fn specs(args: &OpsArgs) -> Result<Vec<Spec>, Failure> {
    let Some(op) = &args.op else { return Ok(OP_NAMES.into_iter().flat_map(defaults).collect()) };
    if let Some(shape) = &args.shape {
        let numbers: Result<Vec<usize>, _> = shape.split('x').map(str::parse).collect();
        let numbers = numbers
            .map_err(|e| anyhow!("{shape:?} is no shape, as 512x2048x5632 is one: {e}"))
            .or_exit(Exit::Configuration)?;
        return Spec::all(op, &numbers).or_exit(Exit::Configuration);
    }
    let specs = defaults(op);
    if specs.is_empty() {
        return Err(anyhow!("no op is called {op:?}; there are {}", OP_NAMES.join(", "))).or_exit(Exit::Configuration);
    }
    Ok(specs)
}
