//! `lockstep bench embed`

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use lockstep_benches::commit::{Workload, measure};
use lockstep_benches::report::Report;
use lockstep_benches::watch::Watch;

use super::output::{DeviceArgs, OutputArgs, stamp};
use crate::cli::generate;
use crate::exit::{Exit, OrExit, Outcome};
use crate::progress;

/// Arguments of `lockstep bench embed`.
#[derive(Args)]
pub struct EmbedArgs {
    /// Package to run.
    #[arg(long, value_name = "FILE")]
    package: PathBuf,
    /// Sequences of one pass, separated by commas.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,32")]
    batch: Vec<NonZeroUsize>,
    /// Tokens of each sequence, separated by commas.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "128")]
    tokens: Vec<NonZeroUsize>,
    /// Passes that count.
    #[arg(long, value_name = "N", default_value = "10")]
    passes: NonZeroUsize,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Measures.
pub fn run(args: &EmbedArgs, output: OutputArgs) -> Outcome {
    let backend = args.device.open()?;
    let threads = args.device.threads();
    let package = generate::open(Some(&args.package), threads)?;
    let about =
        format!("{} on {}, {threads} threads; medians of {}", package.manifest().name, backend.name(), args.passes);
    let mut report = Report::new("embed", about);
    let bar = progress::bar((args.tokens.len() * args.batch.len()) as u64, "lengths and batches");
    for tokens in &args.tokens {
        for batch in &args.batch {
            let workload = Workload { batch: batch.get(), tokens: tokens.get(), passes: args.passes.get() };
            let watch = Watch::start();
            let samples = measure(&package, &*backend, workload).or_exit(Exit::Configuration)?;
            report.rows.push(samples.row(workload, &watch));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    stamp(&mut report, &package, &backend.name(), threads);
    output.print(&report);
    Ok(())
}
