//! `lockstep bench commit`

use std::path::PathBuf;

use clap::Args;
use lockstep_benches::commit::{Workload, measure};
use lockstep_benches::watch::Watch;

use super::output::{self, DeviceArgs, OutputArgs};
use super::{limits, package};
use crate::exit::{Exit, OrExit, Outcome};

/// Arguments of `lockstep bench commit`.
#[derive(Args)]
pub struct CommitArgs {
    /// Package to run, an encoder [default: random weights in the shape of all-MiniLM-L6-v2].
    #[arg(long, value_name = "FILE")]
    package: Option<PathBuf>,
    /// Sequences of one pass.
    #[arg(long, value_name = "N", default_value = "1", value_parser = limits::count(limits::MAX_BATCH))]
    batch: usize,
    /// Tokens of each sequence.
    #[arg(long, value_name = "N", default_value = "128", value_parser = limits::count(limits::MAX_TOKENS))]
    tokens: usize,
    /// Passes that count.
    #[arg(long, value_name = "N", default_value = "30", value_parser = limits::count(limits::MAX_SAMPLES))]
    passes: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Measures.
pub fn run(args: &CommitArgs, output: OutputArgs) -> Outcome {
    let threads = args.device.threads();
    let (encoder, named) = package::encoder(args.package.as_deref(), threads)?;
    let local = args.device.open()?;
    let backend = local.honest();
    let workload = Workload { batch: args.batch, tokens: args.tokens, passes: args.passes };
    let about = format!("{} on {}, {threads} threads; medians of {}", named.name, backend.name(), args.passes);
    let mut live = output.begin(output::about("commit", about, &named, &local, threads));
    let watch = Watch::start();
    let samples = measure(&encoder, &*backend, workload).or_exit(Exit::Configuration)?;
    live.push(samples.row(workload, &watch))?;
    Ok(live.end()?)
}
