//! `lockstep bench audit`

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use clap::Args;
use lockstep_benches::audit::{Workload, measure};
use lockstep_benches::report::Report;
use lockstep_benches::watch::Watch;

use super::output::{DeviceArgs, OutputArgs, stamp};
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
    #[command(flatten)]
    device: DeviceArgs,
}

/// Measures.
pub fn run(args: &AuditArgs, output: OutputArgs) -> Outcome {
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
