//! `lockstep bench commit`

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use lockstep_benches::commit::{Workload, measure};
use lockstep_benches::report::Report;
use lockstep_benches::watch::Watch;

use super::output::{DeviceArgs, OutputArgs, stamp};
use crate::cli::generate;
use crate::exit::{Exit, OrExit, Outcome};

/// Arguments of `lockstep bench commit`.
#[derive(Args)]
pub struct CommitArgs {
    /// Package to run.
    #[arg(long, value_name = "FILE")]
    package: PathBuf,
    /// Sequences of one pass.
    #[arg(long, default_value = "1")]
    batch: NonZeroUsize,
    /// Tokens of each sequence.
    #[arg(long, default_value = "128")]
    tokens: NonZeroUsize,
    /// Passes that count.
    #[arg(long, default_value = "30")]
    passes: NonZeroUsize,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Measures.
pub fn run(args: &CommitArgs, output: OutputArgs) -> Outcome {
    let backend = args.device.open()?;
    let threads = args.device.threads();
    let package = generate::open(Some(&args.package), threads)?;
    let workload = Workload { batch: args.batch.get(), tokens: args.tokens.get(), passes: args.passes.get() };
    let watch = Watch::start();
    let samples = measure(&package, &*backend, workload).or_exit(Exit::Configuration)?;
    let about =
        format!("{} on {}, {threads} threads; medians of {}", package.manifest().name, backend.name(), args.passes);
    let mut report = Report::new("commit", about);
    report.rows.push(samples.row(workload, &watch));
    stamp(&mut report, &package, &backend.name(), threads);
    output.print(&report);
    Ok(())
}
