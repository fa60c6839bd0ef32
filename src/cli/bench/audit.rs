//! `lockstep bench audit`

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use lockstep_benches::audit::{Workload, measure};
use lockstep_benches::lockstep;
use lockstep_benches::report::Report;
use lockstep_benches::watch::Watch;

use super::output::{DeviceArgs, OutputArgs, stamp};
use crate::backend;
use crate::cli::generate;
use crate::exit::{Exit, OrExit, Outcome};

/// Arguments of `lockstep bench audit`.
#[derive(Args)]
pub struct AuditArgs {
    /// Package to run [default: the shipped model].
    #[arg(long, value_name = "FILE")]
    package: Option<PathBuf>,
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value = "64")]
    prompt: NonZeroUsize,
    /// Tokens to generate.
    #[arg(long, value_name = "N", default_value = "512")]
    tokens: NonZeroU32,
    /// Times that count.
    #[arg(long, value_name = "N", default_value = "3")]
    samples: NonZeroUsize,
    /// Measure what an auditor adds that runs beside the worker: through a real coordinator and two workers, which take
    /// half of the threads each.
    #[arg(long)]
    lockstep: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Measures.
pub fn run(args: &AuditArgs, output: OutputArgs) -> Outcome {
    if args.lockstep {
        return beside(args, output);
    }
    let backend = args.device.open()?;
    let threads = args.device.threads();
    let package = generate::open(args.package.as_deref(), threads)?;
    let workload = Workload { prompt: args.prompt.get(), tokens: args.tokens.get(), samples: args.samples.get() };
    let watch = Watch::start();
    let samples = measure(&package, &*backend, workload).or_exit(Exit::Configuration)?;
    let about =
        format!("{} on {}, {threads} threads; medians of {}", package.manifest().name, backend.name(), args.samples);
    let mut report = Report::new("audit", about);
    report.rows.push(samples.row(workload, &watch));
    report.summary = Some(format!("an audit costs {:.2}% of the generation", 100.0 * samples.ratio()));
    stamp(&mut report, &package, &backend.name(), threads);
    output.print(&report);
    Ok(())
}

/// Measures audits in lockstep.
fn beside(args: &AuditArgs, output: OutputArgs) -> Outcome {
    let threads = args.device.threads();
    let each = NonZeroUsize::new(threads.get() / 2).unwrap_or(NonZeroUsize::MIN);
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let path = generate::file(args.package.as_deref())?;
    let package = generate::open(Some(&path), threads)?;
    let backends = [backend::open(&args.device.backend, each)?, backend::open(&args.device.backend, each)?];
    let name = backends[0].name();
    let workload =
        lockstep::Workload { prompt: args.prompt.get(), tokens: args.tokens.get(), samples: args.samples.get() };
    let runtime = tokio::runtime::Runtime::new()?;
    let measured = runtime.block_on(lockstep::measure(&path, backends, workload, folder.path()));
    let measured = measured.or_exit(Exit::Configuration)?;
    let about = format!(
        "{} on {name}, {each} threads for each of two workers on this machine, prompt of {} tokens, {} generated; medians of {}",
        package.manifest().name,
        args.prompt,
        args.tokens,
        args.samples
    );
    let mut report = Report::new("audit", about);
    report.rows = measured.rows();
    let [[word, receipt], [shared, shared_receipt]] = measured.added().map(|added| added.map(|seconds| 1e3 * seconds));
    report.summary = Some(format!(
        "an auditor in lockstep adds {word:.1} ms to the last word and {receipt:.1} ms to the receipt, beside {shared:.1} and \
         {shared_receipt:.1} ms because two workers compute on one machine"
    ));
    stamp(&mut report, &package, &name, each);
    output.print(&report);
    Ok(())
}
